"""Vacuum: Parquet files that no version of the table has which a reader may still hold, and old log entries.

A reader takes the version that the ledger gives it and may go on with it for the grace period. So a file may go when
it is in neither the version that readers were given when the grace period began, nor in any later one. File names
begin with the sequence of their build, and the ledger says which builds published later: not only those that were
claimed later. Files of aborted builds are swept as orphans.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice

from sqlalchemy import Connection

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import TableError
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.ledger.counters import VACUUMED_BYTES, VACUUMED_FILES, count
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.ledger.history import published_build_before, sequences_after
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.freed import Freed
from timestore_pipeline.storage import Entry, Storage
from timestore_pipeline.storage.table_folder import file_name, has_table, log_sizes, parquet_files
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import live_files, sequence_of_file
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.upkeep.chores import ChoreOfDatasets, Round

log = log_named(__name__)


def find_unreadable_files(store: Store, dataset: str, now: int, *, max_files: int | None = None) -> dict[str, int]:
    """Return the files of a dataset's table that nobody can read any more, key → bytes; at most ``max_files``.

    ``now`` is in microseconds since the epoch.

    Raises:
        TableError: the table cannot be read.
    """
    place = store.table(dataset)
    if not has_table(place):
        return {}
    moment = now - int(store.settings.vacuum_grace_seconds * 1e6)
    with store.ledger.read() as tx:
        oldest = published_build_before(tx, dataset, moment)
        later = sequences_after(tx, dataset, moment)
    return {file.key: file.bytes for file in islice(_unreferenced(place, dataset, oldest, later), max_files)}


def vacuum_table(store: Store, dataset: str, *, max_files: int | None = None, now: int | None = None) -> Freed:
    """Remove what :func:`find_unreadable_files` finds, ``now`` by default being the clock's.

    Safe to be killed, and beside builds: no commit can refer to a file that goes.

    Raises:
        TableError: the table cannot be read, or is not ours; nothing was removed.
    """
    place = store.table(dataset)
    found = find_unreadable_files(store, dataset, now_micros() if now is None else now, max_files=max_files)
    freed = Freed()
    try:
        for gone in OwnTable(store, dataset).remove(found):
            freed += Freed.of(found[key] for key in gone)
            reach(CrashPoint.VACUUM_REMOVED)
    except OSError as error:
        log.warning("%s: files in %s cannot be removed: %s", dataset, place.location, error.strerror or error)
    if freed.files:

        def record(tx: Connection) -> None:
            lock_dataset(tx, dataset)
            count(tx, VACUUMED_FILES, dataset, "", freed.files)
            count(tx, VACUUMED_BYTES, dataset, "", freed.bytes)

        store.ledger.transact(record, repeatable=False)
    return freed


def _unreferenced(place: Storage, dataset: str, oldest: Build | None, later: Collection[int]) -> Iterator[Entry]:
    """Yield the files of builds up to ``oldest``, but not of those ``later``, that no version has from that build's on.

    Builds claimed after ``oldest`` are left alone, wherever they stand: those that are not known yet are among them.
    """
    if oldest is None:
        return
    # Listed before the table is opened: what is committed in between is not among them.
    candidates = [
        file
        for file in parquet_files(place)
        if (sequence := sequence_of_file(file_name(file.key))) is not None
        and sequence <= oldest.sequence
        and sequence not in later
    ]
    if not candidates:
        return
    referenced = {file.path for file in live_files(open_table(place, dataset))}
    try:
        then = open_table(place, dataset, oldest.table_version)
    except TableError as error:
        # Another program has cleaned up the log: what that version had is known again once a later build is the oldest.
        log.info("%s: nothing is vacuumed: %s", dataset, error)
        return
    referenced |= {file.path for file in live_files(then)}
    for file in candidates:
        if file.key not in referenced:
            yield file


def clean_log(store: Store, dataset: str, now: int | None = None) -> Freed:
    """Remove entries of the table's log that are older than its log retention and behind a checkpoint.

    Only such as nobody needs to open a version that a reader may still hold.
    """
    now = now_micros() if now is None else now
    place = store.table(dataset)
    if not has_table(place):
        return Freed()
    with store.ledger.read() as tx:
        oldest = published_build_before(tx, dataset, now - int(store.settings.vacuum_grace_seconds * 1e6))
    if oldest is None:
        return Freed()
    OwnTable(store, dataset).opened()
    before = log_sizes(place)
    try:
        table = open_table(place, dataset, oldest.table_version)
    except TableError:
        return Freed()  # another program has cleaned up more than that
    table.cleanup_metadata()
    after = log_sizes(place)
    gone = [size for name, size in before.items() if name not in after]
    return Freed(len(gone), sum(gone))


def _not_known_before(round_: Round, dataset: str) -> Freed:
    """Only delta-rs knows which entries go, and it says so by removing them."""
    return Freed()


UNREADABLE_FILES = ChoreOfDatasets(
    "vacuumed",
    "vacuum",
    lambda dataset: Freed(),
    find=lambda round_, dataset: Freed.of(
        find_unreadable_files(round_.store, dataset, round_.now, max_files=round_.most).values()
    ),
    remove=lambda round_, dataset: vacuum_table(round_.store, dataset, max_files=round_.most, now=round_.now),
)

LOG_ENTRIES = ChoreOfDatasets(
    "log_entries",
    "table log",
    lambda dataset: Freed(),
    find=_not_known_before,
    remove=lambda round_, dataset: clean_log(round_.store, dataset, round_.now),
)

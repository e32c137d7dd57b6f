"""What crashed processes and aborted builds left of tables: files that no commit refers to and none ever will."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.durable_files import TEMPORARY_SUFFIX
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger.history import aborted_sequences
from timestore_pipeline.model.freed import Freed
from timestore_pipeline.storage import Entry, Storage
from timestore_pipeline.storage.table_folder import file_name, parquet_files, scratch_of_windows, unfinished_entries
from timestore_pipeline.store import Store
from timestore_pipeline.table.manifests import pending_manifest, pending_manifests
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.table import file_prefix

log = logging.getLogger(__name__)


def local_orphans(store: Store, datasets: Iterable[str]) -> Iterator[Path]:
    """Go through the local scratch of builds on their way to an object store, which may be orphaned.

    That of builds that still live is among it: whoever removes any looks at its age.
    """
    for dataset in datasets:
        yield from store.settings.temp_path.glob(f"{dataset}-*-parquet{TEMPORARY_SUFFIX}")


def sweep_tables(
    store: Store, datasets: Iterable[str], older_than: float, *, max_files: int | None = None, dry_run: bool = False
) -> Freed:
    """Remove what is left in the folders of tables since before ``older_than`` (seconds since the epoch).

    A table that is not ours is left alone, and holds no other.
    """
    with store.ledger.read() as tx:
        aborted = aborted_sequences(tx)
    freed = Freed()
    for dataset in datasets:
        left = None if max_files is None else max_files - freed.files
        old = (
            entry
            for entry in _orphans(store.table(dataset), aborted.get(dataset, set()))
            if entry.modified_at < older_than * 1e6
        )
        found = {entry.key: entry.bytes for entry in islice(old, left)}
        if dry_run:
            freed += Freed(len(found), sum(found.values()))
            continue
        try:
            for gone in OwnTable(store, dataset).remove(found):
                freed += Freed(len(gone), sum(found[key] for key in gone))
                reach(CrashPoint.ORPHAN_REMOVED)
        except (TimestoreError, OSError) as error:
            log.warning("%s: nothing is swept in the folder of its table: %s", dataset, error)
    return freed


def _orphans(place: Storage, sequences: Collection[int]) -> Iterator[Entry]:
    """Go through what aborted builds with these sequences left in the folder of a table, and what delta-rs did."""
    yield from scratch_of_windows(place)
    yield from unfinished_entries(place)
    if not sequences:
        return
    for sequence in pending_manifests(place):
        pending = place.entry(pending_manifest(sequence)) if sequence in sequences else None
        if pending is not None:
            yield pending
    prefixes = tuple(file_prefix(sequence) for sequence in sequences)
    yield from (entry for entry in parquet_files(place) if file_name(entry.key).startswith(prefixes))

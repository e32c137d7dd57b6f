"""Removing a dataset that is not declared any more: its queue, its segments, its quarantine, the ledger's rows of it.

Its table only if asked for. Only files go of which the ledger, their own description or the table's log says that they
are the dataset's; others are named and stay. It can be killed anywhere: done again it goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection

from timestore_pipeline.datasets import NAME_PATTERN, SCRATCH_PREFIX
from timestore_pipeline.durable_files import TEMPORARY_SUFFIX
from timestore_pipeline.errors import RemovalRefused, TableError, UnknownDataset
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.datasets import known_datasets, lock_dataset
from timestore_pipeline.ledger.forgetting import forget_dataset
from timestore_pipeline.ledger.leases import slots_held
from timestore_pipeline.ledger.limits import Pause, pause_intake
from timestore_pipeline.ledger.quarantine import all_entries, open_entries
from timestore_pipeline.ledger.queue import QueueState, queue_states
from timestore_pipeline.ledger.segments import segment_paths
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import WINDOW_COLUMN
from timestore_pipeline.model.freed import Freed
from timestore_pipeline.segments.description import NotDescribed, read_refused_rows, read_segment
from timestore_pipeline.staging.turns import turns_of
from timestore_pipeline.storage import Entry
from timestore_pipeline.storage.layout import (
    acknowledged_correction,
    decided_by,
    folders_of,
    is_correction,
    is_refused_rows,
    is_segment,
    segments_mark,
)
from timestore_pipeline.storage.marks import table_mark
from timestore_pipeline.storage.table_folder import LOG_FOLDER, has_table, remove_whole_table
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.manifests import MANIFEST_FOLDER
from timestore_pipeline.table.opening import open_table, owner_of
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.sequences import is_of_dataset


@dataclass(frozen=True)
class Removal:
    """What is removed of a dataset, or would be.

    ``staged_rows`` and ``quarantined_rows`` are nowhere else, and neither are files in quarantine whose rows nobody
    could count; ``quarantined`` are the entries of both. ``table_rows`` are those of the table, which goes or stays by
    ``with_table``. ``staying`` are files beside those that are removed, of which nobody can say whose they are.
    """

    dataset: str
    staged_rows: int
    quarantined: int
    quarantined_rows: int
    table_rows: int
    table: str | None
    with_table: bool
    staging: Freed
    tables: Freed
    staying: tuple[str, ...]

    @property
    def lost_rows(self) -> int:
        """How many rows are nowhere any more afterwards."""
        return self.staged_rows + self.quarantined_rows + (self.table_rows if self.with_table else 0)


@dataclass(frozen=True)
class _Found:
    removal: Removal
    staged: tuple[str, ...]
    table_keys: tuple[str, ...]


def plan_removal(store: Store, dataset: str, *, with_table: bool) -> Removal:
    """Return what :func:`remove_dataset` would remove; nothing is changed.

    Raises:
        UnknownDataset, RemovalRefused, TableError, LedgerError, StorageError: as :func:`remove_dataset`.
    """
    return _look(store, dataset, with_table=with_table).removal


def remove_dataset(store: Store, dataset: str, *, with_table: bool, lost_rows: int, by: str) -> Removal:
    """Remove all that there is of a dataset that ``datasets.yaml`` does not have any more.

    Args:
        store: the installation.
        dataset: its name.
        with_table: also its table.
        lost_rows: how many rows are then nowhere any more, as :func:`plan_removal` says: just these are given up.
        by: who does it, for people.

    Returns:
        What was removed.

    Raises:
        UnknownDataset: neither ledger nor staging knows it.
        RemovalRefused: it is declared, in use, or another number of rows would be lost; nothing was removed.
        TableError: its table cannot be read, or is not known to be the dataset's.
        LedgerError, StorageError, OSError: what was not removed yet is by the same again.
    """
    found = _look(store, dataset, with_table=with_table)
    if found.removal.lost_rows != lost_rows:
        raise RemovalRefused(
            dataset,
            f"{found.removal.lost_rows:,} rows of it would be nowhere any more, not {lost_rows:,}",
            f"Look what there is: timestore dataset remove {dataset} --dry-run",
        )

    def close(tx: Connection) -> None:
        """Let processes with the old file stage nothing any more, and see that nobody is at it."""
        if dataset in known_datasets(tx):
            pause_intake(tx, Pause(dataset, by, now_micros(), "it is being removed"))
            _refuse_in_use(tx, dataset)

    store.ledger.transact(close)
    store.staging.delete(*found.staged, segments_mark(dataset))
    if found.table_keys:
        place = store.table(dataset)
        remove_whole_table(place, found.table_keys)
        place.prune()
        store.tables.delete(table_mark(dataset))
    for folder in folders_of(dataset):
        store.staging.prune(folder)
    for path in store.settings.temp_path.glob(f"{dataset}-*{TEMPORARY_SUFFIX}*"):
        with suppress(OSError):
            path.unlink()

    def forget(tx: Connection) -> None:
        lock_dataset(tx, dataset)
        _refuse_in_use(tx, dataset)
        forget_dataset(tx, dataset)

    store.ledger.transact(forget)
    return found.removal


def _look(store: Store, dataset: str, *, with_table: bool) -> _Found:
    if dataset in store.datasets.declared:
        raise RemovalRefused(dataset, "datasets.yaml declares it", "Take it out of the file first, and reload Dagster.")
    if not re.fullmatch(NAME_PATTERN, dataset) or dataset.startswith(SCRATCH_PREFIX):
        raise UnknownDataset(dataset, list(store.datasets.declared))
    store.staging.require()
    with store.ledger.read() as tx:
        known = dataset in known_datasets(tx)
        _refuse_in_use(tx, dataset)
        queue = queue_states(tx).get(dataset, QueueState(dataset))
        kept = segment_paths(tx, dataset) | {entry.path for entry in all_entries(tx) if entry.dataset == dataset}
        quarantined = open_entries(tx, dataset)
    entries = [entry for folder in folders_of(dataset) for entry in store.staging.entries(f"{folder}/")]
    entries = [entry for entry in entries if entry.key != segments_mark(dataset)]
    own = [entry for entry in entries if _is_own(store, dataset, entry.key, kept)]
    others = sorted({entry.key for entry in entries} - {entry.key for entry in own})
    staying = [store.staging.shown(key) for key in others]
    place = store.table(dataset)
    there = has_table(place)
    if not known and not own and not (there and with_table):
        raise UnknownDataset(dataset, sorted(store.datasets.declared))
    table_entries: list[Entry] = []
    rows = 0
    if there:
        ours = OwnTable(store, dataset)
        if known:
            ours.refuse_to_read()  # an older ledger does not know what is staged either
        table = ours.accept(ours.look()) if known and with_table else open_table(place, dataset)
        rows = sum(file.rows for file in live_files(table))
        if with_table:
            if not is_of_dataset(table, dataset) or owner_of(table) not in (None, store.ledger.identity):
                raise TableError(
                    f"dataset {dataset!r}: nothing in the log of the table at {place.location} says that it is this "
                    "dataset's, so it was not removed. Remove it by hand if it is."
                )
            everything = list(place.entries())
            table_entries = [entry for entry in everything if _is_of_table(entry.key)]
            staying += [place.shown(entry.key) for entry in everything if not _is_of_table(entry.key)]
    removal = Removal(
        dataset=dataset,
        staged_rows=queue.pending_rows,
        quarantined=len(quarantined),
        quarantined_rows=sum(entry.rows or 0 for entry in quarantined),
        table_rows=rows,
        table=place.location if there else None,
        with_table=with_table,
        staging=_freed(own),
        tables=_freed(table_entries),
        staying=tuple(staying),
    )
    return _Found(removal, tuple(entry.key for entry in own), tuple(entry.key for entry in table_entries))


def _refuse_in_use(tx: Connection, dataset: str) -> None:
    for build in builds_in_flight(tx, dataset):
        raise RemovalRefused(
            dataset,
            f"build {build.id} of {build.owner} is in flight",
            "Wait for its end; where its process is gone, put the dataset back into datasets.yaml, run "
            f"'timestore flush {dataset}', and take it out again.",
        )
    if slots_held(tx, turns_of(dataset), now_micros()):
        raise RemovalRefused(dataset, "a process is staging rows of it", "Stop that process, or wait for a minute.")


def _is_own(store: Store, dataset: str, key: str, kept: Iterable[str]) -> bool:
    """Whether the ledger has a file of the staging directory as the dataset's, or it says so itself."""
    decided = decided_by(key)
    if key in kept or (decided is not None and decided[0] in kept):
        return True
    if is_correction(acknowledged_correction(key) or key):
        return True  # only corrections have such names, and their folder is the dataset's
    if not is_segment(key) and not is_refused_rows(key):
        return False
    try:
        path = store.staging.fetch(key)
        with store.connect(*store.segment_folders(dataset)) as connection:
            if is_segment(key):
                return read_segment(connection, path)[0].dataset == dataset
            return read_refused_rows(connection, path).dataset == dataset
    except (NotDescribed, FileNotFoundError):
        return False


def _is_of_table(key: str) -> bool:
    return key.startswith((f"{LOG_FOLDER}/", f"{MANIFEST_FOLDER}/", f"{WINDOW_COLUMN}="))


def _freed(entries: Iterable[Entry]) -> Freed:
    sizes = [entry.bytes for entry in entries]
    return Freed(len(sizes), sum(sizes))

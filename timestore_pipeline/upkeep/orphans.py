"""Orphans: files that no ledger row knows and no commit refers to, and none ever will.

Processes that crashed left them, and builds that were aborted: in staging, in scratch and in the folders of tables.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

from sqlalchemy import Connection

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.durable_files import TEMPORARY_SUFFIX
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.corrections import correction_paths
from timestore_pipeline.ledger.datasets import lock_datasets
from timestore_pipeline.ledger.history import aborted_sequences
from timestore_pipeline.ledger.quarantine import open_entries, resolved_paths
from timestore_pipeline.ledger.segments import paths_on_disk
from timestore_pipeline.model.freed import Freed
from timestore_pipeline.segments.corrections import keep_correction
from timestore_pipeline.storage import Entry, Storage
from timestore_pipeline.storage.layout import (
    acknowledged_correction,
    decided_by,
    folders_of,
    gathering_files,
    is_aside,
    is_of_segment,
    is_refused_rows,
    is_unfinished,
)
from timestore_pipeline.storage.table_folder import file_name, parquet_files, scratch_of_windows, unfinished_entries
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import file_prefix
from timestore_pipeline.table.manifests import pending_manifest, pending_manifests
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.upkeep.chores import Chore
from timestore_pipeline.upkeep.published_segments import without_a_sound_table

log = log_named(__name__)

ORPHAN_AGE_SECONDS = 3_600
"""An unknown file younger than this may belong to a process that is about to put it into the ledger."""


@dataclass(frozen=True)
class _Suspects:
    """Files that are old enough: in scratch, and in staging, where the ledger decides. ``before`` is in seconds."""

    datasets: Sequence[str]
    before: float
    scratch: Sequence[Path]
    staged: Sequence[Entry]

    @classmethod
    def of(cls, store: Store, older_than_seconds: float, datasets: Collection[str] | None) -> Self:
        for place in (store.staging, store.tables):
            place.require()
        names = [name for name in store.datasets if datasets is None or name in datasets]
        before = time.time() - older_than_seconds
        staged_before = min(before, time.time() - store.staging.traits.unswept_seconds)
        # A ledger that is older than a table may be older than segments, too, and know nothing of them.
        unsound = without_a_sound_table(store, names)
        names = [name for name in names if name not in unsound]
        # Listed before the ledger is asked: a file that is acknowledged in between is then known.
        scratch = [path for path in _scratch(store, names) if _modified_at(path) < before]
        staged = [entry for entry in _staged(store, names) if entry.modified_at < staged_before * 1e6]
        return cls(names, before, scratch, staged)

    def unknown(self, tx: Connection, most: int | None) -> tuple[list[Entry], list[Path]]:
        """Return those in staging that the ledger does not know, and those in scratch; together at most so many."""
        if not self.staged:
            return [], list(self.scratch[:most])
        known = paths_on_disk(tx) | {entry.path for entry in open_entries(tx)} | correction_paths(tx)
        resolved = resolved_paths(tx)
        there = {entry.key for entry in self.staged}
        orphans = [
            entry
            for entry in self.staged
            if (acknowledged_correction(entry.key) or entry.key) not in known
            and (not is_aside(entry.key) or entry.key in resolved or _is_of_staging(entry.key, there))
        ][:most]
        return orphans, list(self.scratch[: None if most is None else most - len(orphans)])


def find_orphans(store: Store, *, max_files: int | None = None) -> Freed:
    """Return what :func:`sweep_orphans` would remove.

    Raises:
        PlaceError: staging or tables are not there, or another installation's.
    """
    suspects = _Suspects.of(store, ORPHAN_AGE_SECONDS, None)
    with store.ledger.read() as tx:
        staged, scratch = suspects.unknown(tx, max_files)
        aborted = aborted_sequences(tx)
    freed = _size_of(staged, scratch)
    for dataset in suspects.datasets:
        left = None if max_files is None else max_files - freed.files
        freed += Freed.of(_orphans_of_table(store.table(dataset), suspects, aborted.get(dataset, set()), left).values())
    return freed


def sweep_orphans(
    store: Store,
    older_than_seconds: float = ORPHAN_AGE_SECONDS,
    *,
    max_files: int | None = None,
    datasets: Collection[str] | None = None,
) -> Freed:
    """Remove what crashed processes and aborted builds left, segments without a ledger row, discarded bytes.

    Of ``datasets``, by default of all that are declared. At most ``max_files`` go. A table that is not ours is left
    alone, and holds no other.

    Raises:
        PlaceError: staging or tables are not there, or another installation's; nothing was removed.
    """
    suspects = _Suspects.of(store, older_than_seconds, datasets)
    freed = _sweep_files(store, suspects, max_files) if suspects.scratch or suspects.staged else Freed()
    # No ledger row decides on these: what is fenced can never be published.
    with store.ledger.read() as tx:
        aborted = aborted_sequences(tx)
    for dataset in suspects.datasets:
        left = None if max_files is None else max_files - freed.files
        found = _orphans_of_table(store.table(dataset), suspects, aborted.get(dataset, set()), left)
        try:
            for gone in OwnTable(store, dataset).remove(found):
                freed += Freed.of(found[key] for key in gone)
                reach(CrashPoint.ORPHAN_REMOVED)
        except (TimestoreError, OSError) as error:
            log.warning("%s: nothing is swept in the folder of its table: %s", dataset, error)
    return freed


def local_orphans(store: Store, datasets: Iterable[str]) -> Iterator[Path]:
    """Go through the local scratch of builds on their way to an object store, which may be orphaned.

    That of builds that still live is among it: whoever removes any looks at its age.
    """
    for dataset in datasets:
        yield from store.settings.temp_path.glob(f"{dataset}-*-parquet{TEMPORARY_SUFFIX}")


def _sweep_files(store: Store, suspects: _Suspects, most: int | None) -> Freed:
    # In one transaction with the removal: a process that slept since it wrote its segment, and acknowledges it now,
    # does so before, and the file is known, or after, and finds it gone.
    with store.ledger.write() as tx:
        lock_datasets(tx, store.datasets)
        staged, scratch = suspects.unknown(tx, most)
        freed = _size_of(staged, ())
        acknowledged = correction_paths(tx)
        _delete_orphans(store, [entry.key for entry in staged])
        for path in scratch:
            freed += _size_of((), [path])
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            reach(CrashPoint.ORPHAN_REMOVED)
    # A process died after its correction was acknowledged, and before the file said so.
    said = (acknowledged_correction(entry.key) for entry in suspects.staged)
    for path in {path for path in said if path is not None} & acknowledged:
        keep_correction(store, path)
    return freed


def _size_of(staged: Sequence[Entry], scratch: Sequence[Path]) -> Freed:
    sizes = (path.stat().st_size if path.is_file() else 0 for path in scratch)
    return Freed.of([*(entry.bytes for entry in staged), *sizes])


def _delete_orphans(store: Store, keys: Sequence[str]) -> None:
    together = store.staging.traits.deleted_at_once
    for start in range(0, len(keys), together):
        store.staging.delete(*keys[start : start + together])
        reach(CrashPoint.ORPHAN_REMOVED)


def _staged(store: Store, datasets: Iterable[str]) -> Iterator[Entry]:
    for dataset in datasets:
        home, aside, corrections = folders_of(dataset)
        yield from (entry for entry in store.staging.entries(f"{home}/") if is_of_segment(entry.key))
        yield from store.staging.entries(f"{aside}/")
        yield from store.staging.entries(f"{corrections}/")


def _scratch(store: Store, datasets: Sequence[str]) -> Iterator[Path]:
    for dataset in datasets:
        yield from store.settings.temp_path.glob(gathering_files(dataset))
    yield from local_orphans(store, datasets)


def _is_of_staging(key: str, there: Collection[str]) -> bool:
    """Whether the name is one that staging or building gives; what else lies in quarantine is somebody's file."""
    decided = decided_by(key)
    if decided is not None:
        return decided[0] not in there
    return is_unfinished(key) or is_of_segment(key) or is_refused_rows(key)


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _orphans_of_table(
    place: Storage, suspects: _Suspects, sequences: Collection[int], most: int | None
) -> dict[str, int]:
    """Return what is left in the folder of a table that is old enough, key → bytes; at most so many."""
    left = (entry for entry in _left_in_table(place, sequences) if entry.modified_at < suspects.before * 1e6)
    return {entry.key: entry.bytes for entry in islice(left, most)}


def _left_in_table(place: Storage, sequences: Collection[int]) -> Iterator[Entry]:
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


ORPHANS = Chore(
    "orphans",
    "sweeping",
    Freed(),
    find=lambda round_: find_orphans(round_.store, max_files=round_.most),
    remove=lambda round_: sweep_orphans(round_.store, max_files=round_.most),
)

"""Unlinking segments whose rows are all published, and sweeping files that no ledger row knows."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import TableError
from timestore_pipeline.ledger.datasets import lock_datasets
from timestore_pipeline.ledger.quarantine import open_entries, resolved_paths
from timestore_pipeline.ledger.segments import mark_unlinked, paths_on_disk, published_before
from timestore_pipeline.ledger.tables import table_versions
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.freed import Freed
from timestore_pipeline.policy import Policy
from timestore_pipeline.storage import Entry
from timestore_pipeline.storage.layout import (
    decided_by,
    folders_of,
    gathering_files,
    is_aside,
    is_of_segment,
    is_refused_rows,
    is_unfinished,
)
from timestore_pipeline.storage.table_folder import has_table
from timestore_pipeline.store import Store
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.upkeep.table_orphans import local_orphans, sweep_tables

log = logging.getLogger(__name__)

ORPHAN_AGE_SECONDS = 3_600
"""An unknown file younger than this may belong to a process that is about to put it into the ledger."""

_NAMED = 3


def unlink_published_segments(
    store: Store,
    now: int | None = None,
    *,
    max_files: int | None = None,
    dry_run: bool = False,
    datasets: Collection[str] | None = None,
    retention_micros: int | None = None,
) -> Freed:
    """Unlink the segments whose rows have all been published for longer than their dataset's retention.

    Of ``datasets``, by default of all; ``retention_micros`` goes before the retention that each has.

    Safe to be killed: a segment that is gone but not yet marked is marked the next time.
    ``now`` is in microseconds since the epoch, by default the clock's; at most ``max_files`` go, oldest first.

    Raises:
        PlaceError: some are due, and staging or tables are not there, or another installation's; nothing was removed.
    """
    now = now_micros() if now is None else now
    with store.ledger.read() as tx:
        published = [
            segment for segment in published_before(tx, now) if datasets is None or segment.dataset in datasets
        ]
    kept = {
        name: (
            Policy.of(store.settings, store.datasets.declared.get(name)).staging_retention_micros
            if retention_micros is None
            else retention_micros
        )
        for name in {segment.dataset for segment in published}
    }
    expired = [segment for segment in published if segment.published_at <= now - kept[segment.dataset]]
    # Where the table is an older one, they may be the only copy of rows that were in it.
    refused = _refused(store, {segment.dataset for segment in expired})
    expired = [segment for segment in expired if segment.dataset not in refused][:max_files]
    if not expired:
        return Freed()
    store.staging.require()
    if dry_run:
        return Freed(len(expired), sum(segment.bytes for segment in expired))
    gone = []
    together = store.staging.traits.deleted_at_once
    for start in range(0, len(expired), together):
        chunk = expired[start : start + together]
        try:
            store.staging.delete(*(segment.path for segment in chunk))
        except OSError as error:
            names = ", ".join(dict.fromkeys(segment.dataset for segment in chunk))
            paths = ", ".join(segment.path for segment in chunk[:_NAMED])
            log.warning("%s: segment %s cannot be removed: %s", names, paths, error.strerror or error)
            continue
        gone += chunk
        reach(CrashPoint.SEGMENT_UNLINKED)
    unlinked = [segment.id for segment in gone]
    store.ledger.transact(lambda tx: mark_unlinked(tx, unlinked, now))
    reach(CrashPoint.RETENTION_COMMITTED)
    return Freed(len(gone), sum(segment.bytes for segment in gone))


def sweep_orphans(
    store: Store,
    older_than_seconds: float = ORPHAN_AGE_SECONDS,
    *,
    max_files: int | None = None,
    dry_run: bool = False,
    datasets: Collection[str] | None = None,
) -> Freed:
    """Remove what crashed processes and aborted builds left, segments without a ledger row, discarded bytes.

    Of ``datasets``, by default of all that are declared. At most ``max_files`` go.

    Raises:
        PlaceError: staging or tables are not there, or another installation's; nothing was removed.
    """
    for place in (store.staging, store.tables):
        place.require()
    names = [name for name in store.datasets if datasets is None or name in datasets]
    before = time.time() - older_than_seconds
    staged_before = min(before, time.time() - store.staging.traits.unswept_seconds)
    # A ledger that is older than a table may be older than segments, too, and know nothing of them.
    refused = _refused(store, names)
    names = [name for name in names if name not in refused]
    # Listed before the ledger is asked: a file that is acknowledged in between is then known.
    candidates = [path for path in _possible_orphans(store, names) if _modified_at(path) < before]
    staged = [entry for entry in _possible_orphans_in_staging(store, names) if entry.modified_at < staged_before * 1e6]
    freed = _sweep_files(store, candidates, staged, max_files, dry_run) if candidates or staged else Freed()
    # No ledger row decides on these: what is fenced can never be published.
    left = None if max_files is None else max_files - freed.files
    return freed + sweep_tables(store, names, before, max_files=left, dry_run=dry_run)


def _refused(store: Store, datasets: Iterable[str]) -> set[str]:
    """Return those of the datasets whose tables contradict the ledger, or have no rows to be read: nothing goes."""
    names = list(datasets)
    with store.ledger.read() as tx:
        known = table_versions(tx, names)
    found = set()
    for name in names:
        if has_table(store.table(name)):
            try:
                objection = OwnTable(store, name).look().objection
                reason = None if objection is None else objection[1]
            except TableError:
                reason = "its table cannot be opened"
        else:
            reason = None if known.get(name) is None else "its table is not there"
        if reason is not None:
            log.warning("%s: nothing of it is removed: %s. See 'timestore doctor'", name, reason)
            found.add(name)
    return found


def _sweep_files(
    store: Store, candidates: Sequence[Path], staged: Sequence[Entry], max_files: int | None, dry_run: bool
) -> Freed:
    files = size = 0
    # In one transaction with the removal: a process that slept since it wrote its segment, and acknowledges it now,
    # does so before, and the file is known, or after, and finds it gone.
    with store.ledger.write() as tx:
        lock_datasets(tx, store.datasets)
        known = paths_on_disk(tx) | {entry.path for entry in open_entries(tx)}
        resolved = resolved_paths(tx)
        there = {entry.key for entry in staged}
        orphans = [
            entry
            for entry in staged
            if entry.key not in known
            and (not is_aside(entry.key) or entry.key in resolved or _is_of_staging(entry.key, there))
        ][:max_files]
        files, size = len(orphans), sum(entry.bytes for entry in orphans)
        if not dry_run:
            _delete_orphans(store, [entry.key for entry in orphans])
        for path in candidates:
            if max_files is not None and files >= max_files:
                break
            files += 1
            size += path.stat().st_size if path.is_file() else 0
            if dry_run:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            reach(CrashPoint.ORPHAN_REMOVED)
    return Freed(files, size)


def _delete_orphans(store: Store, keys: Sequence[str]) -> None:
    together = store.staging.traits.deleted_at_once
    for start in range(0, len(keys), together):
        store.staging.delete(*keys[start : start + together])
        reach(CrashPoint.ORPHAN_REMOVED)


def _possible_orphans_in_staging(store: Store, datasets: Iterable[str]) -> Iterator[Entry]:
    for dataset in datasets:
        home, aside = folders_of(dataset)
        yield from (entry for entry in store.staging.entries(f"{home}/") if is_of_segment(entry.key))
        yield from store.staging.entries(f"{aside}/")


def _possible_orphans(store: Store, datasets: Sequence[str]) -> Iterator[Path]:
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

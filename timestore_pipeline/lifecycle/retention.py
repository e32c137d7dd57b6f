"""Unlinking segments whose rows are all published, and sweeping files that no ledger row knows."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from timestore_pipeline.building.manifests import pending_manifest, pending_manifests
from timestore_pipeline.building.table import LOG_FOLDER, file_prefix
from timestore_pipeline.clock import now_micros
from timestore_pipeline.columns import WINDOW_COLUMN
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.durable_files import TEMPORARY_SUFFIX
from timestore_pipeline.ledger.builds import aborted_sequences
from timestore_pipeline.ledger.quarantine import open_entries, resolved_paths
from timestore_pipeline.ledger.registry import lock_datasets
from timestore_pipeline.ledger.segments import mark_unlinked, paths_on_disk, published_before
from timestore_pipeline.lifecycle.freed import Freed
from timestore_pipeline.lifecycle.quarantine import DECIDED_SUFFIX
from timestore_pipeline.store import QUARANTINE_FOLDER, Store

log = logging.getLogger(__name__)

ORPHAN_AGE_SECONDS = 3_600
"""An unknown file younger than this may belong to a process that is about to put it into the ledger."""


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
    """
    now = now_micros() if now is None else now
    with store.ledger.read() as tx:
        expired = [
            segment
            for segment in published_before(tx, now)
            if (datasets is None or segment.dataset in datasets)
            and segment.published_at
            <= now
            - (staging_retention_micros(store, segment.dataset) if retention_micros is None else retention_micros)
        ][:max_files]
    if not expired:
        return Freed()
    if dry_run:
        return Freed(len(expired), sum(segment.bytes for segment in expired))
    gone = []
    for segment in expired:
        try:
            store.segment_path(segment.path).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: segment %s cannot be removed: %s", segment.dataset, segment.path, error.strerror or error)
            continue
        gone.append(segment)
        reach(CrashPoint.SEGMENT_UNLINKED)
    unlinked = [segment.id for segment in gone]
    store.ledger.transact(lambda tx: mark_unlinked(tx, unlinked, now))
    reach(CrashPoint.RETENTION_COMMITTED)
    return Freed(len(gone), sum(segment.bytes for segment in gone))


def _retention(store: Store, dataset: str, override: int | None) -> int:
    return staging_retention_micros(store, dataset) if override is None else override


def staging_retention_micros(store: Store, dataset: str) -> int:
    """Return how long a segment of a dataset is kept after it is published; of one no longer declared, by default."""
    own = store.datasets[dataset].retention.staging if dataset in store.datasets else None
    return int(store.settings.staging_retention_seconds * 1e6) if own is None else own // timedelta(microseconds=1)


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
    """
    names = [name for name in store.datasets if datasets is None or name in datasets]
    before = time.time() - older_than_seconds
    # Listed before the ledger is asked: a file that is acknowledged in between is then known.
    candidates = [path for path in _possible_orphans(store, names) if _modified_at(path) < before]
    if not candidates:
        return Freed()
    quarantine = store.settings.staging_path / QUARANTINE_FOLDER
    files = size = 0
    # In one transaction with the removal: a process that slept since it wrote its segment, and acknowledges it now,
    # does so before, and the file is known, or after, and finds it gone.
    with store.ledger.write() as tx:
        lock_datasets(tx, store.datasets)
        relative = paths_on_disk(tx) | {entry.path for entry in open_entries(tx)}
        known = {store.segment_path(path) for path in relative}
        resolved = {store.segment_path(path) for path in resolved_paths(tx)}
        for path in candidates:
            if path in known or (max_files is not None and files >= max_files):
                continue
            if path.is_relative_to(quarantine) and not (path in resolved or _is_of_staging(path)):
                continue
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


def _possible_orphans(store: Store, datasets: Iterable[str]) -> Iterator[Path]:
    staging = store.settings.staging_path
    with store.ledger.read() as tx:
        aborted = aborted_sequences(tx)
    for dataset in datasets:
        yield from (staging / dataset).glob("*.duckdb*")
        yield from (staging / QUARANTINE_FOLDER / dataset).glob("*")
        yield from store.settings.temp_path.glob(f"{dataset}-*.duckdb{TEMPORARY_SUFFIX}*")
        yield from store.table_path(dataset).glob(f"{WINDOW_COLUMN}=*/.*{TEMPORARY_SUFFIX}")
        yield from (store.table_path(dataset) / LOG_FOLDER).glob("*.json#*")
        for sequence in set(pending_manifests(store.table_path(dataset))) & aborted.get(dataset, set()):
            yield pending_manifest(store.table_path(dataset), sequence)
        prefixes = {file_prefix(sequence) for sequence in aborted.get(dataset, ())}
        for path in store.table_path(dataset).glob(f"{WINDOW_COLUMN}=*/*.parquet") if prefixes else ():
            if path.name.startswith(tuple(prefixes)):
                yield path


def _is_of_staging(path: Path) -> bool:
    """Whether the name is one that staging or building gives; what else lies in quarantine is somebody's file."""
    if path.suffix == DECIDED_SUFFIX:
        return not path.with_suffix("").with_suffix("").exists()
    return path.suffix == TEMPORARY_SUFFIX or ".duckdb" in path.suffixes or path.name.endswith(".rows.parquet")


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")

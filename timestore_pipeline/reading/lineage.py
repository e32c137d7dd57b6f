"""Which builds, segments, batches, files and runs a window of a table came from."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from itertools import groupby

from timestore_pipeline.ledger.accounts import Loss, recorded_losses
from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.ledger.corrected_windows import WindowCorrection, corrections_of_window
from timestore_pipeline.ledger.lineage import (
    SegmentShare,
    WindowBatch,
    batches_of_window,
    builds_of_window,
    published_rows_of_window,
    segments_of_window,
)
from timestore_pipeline.ledger.tables import VisibleTable, visible_tables
from timestore_pipeline.model.windows import Window
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import TableFile, file_prefix, live_files
from timestore_pipeline.table.own_table import open_to_read


@dataclass(frozen=True)
class SegmentOrigin:
    """A segment with rows in the window, and the batches that they came in."""

    share: SegmentShare
    batches: tuple[WindowBatch, ...]


@dataclass(frozen=True)
class BuildOrigin:
    """A build that wrote to the window, what it published of it, and those of its files that are live still."""

    build: Build
    segments: tuple[SegmentOrigin, ...]
    files: tuple[TableFile, ...]

    @property
    def rows(self) -> int:
        """The rows of the window that it published for the first time."""
        return sum(segment.share.rows for segment in self.segments)

    @property
    def run_id(self) -> str | None:
        """The Dagster run that it was part of; None where a command or other code built."""
        try:
            return str(uuid.UUID(self.build.owner))
        except ValueError:
            return None


@dataclass(frozen=True)
class Lineage:
    """All that is known of where a window came from.

    ``files`` are live and of no build that the ledger knows, ``forgotten_rows`` are published and of no segment that
    it knows: ledgers are pruned, and rebuilt. ``losses`` are what operators have given up, and still have.
    ``corrections`` have taken rows of the window back, or still will.
    """

    dataset: str
    window: Window
    table_version: int | None
    published_rows: int
    builds: tuple[BuildOrigin, ...]
    files: tuple[TableFile, ...]
    staged: tuple[SegmentOrigin, ...]
    quarantined: tuple[SegmentOrigin, ...]
    losses: tuple[Loss, ...] = ()
    corrections: tuple[WindowCorrection, ...] = ()

    @property
    def forgotten_rows(self) -> int:
        """Published rows whose origin the ledger does not know (any more)."""
        known = sum(origin.share.rows for build in self.builds for origin in build.segments if _is_published(origin))
        return max(0, self.published_rows + sum(each.rows for each in self.corrections) - known)


def trace_window(store: Store, dataset: str, window_key: str) -> Lineage:
    """Return where the rows of a window came from, as the ledger and the table that readers see have it.

    Raises:
        UnknownDataset: the dataset is not declared.
        ValueError: the key names no window of the dataset.
        TableError: the table is missing or damaged.
    """
    spec = store.datasets[dataset]
    window = spec.window_from_key(window_key)
    start = window.start_micros
    with store.ledger.read() as tx:
        table = visible_tables(tx, [dataset]).get(dataset, VisibleTable())
        published_rows = published_rows_of_window(tx, dataset, start)
        shares = segments_of_window(tx, dataset, start)
        found = sorted(batches_of_window(tx, dataset, start), key=lambda batch: batch.segment_id)
        builds = builds_of_window(tx, dataset, start)
        losses = recorded_losses(tx, dataset, start)
        corrections = corrections_of_window(tx, dataset, start)
    files = _files_of(store, dataset, table, window)
    batches = {segment: tuple(group) for segment, group in groupby(found, key=lambda batch: batch.segment_id)}
    origins = [SegmentOrigin(share, batches.get(share.segment_id, ())) for share in shares]
    built = tuple(
        BuildOrigin(
            build,
            tuple(origin for origin in origins if origin.share.build_id == build.id),
            tuple(file for file in files if _is_of(file, build)),
        )
        for build in builds
    )
    return Lineage(
        dataset=dataset,
        window=window,
        table_version=table.version,
        published_rows=published_rows,
        builds=built,
        files=tuple(file for file in files if not any(_is_of(file, build) for build in builds)),
        staged=tuple(origin for origin in origins if origin.share.build_id is None and not _is_set_aside(origin)),
        quarantined=tuple(origin for origin in origins if _is_set_aside(origin)),
        losses=tuple(loss for loss in losses if loss.ended_at is None),
        corrections=tuple(corrections),
    )


def _files_of(store: Store, dataset: str, table: VisibleTable, window: Window) -> list[TableFile]:
    if table.version is None:
        return []
    opened = open_to_read(store.table(dataset), dataset, table.version, table.table_id)
    return sorted((file for file in live_files(opened) if file.window_key == window.key), key=lambda file: file.path)


def _is_of(file: TableFile, build: Build) -> bool:
    return file.path.rpartition("/")[2].startswith(file_prefix(build.sequence))


def _is_published(origin: SegmentOrigin) -> bool:
    return origin.share.published_at is not None


def _is_set_aside(origin: SegmentOrigin) -> bool:
    return origin.share.quarantine_id is not None and origin.share.published_at is None

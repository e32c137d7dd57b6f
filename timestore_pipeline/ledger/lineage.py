"""Where the rows of one window came from: the builds, segments and batches that the ledger knows of it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select

from timestore_pipeline.ledger.builds import Build, get_build
from timestore_pipeline.ledger.schema import batch_slices, batches, builds, replaced_windows, segments, slices, windows


@dataclass(frozen=True)
class SegmentShare:
    """The rows of a segment in a window; ``path`` is relative to the staging directory, times in microseconds.

    ``build_id`` is None where no build has claimed or published them, ``quarantine_id`` where they are not set aside.
    """

    segment_id: str
    path: str
    on_disk: bool
    rows: int
    staged_at: int
    published_at: int | None
    build_id: int | None
    quarantine_id: int | None


@dataclass(frozen=True)
class BatchShare:
    """The rows of a batch in a window: where it came from, and when it was staged (microseconds)."""

    segment_id: str
    batch_id: str
    source: str
    rows: int
    staged_at: int


def published_rows_of_window(tx: Connection, dataset: str, window_start: int) -> int:
    """Return how many rows the table has in a window, by the ledger."""
    query = select(windows.c.rows).where(windows.c.dataset == dataset, windows.c.window_start == window_start)
    return tx.execute(query).scalar() or 0


def segments_of_window(tx: Connection, dataset: str, window_start: int) -> list[SegmentShare]:
    """Return the segments with rows in a window, in the order in which they were staged."""
    query = (
        select(
            slices.c.segment_id,
            segments.c.path,
            segments.c.unlinked_at.is_(None).label("on_disk"),
            slices.c.rows,
            slices.c.staged_at,
            slices.c.published_at,
            slices.c.build_id,
            slices.c.quarantine_id,
        )
        .join(segments, segments.c.id == slices.c.segment_id)
        .where(slices.c.dataset == dataset, slices.c.window_start == window_start)
        .order_by(slices.c.staged_at, slices.c.segment_id)
    )
    return [SegmentShare(**{**row, "on_disk": bool(row["on_disk"])}) for row in tx.execute(query).mappings()]


def batches_of_window(tx: Connection, dataset: str, window_start: int) -> list[BatchShare]:
    """Return the batches with rows in a window, in the order in which they lie in their segments."""
    query = (
        select(
            batch_slices.c.segment_id, batches.c.batch_id, batches.c.source, batch_slices.c.rows, batches.c.staged_at
        )
        .join(
            batches,
            (batches.c.segment_id == batch_slices.c.segment_id) & (batches.c.ordinal == batch_slices.c.ordinal),
        )
        .where(batches.c.dataset == dataset, batch_slices.c.window_start == window_start)
        .order_by(batches.c.staged_at, batch_slices.c.segment_id, batches.c.ordinal)
    )
    return [BatchShare(**row) for row in tx.execute(query).mappings()]


def builds_of_window(tx: Connection, dataset: str, window_start: int) -> list[Build]:
    """Return the builds that claimed or published rows of a window, or wrote it anew, in their sequence."""
    published = select(slices.c.build_id).where(slices.c.dataset == dataset, slices.c.window_start == window_start)
    replaced = (
        select(replaced_windows.c.build_id)
        .join(builds, builds.c.id == replaced_windows.c.build_id)
        .where(builds.c.dataset == dataset, replaced_windows.c.window_start == window_start)
    )
    found = {*tx.execute(published).scalars(), *tx.execute(replaced).scalars()} - {None}
    return sorted((get_build(tx, each) for each in found), key=lambda build: build.sequence)

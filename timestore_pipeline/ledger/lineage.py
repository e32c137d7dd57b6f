"""Where published rows came from: the builds, segments and batches that the ledger knows of a window or a build.

A build's part outlives the ledger in its manifest; a window's is what it can be built from again.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, select

from timestore_pipeline.ledger.accounts import past_of_windows
from timestore_pipeline.ledger.builds import Build, get_build
from timestore_pipeline.ledger.corrected_windows import corrected_rows
from timestore_pipeline.ledger.schema import batch_slices, batches, builds, replaced_windows, segments, slices, windows
from timestore_pipeline.ledger.slices import IN_SLICE, OF_BATCH, Slice, slices_where
from timestore_pipeline.ledger.statements import of_windows


@dataclass(frozen=True)
class WindowBatch:
    """A batch with rows in a window: its id, the file or caller it came from, how many rows, and when it was staged."""

    window_start: int
    segment_id: str
    batch_id: str
    source: str
    rows: int
    staged_at: int


def batches_of_build(tx: Connection, build_id: int) -> list[WindowBatch]:
    """Return which batches gave rows to which window of a build."""
    return batches_of_slices(tx, slices.c.build_id == build_id)


def batches_of_slice(tx: Connection, slice_: Slice) -> list[WindowBatch]:
    """Return which batches the rows of one slice came from."""
    return batches_of_slices(tx, slices.c.segment_id == slice_.segment_id, slices.c.window_start == slice_.window_start)


def batches_of_slices(tx: Connection, *conditions: ColumnElement[bool]) -> list[WindowBatch]:
    """Return which batches gave rows to which window, in the slices that meet all of ``conditions``."""
    query = (
        select(
            batch_slices.c.window_start,
            batch_slices.c.segment_id,
            batches.c.batch_id,
            batches.c.source,
            batch_slices.c.rows,
            batches.c.staged_at,
        )
        .join(slices, IN_SLICE)
        .join(batches, OF_BATCH)
        .where(*conditions)
        .order_by(batch_slices.c.window_start, batches.c.staged_at, batch_slices.c.segment_id, batches.c.ordinal)
    )
    return [WindowBatch(**row) for row in tx.execute(query).mappings()]


@dataclass(frozen=True)
class Contribution:
    """Rows of one batch in one window that a build publishes, with all that the ledger knows of batch and slice.

    ``rows`` are the batch's in this window, ``batch_rows`` all of its staged rows; times in microseconds since the
    epoch.
    """

    segment_id: str
    window_start: int
    ordinal: int
    rows: int
    batch_id: str
    fingerprint: str
    source: str
    source_bytes: int
    batch_rows: int
    quarantined_rows: int
    dropped_rows: int
    staged_at: int
    slice_rows: int
    slice_bytes: int
    min_time: int
    max_time: int


def contributions_of_build(tx: Connection, build_id: int) -> list[Contribution]:
    """Return what the slices of a build consist of; nothing for a build that only rewrites published rows."""
    query = (
        select(
            slices.c.segment_id,
            slices.c.window_start,
            batches.c.ordinal,
            batch_slices.c.rows,
            batches.c.batch_id,
            batches.c.fingerprint,
            batches.c.source,
            batches.c.source_bytes,
            batches.c.rows.label("batch_rows"),
            batches.c.quarantined_rows,
            batches.c.dropped_rows,
            batches.c.staged_at,
            slices.c.rows.label("slice_rows"),
            slices.c.bytes.label("slice_bytes"),
            slices.c.min_time,
            slices.c.max_time,
        )
        .join(batch_slices, IN_SLICE)
        .join(batches, OF_BATCH)
        .where(slices.c.build_id == build_id)
        .order_by(slices.c.segment_id, slices.c.window_start, batches.c.ordinal)
    )
    return [Contribution(**row) for row in tx.execute(query).mappings()]


@dataclass(frozen=True)
class Coverage:
    """The published content of some windows; windows are starts in microseconds since the epoch.

    ``slices`` are retained, in the order of their windows and times. ``missing`` are batches with rows in segments that
    are gone, and ``forgotten`` says of how many rows of a window the ledger does not know any more where they were.
    """

    windows: frozenset[int]
    slices: tuple[Slice, ...]
    missing: tuple[WindowBatch, ...]
    forgotten: dict[int, int]


def published_coverage(tx: Connection, dataset: str, first_window: int | None, last_window: int | None) -> Coverage:
    """Return what the published rows of the windows ``first_window … last_window`` came from (None is unbounded)."""
    published = (slices.c.published_at.is_not(None), *of_windows(slices, dataset, first_window, last_window))
    recorded = {
        start: int(rows)
        for start, rows in tx.execute(
            select(windows.c.window_start, windows.c.rows + windows.c.superseded).where(
                *of_windows(windows, dataset, first_window, last_window)
            )
        )
    }
    known = {
        start: int(rows)
        for start, rows in tx.execute(
            select(slices.c.window_start, func.sum(slices.c.rows)).where(*published).group_by(slices.c.window_start)
        )
    }
    for start, rows in corrected_rows(tx, dataset, recorded).items():
        recorded[start] += rows
    past = past_of_windows(tx, dataset)
    forgotten = {}
    for start in recorded.keys() | known.keys():
        pruned = past[start].pruned if start in past else 0
        if pruned:
            forgotten[start] = pruned
        elif recorded.get(start, 0) > known.get(start, 0):
            forgotten[start] = recorded[start] - known.get(start, 0)
    gone = slices.c.segment_id.in_(select(segments.c.id).where(segments.c.unlinked_at.is_not(None)))
    return Coverage(
        windows=frozenset(recorded.keys() | known.keys()),
        slices=tuple(slices_where(tx, *published, ~gone)),
        missing=tuple(batches_of_slices(tx, *published, gone)),
        forgotten=forgotten,
    )


def published_batches(
    tx: Connection, dataset: str, first_window: int | None, last_window: int | None
) -> list[WindowBatch]:
    """Return which batches gave the published rows of these windows."""
    published = (slices.c.published_at.is_not(None), *of_windows(slices, dataset, first_window, last_window))
    return batches_of_slices(tx, *published)


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


def batches_of_window(tx: Connection, dataset: str, window_start: int) -> list[WindowBatch]:
    """Return the batches with rows in a window, in the order in which they lie in their segments."""
    return batches_of_slices(tx, slices.c.dataset == dataset, slices.c.window_start == window_start)


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

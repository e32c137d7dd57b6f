"""What published windows can be built from again: the slices whose segments are still retained, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, select

from timestore_pipeline.ledger.builds import WindowBatch, batches_of_slices
from timestore_pipeline.ledger.past import past_of_windows
from timestore_pipeline.ledger.queue import Slice, slices_where
from timestore_pipeline.ledger.schema import segments, slices, windows


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
    published = (slices.c.published_at.is_not(None), *_range(slices, dataset, first_window, last_window))
    recorded = {
        start: int(rows)
        for start, rows in tx.execute(
            select(windows.c.window_start, windows.c.rows + windows.c.superseded).where(
                *_range(windows, dataset, first_window, last_window)
            )
        )
    }
    known = {
        start: int(rows)
        for start, rows in tx.execute(
            select(slices.c.window_start, func.sum(slices.c.rows)).where(*published).group_by(slices.c.window_start)
        )
    }
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
    published = (slices.c.published_at.is_not(None), *_range(slices, dataset, first_window, last_window))
    return batches_of_slices(tx, *published)


def _range(table, dataset: str, first_window: int | None, last_window: int | None) -> list[ColumnElement[bool]]:
    found = [table.c.dataset == dataset]
    if first_window is not None:
        found.append(table.c.window_start >= first_window)
    if last_window is not None:
        found.append(table.c.window_start <= last_window)
    return found

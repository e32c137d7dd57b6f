"""Lanes: builds of one dataset that are in flight at the same time, each of windows that no other one has.

A build has one lane from its claim to its end, and a lane one build at a time. How many lanes may be in use is the
dataset's limit ``concurrent_builds``; with one, all that is staged goes into one build.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select, union

from timestore_pipeline.ledger.queue import slice_is_queued
from timestore_pipeline.ledger.schema import replaced_windows, slices


@dataclass(frozen=True)
class StagedWindow:
    """What is staged of one window and in no build: late rows, or those that are not.

    ``oldest_staged_at`` is in microseconds since the epoch, as is ``window_start``.
    """

    window_start: int
    late: bool
    rows: int
    bytes: int
    oldest_staged_at: int


def free_lane(in_use: Collection[int], most: int) -> int | None:
    """Return the lowest lane that is not in use; None where ``most`` builds or more are in flight."""
    if len(in_use) >= most:
        return None
    return next(lane for lane in range(len(in_use) + 1) if lane not in in_use)


def share(rows: Sequence[tuple[int, int]], builders: int, least_rows: int) -> list[int]:
    """Return the first of (window, rows) that one of ``builders`` builds takes, so that each of them gets its part.

    None takes less than ``least_rows``, or leaves less; always at least one window.
    """
    total = sum(count for _, count in rows)
    wanted = max(-(-total // max(1, builders)), least_rows)
    taken, chosen = 0, []
    for window, count in rows:
        chosen.append(window)
        taken += count
        if taken >= wanted:
            break
    return [window for window, _ in rows] if total - taken < least_rows else chosen


def parts(rows: Sequence[tuple[int, int]], builders: int, least_rows: int) -> list[list[int]]:
    """Divide (window, rows) into at most ``builders`` runs of windows with about as many rows each."""
    found: list[list[int]] = []
    left = list(rows)
    while left:
        chosen = share(left, builders - len(found), least_rows)
        found.append(chosen)
        left = left[len(chosen) :]
    return found


def windows_of_builds(build_ids: Collection[int]) -> Select[Any]:
    """Return the query for the windows that builds in flight have claimed, or whose files their commits replace."""
    both = union(
        select(slices.c.window_start).where(slices.c.build_id.in_(build_ids)),
        select(replaced_windows.c.window_start).where(replaced_windows.c.build_id.in_(build_ids)),
    ).subquery()
    return select(both.c.window_start)


def free_slices(
    dataset: str, first_window: int | None, last_window: int | None, others: Collection[int] = ()
) -> list[ColumnElement[bool]]:
    """Return the conditions for slices that can be claimed while the builds ``others`` are in flight."""
    free = [slices.c.dataset == dataset, slice_is_queued(), slices.c.build_id.is_(None)]
    if first_window is not None:
        free.append(slices.c.window_start >= first_window)
    if last_window is not None:
        free.append(slices.c.window_start <= last_window)
    if others:
        free.append(slices.c.window_start.not_in(windows_of_builds(others)))
    return free


def staged_by_window(tx: Connection, dataset: str, others: Collection[int]) -> list[StagedWindow]:
    """Return what could be claimed of each window while the builds ``others`` are in flight, in time order."""
    query = (
        select(
            slices.c.window_start,
            slices.c.late,
            func.sum(slices.c.rows),
            func.sum(slices.c.bytes),
            func.min(slices.c.staged_at),
        )
        .where(*free_slices(dataset, None, None, others))
        .group_by(slices.c.window_start, slices.c.late)
        .order_by(slices.c.window_start, slices.c.late)
    )
    return [
        StagedWindow(start, bool(late), int(rows), int(size), at) for start, late, rows, size, at in tx.execute(query)
    ]

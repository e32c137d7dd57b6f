"""Lanes: builds of one dataset that are in flight at the same time, each of windows that no other one has.

A build has one lane from its claim to its end, and a lane one build at a time. How many lanes may be in use is the
dataset's limit ``concurrent_builds``; with one, all that is staged goes into one build.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select, union

from timestore_pipeline.errors import BuildInFlight
from timestore_pipeline.ledger.builds import PUBLISHING, Build, NewBuild, builds_in_flight
from timestore_pipeline.ledger.datasets import lock_and_count_corrections
from timestore_pipeline.ledger.schema import datasets, replaced_windows, schemas, slices
from timestore_pipeline.ledger.slices import SLICE_IS_FREE, SLICE_IS_QUEUED, Slice, slices_where
from timestore_pipeline.ledger.statements import of_windows
from timestore_pipeline.ledger.states import BuildKind


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
    free = [SLICE_IS_FREE, *of_windows(slices, dataset, first_window, last_window)]
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


def windows_in_flight(tx: Connection, dataset: str) -> set[int]:
    """Return the windows (their starts) that a build of the dataset has just now."""
    found = ids_of(builds_in_flight(tx, dataset))
    return set(tx.execute(windows_of_builds(found)).scalars()) if found else set()


def staged_windows(
    tx: Connection, dataset: str, first_window: int | None, last_window: int | None, others: Iterable[Build] = ()
) -> set[int]:
    """Return the starts of the windows in which anything can be claimed while the builds ``others`` are in flight."""
    free = free_slices(dataset, first_window, last_window, ids_of(others))
    return set(tx.execute(select(slices.c.window_start).where(*free).distinct()).scalars())


def queued_windows(tx: Connection, dataset: str, first_window: int | None, last_window: int | None) -> set[int]:
    """Return the starts of the windows in which anything is staged, be it claimed or not."""
    queued = [SLICE_IS_QUEUED, *of_windows(slices, dataset, first_window, last_window)]
    return set(tx.execute(select(slices.c.window_start).where(*queued).distinct()).scalars())


def staged_slices(
    tx: Connection, dataset: str, first_window: int | None, last_window: int | None, others: Iterable[Build] = ()
) -> tuple[Slice, ...]:
    """Return what can be claimed in the windows while the builds ``others`` are in flight, by windows and times."""
    return tuple(slices_where(tx, *free_slices(dataset, first_window, last_window, ids_of(others))))


@dataclass(frozen=True)
class Claimed:
    """What a claim finds: the build that the caller has claimed before, all others, and whether rows are corrected."""

    mine: Build | None
    others: tuple[Build, ...]
    has_corrections: bool


def claimed_already(tx: Connection, new: NewBuild) -> Claimed:
    """Lock the dataset until the transaction ends; return the build that the caller has claimed before, and all others.

    That is one of the same owner and the same moment: the transaction is done again, as nobody knew whether its commit
    had arrived. The others are those in flight.
    """
    corrections = lock_and_count_corrections(tx, new.dataset)
    in_flight = builds_in_flight(tx, new.dataset)
    mine = next((each for each in in_flight if (each.owner, each.claimed_at) == (new.owner, new.now)), None)
    return Claimed(mine, tuple(each for each in in_flight if each is not mine), corrections > 0)


@dataclass(frozen=True)
class Lane:
    """A lane for a new build, the builds that are in flight beside it, and how many lanes are free with this one."""

    number: int
    others: tuple[Build, ...]
    free: int


def find_lane(tx: Connection, new: NewBuild, others: tuple[Build, ...]) -> Lane:
    """Find a lane for a new build beside ``others``, which :func:`claimed_already` has found under the dataset's lock.

    A build that publishes columns which the table does not have yet has no other one beside it: one that was claimed
    before knows nothing of them.

    Raises:
        BuildInFlight: none is free, or one of the builds has to be alone.
    """
    number = free_lane({each.lane for each in others}, new.lanes)
    if others:
        alone = [each for each in others if _changes_columns(tx, new.dataset, each.kind, each.schema_version)]
        if number is None or alone or _changes_columns(tx, new.dataset, new.kind, _schema_version(tx, new.dataset)):
            raise BuildInFlight(new.dataset, (alone or others)[0].id, (alone or others)[0].owner)
    return Lane(number or 0, others, new.lanes - len(others))


def refuse_windows_of(tx: Connection, others: Iterable[Build], window_starts: Collection[int]) -> None:
    """Raise :class:`BuildInFlight` where a build in flight has one of these windows."""
    for each in others if window_starts else ():
        if not set(tx.execute(windows_of_builds([each.id])).scalars()).isdisjoint(window_starts):
            raise BuildInFlight(each.dataset, each.id, each.owner)


def _schema_version(tx: Connection, dataset: str) -> int:
    return tx.execute(select(func.max(schemas.c.version)).where(schemas.c.dataset == dataset)).scalar() or 0


def _changes_columns(tx: Connection, dataset: str, kind: BuildKind, schema_version: int) -> bool:
    """Whether the build publishes columns that no one has before; a new table has the first version from the start."""
    if kind not in PUBLISHING:
        return False
    published = tx.execute(select(datasets.c.published_schema).where(datasets.c.name == dataset)).scalar_one()
    return schema_version > max(1, published)


def ids_of(others: Iterable[Build]) -> list[int]:
    """Return the ids of builds."""
    return [each.id for each in others]

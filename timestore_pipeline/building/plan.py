"""Which datasets are due, and in how few runs they can be flushed (invariant 8)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from timestore_pipeline.building.thresholds import (
    FlushThresholds,
    Trigger,
    distance,
    due_windows,
    effective_thresholds,
)
from timestore_pipeline.clock import now_micros
from timestore_pipeline.ledger.builds import Build, builds_in_flight
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.store import Store
from timestore_pipeline.windows import Granularity, Window


@dataclass(frozen=True)
class FlushRequest:
    """A dataset that is due, why (in a word, and in words and numbers), and the range of its windows that are."""

    dataset: str
    trigger: Trigger
    why: str
    thresholds: FlushThresholds
    start: date
    first: Window
    last: Window


@dataclass(frozen=True)
class FlushGroup:
    """Due datasets that one run can serve: equal partitions, and window ranges that overlap."""

    granularity: Granularity
    start: date
    first: Window
    last: Window
    requests: tuple[FlushRequest, ...]


@dataclass(frozen=True)
class FlushPlan:
    """The runs to ask for, and a sentence for each dataset with staged rows that is not due."""

    groups: tuple[FlushGroup, ...]
    waiting: tuple[str, ...]


def plan_flushes(store: Store, now: int | None = None) -> FlushPlan:
    """Evaluate all datasets by one look into the ledger.

    ``now`` is in microseconds since the epoch, by default the clock's.
    """
    now = now_micros() if now is None else now
    with store.ledger.read() as tx:
        states = queue_states(tx)
        limits = store.all_limits(tx)
        in_flight = {build.dataset: build for build in builds_in_flight(tx)}
    due: list[FlushRequest] = []
    waiting: list[str] = []
    for name, state in states.items():
        if name not in store.datasets:
            waiting.append(f"{name}: {state.pending_rows:,} rows are staged but the dataset is not declared any more")
            continue
        spec = store.datasets[name]
        thresholds = effective_thresholds(store.settings, spec)
        max_pending = limits[name].max_pending
        if name in in_flight:
            waiting.append(f"{distance(state, thresholds, max_pending, now)}; {_describe(in_flight[name], now)}")
            continue
        due_now = due_windows(state, thresholds, max_pending, now)
        if due_now is None:
            waiting.append(distance(state, thresholds, max_pending, now))
            continue
        first, last = spec.window_at(due_now.first_window), spec.window_at(due_now.last_window)
        why = distance(state, thresholds, max_pending, now)
        due.append(FlushRequest(name, due_now.trigger, why, thresholds, spec.start, first, last))
    return FlushPlan(tuple(group_requests(due)), tuple(waiting))


def group_requests(requests: Iterable[FlushRequest]) -> list[FlushGroup]:
    """Put together the datasets of equal partitions whose window ranges overlap.

    A run over the union of their ranges costs no more than over one of them, as only windows with staged rows are
    built; ranges that do not overlap stay apart, so that late rows of one dataset do not stretch all the others.
    """
    groups: list[FlushGroup] = []
    for request in sorted(requests, key=lambda item: (item.first.granularity, item.start, item.first, item.dataset)):
        group = groups[-1] if groups else None
        if (
            group
            and (group.granularity, group.start) == (request.first.granularity, request.start)
            and (request.first <= group.last)
        ):
            groups[-1] = FlushGroup(
                group.granularity, group.start, group.first, max(group.last, request.last), (*group.requests, request)
            )
        else:
            groups.append(FlushGroup(request.first.granularity, request.start, request.first, request.last, (request,)))
    return groups


def _describe(build: Build, now: int) -> str:
    return f"build {build.id} of {build.owner} in flight for {max(0, now - build.claimed_at) / 1e6:,.0f} s"

"""What a tick finds: which datasets are due, in how few runs they can be flushed, and why others wait (invariant 8)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date

from timestore_pipeline.alone import alone
from timestore_pipeline.building.thresholds import (
    Due,
    Trigger,
    age_ms,
    due_windows,
    milliseconds_since,
)
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger.builds import Build, builds_in_flight
from timestore_pipeline.ledger.lanes import StagedWindow, parts, staged_by_window
from timestore_pipeline.ledger.queue import QueueState, queue_states
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import Granularity, Window
from timestore_pipeline.policy import FlushThresholds, Policy
from timestore_pipeline.store import Store


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
        policies = store.policies(tx)
        in_flight: defaultdict[str, list[Build]] = defaultdict(list)
        for build in builds_in_flight(tx):
            in_flight[build.dataset].append(build)
        # Only of datasets with more than one lane: the others need no look at each window.
        staged = {
            name: staged_by_window(tx, name, [build.id for build in in_flight[name]])
            for name in states
            if name in policies and 1 < policies[name].limits.concurrent_builds > len(in_flight[name])
        }
    due: list[FlushRequest] = []
    waiting: list[str] = []
    for name, state in states.items():
        if name not in store.datasets:
            refused = store.datasets.refused.get(name)
            why = f"and cannot be published: {refused}" if refused else "but the dataset is not declared any more"
            waiting.append(f"{name}: {state.pending_rows:,} rows are staged {why}")
            continue
        try:
            with alone(name):
                requests, why = _requests(store, state, policies[name], in_flight[name], staged.get(name), now)
                due += requests
                waiting += why
        except TimestoreError as error:
            waiting.append(str(error))
    return FlushPlan(tuple(group_requests(due)), tuple(waiting))


def _requests(
    store: Store,
    state: QueueState,
    policy: Policy,
    in_flight: Sequence[Build],
    windows: Sequence[StagedWindow] | None,
    now: int,
) -> tuple[list[FlushRequest], list[str]]:
    """Return the builds that a dataset needs now; where it needs none, a line that says why it waits."""
    spec = store.datasets[state.dataset]
    thresholds, max_pending = policy.flush, policy.limits.max_pending
    busy = "".join(f"; {_describe(build, now)}" for build in in_flight)
    lanes = policy.limits.concurrent_builds - len(in_flight)
    if lanes < 1:
        return [], [f"{distance_in_words(state, thresholds, max_pending, now)}{busy}"]
    free = state if windows is None else left_to_claim(state, windows)
    due = due_windows(free, thresholds, max_pending, now)
    why = distance_in_words(free, thresholds, max_pending, now)
    if due is None:
        return [], [f"{why}{busy}"]
    return [
        FlushRequest(
            spec.name,
            due.trigger,
            why,
            # What is left when another run has claimed its part may be below the thresholds, and is still to be built.
            thresholds if whole else FlushThresholds(max_rows=0, max_bytes=0, max_age_ms=0),
            spec.start,
            spec.window_at(first),
            spec.window_at(last),
        )
        for first, last, whole in _divide(due, windows, lanes, store.settings.build_least_shared_rows)
    ], []


def left_to_claim(state: QueueState, windows: Sequence[StagedWindow]) -> QueueState:
    """Return the queue without what is staged in windows that builds in flight have: ``windows`` are the others."""
    on_time, late = ([each for each in windows if each.late is wanted] for wanted in (False, True))

    def bounds(part: Sequence[StagedWindow]) -> dict[str, int | None]:
        return {
            "oldest_staged_at": min((each.oldest_staged_at for each in part), default=None),
            "first_window": min((each.window_start for each in part), default=None),
            "last_window": max((each.window_start for each in part), default=None),
        }

    return replace(
        state,
        staged_rows=sum(each.rows for each in windows),
        staged_bytes=sum(each.bytes for each in windows),
        late=replace(state.late, rows=sum(each.rows for each in late), **bounds(late)),
        **bounds(on_time),
    )


def _divide(
    due: Due, windows: Sequence[StagedWindow] | None, lanes: int, least_rows: int
) -> list[tuple[int, int, bool]]:
    """Return (first window, last window, whether that is all) for each build that shall publish what is due."""
    rows: Counter[int] = Counter()
    for each in windows or ():
        if due.first_window <= each.window_start <= due.last_window:
            rows[each.window_start] += each.rows
    shares = parts(sorted(rows.items()), lanes, least_rows)
    if len(shares) < 2:
        return [(due.first_window, due.last_window, True)]
    return [(share[0], share[-1], False) for share in shares]


def group_requests(requests: Iterable[FlushRequest]) -> list[FlushGroup]:
    """Put together the datasets of equal partitions whose window ranges overlap.

    A run over the union of their ranges costs no more than over one of them, as only windows with staged rows are
    built; ranges that do not overlap stay apart, so that late rows of one dataset do not stretch all the others. Parts
    of one dataset are for several runs.
    """
    groups: list[FlushGroup] = []
    for request in sorted(requests, key=lambda item: (item.first.granularity, item.start, item.first, item.dataset)):
        group = groups[-1] if groups else None
        if (
            group
            and (group.granularity, group.start) == (request.first.granularity, request.start)
            and (request.first <= group.last)
            and all(request.dataset != each.dataset for each in group.requests)
        ):
            groups[-1] = FlushGroup(
                group.granularity, group.start, group.first, max(group.last, request.last), (*group.requests, request)
            )
        else:
            groups.append(FlushGroup(request.first.granularity, request.start, request.first, request.last, (request,)))
    return groups


def _describe(build: Build, now: int) -> str:
    return f"build {build.id} of {build.owner} has been in flight for {max(0, now - build.claimed_at) / 1e6:,.0f} s"


def distance_in_words(state: QueueState, thresholds: FlushThresholds, max_pending: int, now: int) -> str:
    """Return a line that says how far the dataset is from each of its thresholds, ``weather: 3 of 50,000 rows, …``."""
    parts = [
        f"{state.staged_rows:,}{_of(f'{thresholds.max_rows:,}', thresholds.max_rows)} rows",
        f"{state.staged_bytes / 1e6:,.1f}{_of(f'{thresholds.max_bytes / 1e6:,.1f}', thresholds.max_bytes)} MB",
        f"oldest {age_ms(state, now) / 1e3:,.0f}{_of(f'{thresholds.max_age_ms / 1e3:,.0f}', thresholds.max_age_ms)} s",
        f"{state.pending_batches:,}{_of(f'{max_pending // 2:,}', max_pending)} batches",
    ]
    if state.corrections:
        limit, old = thresholds.max_age_ms, milliseconds_since(state.corrections.oldest_at, now)
        age = f"{old / 1e3:,.0f}{_of(f'{limit / 1e3:,.0f}', limit)} s"
        parts.append(f"{state.corrections.windows:,} windows to correct, oldest {age}")
    late = state.late
    if late.rows:
        limit = thresholds.late_age_ms
        age = f"{milliseconds_since(late.oldest_staged_at, now) / 1e3:,.0f}{_of(f'{limit / 1e3:,.0f}', limit)} s"
        parts.append(f"{late.rows:,} of the rows late, oldest {age}")
    return f"{state.dataset}: {', '.join(parts)}"


def _of(shown: str, threshold: int) -> str:
    return f" of {shown}" if threshold else ""

"""When a dataset is due, how far it is from that, and which datasets one run can serve: pure functions."""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.building.due import FlushRequest, distance_in_words, group_requests, plan_flushes
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.thresholds import (
    Due,
    Trigger,
    age_ms,
    due_trigger,
    due_windows,
    oldest_due_from,
)
from timestore_pipeline.ledger.builds import NewBuild
from timestore_pipeline.ledger.queue import LateQueue, QueueState
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import Granularity, Window
from timestore_pipeline.policy import FlushThresholds
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import NEW_YEAR, claim_slices, hourly
from timestore_pipeline_tests.conftest import MakeStore

NOW = 1_800_000_000_000_000
OFF = FlushThresholds(0, 0, 0)


def queue(rows: int = 1, size: int = 1, age: int = 0, batches: int = 1) -> QueueState:
    """A queue with so many staged rows and bytes, whose oldest batch has that age in milliseconds."""
    return QueueState(
        dataset="weather",
        pending_batches=batches,
        pending_rows=rows,
        pending_bytes=size,
        staged_rows=rows,
        staged_bytes=size,
        oldest_staged_at=NOW - age * 1_000 if rows else None,
        first_window=0 if rows else None,
        last_window=0 if rows else None,
    )


@pytest.mark.parametrize(
    ("state", "thresholds", "max_pending", "expected"),
    [
        (queue(rows=9), FlushThresholds(10, 0, 0), 0, None),
        (queue(rows=10), FlushThresholds(10, 0, 0), 0, Trigger.ROWS),
        (queue(size=10), FlushThresholds(0, 10, 0), 0, Trigger.BYTES),
        (queue(size=9), FlushThresholds(0, 10, 0), 0, None),
        (queue(age=10), FlushThresholds(0, 0, 10), 0, Trigger.AGE),
        (queue(age=9), FlushThresholds(0, 0, 10), 0, None),
        (queue(rows=10**9, size=10**12, age=0), FlushThresholds(0, 0, 10), 0, None),
        (queue(batches=5), FlushThresholds(10, 0, 0), 10, Trigger.PRESSURE),
        (queue(batches=4), FlushThresholds(10, 0, 0), 10, None),
        (queue(batches=1), FlushThresholds(10, 0, 0), 1, Trigger.PRESSURE),
        (queue(batches=10**6), FlushThresholds(10, 0, 0), 0, None),
        (queue(), OFF, 0, Trigger.EAGER),
        (queue(rows=0), OFF, 0, None),
        (queue(rows=0, batches=10), FlushThresholds(1, 1, 1), 10, None),
    ],
)
def test_a_dataset_is_due_when_its_queue_reaches_a_threshold(
    state: QueueState, thresholds: FlushThresholds, max_pending: int, expected: Trigger | None
):
    assert due_trigger(state, thresholds, max_pending, NOW) == expected


limits = st.integers(0, 100)
queues = st.builds(queue, limits, limits, limits, limits)
thresholds_of = st.builds(FlushThresholds, limits, limits, limits)


@given(queues, thresholds_of, limits)
def test_a_dataset_is_due_exactly_when_something_says_so(
    state: QueueState, thresholds: FlushThresholds, max_pending: int
):
    reasons = {
        Trigger.EAGER: thresholds.all_off,
        Trigger.ROWS: 0 < thresholds.max_rows <= state.staged_rows,
        Trigger.BYTES: 0 < thresholds.max_bytes <= state.staged_bytes,
        Trigger.AGE: 0 < thresholds.max_age_ms <= age_ms(state, NOW),
        Trigger.PRESSURE: 0 < max_pending <= 2 * state.pending_batches,
    }

    trigger = due_trigger(state, thresholds, max_pending, NOW)

    if state.staged_rows == 0 or not any(reasons.values()):
        assert trigger is None
    else:
        assert trigger is not None
        assert reasons[trigger]


@given(queues, thresholds_of, limits, limits)
def test_a_dataset_that_is_due_stays_due_as_time_passes(
    state: QueueState, thresholds: FlushThresholds, max_pending: int, later: int
):
    if due_trigger(state, thresholds, max_pending, NOW):
        assert due_trigger(state, thresholds, max_pending, NOW + later)


def late_queue(age: int, late_age: int) -> QueueState:
    """A queue with one row of window 100, and a late one of window 7; ages in milliseconds."""
    late = LateQueue(1, NOW - late_age * 1_000, NOW - late_age * 1_000, 7, 7)
    return dataclasses.replace(queue(rows=2, age=age), first_window=100, last_window=100, late=late)


BY_AGE = FlushThresholds(0, 0, 10, 50)


@pytest.mark.parametrize(
    ("state", "thresholds", "expected"),
    [
        (late_queue(9, 49), BY_AGE, None),
        (late_queue(10, 49), BY_AGE, Due(Trigger.AGE, 100, 100)),
        (late_queue(9, 50), BY_AGE, Due(Trigger.AGE, 7, 7)),
        (late_queue(10, 50), BY_AGE, Due(Trigger.AGE, 7, 100)),
        (late_queue(0, 10), FlushThresholds(0, 0, 10), Due(Trigger.AGE, 7, 7)),
        (late_queue(0, 9), FlushThresholds(0, 0, 10, 5), None),
        (late_queue(0, 10**9), FlushThresholds(10, 0, 0, 50), None),
        (late_queue(0, 0), FlushThresholds(2, 0, 10, 50), Due(Trigger.ROWS, 7, 100)),
        (late_queue(0, 0), OFF, Due(Trigger.EAGER, 7, 100)),
    ],
)
def test_late_rows_wait_longer_and_nothing_waits_for_them(
    state: QueueState, thresholds: FlushThresholds, expected: Due | None
):
    assert due_windows(state, thresholds, 0, NOW) == expected


def test_late_rows_alone_are_due_by_their_own_age():
    alone = dataclasses.replace(late_queue(0, 50), oldest_staged_at=None, first_window=None, last_window=None)

    assert due_windows(alone, BY_AGE, 0, NOW) == Due(Trigger.AGE, 7, 7)
    assert due_windows(alone, BY_AGE, 0, NOW - 1_000) is None


def test_late_rows_count_as_overdue_only_when_they_are():
    state = dataclasses.replace(late_queue(3, 45), oldest_pending_at=NOW - 3_000)

    assert oldest_due_from(state, BY_AGE) == NOW - 5_000
    assert oldest_due_from(late_queue(0, 4), OFF) == NOW - 4_000
    assert oldest_due_from(queue(rows=0), BY_AGE) is None


def test_a_distance_says_how_long_late_rows_have_waited():
    assert distance_in_words(late_queue(0, 42_000), FlushThresholds(0, 0, 60_000, 600_000), 0, NOW).endswith(
        "1 batches, 1 of the rows late, oldest 42 of 600 s"
    )


@given(queues, limits)
def test_an_age_is_never_negative_though_clocks_go_back(state: QueueState, back: int):
    assert age_ms(state, NOW - back * 1_000_000) >= 0


def test_a_distance_says_every_number_beside_its_threshold():
    state = queue(rows=12_345, size=5_600_000, age=42_000, batches=7)

    assert distance_in_words(state, FlushThresholds(50_000, 134_217_728, 60_000), 1_000, NOW) == (
        "weather: 12,345 of 50,000 rows, 5.6 of 134.2 MB, oldest 42 of 60 s, 7 of 500 batches"
    )
    assert distance_in_words(state, OFF, 0, NOW) == "weather: 12,345 rows, 5.6 MB, oldest 42 s, 7 batches"


@given(queues, thresholds_of, limits)
def test_a_distance_is_one_line_that_names_the_dataset(
    state: QueueState, thresholds: FlushThresholds, max_pending: int
):
    text = distance_in_words(state, thresholds, max_pending, NOW)

    assert text.startswith("weather: ")
    assert "\n" not in text


def request(dataset: str, first: int, last: int, granularity: Granularity, start: date) -> FlushRequest:
    def window(days: int) -> Window:
        return Window.containing(NEW_YEAR + timedelta(days=31 * days), granularity)

    return FlushRequest(dataset, Trigger.ROWS, "", OFF, start, window(min(first, last)), window(max(first, last)))


requests_of = st.lists(
    st.builds(
        request,
        st.text("abcdef", min_size=1, max_size=4),
        st.integers(0, 30),
        st.integers(0, 30),
        st.sampled_from([Granularity.DAY, Granularity.HOUR]),
        st.sampled_from([date(2020, 1, 1), date(2025, 1, 1)]),
    ),
    max_size=12,
    unique_by=lambda item: item.dataset,
)


@given(requests_of)
def test_every_request_is_in_exactly_one_group_of_its_partitions_that_covers_it(requests: list[FlushRequest]):
    groups = group_requests(requests)

    assert sorted((item for group in groups for item in group.requests), key=repr) == sorted(requests, key=repr)
    for group in groups:
        for item in group.requests:
            assert (item.first.granularity, item.start) == (group.granularity, group.start)
            assert group.first <= item.first <= item.last <= group.last
        assert group.first == min(item.first for item in group.requests)
        assert group.last == max(item.last for item in group.requests)


@given(requests_of)
def test_groups_are_as_few_as_ranges_that_touch_allow(requests: list[FlushRequest]):
    """Groups of the same partitions never overlap, and no group falls apart into two that do not."""
    groups = group_requests(requests)

    for number, one in enumerate(groups):
        for other in groups[number + 1 :]:
            if (one.granularity, one.start) == (other.granularity, other.start):
                assert one.last < other.first or other.last < one.first
        for edge in {item.last for item in one.requests} - {one.last}:
            assert any(item.first <= edge < item.last for item in one.requests), "the group could be two"


@given(requests_of, st.randoms())
def test_the_order_of_requests_does_not_matter(requests: list[FlushRequest], random):
    shuffled = list(requests)
    random.shuffle(shuffled)

    assert group_requests(shuffled) == group_requests(requests)


COLUMNS = "columns: {ts: timestamptz, station: varchar, temp: double}, time: ts"
THREE = f"""
datasets:
  a: {{{COLUMNS}, window: day}}
  b: {{{COLUMNS}, window: day}}
  c: {{{COLUMNS}, window: hour}}
"""


def test_due_datasets_with_the_same_windows_share_a_run(make_store: MakeStore):
    store = make_store(THREE, staging_flush_max_rows=10)
    stage(store, "a", hourly(30))
    stage(store, "b", hourly(30, start=NEW_YEAR + timedelta(days=1)))
    stage(store, "c", hourly(30))

    groups = plan_flushes(store).groups

    assert [[item.dataset for item in group.requests] for group in groups] == [["a", "b"], ["c"]]
    assert (groups[0].first.key, groups[0].last.key) == ("2026-01-01", "2026-01-03")
    assert (groups[1].first.key, groups[1].last.key) == ("2026-01-01T00", "2026-01-02T05")


def test_datasets_that_are_not_due_say_how_far_they_are(make_store: MakeStore):
    store = make_store(THREE, staging_flush_max_rows=10)
    stage(store, "a", hourly(3))
    stage(store, "b", hourly(10))

    plan = plan_flushes(store)

    assert [[item.dataset for item in group.requests] for group in plan.groups] == [["b"]]
    (sentence,) = plan.waiting
    assert sentence.startswith("a: 3 of 10 rows")


def test_an_age_is_reached_by_the_clock_alone(make_store: MakeStore):
    store = make_store(THREE, staging_flush_max_age_ms=60_000)
    stage(store, "a", hourly(1))

    assert plan_flushes(store).groups == ()
    later = plan_flushes(store, now=now_micros() + 60_000_000)

    assert [item.trigger for item in later.groups[0].requests] == [Trigger.AGE]


def test_many_tiny_batches_are_due_by_their_number(make_store: MakeStore):
    store = make_store(THREE, staging_max_pending=6)
    for count in (1, 2, 3):
        assert plan_flushes(store).groups == ()
        stage(store, "a", hourly(count))

    assert [item.trigger for item in plan_flushes(store).groups[0].requests] == [Trigger.PRESSURE]


def test_a_dataset_with_a_build_in_flight_waits_and_holds_no_other(make_store: MakeStore):
    store = make_store(THREE, staging_flush_max_rows=1)
    stage(store, "a", hourly(1))
    stage(store, "b", hourly(1))
    with store.ledger.write() as tx:
        claim_slices(tx, NewBuild("a", owner="run-1", trigger="rows", lease_micros=10**9, now=now_micros()))
    stage(store, "a", hourly(2))

    plan = plan_flushes(store)

    assert [item.dataset for group in plan.groups for item in group.requests] == ["b"]
    (sentence,) = plan.waiting
    assert "build 1 of run-1 has been in flight" in sentence


def test_what_is_due_of_a_dataset_with_lanes_is_divided_among_runs(make_store: MakeStore):
    store = make_store(THREE, staging_flush_max_rows=1, build_concurrent_builds=3, build_least_shared_rows=24)
    stage(store, "a", hourly(24 * 6))
    stage(store, "b", hourly(3))

    groups = plan_flushes(store).groups

    parts = [(item.first.key, item.last.key) for group in groups for item in group.requests if item.dataset == "a"]
    assert parts == [("2026-01-01", "2026-01-02"), ("2026-01-03", "2026-01-04"), ("2026-01-05", "2026-01-06")]
    assert len(groups) == 3, "no run has two parts of a dataset"
    assert {item.thresholds.all_off for group in groups for item in group.requests if item.dataset == "a"} == {True}


def test_a_lane_that_is_free_is_used_for_windows_that_nobody_builds(make_store: MakeStore):
    store = make_store(THREE, staging_flush_max_rows=20, build_concurrent_builds=2)
    stage(store, "a", hourly(24))
    with store.ledger.write() as tx:
        claim_slices(tx, NewBuild("a", owner="run-1", trigger="rows", lease_micros=10**9, now=now_micros(), lanes=2))
    stage(store, "a", hourly(24, station="LGA"))
    plan = plan_flushes(store)
    assert plan.groups == (), "its window is being built"
    assert "build 1 of run-1 has been in flight" in plan.waiting[0]
    stage(store, "a", hourly(48, station="EWR"))

    (group,) = plan_flushes(store).groups

    assert [(item.first.key, item.last.key) for item in group.requests] == [("2026-01-02", "2026-01-02")]


def test_a_dataset_that_is_not_declared_any_more_is_named(make_store: MakeStore):
    stage(make_store(THREE), "a", hourly(3))
    store = make_store(THREE.replace("  a:", "  z:"))

    plan = plan_flushes(store)

    assert plan.groups == ()
    assert plan.waiting == ("a: 3 rows are staged but the dataset is not declared any more",)


def test_nothing_staged_plans_nothing(store: Store):
    stage(store, "weather", hourly(0))

    assert plan_flushes(store) == plan_flushes(store, now=now_micros() + 10**12)
    assert plan_flushes(store).groups == ()
    assert flush_windows(store, BuildOrder("weather", owner="the test")) is None
    assert flush_windows(store, BuildOrder("events", owner="the test")) is None


def test_months_are_grouped_by_their_own_length():
    march = Window.containing(datetime(2026, 3, 5, tzinfo=UTC), Granularity.MONTH)
    start = date(2020, 1, 1)
    groups = group_requests(
        [
            FlushRequest("a", Trigger.ROWS, "", OFF, start, march, march),
            FlushRequest("b", Trigger.ROWS, "", OFF, start, march.next(), march.next()),
        ]
    )

    assert [group.first.key for group in groups] == ["2026-03", "2026-04"]

"""The simulation: it decides as the flush sensor does, loses no batch, and says what it does not know."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.building.due import plan_flushes
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.datasets import FlushSpec
from timestore_pipeline.errors import TimestoreError, UnknownDataset
from timestore_pipeline.ledger.history import Arrival, arrivals, flushes
from timestore_pipeline.policy import FlushThresholds, Policy
from timestore_pipeline.simulating.replay import Machine, replay
from timestore_pipeline.simulating.what_if import simulate, weighted_quantile
from timestore_pipeline.staging.stage import stage
from timestore_pipeline_tests.builders import hourly
from timestore_pipeline_tests.conftest import MakeStore

SECOND = 1_000_000
TICK = 5 * SECOND
HOUR = 3_600 * SECOND
OFF = FlushThresholds(0, 0, 0)


def machine(**fields: float) -> Machine:
    """One that flushes in no time, into files of 1 byte per row, unless ``fields`` say otherwise."""
    defaults = {"tick": TICK, "run_start": 0, "flush": 0, "max_pending": 0, "target_file_bytes": 10**9,
                "bytes_per_row": 1.0, "bytes_per_file": 0.0}  # fmt: skip
    return Machine(**{**defaults, **fields})


def arrival(at_seconds: float, rows: int = 1, windows: int = 1, batches: int = 1, late: bool = False) -> Arrival:
    shares = tuple((window, rows) for window in range(windows))
    return Arrival(int(at_seconds * SECOND), batches, rows * windows, rows * windows * 10, shares, None, late)


def test_rows_are_flushed_at_the_tick_that_finds_the_threshold_reached():
    found = replay([arrival(1, 6), arrival(2, 3), arrival(8, 1)], FlushThresholds(10, 0, 0), machine(), HOUR)

    assert [(flush.trigger, flush.claimed_at, flush.rows) for flush in found.flushes] == [
        (Trigger.ROWS, 10 * SECOND, 10)
    ]
    assert found.waits == ((9.0, 1), (8.0, 1), (2.0, 1))
    assert found.most_pending == 3


def test_an_idle_datasets_age_fires_without_new_data():
    found = replay([arrival(1)], FlushThresholds(0, 0, 60_000), machine(run_start=3 * SECOND, flush=SECOND), HOUR)

    assert [(flush.trigger, flush.claimed_at, flush.published_at) for flush in found.flushes] == [
        (Trigger.AGE, 68 * SECOND, 69 * SECOND)
    ]


def test_one_build_is_in_flight_at_a_time_and_what_comes_meanwhile_waits_for_its_end():
    found = replay([arrival(1), arrival(6), arrival(7)], OFF, machine(flush=20 * SECOND), HOUR)

    assert [(flush.claimed_at // SECOND, flush.batches) for flush in found.flushes] == [(5, 1), (25, 2)]


def test_late_rows_wait_longer_and_the_others_do_not_wait_for_them():
    thresholds = FlushThresholds(0, 0, 60_000, late_max_age_ms=600_000)

    found = replay([arrival(1), arrival(2, 5, late=True), arrival(100)], thresholds, machine(), HOUR)

    assert [(flush.trigger, flush.claimed_at // SECOND, flush.rows) for flush in found.flushes] == [
        (Trigger.AGE, 65, 1),
        (Trigger.AGE, 160, 1),
        (Trigger.AGE, 605, 5),
    ]
    assert [wait for wait, _ in found.waits] == [64, 60]


def test_a_long_queue_is_flushed_before_its_age():
    came = [arrival(second) for second in range(10)]

    found = replay(came, FlushThresholds(0, 0, 3_600_000), machine(max_pending=8), HOUR // 2)

    assert found.triggers == {Trigger.PRESSURE: 2}


def test_what_no_threshold_reaches_is_left_and_has_waited_until_the_end():
    found = replay([arrival(10)], FlushThresholds(10, 0, 0), machine(), 70 * SECOND)

    assert (found.flushes, found.left_batches, found.waits) == ((), 1, ((60.0, 1),))


def test_each_window_has_its_files_of_the_target_size():
    sizes = replay(
        [arrival(1, rows=250, windows=2)], OFF, machine(target_file_bytes=100, bytes_per_file=5.0), HOUR
    ).file_bytes

    assert sizes == pytest.approx([250 / 3 + 5] * 6)


ARRIVALS = st.lists(
    st.builds(arrival, st.floats(0, 600), st.integers(1, 40), st.integers(1, 3), st.integers(1, 4), st.booleans()),
    min_size=1,
).map(lambda found: sorted(found, key=lambda each: each.staged_at))
THRESHOLDS = st.builds(
    FlushThresholds, st.integers(0, 80), st.integers(0, 800), st.integers(0, 120_000), st.integers(0, 300_000)
)


@given(ARRIVALS, THRESHOLDS, st.integers(0, 10), st.integers(0, 30), st.integers(0, 20))
def test_every_batch_is_flushed_once_or_left_and_none_waits_longer_than_its_age_allows(
    came: list[Arrival], thresholds: FlushThresholds, run_start: int, flush: int, max_pending: int
):
    slow = machine(run_start=run_start * SECOND, flush=flush * SECOND, max_pending=max_pending)

    found = replay(came, thresholds, slow, HOUR)

    batches = sum(each.batches for each in came)
    assert sum(each.batches for each in found.flushes) + found.left_batches == batches
    assert sum(weight for _, weight in found.waits) == sum(each.batches for each in came if not each.late)
    assert sum(each.rows for each in found.flushes) <= sum(each.rows for each in came)
    assert all(wait >= 0 for wait, _ in found.waits)
    claims = [each.claimed_at for each in found.flushes]
    ends = [each.published_at for each in found.flushes]
    assert all(end <= claim for end, claim in zip(ends, claims[1:], strict=False)), "never two at the same time"
    if thresholds.max_age_ms:
        # A flush of late rows alone may be in the way of one, and another one of its own.
        longest = thresholds.max_age_ms / 1e3 + 3 * (run_start + flush) + 3 * TICK / SECOND
        assert max((wait for wait, _ in found.waits), default=0) <= longest
        assert found.left_batches == 0


@pytest.mark.matrix
@pytest.mark.long
@pytest.mark.parametrize(
    "thresholds", [{"flush_max_rows": 40}, {"flush_max_bytes": 60_000}, {"flush_max_age_ms": 30_000}, {}]
)
def test_a_replay_does_what_the_sensor_did(
    thresholds: dict[str, int], make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
):
    off = {"flush_max_rows": 0, "flush_max_bytes": 0, "flush_max_age_ms": 0}
    settings: dict[str, Any] = {f"staging_{name}": value for name, value in (off | thresholds).items()}
    store = make_store(**settings)
    clock = SimpleNamespace(now=int(datetime(2026, 1, 2, tzinfo=UTC).timestamp()) * SECOND)
    monkeypatch.setattr("timestore_pipeline.model.clock.time", SimpleNamespace(time_ns=lambda: clock.now * 1_000))
    start, done = clock.now, []
    for step in range(36):
        clock.now = start + step * TICK - SECOND
        if step % 3 or step < 10:
            stage(store, "weather", hourly(5 + step % 7), batch_id=f"batch {step}")
        clock.now = start + step * TICK
        for group in plan_flushes(store).groups:
            report = flush_windows(store, BuildOrder("weather", owner="sensor", trigger=group.requests[0].trigger))
            assert report is not None
            done.append((group.requests[0].trigger, clock.now, report.batches, report.rows))
    with store.ledger.read() as tx:
        came, flushed = arrivals(tx, "weather", 0), flushes(tx, "weather", 0)

    own = Policy.of(store.settings, store.datasets["weather"]).flush
    found = replay(came, own, machine(max_pending=1_000), clock.now)

    assert done
    assert [(each.trigger, each.claimed_at, each.batches, each.rows) for each in found.flushes] == done
    assert sum(each.rows for each in flushed) == sum(rows for _, _, _, rows in done)


@pytest.mark.long
def test_a_simulation_measures_the_installation_and_changes_nothing(make_store: MakeStore):
    store = make_store(build_target_file_bytes=1 << 20)
    for number in range(6):
        stage(store, "weather", hourly(1_000 + 100 * number), batch_id=str(number))
        if number % 2:
            flush_windows(store, BuildOrder("weather", owner="test"))
    stage(store, "weather", hourly(3), batch_id="left")

    found = simulate(store, "weather", FlushSpec(max_rows=1), last_seconds=3_600, run_start_seconds=0)

    assert found.batches == 7
    assert len(found.measured.flushes) == 3
    assert sum(batches for _, batches in found.measured.waits) == 6
    assert found.proposed.thresholds == replace(found.current.thresholds, max_rows=1)
    assert found.current.thresholds == Policy.of(store.settings, store.datasets["weather"]).flush
    wrote = sum(each.bytes for each in found.measured.flushes)
    files = sum(each.files for each in found.measured.flushes)
    rows = sum(each.rows for each in found.measured.flushes)
    assert found.machine.bytes_per_row * rows + found.machine.bytes_per_file * files == pytest.approx(wrote, rel=0.05)


def test_a_dataset_without_a_past_is_told(make_store: MakeStore):
    with pytest.raises(TimestoreError, match="nothing was staged in that time"):
        simulate(make_store(), "weather", FlushSpec(max_rows=1), last_seconds=60, run_start_seconds=0)
    with pytest.raises(UnknownDataset):
        simulate(make_store(), "nothing", FlushSpec(max_rows=1), last_seconds=60, run_start_seconds=0)


@pytest.mark.parametrize(("of", "expected"), [(0.0, 1), (0.5, 1), (0.9, 1), (0.91, 100), (1.0, 100)])
def test_a_quantile_weighs_batches(of: float, expected: float):
    assert weighted_quantile([(100, 1), (1, 9)], of) == expected

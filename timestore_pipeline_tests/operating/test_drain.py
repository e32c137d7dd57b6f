"""Intake stops for every process at once, all that is staged is published, and what cannot be is said and why."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import IntakePaused, TimestoreError, UnknownDataset
from timestore_pipeline.ledger.builds import NewBuild
from timestore_pipeline.ledger.counters import DROPPED_BATCHES
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.ledger.limits import EVERY_DATASET, all_pauses
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating.drain import Drained, drain, let_in, stop_intake
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    claim_slices,
    counted,
    flip_byte,
    hourly,
    ingest,
    published,
    readable,
    rows_of,
    segment_file,
    weather_csv,
)
from timestore_pipeline_tests.conftest import WEATHER_CSV, MakeStore

Drop = Callable[..., Path]

ONLY_EVENTS = "datasets:\n  events: {time: {column: at, unit: ms}, window: hour}\n"


def drained(store: Store, *datasets: str, timeout_seconds: float = 60) -> Drained:
    return drain(store, datasets, owner="the test", by="ann@host", reason="the test", timeout_seconds=timeout_seconds)


def claim(store: Store, owner: str = "somebody") -> None:
    """Leave a build in flight, with a lease of a minute."""
    with store.ledger.write() as tx:
        claim_slices(tx, NewBuild("weather", owner=owner, trigger="manual", lease_micros=60_000_000, now=now_micros()))


def test_everything_is_published_and_nothing_more_gets_in(store: Store, drop: Drop):
    stage(store, "weather", hourly(48))
    drop(store, "weather", "late.csv", WEATHER_CSV)

    outcome = drained(store)

    assert outcome.empty
    assert outcome.published_rows == {"weather": 48}
    assert published(store) == readable(store) == rows_of(hourly(48))
    with store.ledger.read() as tx:
        assert latest_builds(tx)["weather"].trigger == Trigger.DRAIN
    with pytest.raises(IntakePaused, match=r"'weather'.*ann@host: the test.*timestore resume --all"):
        stage(store, "weather", hourly(1, station="LGA"))
    assert counted(store, DROPPED_BATCHES) == {"paused": 1}
    assert ingest(store) == {}
    assert len(readable(store)) == 48


def test_resumed_all_that_waited_gets_in(store: Store, drop: Drop):
    drained(store)
    drop(store, "weather", "late.csv", WEATHER_CSV)

    assert let_in(store, []) == [EVERY_DATASET]

    assert ingest(store)["weather"].rows == 3
    assert stage(store, "weather", hourly(1)).rows == 1


def test_one_dataset_is_drained_and_the_others_go_on(store: Store, drop: Drop):
    stage(store, "weather", hourly(1))
    drop(store, "events", "a.csv", "at,kind\n1767225600000,start\n")

    assert drained(store, "weather").empty

    assert ingest(store)["events"].rows == 1
    with pytest.raises(IntakePaused, match="timestore resume weather"):
        stage(store, "weather", hourly(1, station="LGA"))


def test_a_sender_that_may_wait_gets_in_after_the_pause(store: Store, make_store: MakeStore):
    stop_intake(store, ["weather"], "ann@host", "the test")
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(stage, make_store(), "weather", hourly(1), wait_seconds=60)
        while not counted(store, "timestore_staging_retried_batches_total"):
            assert not sent.done()
        let_in(store, ["weather"])

        assert sent.result().rows == 1


def test_a_pause_that_comes_while_a_segment_is_written_holds_for_it(store: Store):
    with (
        pytest.raises(IntakePaused),
        at(CrashPoint.SEGMENT_IN_PLACE, lambda: stop_intake(store, [], "ann@host", "the test")),
    ):
        stage(store, "weather", hourly(1))

    assert readable(store) == []
    assert list(store.settings.staging_path.glob("weather/[!.]*")) == []


def test_a_second_drain_keeps_the_first_reason(store: Store):
    drained(store)
    drain(store, [], owner="the test", by="bob@host", reason="another", timeout_seconds=1)

    with store.ledger.read() as tx:
        assert all_pauses(tx)[EVERY_DATASET].paused_by == "ann@host"


def test_what_is_in_quarantine_is_left_and_said(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", weather_csv("2026-01-01,JFK,1", ",LGA,2"))
    drop(store, "weather", "b.csv", "no,weather\n")
    ingest(store)

    outcome = drained(store)

    (left,) = (remainder for remainder in outcome.remainders if not remainder.empty)
    assert left.reasons == (
        "in quarantine: 1 whole batches, 1 rows, 0 damaged segments; see 'timestore quarantine list weather'",
    )
    assert not left.passes
    assert len(published(store)) == 1


@pytest.mark.long
def test_a_damaged_segment_does_not_hold_up_the_rest(store: Store):
    path = segment_file(store, stage(store, "weather", hourly(24)).segment_id)
    flip_byte(path, path.stat().st_size - 8_000)
    stage(store, "weather", hourly(5, station="LGA"))

    outcome = drained(store, "weather")

    assert len(published(store)) == 5
    (left,) = outcome.remainders
    assert left.quarantine.segments == 1
    assert not left.queue.pending_rows


@pytest.mark.long
def test_a_build_that_fails_is_given_up_with_its_error(store: Store):
    stage(store, "weather", hourly(1))
    store.table("weather").root.parent.mkdir(parents=True, exist_ok=True)
    store.table("weather").root.write_text("in the way")

    outcome = drained(store)

    left = next(remainder for remainder in outcome.remainders if remainder.dataset == "weather")
    assert left.error
    assert "its build fails" in left.reasons[0]
    assert not left.passes
    assert len(readable(store)) == 1


def test_a_build_in_flight_is_waited_for_until_time_is_up(store: Store):
    stage(store, "weather", hourly(1))
    claim(store)

    outcome = drained(store, timeout_seconds=0.5)

    left = next(remainder for remainder in outcome.remainders if remainder.dataset == "weather")
    assert left.passes
    assert "of somebody is in flight with 1 rows" in left.reasons[0]


def test_a_build_whose_process_is_gone_is_settled_and_its_rows_published(store: Store):
    stage(store, "weather", hourly(1))
    claim(store, owner="gone")

    outcome = drain(
        store,
        [],
        owner="the test",
        by="ann",
        reason="r",
        timeout_seconds=60,
        owner_is_gone=lambda owner: owner == "gone",
    )

    assert outcome.empty
    assert len(published(store)) == 1


def test_a_dataset_that_is_not_declared_any_more_is_left_and_said(make_store: MakeStore):
    stage(make_store(), "weather", hourly(3))
    store = make_store(ONLY_EVENTS)

    outcome = drained(store)

    (left,) = (remainder for remainder in outcome.remainders if not remainder.empty)
    assert left.dataset == "weather"
    assert "3 rows of 1 batches are staged, and the dataset is not declared any more" in left.reasons[0]
    assert drained(store, "weather").remainders == (left,)


def test_a_dataset_that_nobody_knows_is_an_error_and_nothing_is_paused(store: Store):
    with pytest.raises(UnknownDataset):
        drained(store, "weather", "whether")

    with store.ledger.read() as tx:
        assert all_pauses(tx) == {}


def test_two_drains_at_once_publish_every_row_once(store: Store, make_store: MakeStore):
    for day in range(5):
        stage(store, "weather", hourly(30, start=NEW_YEAR + timedelta(days=day)))
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(drained, [store, make_store()]))

    assert all(outcome.empty for outcome in outcomes)
    assert sum(outcome.published_rows.get("weather", 0) for outcome in outcomes) == 150
    assert len(published(store)) == 150


def test_senders_at_work_while_it_drains_lose_nothing_that_was_acknowledged(store: Store, make_store: MakeStore):
    def send(sender: int) -> int:
        own, acknowledged = make_store(), 0
        while True:
            try:
                acknowledged += stage(own, "weather", hourly(1, station=f"{sender}-{acknowledged}")).rows
            except IntakePaused:
                return acknowledged
            except TimestoreError as error:
                pytest.fail(str(error))

    with ThreadPoolExecutor(3) as pool:
        senders = [pool.submit(send, number) for number in range(2)]
        while not (len(readable(store)) > 3):
            pass
        outcome = drained(store)
        acknowledged = sum(sender.result() for sender in senders)

    assert outcome.empty
    assert len(published(store)) == acknowledged
    with store.ledger.read() as tx:
        assert queue_states(tx) == {}

"""Back-pressure: limits that change at run time, turns to write, retries while there is no room, size guardrails."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.errors import DiskFull, GuardrailExceeded, StagingQueueFull, TooManyIngests
from timestore_pipeline.ledger.counters import DROPPED_BATCHES, GUARDRAIL_BREACHES, RETRIED_BATCHES
from timestore_pipeline.ledger.leases import claim_slot, extend_slot, release_lease, slots_held
from timestore_pipeline.ledger.limits import LimitName, Override, set_override
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging import load, room, turns
from timestore_pipeline.staging.retry import pause_before
from timestore_pipeline.staging.stage import stage, stage_file
from timestore_pipeline.staging.turns import LEASE_SECONDS, turn, turns_of
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, counted, hourly, ingest, published, readable, rows_of
from timestore_pipeline_tests.conftest import WEATHER_CSV, MakeStore
from timestore_pipeline_tests.forks import process_pool

Drop = Callable[[Store, str, str, str | bytes], Path]


def override(store: Store, name: LimitName, value: int, dataset: str = "weather") -> None:
    with store.ledger.write() as tx:
        set_override(tx, Override(dataset, name, value, "the test", now_micros()))


class TestLimits:
    def test_a_raised_limit_holds_at_once_in_a_store_that_is_open(self, make_store: MakeStore):
        store, operator = make_store(staging_max_pending=1), make_store()
        stage(store, "weather", hourly(1))
        with pytest.raises(StagingQueueFull):
            stage(store, "weather", hourly(2))

        override(operator, LimitName.MAX_PENDING, 2)

        assert stage(store, "weather", hourly(2)).rows == 2
        with pytest.raises(StagingQueueFull, match="the limit is 2"):
            stage(store, "weather", hourly(3))

    def test_landing_files_follow_the_raised_limit_too(self, make_store: MakeStore, drop: Drop):
        store, operator = make_store(staging_max_pending=1), make_store()
        stage(store, "weather", hourly(1))
        drop(store, "weather", "a.csv", WEATHER_CSV)
        assert ingest(store) == {}

        override(operator, LimitName.MAX_PENDING, 0)

        assert ingest(store)["weather"].batches == 1


class TestRetries:
    @pytest.fixture
    def full(self, make_store: MakeStore) -> Store:
        store = make_store(staging_max_pending=1)
        stage(store, "weather", hourly(1))
        return store

    def test_a_caller_who_waits_gets_in_once_there_is_room(self, full: Store, make_store: MakeStore):
        outcome: list[int] = []
        caller = threading.Thread(
            target=lambda: outcome.append(stage(full, "weather", hourly(2), wait_seconds=60).rows)
        )
        caller.start()
        other = make_store()
        while not counted(other, RETRIED_BATCHES):
            assert caller.is_alive()

        build(other)
        caller.join(60)

        assert outcome == [2]
        assert set(counted(full, RETRIED_BATCHES)) == {"queue_full"}
        assert counted(full, DROPPED_BATCHES) == {}
        assert readable(full) == rows_of(hourly(1), hourly(2))

    @pytest.mark.parametrize("what", ["data", "a file"])
    def test_a_caller_who_waited_in_vain_is_dropped_once(self, full: Store, tmp_path: Path, what: str):
        path = tmp_path / "a.csv"
        path.write_text(WEATHER_CSV)
        attempt = {
            "data": lambda: stage(full, "weather", hourly(2), wait_seconds=0.3),
            "a file": lambda: stage_file(full, "weather", path, wait_seconds=0.3),
        }[what]

        with pytest.raises(StagingQueueFull):
            attempt()

        assert counted(full, DROPPED_BATCHES) == {"queue_full": 1}
        assert counted(full, RETRIED_BATCHES)["queue_full"] >= 1
        assert readable(full) == rows_of(hourly(1))

    @given(st.integers(0, 10_000), st.floats(0, 1))
    def test_pauses_grow_to_a_bound_and_differ(self, retry: int, chance: float):
        pause = pause_before(retry, chance)

        assert 0.05 <= pause <= 10
        assert pause <= pause_before(retry + 1, chance)
        assert pause_before(retry, 0) == pause_before(retry, 1) / 2

    def test_pauses_double(self):
        pauses = [pause_before(retry, 1) for retry in range(6)]

        assert all(later == 2 * earlier for earlier, later in pairwise(pauses))


MINUTE = 60_000_000


class TestSlots:
    @pytest.fixture
    def take(self, store: Store) -> Callable[..., str | None]:
        owners = (f"owner {number}" for number in itertools.count())

        def take_one(
            now: int, slots: int = 1, resource: str = "ingest/weather", owner: str | None = None
        ) -> str | None:
            owner = owner or next(owners)
            with store.ledger.write() as tx:
                return claim_slot(tx, resource, slots, owner, now=now, lease_micros=MINUTE)

        return take_one

    def test_no_more_than_there_are(self, store: Store, take: Callable[..., str | None]):
        first, second = take(0, slots=2, owner="me"), take(0, slots=2)
        assert first
        assert second
        assert take(0, slots=2) is None
        assert take(0, slots=3)
        assert take(0, resource="ingest/weather_two")

        with store.ledger.write() as tx:
            release_lease(tx, first, "me")
            assert slots_held(tx, "ingest/weather", 0) == 2

    def test_an_owner_that_asks_again_has_its_slot_already(self, take: Callable[..., str | None]):
        assert take(0, owner="me") == take(1, owner="me")
        assert take(2) is None

    def test_a_name_with_an_underscore_is_no_pattern(self, take: Callable[..., str | None]):
        assert take(0, resource="ingest/ab")
        assert take(0, resource="ingest/a_")

    def test_the_slot_of_a_process_that_died_comes_free_with_its_lease(self, take: Callable[..., str | None]):
        assert take(0)
        assert take(MINUTE - 1) is None
        assert take(MINUTE)

    def test_a_lease_that_was_extended_lasts(self, store: Store, take: Callable[..., str | None]):
        slot = take(0, owner="me")
        assert slot
        with store.ledger.write() as tx:
            assert extend_slot(tx, slot, "me", 2 * MINUTE)
            assert not extend_slot(tx, slot, "another", 9 * MINUTE)

        assert take(MINUTE) is None
        assert take(2 * MINUTE)
        with store.ledger.write() as tx:
            assert not extend_slot(tx, slot, "me", 9 * MINUTE)

    def test_a_clock_that_was_set_back_holds_nobody_up(self, take: Callable[..., str | None]):
        assert take(1_000 * MINUTE)
        assert take(0)


class TestTurns:
    def test_a_turn_that_does_not_come_is_refused_and_counted(self, make_store: MakeStore, drop: Drop):
        store = make_store(staging_concurrent_ingests=1, staging_turn_timeout_seconds=0.05)
        landed = drop(store, "weather", "a.csv", WEATHER_CSV)
        with store.ledger.read() as tx:
            limits = store.policy(tx, store.datasets["weather"]).limits

        with turn(store, store.datasets["weather"], limits):
            with pytest.raises(TooManyIngests, match=r"1 segments are being written, the limit is 1"):
                stage(store, "weather", hourly(1))
            (report,) = ingest(store).values()

        assert counted(store, DROPPED_BATCHES) == {"busy": 1}
        assert "1 files wait" in report.skipped[0]
        assert landed.exists()
        assert stage(store, "weather", hourly(1)).rows == 1
        assert ingest(store)["weather"].batches == 1

    def test_a_turn_ends_with_the_block_however_it_ends(self, make_store: MakeStore):
        store = make_store(staging_concurrent_ingests=1, staging_turn_timeout_seconds=0.05)
        spec = store.datasets["weather"]
        with store.ledger.read() as tx:
            limits = store.policy(tx, spec).limits

        with pytest.raises(RuntimeError), turn(store, spec, limits):
            raise RuntimeError

        with store.ledger.read() as tx:
            assert slots_held(tx, turns_of("weather"), now_micros()) == 0

    def test_a_turn_lasts_as_long_as_the_segment_takes(self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch):
        store = make_store(staging_concurrent_ingests=1)
        clock, held, lasted = [now_micros()], [], threading.Event()

        class Passing(threading.Event):
            """Waits for nothing: the clock is moved by as much, and just then nobody else may have the turn."""

            def wait(self, timeout: float | None = None) -> bool:
                if timeout is None or lasted.is_set():
                    return super().wait(60)
                clock[0] += round(timeout * 1e6)
                with store.ledger.read() as tx:
                    held.append(slots_held(tx, turns_of("weather"), clock[0]))
                if clock[0] - began > 3 * LEASE_SECONDS * 1e6:
                    lasted.set()
                return False

        began = clock[0]
        monkeypatch.setattr(turns, "now_micros", lambda: clock[0])
        monkeypatch.setattr(turns, "threading", SimpleNamespace(Event=Passing, Thread=threading.Thread))
        with store.ledger.read() as tx:
            limits = store.policy(tx, store.datasets["weather"]).limits

        with turn(store, store.datasets["weather"], limits):
            assert lasted.wait(60)

        assert set(held) == {1}

    def test_another_dataset_does_not_wait(self, make_store: MakeStore, drop: Drop):
        store = make_store(staging_concurrent_ingests=1, staging_turn_timeout_seconds=0.05)
        drop(store, "events", "a.csv", "at,kind\n1767225600000,start\n")
        with store.ledger.read() as tx:
            limits = store.policy(tx, store.datasets["weather"]).limits

        with turn(store, store.datasets["weather"], limits):
            assert ingest(store)["events"].batches == 1

    @pytest.mark.parametrize(("limit", "most"), [(0, 3), (1, 1), (2, 2)])
    @pytest.mark.process
    def test_the_limit_holds_over_processes(self, make_store: MakeStore, home: Path, limit: int, most: int):
        store = make_store()
        override(store, LimitName.CONCURRENT_INGESTS, limit)
        with process_pool(3) as pool:
            seen = list(pool.map(_most_at_once, [home] * 3, range(3), [most] * 3))

        assert max(seen) == most
        assert len(readable(store)) == sum(1 + number for number in range(3))


def _most_at_once(home: Path, number: int, hoped_for: int) -> int:
    """Stage one batch; while its segment is written look for ``hoped_for`` processes that do so, and for one more."""
    folder = home / "writing"
    folder.mkdir(exist_ok=True)
    ready = home / "ready"
    ready.mkdir(exist_ok=True)
    seen = 0
    write = load.write_segment

    def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal seen
        mark = folder / str(number)
        mark.touch()
        try:
            # Long enough to see the ones that are there, and then whether one comes that must not.
            deadline = time.monotonic() + (10 if hoped_for > 1 else 0)
            while (seen := max(seen, len(list(folder.iterdir())))) < hoped_for and time.monotonic() < deadline:
                if len(list(ready.glob("done-*"))) > 3 - hoped_for:
                    break
            deadline = time.monotonic() + 0.3
            while time.monotonic() < deadline:
                seen = max(seen, len(list(folder.iterdir())))
            return write(*arguments, **options)
        finally:
            mark.unlink()
            (ready / f"done-{number}").touch()

    load.write_segment = watched
    with Store.open(Settings(home=home, staging_min_free_disk_bytes=0)) as store:
        (ready / str(number)).touch()
        deadline = time.monotonic() + 60
        while len([path for path in ready.iterdir() if path.name.isdecimal()]) < 3:
            assert time.monotonic() < deadline
        stage(store, "weather", hourly(1 + number, station=str(number)))
    return seen


class TestGuardrails:
    @pytest.mark.parametrize("guardrail", ["max_dataset_bytes", "max_total_bytes"])
    def test_a_batch_past_a_guardrail_is_staged_logged_and_counted(
        self, make_store: MakeStore, guardrail: str, caplog: pytest.LogCaptureFixture
    ):
        stage(make_store(), "weather", hourly(1))
        limit: dict[str, Any] = {f"staging_{guardrail}": 1}
        store = make_store(**limit)

        stage(store, "weather", hourly(2))
        stage(store, "weather", hourly(3))

        assert counted(store, GUARDRAIL_BREACHES) == {guardrail: 2}
        assert f"TIMESTORE_STAGING_{guardrail.upper()}" in caplog.text
        assert readable(store) == rows_of(hourly(1), hourly(2), hourly(3))

    def test_enforced_it_refuses_and_counts_until_there_is_room(self, make_store: MakeStore, drop: Drop):
        store = make_store(staging_max_dataset_bytes=1, staging_guardrail_mode="enforce")
        stage(store, "weather", hourly(1))
        drop(store, "weather", "a.csv", WEATHER_CSV)

        with pytest.raises(GuardrailExceeded):
            stage(store, "weather", hourly(2))
        with pytest.raises(GuardrailExceeded):
            ingest(store)

        assert counted(store, GUARDRAIL_BREACHES) == {"max_dataset_bytes": 3}, "one by the batch that was staged"
        assert counted(store, DROPPED_BATCHES) == {"guardrail": 1}
        build(store)
        assert stage(store, "weather", hourly(2)).rows == 2

    def test_a_repeated_batch_is_no_breach(self, make_store: MakeStore):
        store = make_store(staging_max_dataset_bytes=1, staging_guardrail_mode="enforce")
        stage(store, "weather", hourly(1))

        assert stage(store, "weather", hourly(1)).duplicate
        assert counted(store, GUARDRAIL_BREACHES) == {"max_dataset_bytes": 1}


class TestDisk:
    def test_a_build_without_free_disk_publishes_nothing_and_claims_nothing(self, make_store: MakeStore):
        stage(make_store(), "weather", hourly(1))

        with pytest.raises(DiskFull, match="TIMESTORE_STAGING_MIN_FREE_DISK_BYTES"):
            build(make_store(staging_min_free_disk_bytes=1 << 60))

        assert published(make_store()) == []
        assert build(make_store()).build_id == 1

    def test_a_build_that_runs_out_of_disk_gives_its_rows_back(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ):
        store = make_store(staging_min_free_disk_bytes=1_000)
        stage(store, "weather", hourly(48))
        free = iter([2_000, 2_000])  # before the claim, before the first window; then nothing
        monkeypatch.setattr(room, "disk_usage", lambda path: SimpleNamespace(free=next(free, 0)))

        with pytest.raises(DiskFull):
            build(store)
        monkeypatch.undo()

        assert readable(store) == rows_of(hourly(48))
        assert published(store) == []
        assert build(store).rows == 48

"""Rows of windows that have ended: taken, set aside or dropped as the dataset says, told, counted, in nobody's way."""

from __future__ import annotations

import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timestore_pipeline.building.due import plan_flushes
from timestore_pipeline.datasets import LatePolicy
from timestore_pipeline.ledger.counters import LATE_BATCHES, LATE_ROWS
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import Granularity, Window, from_micros, to_micros
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline.segments import judging as judging_module
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    Rows,
    build,
    counted,
    ingest,
    published,
    readable,
    rows_of,
    weather,
    weather_csv,
)
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.sampling import examples

HOUR = timedelta(hours=1)
THIS_HOUR = Window.containing(datetime.now(UTC), Granularity.HOUR).start


def hours(policy: str = "accept", lateness: str = "2h") -> str:
    """A datasets file with hourly windows."""
    return (
        "datasets: {weather: {columns: {ts: timestamptz, station: varchar, temp: double}, time: ts, window: hour, "
        f"lateness: {lateness}, late: {policy}}}}}"
    )


@pytest.fixture(autouse=True)
def judged_at_half_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hour turns while a test is at work."""
    monkeypatch.setattr(judging_module, "now_micros", lambda: to_micros(THIS_HOUR) + 1_800_000_000)


def rows(*hours_ago: int, station: str = "JFK") -> pa.Table:
    """A row of the first second of each of these hours; 0 is the current one."""
    return weather(*((THIS_HOUR - ago * HOUR + timedelta(seconds=1), station, float(ago)) for ago in hours_ago))


def hours_readable(store: Store) -> list[float]:
    return [row[2] for row in readable(store)]


@pytest.mark.parametrize("policy", list(LatePolicy))
def test_what_comes_within_the_lateness_is_staged_whatever_the_dataset_does_with_late_rows(
    make_store: MakeStore, policy: LatePolicy
):
    store = make_store(hours(policy))

    receipt = stage(store, "weather", rows(0, 1, 2))

    assert (receipt.rows, receipt.quarantined_rows, receipt.dropped_rows) == (3, 0, 0)
    assert len(receipt.windows) == 3
    assert counted(store, LATE_ROWS) == {"within_lateness": 2}
    assert counted(store, LATE_BATCHES) == {"within_lateness": 1}


def test_what_comes_later_is_accepted_by_default_and_counted(make_store: MakeStore):
    store = make_store(hours())

    receipt = stage(store, "weather", rows(0, 1, 30, 40))

    assert receipt.rows == 4
    assert counted(store, LATE_ROWS) == {"within_lateness": 1, "accepted": 2}
    build(store)
    assert published(store) == rows_of(rows(0, 1, 30, 40))


def test_or_set_aside_with_the_reason_until_somebody_wants_it(make_store: MakeStore):
    store = make_store(hours("quarantine"))

    receipt = stage(store, "weather", rows(0, 30, 40))

    assert (receipt.rows, receipt.quarantined_rows) == (1, 2)
    assert counted(store, LATE_ROWS) == {"quarantined": 2}
    with store.ledger.read() as tx:
        (entry,) = open_entries(tx)
    assert "2 rows: its window closed 2h after its end: the time is before " in entry.reason

    assert retry_entry(store, entry.id, by="the test").rows == 2

    assert sorted(hours_readable(store)) == [0, 30, 40]
    assert counted(store, LATE_ROWS) == {"quarantined": 2, "accepted": 2}


def test_or_dropped_which_the_caller_is_told_now_and_when_asking_again(make_store: MakeStore):
    store = make_store(hours("drop"))

    first = stage(store, "weather", rows(0, 30, 40))
    again = stage(store, "weather", rows(0, 30, 40))

    assert (first.rows, first.dropped_rows, first.quarantined_rows) == (1, 2, 0)
    assert (again.duplicate, again.rows, again.dropped_rows) == (True, 1, 2)
    assert hours_readable(store) == [0]
    assert counted(store, LATE_ROWS) == {"dropped": 2}
    assert counted(store, LATE_BATCHES) == {"dropped": 1}
    with store.ledger.read() as tx:
        assert open_entries(tx) == []


def test_a_batch_of_nothing_but_dropped_rows_is_acknowledged_and_leaves_nothing_behind(make_store: MakeStore):
    store = make_store(hours("drop"))

    receipt = stage(store, "weather", rows(30))

    assert (receipt.rows, receipt.dropped_rows, receipt.segment_id) == (0, 1, None)
    assert list(store.settings.staging_path.rglob("*.duckdb")) == []


def test_other_problems_of_a_batch_are_set_aside_beside_dropped_rows(make_store: MakeStore):
    store = make_store(hours("drop"))
    table = pa.concat_tables([rows(0, 30), weather((None, "BAD", 1.0))])

    receipt = stage(store, "weather", table)

    assert (receipt.rows, receipt.quarantined_rows, receipt.dropped_rows) == (1, 1, 1)
    with store.ledger.read() as tx:
        (entry,) = open_entries(tx)
    assert retry_entry(store, entry.id, by="the test").rows == 0


def test_landing_files_are_judged_each_for_itself(make_store: MakeStore):
    store = make_store(hours("drop"))
    folder = store.settings.landing_path / "weather"
    folder.mkdir(parents=True)
    for name, ago in (("fresh.csv", 0), ("late.csv", 30)):
        (folder / name).write_text(weather_csv(f"{(THIS_HOUR - ago * HOUR).isoformat()},{name},1"))

    report = ingest(store)["weather"]

    assert (report.rows, report.dropped_rows) == (1, 1)
    assert {receipt.source: receipt.dropped_rows for receipt in report.receipts} == {"fresh.csv": 0, "late.csv": 1}


def test_a_window_closes_by_the_clock_of_whoever_stages(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch):
    store = make_store(hours("quarantine"))
    table = rows(1)
    for hours_on, quarantined in ((0, 0), (24, 1), (-24, 0)):
        moment = to_micros(THIS_HOUR + hours_on * HOUR)
        monkeypatch.setattr(judging_module, "now_micros", lambda moment=moment: moment)

        receipt = stage(store, "weather", table, batch_id=f"at {hours_on}")

        # A day back the row lies in the future, but no more than rows may.
        assert receipt.quarantined_rows == quarantined, from_micros(moment)


class TestFlushing:
    """Late rows go to their own windows, at their own pace."""

    @pytest.fixture
    def busy(self, make_store: MakeStore) -> Store:
        """An hour of 30 hours ago is published; then a late row of it is staged, and a fresh one."""
        store = make_store(hours())
        stage(store, "weather", rows(30))
        build(store)
        stage(store, "weather", rows(30, station="LGA"))
        stage(store, "weather", rows(0))
        return store

    def windows_due(self, store: Store, seconds: float) -> list[tuple[str, str]]:
        """First and last window of what is due so many seconds from now."""
        plan = plan_flushes(store, now_micros() + int(seconds * 1e6))
        return [(request.first.key, request.last.key) for group in plan.groups for request in group.requests]

    def key(self, ago: int) -> str:
        return Window.containing(THIS_HOUR - ago * HOUR, Granularity.HOUR).key

    def test_a_fresh_row_does_not_wait_for_a_late_one_nor_take_it_along(self, busy: Store):
        assert self.windows_due(busy, 30) == []
        assert self.windows_due(busy, 61) == [(self.key(0), self.key(0))]
        assert self.windows_due(busy, 601) == [(self.key(30), self.key(0))]

    def test_late_rows_alone_wait_for_their_own_age(self, busy: Store):
        build(busy, first=self.key(0), last=self.key(0))

        assert self.windows_due(busy, 590) == []
        assert self.windows_due(busy, 601) == [(self.key(30), self.key(30))]

    @pytest.mark.long
    def test_a_trickle_of_late_rows_makes_a_file_per_ten_minutes_and_not_per_minute(self, make_store: MakeStore):
        store = make_store(hours())
        stage(store, "weather", rows(30))
        build(store)
        flushes = 0
        for minute in range(30):
            stage(store, "weather", rows(30, station=str(minute)))
            # As if each of these minutes had passed since the row before.
            _age(store, 60)
            for first, last in self.windows_due(store, 0):
                build(store, first=first, last=last)
                flushes += 1

        assert flushes == 3
        assert len(readable(store)) == 31

    def test_many_late_rows_are_flushed_like_any_others(self, make_store: MakeStore):
        store = make_store(hours(), staging_flush_max_rows=3)
        stage(store, "weather", rows(30))
        build(store)
        stage(store, "weather", rows(30, station="A"))
        stage(store, "weather", rows(30, station="B"))
        assert self.windows_due(store, 0) == []

        stage(store, "weather", rows(30, station="C"))

        assert self.windows_due(store, 0) == [(self.key(30), self.key(30))]

    def test_old_data_that_the_table_does_not_have_yet_is_not_late(self, make_store: MakeStore):
        store = make_store(hours())

        stage(store, "weather", rows(30, 31, 32))

        with store.ledger.read() as tx:
            assert queue_states(tx)["weather"].late.rows == 0
        assert self.windows_due(store, 61) == [(self.key(32), self.key(30))]


def _age(store: Store, seconds: float) -> None:
    """Make all that is staged older."""
    from sqlalchemy import update

    from timestore_pipeline.ledger.schema import slices

    with store.ledger.write() as tx:
        tx.execute(update(slices).values(staged_at=slices.c.staged_at - int(seconds * 1e6)))


@pytest.mark.long
@settings(max_examples=examples(20))
@given(
    st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=8), min_size=1, max_size=4),
    st.sampled_from(list(LatePolicy)),
    st.integers(0, 40),
)
def test_every_row_is_staged_or_set_aside_or_dropped_and_counted_once(
    batches: list[list[int]], policy: LatePolicy, lateness: int
):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "datasets.yaml").write_text(hours(policy, f"{lateness}h" if lateness else "0"))
        with Store.open(Settings(home=Path(folder), staging_min_free_disk_bytes=0)) as store:
            expected: Counter[str] = Counter()
            staged: Rows = []
            for number, hours_ago in enumerate(batches):
                table = rows(*hours_ago, station=str(number))
                receipt = stage(store, "weather", table)
                assert receipt.rows + receipt.quarantined_rows + receipt.dropped_rows == len(hours_ago)
                taken = [ago for ago in hours_ago if policy is LatePolicy.ACCEPT or ago <= lateness]
                staged += rows_of(rows(*taken, station=str(number)))
                expected["within_lateness"] += sum(0 < ago <= lateness for ago in hours_ago)
                beyond = {LatePolicy.ACCEPT: "accepted", LatePolicy.QUARANTINE: "quarantined"}.get(policy, "dropped")
                expected[beyond] += sum(ago > lateness for ago in hours_ago)
                if number % 2:
                    build(store) if taken else None

            assert Counter(counted(store, LATE_ROWS)) == +expected
            assert readable(store) == sorted(staged, key=repr)
            assert audit_rows(store, "weather").wrong == ()

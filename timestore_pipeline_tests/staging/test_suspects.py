"""Files that end the process which reads them: read in smaller and smaller groups, and in the end not at all."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.errors import SegmentNotWritten, StagingQueueFull
from timestore_pipeline.ledger.readings import Readings, begin_readings, unended_readings
from timestore_pipeline.staging import ingest as ingesting
from timestore_pipeline.staging.arrivals import file_batch_id, file_fingerprint
from timestore_pipeline.staging.ingest import IngestReport
from timestore_pipeline.staging.suspects import MOST_ONCE_SUSPECTED, reading_groups
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import NEW_YEAR, hourly, ingest, parquet_bytes, readable, weather
from timestore_pipeline_tests.conftest import WEATHER_CSV, MakeStore

BATCHES = [f"b{number}" for number in range(250)]


@given(
    st.dictionaries(st.sampled_from(BATCHES), st.integers(1, 4).map(lambda begun: Readings(begun, 0))),
    st.integers(2, 4),
)
def test_every_file_is_in_one_group_and_the_last_attempt_is_made_alone(before: dict[str, Readings], attempts: int):
    groups = reading_groups(BATCHES, before, attempts)

    assert sorted(batch_id for group in groups for batch_id in group.batch_ids) == sorted(BATCHES)
    assert [group.begun for group in groups] == sorted(group.begun for group in groups)
    for group in groups:
        assert {before[batch_id].begun if batch_id in before else 0 for batch_id in group.batch_ids} == {group.begun}
        assert group.begun == 0 or len(group.batch_ids) <= MOST_ONCE_SUSPECTED
        assert group.begun < attempts - 1 or len(group.batch_ids) == 1


def unended(store: Store) -> dict[str, Readings]:
    with store.ledger.read() as tx:
        ids = [
            file_batch_id(file_fingerprint(path))
            for path in store.settings.home.rglob("*")
            if path.is_file() and path.suffix in (".csv", ".parquet")
        ]
        return unended_readings(tx, "weather", ids)


def suspect(store: Store, *contents: bytes, times: int = 1) -> None:
    """Pretend that processes have died of these files."""
    for content in contents:
        path = store.settings.home / "suspect"
        path.write_bytes(content)
        for _ in range(times):
            with store.ledger.write() as tx:
                begin_readings(tx, "weather", [file_batch_id(file_fingerprint(path))], 0)


def test_readings_that_ended_leave_nothing_behind(store: Store, drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)
    drop(store, "weather", "bad.csv", "bad\n")

    ingest(store)

    assert unended(store) == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StagingQueueFull("weather", 1, 1), RuntimeError("a bug")])
def test_a_reading_that_was_interrupted_or_refused_is_no_suspicion(
    store: Store, drop, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    drop(store, "weather", "a.csv", WEATHER_CSV)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ingesting, "acknowledge_segment", fail)
    with contextlib.suppress(KeyboardInterrupt, RuntimeError):
        ingest(store)

    assert unended(store) == {}


def test_files_beside_which_a_process_died_are_staged_after_the_others(store: Store, drop):
    old, new = (parquet_bytes(hourly(3, station=station)) for station in ("OLD", "NEW"))
    suspect(store, old)
    drop(store, "weather", "old.parquet", old)
    drop(store, "weather", "new.parquet", new)

    report = ingest(store)["weather"]

    assert [receipt.source for receipt in report.receipts] == ["new.parquet", "old.parquet"]
    assert len({receipt.segment_id for receipt in report.receipts}) == 2
    assert len(readable(store)) == 6
    assert unended(store) == {}
    assert list(store.settings.landing_path.rglob("*.parquet")) == []


def test_a_file_that_lands_again_after_it_was_quarantined_unread_gets_new_attempts(store: Store, drop):
    content = parquet_bytes(hourly(3))
    suspect(store, content, times=3)
    drop(store, "weather", "a.parquet", content)
    assert "has ended the process 3 times" in ingest(store)["weather"].quarantined[0].reason

    drop(store, "weather", "a.parquet", content)

    assert ingest(store)["weather"].rows == 3


def test_a_queue_that_is_full_lets_suspects_wait(make_store: MakeStore, drop):
    store = make_store(staging_max_pending=1)
    content = parquet_bytes(hourly(3))
    suspect(store, content)
    drop(store, "weather", "old.parquet", content)
    drop(store, "weather", "new.csv", WEATHER_CSV)

    reports = [ingest(store)["weather"]]

    assert sum(report.batches for report in reports) == 1
    assert len(list(store.settings.landing_path.rglob("*.*"))) == 1


def huge() -> pa.Table:
    """A row that no connection of 40 MB can hold, in a file of kilobytes."""
    return weather((NEW_YEAR + timedelta(days=1), "x" * 150_000_000, 1.0))


def test_a_file_that_needs_more_memory_than_there_is_is_quarantined_and_the_others_go_on(make_store: MakeStore, drop):
    store = make_store(duckdb_memory_limit="40MB", duckdb_threads=1)
    drop(store, "weather", "bomb.parquet", parquet_bytes(huge(), compression="zstd"))
    drop(store, "weather", "a.csv", WEATHER_CSV)
    reports: list[IngestReport] = []

    for _ in range(4):
        with contextlib.suppress(SegmentNotWritten):
            reports += ingest(store).values()

    assert [receipt.source for report in reports for receipt in report.staged] == ["a.csv"]
    (entry,) = [entry for report in reports for entry in report.quarantined]
    assert entry.source == "bomb.parquet"
    assert "more memory than there is" in entry.reason
    assert unended(store) == {}
    assert len(readable(store)) == 3

"""The IO manager: what assets return is staged once, what they take are the rows of their window."""

# No `from __future__ import annotations`: Dagster reads the annotations of assets as they stand.
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from timestore_pipeline.ledger.counters import DROPPED_BATCHES, RETRIED_BATCHES
from timestore_pipeline.orchestration.io_manager import (
    batch_id_of,
    published_asset,
    timestore_io_manager,
)
from timestore_pipeline.reading.rows import Rows
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import NEW_YEAR, build, counted, hourly, readable, rows_of
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.orchestration.conftest import PUBLISHED, Own

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-10")
STATIONS = dg.StaticPartitionsDefinition(["JFK", "LGA"])
HOURS = dg.HourlyPartitionsDefinition("2026-01-01-00:00", end_date="2026-01-03-00:00")
BASE: dict[str, Any] = {"io_manager_key": "timestore"}


def day_of(key: str, station: str = "JFK") -> pa.Table:
    return hourly(24, start=datetime.fromisoformat(key).replace(tzinfo=UTC), station=station)


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store(staging_max_pending=20)


FRAMES: dict[str, Callable[[pa.Table], Any]] = {
    "pyarrow": lambda table: table,
    "reader": lambda table: table.to_reader(),
    "pandas": lambda table: table.to_pandas(),
    "polars": pl.DataFrame,
    "duckdb": lambda table: duckdb.connect().from_arrow(table),
}


@pytest.mark.matrix
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_what_an_asset_returns_is_staged(own: Own, frame: Callable[[pa.Table], Any]):
    @dg.asset(**BASE)
    def weather():
        return frame(hourly(30))

    result = own.materialize(weather)

    assert readable(own.store) == rows_of(hourly(30))
    metadata = own.metadata(result, "weather")
    assert (metadata["rows"], metadata["batches"], metadata["duplicates"]) == (30, 1, 0)
    assert metadata["windows"] == "2026-01-01 … 2026-01-02 (2)"
    assert metadata["batch_id"] == f"asset:weather:-:{result.run_id}"
    assert metadata["bytes"] > 0
    assert [column.name for column in metadata["dagster/column_schema"].columns] == ["ts", "station", "temp"]


def test_the_dataset_is_named_by_metadata_or_by_the_key(own: Own):
    @dg.asset(key=["stations", "weather"], **BASE)
    def by_key() -> pa.Table:
        return hourly(1)

    @dg.asset(metadata={"timestore/dataset": "weather"}, **BASE)
    def by_metadata() -> pa.Table:
        return hourly(2)

    own.materialize(by_key, by_metadata)

    assert readable(own.store) == rows_of(hourly(1), hourly(2))


def test_an_asset_that_returns_nothing_stages_nothing(own: Own):
    @dg.asset(**BASE)
    def weather() -> Any:
        return None

    assert own.materialize(weather).success
    assert readable(own.store) == []


@dg.asset(partitions_def=DAYS, key="weather", **BASE)
def weather_days(context: dg.AssetExecutionContext) -> pa.Table:
    return pa.concat_tables([day_of(key) for key in context.partition_keys])


@pytest.mark.long
def test_a_partition_is_a_batch_of_its_own(own: Own):
    for key in ("2026-01-01", "2026-01-02"):
        result = own.materialize(weather_days, partition_key=key)
        assert own.metadata(result, "weather")["batch_id"] == f"asset:weather:{key}:{result.run_id}"

    assert readable(own.store) == rows_of(day_of("2026-01-01"), day_of("2026-01-02"))


@dg.asset(partitions_def=DAYS, key="weather", backfill_policy=dg.BackfillPolicy.single_run(), **BASE)
def weather_range(context: dg.AssetExecutionContext) -> pa.Table:
    return pa.concat_tables([day_of(key) for key in context.partition_keys])


def test_a_backfill_of_a_range_in_one_run_is_one_batch(own: Own):
    tags = {
        "dagster/asset_partition_range_start": "2026-01-02",
        "dagster/asset_partition_range_end": "2026-01-04",
    }
    result = own.materialize(weather_range, tags=tags)

    assert own.metadata(result, "weather")["batch_id"] == f"asset:weather:2026-01-02...2026-01-04:{result.run_id}"
    assert {event.partition for event in result.asset_materializations_for_node("weather")} == {
        "2026-01-02",
        "2026-01-03",
        "2026-01-04",
    }
    assert readable(own.store) == rows_of(*(day_of(f"2026-01-0{day}") for day in (2, 3, 4)))


@pytest.mark.long
def test_the_same_rows_in_another_run_are_not_staged_again(own: Own):
    own.materialize(weather_days, partition_key="2026-01-01")
    result = own.materialize(weather_days, partition_key="2026-01-01")

    assert own.metadata(result, "weather")["duplicates"] == 1
    assert readable(own.store) == rows_of(day_of("2026-01-01"))


@pytest.mark.long
def test_other_rows_in_another_run_take_the_place_and_so_does_going_back(own: Own):
    for rows in (3, 4, 3):
        own.materialize(_weather_of(rows), partition_key="2026-01-01")
        assert readable(own.store) == rows_of(hourly(rows))


def _weather_of(rows: int, **options: Any) -> Any:
    @dg.asset(partitions_def=DAYS, io_manager_key="timestore", **options)
    def weather() -> pa.Table:
        return hourly(rows)

    return weather


def _breaks_off_after_staging(marker: Path, second_attempt: pa.Table, **options: Any) -> dg.AssetsDefinition:
    """An asset whose first attempt is acknowledged and then fails, as if its process had been killed just then."""

    @dg.multi_asset(
        outs={"weather": dg.AssetOut(io_manager_key="timestore"), "done": dg.AssetOut(is_required=False)}, **options
    )
    def weather() -> Iterator[dg.Output]:
        first = not marker.exists()
        yield dg.Output(hourly(3) if first else second_attempt, "weather")
        if first:
            marker.touch()
            raise RuntimeError("killed")

    return weather


def test_a_retried_step_stages_nothing_twice(own: Own, tmp_path: Path):
    asset = _breaks_off_after_staging(tmp_path / "marker", hourly(3), retry_policy=dg.RetryPolicy(max_retries=1))

    assert own.materialize(asset).success
    assert readable(own.store) == rows_of(hourly(3))


def test_of_a_retried_step_that_brings_other_rows_the_first_ones_stand(
    own: Own, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    asset = _breaks_off_after_staging(tmp_path / "marker", hourly(9), retry_policy=dg.RetryPolicy(max_retries=1))

    assert own.materialize(asset).success
    assert readable(own.store) == rows_of(hourly(3))
    assert "materialize in a new run to stage them" in capfd.readouterr().err


def interrupted_job() -> dg.JobDefinition:
    """For another process, or another run: everything it needs is in the environment."""
    settings = Settings(home=Path(os.environ["TIMESTORE_HOME"]), staging_min_free_disk_bytes=0)
    table = hourly(int(os.environ["TEST_ROWS_OF_SECOND_ATTEMPT"]))
    definitions = dg.Definitions(
        assets=[_breaks_off_after_staging(settings.home / "marker", table)],
        jobs=[dg.define_asset_job("interrupted", executor_def=dg.in_process_executor)],
        resources={"timestore": timestore_io_manager(settings)},
    )
    return definitions.resolve_job_def("interrupted")


@pytest.mark.long
@pytest.mark.parametrize("rows", [3, 9])
def test_a_re_execution_from_failure_goes_on_with_what_the_failed_run_began(
    own: Own, monkeypatch: pytest.MonkeyPatch, home: Path, rows: int
):
    monkeypatch.setenv("TIMESTORE_HOME", str(home))
    monkeypatch.setenv("TEST_ROWS_OF_SECOND_ATTEMPT", str(rows))
    job = dg.reconstructable(interrupted_job)

    with dg.execute_job(job, own.instance) as failed:
        assert not failed.success
    options = dg.ReexecutionOptions.from_failure(failed.run_id, own.instance)
    with dg.execute_job(job, own.instance, reexecution_options=options) as again:
        assert again.success

    assert readable(own.store) == rows_of(hourly(3))

    # All of it once more: the step had succeeded, so this is meant, and what it brings is new.
    with dg.execute_job(
        job, own.instance, reexecution_options=dg.ReexecutionOptions(parent_run_id=again.run_id)
    ) as deliberate:
        assert deliberate.success
    assert readable(own.store) == rows_of(hourly(3), *([hourly(9)] if rows == 9 else []))


@pytest.mark.long
def test_a_full_queue_is_waited_for_and_counted(make_store: MakeStore, instance: dg.DagsterInstance):
    own = Own(make_store(staging_max_pending=1), instance)
    stage(own.store, "weather", hourly(1))

    @dg.asset(**BASE)
    def weather() -> pa.Table:
        return hourly(2)

    refused = own.materialize(weather, wait_seconds=0.3, raise_on_error=False)

    assert not refused.success
    assert counted(own.store, RETRIED_BATCHES)["queue_full"] >= 1
    assert counted(own.store, DROPPED_BATCHES) == {"queue_full": 1}
    build(own.store)
    assert own.materialize(weather, wait_seconds=0.3).success


seen: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


def consumer(annotation: Any, metadata: dict[str, Any] | None = None, **options: Any) -> dg.AssetsDefinition:
    def report(weather) -> None:
        seen["rows"] = weather

    report.__annotations__ = {"weather": annotation, "return": None}
    given = dg.AssetIn(key=PUBLISHED, input_manager_key="timestore", metadata=metadata or {})
    return dg.asset(ins={"weather": given}, **options)(report)


ANNOTATIONS: dict[str, tuple[Any, Callable[[Any], pa.Table]]] = {
    "pyarrow": (pa.Table, lambda table: table),
    "nothing": (Any, lambda table: table),
    "reader": (pa.RecordBatchReader, lambda reader: reader.read_all()),
    "pandas": (pd.DataFrame, pa.Table.from_pandas),
    "polars": (pl.DataFrame, pa.table),
    "polars, lazy": (pl.LazyFrame, lambda frame: pa.table(frame.collect())),
    "duckdb": (duckdb.DuckDBPyRelation, lambda relation: relation.to_arrow_table()),
    "rows": (Rows, lambda rows: rows.to_arrow()),
}


@pytest.mark.long
@pytest.mark.matrix
@pytest.mark.parametrize(("annotation", "table"), ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_an_asset_is_given_what_it_is_annotated_with(own: Own, annotation: Any, table: Callable[[Any], pa.Table]):
    stage(own.store, "weather", hourly(30))
    build(own.store)
    stage(own.store, "weather", hourly(3, start=NEW_YEAR + timedelta(days=5)))

    own.materialize(consumer(annotation))

    assert rows_of(table(seen["rows"])) == readable(own.store)


def test_an_annotation_that_is_no_frame_is_refused_in_words(own: Own):
    stage(own.store, "weather", hourly(3))

    with pytest.raises(dg.Failure, match="annotate it as a pyarrow Table"):
        own.materialize(consumer(dict))


@pytest.fixture
def five_days(own: Own) -> Own:
    """Five days of weather: three published, two staged."""
    for day in range(1, 6):
        stage(own.store, "weather", day_of(f"2026-01-0{day}", station=f"D{day}"))
        if day == 3:
            build(own.store)
    return own


def days_seen() -> list[str]:
    return sorted(set(seen["rows"]["station"].to_pylist()))


@pytest.mark.long
def test_a_partitioned_asset_reads_the_window_of_its_partition(five_days: Own):
    five_days.materialize(consumer(pa.Table, partitions_def=DAYS), partition_key="2026-01-02")
    assert days_seen() == ["D2"]
    assert seen["rows"].num_rows == 24

    five_days.materialize(consumer(pa.Table, partitions_def=HOURS), partition_key="2026-01-02-05:00")
    assert seen["rows"]["temp"].to_pylist() == [5.0]


@pytest.mark.long
def test_a_range_in_one_run_reads_the_windows_of_all_its_partitions(five_days: Own):
    tags = {
        "dagster/asset_partition_range_start": "2026-01-02",
        "dagster/asset_partition_range_end": "2026-01-04",
    }
    asset = consumer(pa.Table, partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
    five_days.materialize(asset, tags=tags)

    assert days_seen() == ["D2", "D3", "D4"]


@pytest.mark.long
def test_all_rows_are_read_without_partitions_and_where_it_is_said(five_days: Own):
    five_days.materialize(consumer(pa.Table))
    assert len(days_seen()) == 5
    five_days.materialize(consumer(pa.Table, partitions_def=STATIONS), partition_key="JFK")
    assert len(days_seen()) == 5
    whole = consumer(pa.Table, {"timestore/range": "all"}, partitions_def=DAYS)
    five_days.materialize(whole, partition_key="2026-01-02")
    assert len(days_seen()) == 5


@pytest.mark.long
def test_only_the_columns_that_are_wanted_are_read(five_days: Own):
    five_days.materialize(consumer(pa.Table, {"columns": ["station"]}))

    assert seen["rows"].column_names == ["station"]


@pytest.mark.long
def test_a_partition_mapping_says_which_windows_are_read(five_days: Own):
    spec = five_days.store.datasets["weather"]

    @dg.asset(
        partitions_def=DAYS,
        ins={
            "weather": dg.AssetIn(
                ["partitions", "weather"],
                partition_mapping=dg.TimeWindowPartitionMapping(start_offset=-2, end_offset=-1),
            )
        },
    )
    def before(weather: pa.Table) -> None:
        seen["rows"] = weather

    five_days.materialize(published_asset(spec, "timestore"), before, only="before", partition_key="2026-01-05")

    assert days_seen() == ["D3", "D4"]


@pytest.mark.long
def test_an_asset_takes_what_another_one_of_the_location_has_staged(own: Own):
    @dg.asset(partitions_def=DAYS)
    def doubled(weather: pd.DataFrame) -> None:
        seen["rows"] = weather

    for key in ("2026-01-01", "2026-01-02"):
        own.materialize(weather_days, doubled, partition_key=key)
        assert len(seen["rows"]) == 24
        assert seen["rows"]["ts"].min() == pd.Timestamp(key, tz="UTC")


def test_partitions_that_are_not_of_time_are_no_range(own: Own):
    @dg.asset(partitions_def=STATIONS, **BASE)
    def weather(context: dg.AssetExecutionContext) -> pa.Table:
        return hourly(3, station=context.partition_key)

    @dg.asset(partitions_def=STATIONS)
    def report(weather: pa.Table) -> None:
        seen["rows"] = weather

    with pytest.raises(dg.Failure, match="partitioned, but not by time"):
        own.materialize(weather, report, partition_key="JFK")


def test_rows_outside_of_the_partition_are_appended_with_a_warning(own: Own, capfd: pytest.CaptureFixture[str]):
    asset = _weather_of(48, metadata={"timestore/write_mode": "append"})
    own.materialize(asset, partition_key="2026-01-01")

    assert len(readable(own.store)) == 48
    assert "outside of the partition: 2026-01-02" in capfd.readouterr().err


def test_a_long_name_still_makes_an_id():
    key = dg.AssetKey(["a" * 200, "b" * 200])

    assert len(batch_id_of(key, "2026-01-01", "run")) < 255
    assert batch_id_of(key, "2026-01-01", "run") != batch_id_of(key, "2026-01-02", "run")
    assert batch_id_of(key, "2026-01-01", "run") == batch_id_of(key, "2026-01-01", "run")

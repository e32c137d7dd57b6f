"""What the rows of an asset do to those that are there: with partitions of time they take their place."""

# No `from __future__ import annotations`: Dagster reads the annotations of assets as they stand.
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from timestore_pipeline.ledger.corrections import recorded_corrections
from timestore_pipeline.model.windows import TimeRange
from timestore_pipeline.orchestration.time_ranges import times_of
from timestore_pipeline.staging.stage import incoming_of, stage, stage_incoming
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    declared,
    files_under,
    hourly,
    published,
    readable,
    rows_of,
)
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.orchestration.conftest import Own

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-20")
FIRST, SECOND = "2026-01-01", "2026-01-02"
STATIONS = dg.StaticPartitionsDefinition(["JFK", "LGA"])
DAYS_AND_STATIONS = dg.MultiPartitionsDefinition({"day": DAYS, "station": STATIONS})
SINGLE_RUN = dg.BackfillPolicy.single_run()
Returns = Callable[[dg.AssetExecutionContext], Any]


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store(staging_max_pending=20)


def day_of(key: str, station: str = "JFK") -> pa.Table:
    return hourly(24, start=datetime.fromisoformat(key).replace(tzinfo=UTC), station=station)


def weather(returns: Returns, partitions: dg.PartitionsDefinition | None = DAYS, **options: Any) -> Any:
    """An asset that returns what a function makes of its context."""

    @dg.asset(key="weather", partitions_def=partitions, io_manager_key="timestore", **options)
    def asset(context: dg.AssetExecutionContext) -> Any:
        return returns(context)

    return asset


def of_station(station: str) -> Any:
    return weather(lambda context: day_of(context.partition_key, station))


def test_a_partition_that_is_materialized_again_takes_the_place_of_itself(own: Own):
    for station in ("JFK", "LGA"):
        for key in (FIRST, SECOND):
            result = own.materialize(of_station(station), partition_key=key)
        build(own.store)

    assert readable(own.store) == rows_of(day_of(FIRST, "LGA"), day_of(SECOND, "LGA"))
    assert published(own.store) == readable(own.store)
    metadata = own.metadata(result, "weather")
    assert metadata["write_mode"] == "replace"
    assert metadata["replaced_range"] == "2026-01-02T00:00:00+00:00 … 2026-01-03T00:00:00+00:00"
    assert (metadata["correction"], metadata["rows"], metadata["duplicates"]) == (4, 24, 0)


@pytest.mark.long
def test_the_same_rows_in_a_new_run_stage_nothing_and_going_back_is_a_change(own: Own):
    own.materialize(of_station("JFK"), partition_key=FIRST)
    files = files_under(own.store.settings.staging_path)
    result = own.materialize(of_station("JFK"), partition_key=FIRST)

    assert own.metadata(result, "weather")["duplicates"] == 1
    assert own.metadata(result, "weather")["correction"] == 1
    assert files_under(own.store.settings.staging_path) == files

    for number, station in enumerate(("LGA", "JFK"), start=2):
        result = own.materialize(of_station(station), partition_key=FIRST)
        assert own.metadata(result, "weather")["correction"] == number
        assert readable(own.store) == rows_of(day_of(FIRST, station))


@pytest.mark.long
def test_rows_that_others_have_added_since_are_taken_by_the_same_rows_again(own: Own):
    own.materialize(of_station("JFK"), partition_key=FIRST)
    stage(own.store, "weather", hourly(3, station="added"))

    own.materialize(of_station("JFK"), partition_key=FIRST)

    assert readable(own.store) == rows_of(day_of(FIRST))


@pytest.mark.long
@pytest.mark.parametrize(
    "empty",
    [pd.DataFrame([]), hourly(0), pd.DataFrame([], columns=["ts", "station", "temp"])],
    ids=["none", "typed", "named"],
)
def test_an_empty_frame_empties_the_range_and_nothing_at_all_leaves_it(own: Own, empty: Any):
    for key in (FIRST, SECOND):
        own.materialize(of_station("JFK"), partition_key=key)
    own.materialize(weather(lambda _: None), partition_key=FIRST)
    assert len(readable(own.store)) == 48

    own.materialize(weather(lambda _: empty), partition_key=FIRST)

    assert readable(own.store) == rows_of(day_of(SECOND))


def between(first: str, last: str) -> dict[str, str]:
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def test_partitions_of_one_run_are_one_replacement(own: Own):
    stage(own.store, "weather", hourly(24 * 5, station="before"))
    asset = weather(
        lambda context: pa.concat_tables([day_of(key) for key in context.partition_keys]), backfill_policy=SINGLE_RUN
    )

    own.materialize(asset, tags=between("2026-01-02", "2026-01-04"))

    with own.store.ledger.read() as tx:
        (record,) = recorded_corrections(tx)
    assert record.correction.range_start == int((NEW_YEAR + timedelta(days=1)).timestamp()) * 1_000_000
    assert record.correction.range_end == int((NEW_YEAR + timedelta(days=4)).timestamp()) * 1_000_000
    stations = {row[0].day: row[1] for row in readable(own.store)}
    assert stations == {1: "before", 2: "JFK", 3: "JFK", 4: "JFK", 5: "before"}


@pytest.mark.long
def test_partitions_that_do_not_follow_one_another_are_refused_in_words(own: Own):
    workdays = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-20", exclusions=["0 0 * * 6", "0 0 * * 0"])
    asset = weather(
        lambda context: pa.concat_tables([day_of(key) for key in context.partition_keys]),
        workdays,
        backfill_policy=SINGLE_RUN,
    )

    with pytest.raises(dg.Failure, match=r"not one after the other.*Run each part by itself.*timestore/write_mode"):
        own.materialize(asset, tags=between("2026-01-02", "2026-01-05"))

    assert readable(own.store) == []


def test_rows_outside_of_the_partition_are_refused_in_words(own: Own):
    with pytest.raises(Exception, match=r"rows outside of it, at 2026-01-02T23:00:00.*Leave these out, or"):
        own.materialize(weather(lambda _: hourly(48)), partition_key=FIRST)

    assert readable(own.store) == []


@pytest.mark.long
@pytest.mark.parametrize("window", ["hour", "month"])
def test_windows_of_the_dataset_may_be_others_than_the_partitions(make_store: MakeStore, own: Own, window: str):
    own.store = make_store(declared(weather="").replace("window: day", f"window: {window}"))
    stage(own.store, "weather", hourly(72, station="before"))
    build(own.store)

    own.materialize(of_station("JFK"), partition_key=SECOND)
    build(own.store)

    assert readable(own.store) == published(own.store)
    assert {row[0].day: row[1] for row in readable(own.store)} == {1: "before", 2: "JFK", 3: "before"}


@pytest.mark.long
def test_a_day_of_another_time_zone_is_its_own_range(own: Own):
    stage(own.store, "weather", hourly(48, start=NEW_YEAR - timedelta(days=1), station="before"))
    in_new_york = dg.DailyPartitionsDefinition("2025-12-30", end_date="2026-01-20", timezone="America/New_York")

    own.materialize(weather(lambda _: hourly(0), in_new_york), partition_key="2025-12-31")

    midnight = NEW_YEAR + timedelta(hours=5)
    gone = {midnight - timedelta(hours=hour) for hour in range(1, 25)}
    assert {row[0] for row in readable(own.store)} == {
        NEW_YEAR + timedelta(hours=hour) for hour in range(-24, 24)
    } - gone


def test_an_hour_that_comes_twice_is_two_partitions():
    hours = dg.HourlyPartitionsDefinition("2025-10-26-00:00", timezone="Europe/Berlin")
    keys = hours.get_partition_keys(datetime(2025, 10, 26, 5, tzinfo=UTC))

    each = [times_of(hours, [key]) for key in keys]

    first = datetime(2025, 10, 25, 22, tzinfo=UTC)
    assert each == [[(first + timedelta(hours=hour), first + timedelta(hours=hour + 1))] for hour in range(len(each))]
    assert times_of(hours, keys) == [(first, first + timedelta(hours=len(keys)))]


def test_partitions_of_a_day_and_something_else_lose_no_rows_of_the_others(own: Own):
    asset = weather(lambda context: day_of(FIRST, str(context.partition_key).partition("|")[2]), DAYS_AND_STATIONS)
    for station in ("JFK", "LGA"):
        result = own.materialize(asset, partition_key=dg.MultiPartitionKey({"day": FIRST, "station": station}))
        assert own.metadata(result, "weather")["write_mode"] == "append"

    assert readable(own.store) == rows_of(day_of(FIRST, "JFK"), day_of(FIRST, "LGA"))


@pytest.mark.long
@pytest.mark.parametrize("partitions", [None, STATIONS], ids=["none", "static"])
def test_without_partitions_of_time_rows_are_added(own: Own, partitions: dg.PartitionsDefinition | None):
    for rows in (1, 2):
        asset = weather(lambda _, rows=rows: hourly(rows), partitions)
        own.materialize(asset, partition_key="JFK" if partitions else None)

    assert readable(own.store) == rows_of(hourly(1), hourly(2))


@pytest.mark.long
@pytest.mark.parametrize("partitions", [None, DAYS_AND_STATIONS], ids=["none", "day and station"])
def test_a_replacement_without_a_range_is_refused_in_words(own: Own, partitions: dg.PartitionsDefinition | None):
    key = dg.MultiPartitionKey({"day": FIRST, "station": "JFK"}) if partitions else None

    with pytest.raises(dg.Failure, match=r"partitions of time alone.*timestore/write_mode"):
        own.materialize(weather(lambda _: hourly(1), partitions), write_mode="replace", partition_key=key)


RUN_CONFIG = {"resources": {"timestore": {"config": {"write_mode": "append"}}}}
NEAREST: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "nothing said": ({}, {}, True),
    "IO manager": ({}, {"write_mode": "append"}, False),
    "run": ({}, {"run_config": RUN_CONFIG}, False),
    "run over IO manager": ({}, {"write_mode": "replace", "run_config": RUN_CONFIG}, False),
    "asset over IO manager": ({"timestore/write_mode": "replace"}, {"write_mode": "append"}, True),
    "asset over run": ({"timestore/write_mode": "auto"}, {"run_config": RUN_CONFIG}, True),
    "asset": ({"timestore/write_mode": dg.MetadataValue.text("append")}, {}, False),
}


@pytest.mark.long
@pytest.mark.parametrize(("metadata", "options", "replaces"), NEAREST.values(), ids=NEAREST)
def test_the_nearest_that_says_a_mode_wins(own: Own, metadata: dict[str, Any], options: dict[str, Any], replaces: bool):
    stage(own.store, "weather", hourly(3, station="before"))

    own.materialize(weather(lambda _: hourly(2), metadata=metadata), partition_key=FIRST, **options)

    assert len(readable(own.store)) == (2 if replaces else 5)


@pytest.mark.long
def test_a_mode_that_is_none_is_refused_in_words(own: Own):
    asset = weather(lambda _: hourly(2), metadata={"timestore/write_mode": "upsert"})

    with pytest.raises(dg.Failure, match=r"'upsert'.*one of 'auto', 'replace', 'append'"):
        own.materialize(asset, partition_key=FIRST)


@pytest.mark.long
@pytest.mark.parametrize("rows", [3, 9])
def test_a_retried_step_replaces_once(own: Own, tmp_path: Path, rows: int):
    marker = tmp_path / "marker"

    @dg.multi_asset(
        outs={"weather": dg.AssetOut(io_manager_key="timestore"), "done": dg.AssetOut(is_required=False)},
        partitions_def=DAYS,
        retry_policy=dg.RetryPolicy(max_retries=1),
    )
    def weather() -> Iterator[dg.Output]:
        first = not marker.exists()
        yield dg.Output(hourly(3 if first else rows), "weather")
        if first:
            # Somebody else says something of the day before the step is tried again.
            incoming = incoming_of(own.store, "weather", hourly(5), replaces=_range_of_day())
            stage_incoming(own.store, "weather", incoming)
            marker.touch()
            raise RuntimeError("killed")

    assert own.materialize(weather, partition_key=FIRST).success
    assert readable(own.store) == rows_of(hourly(5))


def _range_of_day() -> TimeRange:
    return TimeRange.between(NEW_YEAR, NEW_YEAR + timedelta(days=1))


@pytest.mark.long
def test_rows_that_somebody_has_taken_back_are_appended_again(own: Own):
    asset = weather(lambda _: hourly(3), None)
    own.materialize(asset)
    stage_incoming(own.store, "weather", incoming_of(own.store, "weather", hourly(0), replaces=_range_of_day()))
    assert readable(own.store) == []

    own.materialize(asset)
    own.materialize(asset)

    assert readable(own.store) == rows_of(hourly(3))

"""A dataset whose declaration contradicts the ledger, and one of the first century, in Dagster."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from timestore_pipeline.orchestration.checks import DECLARATION
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, hourly, readable
from timestore_pipeline_tests.conftest import DATASETS_YAML, WEATHER_CSV, MakeStore
from timestore_pipeline_tests.orchestration.conftest import Location

Drop = Callable[..., Path]
Locate = Callable[[Store], Location]

CHANGED = DATASETS_YAML.replace("temp: double}", "temp: double, at: timestamptz}").replace("time: ts", "time: at")
KEY = dg.AssetCheckKey(dg.AssetKey(["staging", "weather"]), DECLARATION)


def said(here: Location) -> list[dg.AssetCheckEvaluation]:
    """Every evaluation of the check, oldest first."""
    records = here.instance.event_log_storage.get_asset_check_execution_history(KEY, limit=100)
    events = [record.event.dagster_event for record in records if record.event]
    found = [event.event_specific_data for event in events if event]
    return [each for each in reversed(found) if isinstance(each, dg.AssetCheckEvaluation)]


@pytest.mark.long
def test_a_refused_dataset_is_shown_and_holds_up_no_other(make_store: MakeStore, drop: Drop, location: Locate):
    before = make_store()
    stage(before, "weather", hourly(3))
    build(before)
    stage(before, "weather", hourly(3, station="LGA"))
    here = location(make_store(CHANGED, staging_flush_max_rows=1))
    for name, text in (("weather", WEATHER_CSV), ("events", "at,kind\n1767225600000,start\n")):
        drop(here.store, name, "a.csv", text)

    (request,) = here.tick("landing_sensor")[1].run_requests or []
    here.tick("landing_sensor")

    assert [key.path for key in request.asset_selection or ()] == [["staging", "events"]]
    assert here.materialize("staging/events").success
    (flush,) = here.tick("flush_sensor")[1].run_requests or []
    assert [key.path for key in flush.asset_selection or ()] == [["partitions", "events"]]
    (evaluation,) = said(here)
    assert not evaluation.passed
    assert "time was" in (evaluation.description or "")
    for asset in ("staging/weather", "partitions/weather"):
        failed = here.materialize(asset, raise_on_error=False)
        assert not failed.success
        (failure,) = failed.filter_events(lambda event: event.is_step_failure)
        assert "restore what it was" in str(failure.step_failure_data.user_failure_data)
    for check in ("row_audit", "file_sizes"):
        (found,) = here.check("partitions/weather", check).get_asset_check_evaluations()
        assert not found.passed
        assert "time was" in (found.description or "")
    assert here.materialize("partitions/events").success

    again = location(make_store(staging_flush_max_rows=1))
    assert again.materialize("staging/weather").success
    assert [each.passed for each in said(again)] == [False, True]
    assert again.materialize("partitions/weather").success
    assert len(readable(again.store)) == 9


@pytest.mark.long
def test_windows_that_dagster_cannot_name_are_built_all_the_same(make_store: MakeStore, location: Locate):
    store = make_store(DATASETS_YAML.replace("time: ts\n", "time: ts\n    start: 0001-01-01\n"))
    for year in (24, 2026):
        times = pa.array([datetime(year, 1, 5, tzinfo=UTC)], pa.timestamp("us", "UTC"))
        stage(store, "weather", pa.table({"ts": times, "station": ["JFK"], "temp": [1.0]}))

    here = location(store)

    assert here.materialize("partitions/weather").success
    assert list(here.metadata("partitions/weather")) == ["2026-01-05"]
    assert len(readable(store)) == 2
    assert here.materialize("partitions/weather", partition="1000-01-01").success

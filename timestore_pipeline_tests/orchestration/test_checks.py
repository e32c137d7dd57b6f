"""The checks beside ``staging/<dataset>``: what an operator is warned of although every step succeeded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dagster as dg

from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, published, readable, rows_of, segment_file, weather_csv
from timestore_pipeline_tests.conftest import WEATHER_CSV, MakeStore
from timestore_pipeline_tests.orchestration.conftest import Location

Drop = Callable[..., Path]


def checks(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
    return {(each.asset_key.to_user_string(), each.check_name): each for each in result.get_asset_check_evaluations()}


def test_quarantine_is_a_warning_with_the_newest_reasons(
    store: Store, drop: Drop, location: Callable[[Store], Location]
):
    drop(store, "weather", "bad.csv", "nonsense")
    drop(store, "weather", "some.csv", weather_csv("2026-01-01,JFK,1", ",LGA,2"))

    result = location(store).materialize("staging/weather")

    found = checks(result)["staging/weather", "quarantine_empty"]
    assert result.success
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.WARN
    assert (found.metadata["batches"].value, found.metadata["rows"].value) == (1, 1)
    newest = str(found.metadata["newest"].value)
    assert "bad.csv" in newest
    assert "the time is null" in newest


def test_the_checks_pass_while_there_is_nothing_to_say(store: Store, drop: Drop, location: Callable[[Store], Location]):
    drop(store, "weather", "a.csv", WEATHER_CSV)

    result = location(store).materialize("staging/weather", "staging/events")

    assert {key: each.passed for key, each in checks(result).items()}["staging/weather", "quarantine_empty"]
    assert checks(result)["staging/weather", "guardrails"].passed


TWO_DAILY = """
datasets:
  climate: {columns: {ts: timestamptz, station: varchar, temp: double}, time: ts, window: day}
  weather: {columns: {ts: timestamptz, station: varchar, temp: double}, time: ts, window: day}
"""


def test_a_dataset_whose_builds_fail_again_and_again_fails_no_other_of_the_same_run(
    make_store: MakeStore, location: Callable[[Store], Location]
):
    store = make_store(TWO_DAILY, build_max_attempts=2)
    broken = segment_file(store, stage(store, "climate", hourly(24)).segment_id, "climate")
    broken.write_bytes(broken.read_bytes()[:-1])
    stage(store, "climate", hourly(2, station="LGA"))
    here = location(store)

    for attempt in range(2):
        stage(store, "weather", hourly(3 + attempt))
        result = here.materialize("partitions/climate", "partitions/weather", raise_on_error=False)

        assert result.success == (attempt == 1)
        assert len(published(store, "weather")) == 3 + attempt * 4

    assert published(store, "climate") == readable(store, "climate") == rows_of(hourly(2, station="LGA"))
    with store.ledger.read() as tx:
        assert [(entry.dataset, entry.rows) for entry in open_entries(tx)] == [("climate", 24)]

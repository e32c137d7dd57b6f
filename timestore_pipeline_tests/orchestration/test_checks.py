"""The checks of a dataset: what an operator is warned of although every step succeeded, and what blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.windows import published_totals
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage.table_folder import LOG_FOLDER
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    declared,
    hourly,
    published,
    readable,
    rows_of,
    segment_file,
    weather,
    weather_csv,
)
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


def cut_rows(store: Store) -> None:
    """Take a row out of a Parquet file behind everybody's back."""
    (path, *_) = sorted(store.table("weather").root.rglob("*.parquet"))
    pq.write_table(pq.ParquetFile(path).read().slice(1), path)


def row_audit(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    return checks(result)["partitions/weather", "row_audit"]


def numbers(found: dg.AssetCheckEvaluation) -> dict[str, Any]:
    return {name: each.value for name, each in found.metadata.items()}


class TestRowAudit:
    @pytest.mark.long
    @pytest.mark.parametrize("partitions", [{}, {"between": ("2026-01-01", "2026-01-03")}], ids=["sensor", "backfill"])
    def test_it_runs_after_every_build(
        self, store: Store, location: Callable[[Store], Location], partitions: dict[str, Any]
    ):
        stage(store, "weather", hourly(30))

        found = row_audit(location(store).materialize("partitions/weather", **partitions))

        assert found.passed
        shown = numbers(found)
        assert (shown["staged_rows"], shown["published_rows"], shown["table_rows"]) == (30, 30, 30)
        assert (shown["queued_rows"], shown["quarantined_rows"], shown["files_opened"]) == (0, 0, 2)
        assert "all rows are accounted for" in (found.description or "")

    @pytest.mark.long
    def test_a_row_too_few_fails_the_run_after_publishing_and_names_the_window(
        self, store: Store, location: Callable[[Store], Location]
    ):
        here = location(store)
        stage(store, "weather", hourly(30))
        here.materialize("partitions/weather")
        cut_rows(store)
        stage(store, "weather", hourly(5, start=NEW_YEAR + timedelta(days=9)))

        result = here.materialize("partitions/weather", raise_on_error=False)

        assert not result.success
        with store.ledger.read() as tx:
            assert published_totals(tx)["weather"][1] == 35
        found = row_audit(result)
        assert not found.passed
        assert found.severity is dg.AssetCheckSeverity.ERROR
        assert numbers(found)["windows_wrong"] == 1
        assert "holds 23 rows, it was committed with 24" in str(numbers(found)["wrong"])

    @pytest.mark.long
    def test_what_depends_on_the_table_does_not_run_when_it_fails(
        self, store: Store, location: Callable[[Store], Location]
    ):
        ran: list[int] = []

        @dg.asset(deps=[dg.AssetKey(["partitions", "weather"])])
        def consumer() -> None:
            ran.append(1)

        here = location(store)
        here = dataclasses.replace(here, definitions=dg.Definitions.merge(
            here.definitions, dg.Definitions(assets=[consumer])
        ))  # fmt: skip
        stage(store, "weather", hourly(30))
        here.materialize("partitions/weather", "consumer", partition="2026-01-01")
        assert ran == [1]
        cut_rows(store)

        here.materialize("partitions/weather", "consumer", partition="2026-01-01", raise_on_error=False)

        assert ran == [1]

    @pytest.mark.long
    def test_it_runs_by_itself_over_all_windows_and_publishes_nothing(
        self, store: Store, location: Callable[[Store], Location]
    ):
        here = location(store)
        stage(store, "weather", hourly(72))
        here.materialize("partitions/weather")
        stage(store, "weather", hourly(5, station="LGA"))

        found = row_audit(here.check("partitions/weather", "row_audit"))

        assert found.passed
        assert (numbers(found)["windows_in_full"], numbers(found)["queued_rows"]) == (3, 5)
        assert len(published(store)) == 72

    @pytest.mark.long
    def test_a_table_that_cannot_be_read_fails_it(self, store: Store, location: Callable[[Store], Location]):
        here = location(store)
        stage(store, "weather", hourly(5))
        here.materialize("partitions/weather")
        (store.table("weather").root / LOG_FOLDER / f"{1:020d}.json").write_text("nonsense")

        found = row_audit(here.check("partitions/weather", "row_audit"))

        assert not found.passed
        assert "cannot be read" in (found.description or "")


@pytest.mark.long
@pytest.mark.parametrize(("max_small_files", "passed"), [(8, False), (9, True)])
def test_more_small_files_of_a_window_than_the_setting_allows_are_a_warning(
    make_store: MakeStore, location: Callable[[Store], Location], max_small_files: int, passed: bool
):
    store = make_store(compaction_max_small_files=max_small_files)
    here = location(store)
    for number in range(10):
        stage(store, "weather", hourly(1, station=str(number)))
        build(store)

    result = here.check("partitions/weather", "file_sizes")

    found = checks(result)["partitions/weather", "file_sizes"]
    assert result.success
    assert found.passed == passed
    assert numbers(found)["files"] == 10
    if passed:
        return
    assert found.severity is dg.AssetCheckSeverity.WARN
    assert (numbers(found)["windows_in_pieces"], numbers(found)["max_small_files"]) == (1, 8)
    (worst,) = numbers(found)["in_pieces"].records
    assert (worst.data["window"], worst.data["files"]) == ("2026-01-01", "10")


@pytest.mark.long
def test_an_open_window_may_have_the_small_files_that_compaction_leaves_it(
    store: Store, location: Callable[[Store], Location]
):
    now = datetime.now(UTC)
    for number in range(10):
        stage(store, "weather", weather((now, f"S{number}", 1.0)))
        build(store)

    result = location(store).check("partitions/weather", "file_sizes")

    assert checks(result)["partitions/weather", "file_sizes"].passed


def test_a_few_files_are_none(store: Store, location: Callable[[Store], Location]):
    stage(store, "weather", hourly(100))

    result = location(store).materialize("partitions/weather")

    assert checks(result)["partitions/weather", "file_sizes"].passed


@pytest.mark.long
def test_a_dataset_whose_builds_fail_again_and_again_fails_no_other_of_the_same_run(
    make_store: MakeStore, location: Callable[[Store], Location]
):
    store = make_store(declared(climate="", weather=""), build_max_attempts=2)
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


@pytest.mark.long
def test_a_build_that_sets_a_segment_aside_warns_and_one_that_does_not_says_nothing(
    make_store: MakeStore, location: Callable[[Store], Location]
):
    store = make_store(build_max_attempts=1)
    here = location(store)
    key = dg.AssetCheckKey(dg.AssetKey(["staging", "weather"]), "quarantine_empty")

    def evaluations() -> list[dg.AssetCheckEvaluation]:
        records = here.instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
        return [
            record.event.dagster_event.event_specific_data  # pyright: ignore[reportReturnType]
            for record in records
            if record.event and record.event.dagster_event
        ]

    stage(store, "weather", hourly(3))
    here.materialize("partitions/weather")
    assert evaluations() == []
    broken = segment_file(store, stage(store, "weather", hourly(24, station="LGA")).segment_id)
    broken.write_bytes(broken.read_bytes()[:-1])

    here.materialize("partitions/weather", raise_on_error=False)

    (evaluation,) = evaluations()
    assert not evaluation.passed
    assert evaluation.severity is dg.AssetCheckSeverity.WARN
    assert evaluation.metadata["segments"].value == 1
    assert evaluation.metadata["rows"].value == 24
    here.materialize("partitions/weather")
    assert len(evaluations()) == 1

"""Materializing the assets of a dataset: what gets staged and published, and what Dagster records of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.ledger.builds import NewBuild
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.ledger.states import BuildState
from timestore_pipeline.ledger.windows import published_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.orchestration import assets as assets_module
from timestore_pipeline.orchestration import steps
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import claim_slices, declared, weather_csv
from timestore_pipeline_tests.conftest import DATASETS_YAML, WEATHER_CSV, MakeStore
from timestore_pipeline_tests.orchestration.conftest import Location

Drop = Callable[[Store, str, str, str | bytes], Path]
Locate = Callable[[Store], Location]

TWO_DAILY = declared(weather="", climate="")


@pytest.fixture
def weather(store: Store, drop: Drop, location: Locate) -> Location:
    """A location in which three rows of weather, of 2026-01-01 and 2026-01-02, are staged."""
    drop(store, "weather", "a.csv", WEATHER_CSV)
    here = location(store)
    here.materialize("staging/weather")
    return here


def pending_rows(store: Store, dataset: str) -> int:
    with store.ledger.read() as tx:
        states = queue_states(tx)
    return states[dataset].pending_rows if dataset in states else 0


def published_rows(store: Store, dataset: str) -> int:
    with store.ledger.read() as tx:
        return published_totals(tx).get(dataset, (0, 0, 0, 0))[1]


def warnings_of(result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> list[str]:
    return [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level == 30]


class TestStaging:
    def test_a_run_stages_what_has_landed_and_tells_from_where(self, weather: Location):
        metadata = weather.metadata("staging/weather")[None]

        assert pending_rows(weather.store, "weather") == 3
        assert (metadata["rows"], metadata["batches"], metadata["duplicates"], metadata["quarantined"]) == (3, 1, 0, 0)
        assert metadata["windows"] == "2026-01-01 … 2026-01-02 (2)"
        assert metadata["bytes"] > 0
        assert metadata["segment"]
        assert "a.csv" in str(metadata["sources"])

    def test_nothing_is_materialized_where_nothing_landed(self, store: Store, location: Locate):
        here = location(store)

        assert here.materialize("staging/weather").success
        assert here.materialized("staging/weather") == []

    @pytest.mark.long
    def test_a_bad_file_is_a_warning_and_the_others_are_staged(self, store: Store, drop: Drop, location: Locate):
        drop(store, "weather", "bad.csv", "ts,station,temp\n2026-01-01T00:00:00Z,JFK,warm\n")
        drop(store, "weather", "good.csv", WEATHER_CSV)
        here = location(store)

        result = here.materialize("staging/weather")

        metadata = here.metadata("staging/weather")[None]
        assert (metadata["rows"], metadata["quarantined"]) == (3, 1)
        assert any("bad.csv" in warning for warning in warnings_of(result, here.instance))

    @pytest.mark.long
    def test_the_same_content_again_is_a_duplicate(self, weather: Location, drop: Drop):
        drop(weather.store, "weather", "again.csv", WEATHER_CSV)

        weather.materialize("staging/weather")

        assert pending_rows(weather.store, "weather") == 3
        assert weather.metadata("staging/weather")[None]["duplicates"] == 1

    def test_inferred_columns_are_told_with_the_materialization(self, store: Store, drop: Drop, location: Locate):
        drop(store, "events", "a.csv", "at,kind\n1767225600000,start\n")
        here = location(store)

        here.materialize("staging/events")

        schema = here.metadata("staging/events")[None]["dagster/column_schema"]
        assert [column.name for column in schema.columns] == ["at", "kind"]

    def test_one_dataset_that_fails_does_not_hold_the_other(
        self, make_store: MakeStore, drop: Drop, location: Locate, monkeypatch: pytest.MonkeyPatch
    ):
        store = make_store(TWO_DAILY)
        drop(store, "climate", "a.csv", WEATHER_CSV)
        drop(store, "weather", "a.csv", WEATHER_CSV)
        from timestore_pipeline.staging import ingest

        def broken_for_climate(store: Store, dataset: str, files: Any, real: Any = ingest.ingest_files) -> Any:
            if dataset == "climate":
                raise OSError("the disk is on fire")
            return real(store, dataset, files)

        monkeypatch.setattr(ingest, "ingest_files", broken_for_climate)
        here = location(store)

        result = here.materialize("staging/climate", "staging/weather", raise_on_error=False)

        assert not result.success
        assert here.metadata("staging/weather")[None]["rows"] == 3
        assert here.materialized("staging/climate") == []

    def test_the_bound_of_a_run_is_over_all_its_datasets(self, make_store: MakeStore, drop: Drop, location: Locate):
        store = make_store(TWO_DAILY, landing_max_files_per_run=3)
        for index in range(4):
            for dataset in ("weather", "climate"):
                path = drop(store, dataset, f"{index}.csv", WEATHER_CSV.replace("1.5", f"1.{index}"))
                os.utime(path, (index, index))
        here = location(store)

        here.materialize("staging/climate", "staging/weather")

        batches = [here.metadata(f"staging/{dataset}")[None]["batches"] for dataset in ("climate", "weather")]
        assert sum(batches) == 3


class TestPartitionsOfTheUi:
    @pytest.mark.long
    def test_one_window_publishes_only_its_own_rows(self, weather: Location):
        weather.materialize("partitions/weather", partition="2026-01-01")

        metadata = weather.metadata("partitions/weather")["2026-01-01"]
        assert (published_rows(weather.store, "weather"), pending_rows(weather.store, "weather")) == (2, 1)
        assert (metadata["rows"], metadata["files"], metadata["batches"]) == (2, 1, 1)
        assert metadata["dagster/partition_row_count"] == 2
        assert metadata["trigger"] == "manual"
        assert "a.csv" in str(metadata["sources"])
        assert metadata["freshness_seconds"] >= 0

    def test_a_range_that_ends_before_it_begins_is_no_request_for_everything(self, weather: Location):
        reversed_range = ("2026-01-03", "2025-12-31")

        run = weather.materialize("partitions/weather", between=reversed_range, raise_on_error=False)

        assert not run.success
        assert published_rows(weather.store, "weather") == 0

    @pytest.mark.long
    def test_a_range_marks_every_window_also_those_without_rows(self, weather: Location):
        weather.materialize("partitions/weather", between=("2025-12-31", "2026-01-03"))

        metadata = weather.metadata("partitions/weather")
        assert {key: fields["rows"] for key, fields in metadata.items()} == {
            "2025-12-31": 0,
            "2026-01-01": 2,
            "2026-01-02": 1,
            "2026-01-03": 0,
        }
        assert len(weather.materialized("partitions/weather")) == 4

    @pytest.mark.long
    def test_a_window_published_again_shows_what_it_had(self, weather: Location, drop: Drop):
        weather.materialize("partitions/weather", partition="2026-01-01")

        weather.materialize("partitions/weather", partition="2026-01-01")

        metadata = weather.metadata("partitions/weather")["2026-01-01"]
        assert (metadata["rows"], metadata["dagster/partition_row_count"], metadata["published_files"]) == (0, 2, 1)

    @pytest.mark.long
    def test_a_build_of_a_backfill_is_known_as_one(self, weather: Location):
        weather.materialize("partitions/weather", partition="2026-01-01", tags={"dagster/backfill": "abc"})

        assert weather.metadata("partitions/weather")["2026-01-01"]["trigger"] == "backfill"

    @pytest.mark.long
    @pytest.mark.matrix
    @pytest.mark.parametrize(
        ("asked", "trigger", "windows"),
        [
            ({"partition": "2026-01-01"}, "manual", "2026-01-01"),
            ({"between": ("2026-01-01", "2026-01-03")}, "manual", "2026-01-01...2026-01-03"),
            ({"partition": "2026-01-01", "tags": {"dagster/backfill": "abc"}}, "backfill", "2026-01-01"),
            ({}, "manual", "2026-01-01...2026-01-02"),
            ({"config": {"partitions__weather": {"trigger": "eager"}}}, "eager", "2026-01-01...2026-01-02"),
            ({"assets": ("staging/weather", "partitions/weather")}, "manual", "2026-01-01...2026-01-02"),
        ],
    )
    def test_a_run_that_a_person_started_is_tagged_like_those_of_sensors(
        self, weather: Location, asked: dict[str, Any], trigger: str, windows: str
    ):
        result = weather.materialize(*asked.pop("assets", ("partitions/weather",)), **asked)

        run = weather.instance.get_run_by_id(result.run_id)
        assert run
        assert {name: value for name, value in run.tags.items() if name.startswith("timestore")} == {
            "timestore/trigger": trigger,
            "timestore/datasets": "weather",
            "timestore/windows": windows,
            "timestore.dataset/weather": trigger,
        }

    @pytest.mark.long
    def test_runs_are_found_by_dataset_and_trigger(self, weather: Location):
        result = weather.materialize("partitions/weather", partition="2026-01-01")

        found = weather.instance.get_runs(dg.RunsFilter(tags={"timestore.dataset/weather": ["age", "manual"]}))

        assert [run.run_id for run in found] == [result.run_id, *(run.run_id for run in found[1:])]
        assert not weather.instance.get_runs(dg.RunsFilter(tags={"timestore.dataset/weather": "age"}))

    @pytest.mark.long
    def test_the_tags_that_a_sensor_gave_stay(self, weather: Location):
        result = weather.materialize("partitions/weather", tags={"dagster/sensor_name": "flush_sensor", "own": "x"})

        run = weather.instance.get_run_by_id(result.run_id)
        assert run
        assert not [name for name in run.tags if name.startswith("timestore")]

    @pytest.mark.long
    def test_staging_and_partitions_in_one_run_publish_although_nothing_landed(self, weather: Location):
        weather.materialize("staging/weather", "partitions/weather", partition="2026-01-01")

        assert published_rows(weather.store, "weather") == 2

    @pytest.mark.long
    def test_the_build_is_owned_by_its_run(self, weather: Location):
        result = weather.materialize("partitions/weather", partition="2026-01-01")

        with weather.store.ledger.read() as tx:
            build = latest_builds(tx)["weather"]
        assert (build.owner, build.state) == (result.run_id, BuildState.PUBLISHED)

    @pytest.mark.long
    def test_a_build_in_flight_is_waited_for(self, weather: Location, monkeypatch: pytest.MonkeyPatch):
        claim(weather.store, "weather")
        monkeypatch.setattr(steps, "_IN_FLIGHT_RETRIES", 1)
        monkeypatch.setattr(steps, "_IN_FLIGHT_FIRST_WAIT", 0.01)

        result = weather.materialize("partitions/weather", partition="2026-01-01", raise_on_error=False)

        assert not result.success
        assert "STEP_RESTARTED" in {event.event_type_value for event in result.all_events}


class TestPartitionsOfASensor:
    """Runs without partitions: the windows are in the run config."""

    @pytest.mark.long
    def test_only_windows_that_got_rows_are_marked(self, weather: Location):
        config = {"when": "due", "flush_max_rows": 1, "trigger": "rows"}
        config |= {"first_window": "2020-01-01", "last_window": "2026-11-01"}

        weather.materialize("partitions/weather", config={"partitions__weather": config})

        metadata = weather.metadata("partitions/weather")
        assert {key: fields["rows"] for key, fields in metadata.items()} == {"2026-01-01": 2, "2026-01-02": 1}
        assert metadata["2026-01-01"]["trigger"] == "rows"
        assert metadata["2026-01-01"]["dagster/partition_row_count"] == 2

    @pytest.mark.long
    def test_the_windows_of_the_config_bound_what_is_published(self, weather: Location):
        weather.materialize("partitions/weather", config={"partitions__weather": {"last_window": "2026-01-01"}})

        assert (published_rows(weather.store, "weather"), pending_rows(weather.store, "weather")) == (2, 1)

    @pytest.mark.long
    def test_a_dataset_that_is_not_due_any_more_is_left_alone(self, weather: Location):
        result = weather.materialize(
            "partitions/weather", config={"partitions__weather": {"when": "due", "flush_max_rows": 4}}
        )

        assert result.success
        assert weather.materialized("partitions/weather") == []
        assert pending_rows(weather.store, "weather") == 3

    @pytest.mark.long
    def test_a_build_in_flight_is_left_to_go_on(self, weather: Location):
        claim(weather.store, "weather")
        due = {"when": "due", "flush_max_rows": 1}

        result = weather.materialize("partitions/weather", config={"partitions__weather": due})

        assert result.success
        assert weather.materialized("partitions/weather") == []

    @pytest.mark.long
    @pytest.mark.matrix
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"flush_max_rows": -1}, "flush_max_rows is -1"),
            ({"target_file_bytes": 0}, "target_file_bytes is 0"),
            ({"first_window": "yesterday"}, "first_window: 'yesterday'"),
            ({"first_window": "2026-01-02", "last_window": "2026-01-01"}, "is before first_window"),
        ],
    )
    def test_a_wrong_value_fails_at_once(self, weather: Location, config: dict[str, Any], message: str):
        with pytest.raises(dg.Failure, match=message) as failure:
            weather.materialize("partitions/weather", config={"partitions__weather": config})

        assert not failure.value.allow_retries
        assert pending_rows(weather.store, "weather") == 3

    @pytest.mark.long
    def test_windows_are_not_named_twice(self, weather: Location):
        config = {"partitions__weather": {"first_window": "2026-01-01"}}

        with pytest.raises(dg.Failure, match="must not be set"):
            weather.materialize("partitions/weather", partition="2026-01-01", config=config)

    @pytest.mark.long
    def test_one_dataset_that_fails_does_not_hold_the_other(
        self, make_store: MakeStore, drop: Drop, location: Locate, monkeypatch: pytest.MonkeyPatch
    ):
        store = make_store(TWO_DAILY)
        drop(store, "climate", "a.csv", WEATHER_CSV)
        drop(store, "weather", "a.csv", WEATHER_CSV)
        here = location(store)
        here.materialize("staging/climate", "staging/weather")
        with store.ledger.read() as tx:
            assert set(queue_states(tx)) == {"climate", "weather"}
        for segment in (store.settings.staging_path / "climate").glob("*.duckdb"):
            segment.unlink()

        result = here.materialize("partitions/climate", "partitions/weather", raise_on_error=False)

        assert not result.success
        assert published_rows(store, "weather") == 3
        assert set(here.metadata("partitions/weather")) == {"2026-01-01", "2026-01-02"}
        assert pending_rows(store, "climate") == 3

    @pytest.mark.long
    def test_rows_of_windows_that_dagster_does_not_list_yet_are_published(
        self, make_store: MakeStore, drop: Drop, location: Locate
    ):
        store = make_store(staging_max_future_ms=40 * 86_400_000)
        soon = (now_micros() + 30 * 86_400_000_000) // 1_000
        drop(store, "events", "a.csv", f"at,kind\n{soon},later\n")
        here = location(store)
        here.materialize("staging/events")

        here.materialize("partitions/events")

        assert published_rows(store, "events") == 1
        assert len(here.materialized("partitions/events")) == 1


def claim(store: Store, dataset: str) -> None:
    """Claim all that is staged, as a build of another process does, and leave it in flight."""
    with store.ledger.write() as tx:
        assert claim_slices(
            tx, NewBuild(dataset, owner="cli:elsewhere:1", trigger="manual", lease_micros=60_000_000, now=now_micros())
        )


@pytest.mark.long
def test_a_build_by_the_library_and_one_by_dagster_do_the_same(weather: Location):
    flush_windows(weather.store, BuildOrder("weather", owner="cli:here:1"))

    weather.materialize("partitions/weather", partition="2026-01-01")

    assert weather.metadata("partitions/weather")["2026-01-01"]["dagster/partition_row_count"] == 2


class TestGuardrailsCheck:
    def evaluation(self, result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
        (evaluation,) = [each for each in result.get_asset_check_evaluations() if each.check_name == "guardrails"]
        return evaluation

    @pytest.mark.parametrize(("limit", "passed"), [(1, False), (0, True), (1 << 40, True)])
    def test_a_size_guardrail_that_was_reached_is_a_warning(
        self, make_store: MakeStore, drop: Drop, location: Locate, limit: int, passed: bool
    ):
        store = make_store(staging_max_dataset_bytes=limit)
        drop(store, "weather", "a.csv", WEATHER_CSV)

        result = location(store).materialize("staging/weather")

        evaluation = self.evaluation(result)
        assert result.success
        assert (evaluation.check_name, evaluation.passed) == ("guardrails", passed)
        assert evaluation.severity is dg.AssetCheckSeverity.WARN
        assert ("TIMESTORE_STAGING_MAX_DATASET_BYTES" in (evaluation.description or "")) is not passed

    def test_it_is_part_of_every_ingest_run(self, store: Store, location: Locate):
        job = location(store).definitions.resolve_job_def("ingest")

        assert {node.name for node in job.nodes} == {
            *(f"staging__{name}" for name in store.datasets),
            *(f"staging_checks__{name}" for name in store.datasets),
        }

    def test_limits_of_concurrency_are_shown_with_the_assets(self, make_store: MakeStore, location: Locate):
        definitions = location(make_store(staging_concurrent_ingests=3)).definitions

        specs = {spec.key.to_user_string(): spec.metadata for spec in definitions.resolve_all_asset_specs()}
        assert specs["staging/weather"]["concurrent_ingests"] == 3
        assert specs["partitions/weather"]["concurrent_builds"] == 1

    def test_a_backfill_is_one_run_or_several_where_a_dataset_has_several_lanes(self, make_store: MakeStore):
        store = make_store(DATASETS_YAML.replace("window: day", "window: day\n    limits: {concurrent_builds: 2}"))

        policies = {name: assets_module.backfill_policy(spec, store.settings) for name, spec in store.datasets.items()}

        assert policies["weather"].max_partitions_per_run == 31
        assert policies["events"].max_partitions_per_run is None


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*straight to the table:DeprecationWarning")
def test_an_ingest_straight_to_the_table_marks_the_windows_that_it_published(
    make_store: MakeStore, drop: Drop, location: Callable[[Store], Location]
):
    store = make_store(staging_enabled=False)
    drop(store, "weather", "a.csv", WEATHER_CSV)
    here = location(store)

    here.materialize("staging/weather")
    drop(store, "weather", "b.csv", weather_csv("2026-01-02T05:00:00Z,LGA,1"))
    here.materialize("staging/weather")

    marked = [record.partition_key for record in here.materialized("partitions/weather")]
    assert marked == ["2026-01-01", "2026-01-02", "2026-01-02"]
    newest = here.metadata("partitions/weather")["2026-01-02"]
    assert (newest["trigger"], newest["dagster/partition_row_count"]) == ("direct", 2)

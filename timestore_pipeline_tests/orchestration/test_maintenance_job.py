"""Maintenance and backfills in Dagster: one job on a schedule, windows built again, old runs pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance.ref import InstanceRef

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.model.freed import Freed
from timestore_pipeline.orchestration.keys import partitions_key
from timestore_pipeline.orchestration.location import build_definitions
from timestore_pipeline.orchestration.maintenance_job import prune_dagster_runs
from timestore_pipeline.orchestration.run_pruning import OldRuns, RunRetention, delete_runs, find_old_runs
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import hourly, published, readable, rows_of
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.orchestration.conftest import Location

Locate = Callable[[Store], Location]
AUTOMATIC = {"dagster/sensor_name": "flush_sensor"}


def flushed(store: Store, flushes: int, hours: int = 24) -> list:
    tables = [hourly(hours, station=f"S{number}") for number in range(flushes)]
    for number, table in enumerate(tables):
        stage(store, "weather", table, batch_id=f"b{number}")
        flush_windows(store, BuildOrder("weather", owner="the test"))
    return tables


def files(store: Store) -> int:
    return len(live_files(open_table(store.table("weather"), "weather")))


def maintain(here: Location, **config: object) -> dg.ExecuteInProcessResult:
    run_config = {"ops": {"maintain": {"config": config}}} if config else {}
    job = here.definitions.resolve_job_def("maintenance")
    return job.execute_in_process(instance=here.instance, run_config=run_config, raise_on_error=False)


def said_by_schedule(here: Location) -> dg.RunRequest | dg.SkipReason:
    context = dg.build_schedule_context(
        instance=here.instance,
        scheduled_execution_time=datetime.now(UTC),
        resources=dict(here.definitions.resources or {}),
    )
    schedule = here.definitions.resolve_schedule_def("maintenance_schedule")
    with context:
        data = schedule.evaluate_tick(context)
    return data.run_requests[0] if data.run_requests else dg.SkipReason(data.skip_message)


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Locate]:
    """Builds the code location of a store, with an instance that keeps its runs on disk as an installation's does."""
    home = tmp_path / "dagster"
    home.mkdir()
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
        yield lambda store: Location(store, build_definitions(store.settings, store.datasets), instance)


class TestMaintenanceJob:
    @pytest.mark.process
    def test_one_run_does_it_all_and_says_so_in_numbers(self, make_store: MakeStore, on_disk: Locate):
        here = on_disk(make_store(staging_retention_seconds=0))
        tables = flushed(here.store, 3)
        request = said_by_schedule(here)
        assert isinstance(request, dg.RunRequest)
        assert request.tags["timestore/trigger"] == "maintenance"

        result = maintain(here)

        assert result.success
        (told,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
        numbers = {name: value.value for name, value in told.step_output_data.metadata.items()}
        assert (numbers["files_merged"], numbers["files_merged_into"], numbers["segments_unlinked"]) == (3, 1, 3)
        assert files(here.store) == 1
        assert published(here.store) == readable(here.store) == rows_of(*tables)
        assert isinstance(said_by_schedule(here), dg.SkipReason)

    @pytest.mark.long
    def test_a_dry_run_changes_nothing(self, make_store: MakeStore, location: Locate):
        here = location(make_store(staging_retention_seconds=0))
        flushed(here.store, 3)

        assert maintain(here, dry_run=True).success

        assert files(here.store) == 3

    @pytest.mark.long
    def test_what_cannot_be_done_fails_the_run_after_all_else_is_done(self, make_store: MakeStore, location: Locate):
        here = location(make_store(staging_retention_seconds=0))
        flushed(here.store, 2)
        sorted((here.store.table("weather").root / "_delta_log").glob("*.json"))[-1].write_text("{")

        result = maintain(here)

        assert not result.success
        assert unlink_published_segments(here.store) == Freed()


class TestBackfills:
    @pytest.mark.long
    def test_materializing_windows_publishes_and_compacts_them(self, make_store: MakeStore, location: Locate):
        here = location(make_store())
        tables = [*flushed(here.store, 2, hours=48), hourly(48, station="NEW")]
        stage(here.store, "weather", tables[-1])

        here.materialize("partitions/weather", partition="2026-01-01")

        assert files(here.store) == 3
        assert here.metadata("partitions/weather")["2026-01-01"]["published_files"] == 1
        assert readable(here.store) == rows_of(*tables)

    @pytest.mark.long
    def test_windows_are_rebuilt_as_the_run_config_says(self, make_store: MakeStore, location: Locate):
        here = location(make_store())
        tables = flushed(here.store, 2, hours=48)

        here.materialize(
            "partitions/weather",
            between=("2026-01-01", "2026-01-02"),
            config={"partitions__weather": {"rebuild": True}},
        )

        metadata = here.metadata("partitions/weather")["2026-01-01"]
        assert (metadata["rows"], metadata["batches"], metadata["published_files"]) == (48, 2, 1)
        assert published(here.store) == rows_of(*tables)

    @pytest.mark.long
    def test_a_rebuild_that_is_refused_names_the_batches_and_is_not_tried_again(
        self, make_store: MakeStore, location: Locate
    ):
        here = location(make_store(staging_retention_seconds=0))
        flushed(here.store, 2)
        unlink_published_segments(here.store)
        before = published(here.store)

        result = here.materialize(
            "partitions/weather",
            partition="2026-01-01",
            config={"partitions__weather": {"rebuild": True}},
            raise_on_error=False,
        )

        assert not result.success
        (failure,) = result.filter_events(lambda event: event.is_step_failure)
        assert "batch b0" in str(failure.event_specific_data)
        assert "batch b1" in str(failure.event_specific_data)
        assert published(here.store) == before

    def test_a_rebuild_is_no_matter_of_thresholds(self, make_store: MakeStore, location: Locate):
        here = location(make_store())
        flushed(here.store, 1)

        config = {"partitions__weather": {"rebuild": True, "when": "due"}}
        assert not here.materialize("partitions/weather", config=config, raise_on_error=False).success


class TestRunPruning:
    @pytest.fixture
    def lasting(self, make_store: MakeStore, on_disk: Locate) -> Location:
        return on_disk(make_store())

    def run_of_sensor(self, here: Location, partition: str) -> str:
        return here.materialize("partitions/weather", partition=partition, tags=AUTOMATIC).run_id

    def databases(self, here: Location) -> set[str]:
        folder = Path(here.instance.root_directory) / "history" / "runs"
        return {path.stem for path in folder.glob("*-*.db")}

    def prune(self, here: Location) -> OldRuns:
        later = datetime.now(UTC) + timedelta(days=8)
        old = find_old_runs(here.instance, RunRetention(timedelta(days=7), 0), [], most=100, now=later)
        return delete_runs(here.instance, old)

    @pytest.mark.process
    def test_partitions_stay_materialized_and_files_are_gone(self, lasting: Location):
        runs = [self.run_of_sensor(lasting, key) for key in ("2026-01-01", "2026-01-01", "2026-01-02", "2026-01-01")]
        assert set(runs) <= self.databases(lasting)

        pruned = self.prune(lasting)

        assert pruned.runs == 2
        assert pruned.kept == 2
        assert pruned.freed.files >= 2
        assert self.databases(lasting) == {runs[2], runs[3]}
        assert {run.run_id for run in lasting.instance.get_runs()} == {runs[2], runs[3]}
        assert lasting.instance.get_materialized_partitions(partitions_key("weather")) == {"2026-01-01", "2026-01-02"}
        storage = Path(lasting.instance.root_directory) / "storage"
        assert not any((storage / run_id).exists() for run_id in runs[:2])
        assert self.prune(lasting).runs == 0

    @pytest.mark.process
    def test_runs_of_people_and_young_runs_are_left_alone(self, lasting: Location):
        mine = lasting.materialize("partitions/weather", partition="2026-01-01").run_id
        self.run_of_sensor(lasting, "2026-01-01")

        assert self.prune(lasting).runs == 0
        assert prune_dagster_runs(lasting.instance, lasting.store).runs == 0
        assert lasting.instance.has_run(mine)

    @pytest.mark.process
    def test_the_number_of_runs_is_bounded_too(self, lasting: Location):
        runs = [self.run_of_sensor(lasting, "2026-01-01") for _ in range(4)]

        retention = RunRetention(timedelta(0), 2)
        assert delete_runs(lasting.instance, find_old_runs(lasting.instance, retention, [], most=1)).runs == 1
        rest = find_old_runs(lasting.instance, retention, [], most=100)
        assert rest.runs == 1
        assert delete_runs(lasting.instance, rest).runs == 1
        assert {run.run_id for run in lasting.instance.get_runs()} == set(runs[2:])

    @pytest.mark.process
    def test_the_latest_run_of_a_check_stays(self, lasting: Location):
        first = lasting.materialize("partitions/weather", partition="2026-01-01", tags=AUTOMATIC).run_id
        check = dg.AssetCheckKey(partitions_key("weather"), "row_audit")
        latest = lasting.instance.event_log_storage.get_latest_asset_check_execution_by_key([check])
        assert latest[check].run_id == first

        retention = RunRetention(timedelta(days=1), 0)
        later = datetime.now(UTC) + timedelta(days=8)
        assert find_old_runs(lasting.instance, retention, [check], most=9, now=later).runs == 0

    @pytest.mark.process
    def test_what_a_killed_pruning_left_is_found_by_its_file(self, lasting: Location):
        runs = [self.run_of_sensor(lasting, "2026-01-01") for _ in range(2)]
        lasting.instance.delete_run(runs[0])  # as if killed right after
        assert runs[0] in self.databases(lasting)

        freed = self.prune(lasting).freed

        assert freed.files >= 1
        assert self.databases(lasting) == {runs[1]}

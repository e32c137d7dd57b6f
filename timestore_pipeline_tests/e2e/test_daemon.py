"""Files dropped in, rows published: with the real daemon, sensors and run processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionStatus

from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.demo.source import DAYS, FIRST_DAY, unpack_sources
from timestore_pipeline.ledger.builds import Build, builds_in_flight, published_totals
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.lifecycle.audit import audit_rows
from timestore_pipeline.lifecycle.doctor import Level
from timestore_pipeline.orchestration.doctor import look_at_dagster
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, published, rows_of
from timestore_pipeline_tests.conftest import WEATHER_CSV
from timestore_pipeline_tests.e2e.conftest import ROOT, Deployment, stopped_processes

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

# A run of a backfill that is divided has 31 windows of a day.
_TWO_RUNS_OF_DAYS = 62

Drop = Callable[[Store, str, str, str | bytes], Path]

EVENTS_CSV = "at,kind\n1767225600000,start\n1767312000000,stop\n"


def published_rows(store: Store) -> dict[str, int]:
    with store.ledger.read() as tx:
        return {name: rows for name, (_, rows, _, _) in published_totals(tx).items()}


def pending_rows(store: Store) -> dict[str, int]:
    with store.ledger.read() as tx:
        return {name: state.pending_rows for name, state in queue_states(tx).items()}


def marked(deployment: Deployment, dataset: str) -> set[str]:
    return deployment.instance.get_materialized_partitions(dg.AssetKey(["partitions", dataset]))


def statuses(deployment: Deployment) -> set[dg.DagsterRunStatus]:
    return {run.status for run in deployment.instance.get_runs()}


def complaints() -> dict[str, str]:
    """What the doctor has to say of Dagster that is not well."""
    return {finding.part: finding.message for finding in look_at_dagster() if finding.level is not Level.OK}


@pytest.mark.timeout(400)
def test_dropped_files_are_published_by_the_sensors(
    deploy: Callable[..., Deployment], drop: Drop, monkeypatch: pytest.MonkeyPatch
):
    deployment = deploy(staging_flush_max_rows=1)
    drop(deployment.store, "weather", "wéather 'quoted'.csv", WEATHER_CSV)
    drop(deployment.store, "events", "a.csv", EVENTS_CSV)
    deployment.start()

    deployment.wait_for(
        "all rows are published", lambda: published_rows(deployment.store) == {"weather": 3, "events": 2}
    )

    deployment.wait_for("all runs end", lambda: all(run.is_finished for run in deployment.instance.get_runs()))
    assert statuses(deployment) == {dg.DagsterRunStatus.SUCCESS}
    assert marked(deployment, "weather") == {"2026-01-01", "2026-01-02"}

    monkeypatch.setenv("DAGSTER_HOME", deployment.environment["DAGSTER_HOME"])
    deployment.wait_for("the doctor finds daemons, sensors and schedule at work", lambda: complaints() == {})
    switched_off = next(
        state for state in deployment.instance.all_instigator_state() if state.instigator_name == "flush_sensor"
    )
    deployment.instance.stop_sensor(switched_off.instigator_origin_id, switched_off.selector_id, None)
    assert complaints() == {"sensor flush_sensor": "it is off"}
    assert marked(deployment, "events") == {"2026-01-01T00", "2026-01-02T00"}
    jobs = [run.job_name for run in deployment.instance.get_runs()]
    assert jobs.count("ingest") == 1
    assert len(jobs) <= 3


@pytest.mark.timeout(600)
def test_a_backfill_over_the_whole_demo_data_is_one_run(deploy: Callable[..., Deployment], drop: Drop, tmp_path: Path):
    days = [str(FIRST_DAY + timedelta(days=number)) for number in range(DAYS)]
    # Thresholds far away, so only the backfill publishes; and windows of a day, as those of an hour take minutes.
    deployment = deploy(
        (ROOT / "datasets.yaml").read_text(encoding="utf-8").replace("window: month", "window: day"),
        **dict.fromkeys(("staging_flush_max_rows", "staging_flush_max_bytes"), 0),
        **dict.fromkeys(("staging_flush_max_age_ms", "staging_flush_late_max_age_ms"), 86_400_000),
    )
    for dataset, source in unpack_sources(tmp_path / "sources").items():
        drop(deployment.store, dataset, source.name, source.read_bytes())
    deployment.start()
    staged = {"weather": 26_115, "flights": 336_776}
    deployment.wait_for("both files are staged", lambda: pending_rows(deployment.store) == staged)

    backfill_id = launch_backfill(deployment, ["weather", "flights"], days)

    def ended() -> bool:
        found = deployment.instance.get_backfill(backfill_id)
        return found is not None and found.status in BULK_ACTION_TERMINAL_STATUSES

    deployment.wait_for("the backfill ends", ended, seconds=400)
    backfill = deployment.instance.get_backfill(backfill_id)
    assert backfill
    assert backfill.status is BulkActionStatus.COMPLETED_SUCCESS
    assert marked(deployment, "weather") == marked(deployment, "flights") == set(days)
    # The last evening of the year in New York is the next year in UTC.
    assert pending_rows(deployment.store) == {"flights": 88}
    assert published_rows(deployment.store) == {"weather": 26_115, "flights": 336_776 - 88}
    assert [audit_rows(deployment.store, dataset).wrong for dataset in staged] == [(), ()]
    (run,) = deployment.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill_id}))
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert run.tags["timestore/trigger"] == "backfill"
    assert run.tags["timestore/windows"] == "2013-01-01...2013-12-31"


@pytest.mark.timeout(400)
def test_a_backfill_of_a_dataset_with_lanes_is_several_runs_side_by_side(deploy: Callable[..., Deployment]):
    # Each run stops in mid-build, so that nothing but lanes lets the other one go on.
    deployment = deploy(
        signals=f"{CrashPoint.PARQUET_IN_PLACE}=SIGSTOP",
        build_concurrent_builds=2,
        **dict.fromkeys(("staging_flush_max_rows", "staging_flush_max_bytes"), 0),
        staging_flush_max_age_ms=86_400_000,
        build_lease_seconds=300,
    )
    store, rows = deployment.store, hourly(24 * _TWO_RUNS_OF_DAYS)
    stage(store, "weather", rows)
    days = [str(date(2026, 1, 1) + timedelta(days=number)) for number in range(_TWO_RUNS_OF_DAYS)]
    deployment.start()

    backfill_id = launch_backfill(deployment, ["weather"], days)

    def in_flight() -> list[Build]:
        with store.ledger.read() as tx:
            return builds_in_flight(tx)

    def all_stopped() -> bool:
        return len(stopped_processes(deployment.environment)) == 2

    deployment.wait_for("both runs are in mid-build", all_stopped, seconds=200)
    assert {build.lane for build in in_flight()} == {0, 1}
    assert len({build.owner for build in in_flight()}) == 2
    assert published_rows(store) == {}
    for process in stopped_processes(deployment.environment):
        process.resume()

    def ended() -> bool:
        found = deployment.instance.get_backfill(backfill_id)
        return found is not None and found.status in BULK_ACTION_TERMINAL_STATUSES

    deployment.wait_for("the backfill ends", ended)
    backfill = deployment.instance.get_backfill(backfill_id)
    assert backfill
    assert backfill.status is BulkActionStatus.COMPLETED_SUCCESS
    runs = deployment.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill_id}))
    assert [run.status for run in runs] == [dg.DagsterRunStatus.SUCCESS] * 2
    assert marked(deployment, "weather") == set(days)
    assert published(store) == rows_of(rows)
    assert pending_rows(store) == {}
    assert audit_rows(store, "weather").wrong == ()


@pytest.mark.timeout(400)
def test_after_a_crash_of_everything_nothing_is_lost_and_work_goes_on(deploy: Callable[..., Deployment], drop: Drop):
    deployment = deploy(staging_flush_max_rows=1)
    drop(deployment.store, "weather", "a.csv", WEATHER_CSV)
    deployment.start()
    in_progress = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    deployment.wait_for(
        "a run has a process", lambda: bool(deployment.instance.get_runs(dg.RunsFilter(statuses=in_progress)))
    )

    deployment.stop(signal.SIGKILL)
    deployment.start()

    deployment.wait_for("all rows are published", lambda: published_rows(deployment.store) == {"weather": 3})


def launch_backfill(deployment: Deployment, datasets: list[str], keys: list[str]) -> str:
    """Ask for a backfill by the same mutation as the UI."""
    assets = [{"path": ["partitions", dataset]} for dataset in datasets]
    parameters = {"assetSelection": assets, "partitionNames": keys}
    finished = subprocess.run(
        [
            *(sys.executable, "-c", "from dagster_graphql.cli import main; main()", "-w", str(ROOT / "workspace.yaml")),
            *("-t", _LAUNCH_BACKFILL, "-v", json.dumps({"parameters": parameters})),
        ],
        env=deployment.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    # The code server that the command starts writes its log to the same place.
    (result,) = [line for line in finished.stdout.splitlines() if line.startswith("{")]
    answer = json.loads(result)["data"]["launchPartitionBackfill"]
    assert "backfillId" in answer, answer
    return answer["backfillId"]


_LAUNCH_BACKFILL = """
mutation ($parameters: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $parameters) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""

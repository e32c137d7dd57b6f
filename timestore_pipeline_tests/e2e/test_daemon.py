"""Files dropped in, rows published; backfills: with the real daemon, sensors and run processes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionStatus

from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.ledger.builds import Build, builds_in_flight
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.ledger.windows import published_totals
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.doctor import Level
from timestore_pipeline.orchestration.dagster_doctor import look_at_dagster
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, published, rows_of
from timestore_pipeline_tests.conftest import WEATHER_CSV
from timestore_pipeline_tests.e2e.conftest import Deployment, Site, stopped_processes

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e"), pytest.mark.timeout(1800)]

Drop = Callable[[Store, str, str, str | bytes], Path]

SUCCESS = dg.DagsterRunStatus.SUCCESS
# A run of a backfill that is divided has 31 windows of a day.
_TWO_RUNS_OF_DAYS = 32
_STAGED_DAYS = _TWO_RUNS_OF_DAYS + 1


def published_rows(store: Store, *datasets: str) -> dict[str, int]:
    with store.ledger.read() as tx:
        return {name: rows for name, (_, rows, _, _) in published_totals(tx).items() if name in (datasets or (name,))}


def pending_rows(store: Store, *datasets: str) -> list[int]:
    with store.ledger.read() as tx:
        states = queue_states(tx)
    return [states[name].pending_rows if name in states else 0 for name in datasets]


def marked(deployment: Deployment, dataset: str) -> set[str]:
    return deployment.instance.get_materialized_partitions(dg.AssetKey(["partitions", dataset]))


def complaints() -> dict[str, str]:
    """What the doctor has to say of Dagster that is not well."""
    return {finding.part: finding.message for finding in look_at_dagster() if finding.level is not Level.OK}


def test_dropped_files_are_published_by_the_sensors(site: Site, drop: Drop, monkeypatch: pytest.MonkeyPatch):
    drop(site.store, "dropped", "wéather 'quoted'.csv", WEATHER_CSV)

    site.wait_for("all rows are published", lambda: published_rows(site.store, "dropped") == {"dropped": 3})

    site.wait_for_the_end_of_runs()
    assert [(run.job_name, run.status) for run in site.runs()] == [
        ("partition_build_day", SUCCESS),
        ("ingest", SUCCESS),
    ]
    assert marked(site, "dropped") == {"2026-01-01", "2026-01-02"}

    monkeypatch.setenv("DAGSTER_HOME", site.environment["DAGSTER_HOME"])
    site.wait_for("the doctor finds daemons, sensors and schedule at work", lambda: complaints() == {})
    (flush_sensor,) = [
        state for state in site.instance.all_instigator_state() if state.instigator_name == "flush_sensor"
    ]
    site.instance.stop_sensor(flush_sensor.instigator_origin_id, flush_sensor.selector_id, None)
    assert complaints() == {"sensor flush_sensor": "it is off"}
    site.instance.update_instigator_state(flush_sensor)


def test_a_backfill_is_one_run_and_of_a_dataset_with_lanes_several_side_by_side(site: Site):
    store, days = site.store, [str(date(2026, 1, 1) + timedelta(days=number)) for number in range(_TWO_RUNS_OF_DAYS)]
    rows = hourly(24 * _STAGED_DAYS)
    for dataset in ("backfilled", "filled_too", "lanes"):
        stage(store, dataset, rows)

    # Each run stops in mid-build, so that nothing but lanes lets the other one go on.
    site.signal_runs(f"{CrashPoint.PARQUET_IN_PLACE}=SIGSTOP")
    in_lanes = launch_backfill(site, ["lanes"], days)

    def in_flight() -> list[Build]:
        with store.ledger.read() as tx:
            return builds_in_flight(tx)

    site.wait_for("both runs are in mid-build", lambda: len(stopped_processes(site.environment)) == 2)
    assert {build.lane for build in in_flight()} == {0, 1}
    assert len({build.owner for build in in_flight()}) == 2
    assert published_rows(store, "lanes") == {}
    site.signal_runs("")
    in_one = launch_backfill(site, ["backfilled", "filled_too"], days)
    for process in stopped_processes(site.environment):
        process.resume()

    def ended(backfill_id: str) -> bool:
        found = site.instance.get_backfill(backfill_id)
        return found is not None and found.status in BULK_ACTION_TERMINAL_STATUSES

    for backfill_id, datasets, runs in ((in_lanes, ["lanes"], 2), (in_one, ["backfilled", "filled_too"], 1)):
        site.wait_for("the backfill ends", lambda backfill_id=backfill_id: ended(backfill_id))
        backfill = site.instance.get_backfill(backfill_id)
        assert backfill
        assert backfill.status is BulkActionStatus.COMPLETED_SUCCESS
        found = site.runs(tags={"dagster/backfill": backfill_id})
        assert [run.status for run in found] == [SUCCESS] * runs
        assert {run.tags["timestore/trigger"] for run in found} == {"backfill"}
        for dataset in datasets:
            assert marked(site, dataset) == set(days)
            assert published(store, dataset) == rows_of(rows.slice(0, 24 * len(days)))
            # No window that nobody asked for.
            assert pending_rows(store, dataset) == [24]
            assert audit_rows(store, dataset).wrong == ()
    (run,) = site.runs(tags={"dagster/backfill": in_one})
    assert run.tags["timestore/windows"] == f"{days[0]}...{days[-1]}"


def launch_backfill(deployment: Deployment, datasets: list[str], keys: list[str]) -> str:
    """Ask for a backfill by the same mutation as the UI."""
    assets = [{"path": ["partitions", dataset]} for dataset in datasets]
    asked = deployment.ask(_LAUNCH_BACKFILL, parameters={"assetSelection": assets, "partitionNames": keys})
    answer = asked["launchPartitionBackfill"]
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

"""What goes wrong around a real deployment: canceled runs, a daemon that dies, two of them by mistake, a power cut."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.counters import RETRIED_BATCHES
from timestore_pipeline.ledger.landing import unended_readings
from timestore_pipeline.ledger.windows import published_totals
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.segments.identity import file_batch_id
from timestore_pipeline.staging.arrivals import file_fingerprint
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import NEW_YEAR, counted, published, readable, weather_csv
from timestore_pipeline_tests.e2e import code_server
from timestore_pipeline_tests.e2e.conftest import Deployment, Site, stopped_processes

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e"), pytest.mark.timeout(1800)]

Drop = Callable[[Store, str, str, str | bytes], Path]

CANCELED, CANCELING = dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.CANCELING
FAILURE, SUCCESS = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS

_TERMINATE = """
mutation ($runId: String!) {
  terminateRun(runId: $runId) {
    __typename
    ... on TerminateRunFailure { message }
    ... on PythonError { message }
  }
}
"""


def file_of(number: int) -> str:
    """A file of two rows of their own, in two windows."""
    return weather_csv(f"2026-01-01T00:{number:02}:00Z,S{number},1", f"2026-01-02T00:{number:02}:00Z,S{number},2")


def stations(rows: list[tuple[Any, ...]]) -> list[str]:
    return sorted(row[1] for row in rows)


def each_twice(*numbers: int) -> list[str]:
    return sorted(2 * [f"S{number}" for number in numbers])


def no_build_is_in_flight(store: Store) -> bool:
    with store.ledger.read() as tx:
        return not builds_in_flight(tx)


def published_rows(store: Store, dataset: str = "weather") -> int:
    with store.ledger.read() as tx:
        totals = published_totals(tx)
    return totals[dataset][1] if dataset in totals else 0


def all_runs_have_ended(deployment: Deployment) -> bool:
    return all(run.is_finished for run in deployment.instance.get_runs())


def run_at_its_crash_point(deployment: Deployment, job: str) -> dg.DagsterRun:
    """Wait until a run of ``job`` has stopped itself, and return it."""
    deployment.wait_for(f"a run of {job} reaches its crash point", lambda: deployment.stopped_run() is not None)
    (run,) = [run for run in deployment.instance.get_runs(dg.RunsFilter(job_name=job)) if not run.is_finished]
    return run


def resume(deployment: Deployment) -> None:
    """Let a run that has stopped itself go on."""
    process = deployment.stopped_run()
    assert process
    process.resume()


def process_of(deployment: Deployment, run: dg.DagsterRun) -> psutil.Process:
    """The process of a run that has stopped itself: it has told Dagster its number."""
    said = [str(entry.message) for entry in deployment.instance.all_logs(run.run_id)]
    (process,) = [
        process
        for process in stopped_processes(deployment.environment)
        if any(f"(pid: {process.pid})" in message for message in said)
    ]
    return process


DAYS = 60
ROWS_PER_DAY = 100


def two_months() -> str:
    """A file with so many windows that it is one of many that a build has in place."""
    return weather_csv(
        *(
            f"{NEW_YEAR - timedelta(days=day) + timedelta(minutes=minute):%Y-%m-%dT%H:%M:%SZ},S{day},{minute}"
            for day in range(DAYS)
            for minute in range(ROWS_PER_DAY)
        )
    )


def rows_and_different_ones(store: Store, dataset: str) -> tuple[Any, ...]:
    with open_reader(store, [dataset]) as connection:
        (counts,) = connection.execute(
            f"SELECT count(*), count(DISTINCT (ts, station, temp)) FROM {dataset}"
        ).fetchall()
    return counts


def test_runs_canceled_in_the_ui_lose_and_double_nothing(site: Site, drop: Drop):
    store = site.store
    everything = 2 * (DAYS * ROWS_PER_DAY + 2,)

    @contextmanager
    def canceled(job: str) -> Iterator[None]:
        """Cancel the run of ``job`` that has stopped itself; the block is done before it goes on."""
        run = run_at_its_crash_point(site, job)

        def status() -> dg.DagsterRunStatus | None:
            found = site.instance.get_run_by_id(run.run_id)
            return found and found.status

        with ThreadPoolExecutor(1) as browser:
            # The answer comes once the process has taken notice, which it does when it goes on.
            answer = browser.submit(site.ask, _TERMINATE, runId=run.run_id)
            site.wait_for("the run is to be canceled", lambda: status() is CANCELING)
            yield
            resume(site)
            said = answer.result(240)["terminateRun"]
        assert said["__typename"] == "TerminateRunSuccess", said
        site.wait_for(f"{job} is canceled", lambda: status() is CANCELED)

    site.signal_runs(f"{CrashPoint.READINGS_BEGUN}={code_server.CANCELED}")
    first = drop(store, "canceled", "many.csv", two_months())
    batch_id = file_batch_id(file_fingerprint(first))
    with canceled("ingest"):
        # No other run takes the file before this test has looked at what the canceled one leaves.
        site.kill_daemon()
    assert readable(store, "canceled") == []
    assert first.exists()
    assert [path for path in store.settings.staging_path.glob("canceled/[!.]*") if path.is_file()] == []
    with store.ledger.read() as tx:
        assert unended_readings(tx, "canceled", [batch_id]) == {}, "a canceled run speaks against no file"

    site.signal_runs(f"{CrashPoint.PARQUET_IN_PLACE}={code_server.CANCELED}")
    drop(store, "canceled", "2.csv", file_of(2))
    site.start()
    with canceled("partition_build_day"):
        site.signal_runs(f"{CrashPoint.SLICES_CLAIMED}=SIGSTOP")
    # The run gave the slices back itself, or the sensor settled its build: another run has claimed them.
    again = run_at_its_crash_point(site, "partition_build_day")
    assert rows_and_different_ones(store, "canceled") == everything
    assert published(store, "canceled") == []
    site.signal_runs("")
    process_of(site, again).resume()

    site.wait_for("all rows are published", lambda: published_rows(store, "canceled") == everything[0])
    site.wait_for_the_end_of_runs()
    assert rows_and_different_ones(store, "canceled") == everything
    assert len(set(published(store, "canceled"))) == len(published(store, "canceled")) == everything[0]


def test_runs_go_on_without_a_daemon_and_whatever_dies_nothing_is_lost_or_doubled(site: Site, drop: Drop):
    store = site.store
    runs: dict[str, dg.DagsterRun] = {}
    site.signal_runs(f"{CrashPoint.PARQUET_IN_PLACE}=SIGSTOP")
    for dataset, job in (("survivor", "partition_build_day"), ("victim", "partition_build_hour")):
        drop(store, dataset, "1.csv", file_of(1))
        site.wait_for(f"{job} is in mid-build", lambda job=job: bool(site.runs(job_name=job)))
        (runs[dataset],) = site.runs(job_name=job)
    site.wait_for("both builds are in mid-build", lambda: len(stopped_processes(site.environment)) == 2)
    survivor, victim = (process_of(site, runs[dataset]) for dataset in ("survivor", "victim"))

    site.kill_daemon()
    victim.kill()
    survivor.resume()

    site.wait_for("the run publishes without a daemon", lambda: published_rows(store, "survivor") == 2)
    assert stations(published(store, "survivor")) == stations(readable(store, "survivor")) == each_twice(1)
    assert (published(store, "victim"), stations(readable(store, "victim"))) == ([], each_twice(1))
    site.signal_runs("")
    drop(store, "survivor", "2.csv", file_of(2))
    site.start()
    site.wait_for("what was left is published", lambda: published_rows(store, "victim") == 2)
    site.wait_for("and what came meanwhile", lambda: published_rows(store, "survivor") == 4)
    site.wait_for_the_end_of_runs()
    assert stations(published(store, "survivor")) == stations(readable(store, "survivor")) == each_twice(1, 2)
    assert stations(published(store, "victim")) == stations(readable(store, "victim")) == each_twice(1)
    ended = {run.run_id: run.status for run in site.runs()}
    assert (ended[runs["survivor"].run_id], ended[runs["victim"].run_id]) == (SUCCESS, FAILURE)
    assert counted(store, RETRIED_BATCHES, "survivor").get("flush_abort", 0) == 0
    assert counted(store, RETRIED_BATCHES, "victim") == {"flush_abort": 1}

    site.signal_runs(f"{CrashPoint.PARQUET_IN_PLACE}=SIGSTOP")
    drop(store, "survivor", "3.csv", file_of(3))
    run = run_at_its_crash_point(site, "partition_build_day")
    site.stop(signal.SIGKILL)
    site.start_code_server()
    site.start()
    site.wait_for("work goes on after a power cut", lambda: published_rows(store, "survivor") == 6)
    assert stations(published(store, "survivor")) == stations(readable(store, "survivor")) == each_twice(1, 2, 3)
    found = site.instance.get_run_by_id(run.run_id)
    assert found
    assert found.status is not SUCCESS


def test_two_daemons_by_mistake_double_nothing(site: Site, drop: Drop):
    store, numbers = site.store, range(1, 3)
    second = replace(site, daemon=None, code_server=None, address=None)
    second.start()
    try:
        for number in numbers:
            file = drop(store, "twice", f"{number}.csv", file_of(number))
            site.wait_for("it is staged", lambda file=file: not file.exists())
            assert set(stations(readable(store, "twice"))) <= set(each_twice(*numbers))
        site.wait_for("all rows are published", lambda: published_rows(store, "twice") == 4)
        site.wait_for_the_end_of_runs()
        site.wait_for("Dagster says so", lambda: "multiple daemon processes running at once" in site.log)
    finally:
        second.stop()

    assert stations(published(store, "twice")) == stations(readable(store, "twice")) == each_twice(*numbers)
    assert {run.status for run in site.runs()} == {SUCCESS}, site.what_failed()

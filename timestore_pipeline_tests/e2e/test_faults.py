"""What goes wrong around a real deployment: runs canceled in the UI, a daemon that dies, two of them by mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.ledger.builds import builds_in_flight, published_totals
from timestore_pipeline.ledger.counters import RETRIED_BATCHES
from timestore_pipeline.ledger.readings import unended_readings
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.staging.arrivals import file_batch_id, file_fingerprint
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import NEW_YEAR, counted, published, readable, weather_csv
from timestore_pipeline_tests.conftest import unused_port
from timestore_pipeline_tests.e2e.conftest import ROOT, Deployment

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e"), pytest.mark.timeout(500)]

Drop = Callable[[Store, str, str, str | bytes], Path]

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


def published_rows(store: Store) -> int:
    with store.ledger.read() as tx:
        return sum(rows for _, rows, _, _ in published_totals(tx).values())


def all_runs_have_ended(deployment: Deployment) -> bool:
    return all(run.is_finished for run in deployment.instance.get_runs())


@contextmanager
def webserver(deployment: Deployment) -> Iterator[Callable[[str, dict[str, str]], Any]]:
    """Run the UI; yields a function that sends it a query, as the browser does."""
    port = unused_port()
    address = f"http://127.0.0.1:{port}"
    with (deployment.folder / "webserver.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dagster_webserver", "-w", str(ROOT / "workspace.yaml")),
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            cwd=ROOT,
            env=deployment.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def is_up() -> bool:
        try:
            with urllib.request.urlopen(f"{address}/server_info", timeout=5):
                return True
        except OSError:
            return False

    def ask(query: str, variables: dict[str, str]) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    try:
        deployment.wait_for("the UI is up", is_up)
        yield ask
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


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


DAYS = 300
ROWS_PER_DAY = 400


def year() -> str:
    """A file with so many rows and windows that what is left to do after a crash point takes its time."""
    return weather_csv(
        *(
            f"{NEW_YEAR - timedelta(days=day) + timedelta(minutes=minute):%Y-%m-%dT%H:%M:%SZ},S{day},{minute}"
            for day in range(DAYS)
            for minute in range(ROWS_PER_DAY)
        )
    )


def rows_and_different_ones(store: Store) -> tuple[Any, ...]:
    with open_reader(store, ["weather"]) as connection:
        (counts,) = connection.execute("SELECT count(*), count(DISTINCT (ts, station, temp)) FROM weather").fetchall()
    return counts


def test_runs_canceled_in_the_ui_lose_and_double_nothing(deploy: Callable[..., Deployment], drop: Drop):
    deployment = deploy(
        staging_flush_max_rows=1,
        signals=f"{CrashPoint.READINGS_BEGUN}=SIGSTOP,{CrashPoint.PARQUET_IN_PLACE}=SIGSTOP",
    )
    store = deployment.store
    first = drop(store, "weather", "year.csv", year())
    batch_id = file_batch_id(file_fingerprint(first))
    everything = 2 * (DAYS * ROWS_PER_DAY + 2,)
    deployment.start()
    with webserver(deployment) as ask, ThreadPoolExecutor(1) as browser:

        def cancel(job: str) -> None:
            run = run_at_its_crash_point(deployment, job)

            def status() -> dg.DagsterRunStatus | None:
                found = deployment.instance.get_run_by_id(run.run_id)
                return found and found.status

            # The answer comes once the process has taken notice, which it does when it goes on.
            answer = browser.submit(ask, _TERMINATE, {"runId": run.run_id})
            deployment.wait_for("the run is to be canceled", lambda: status() is dg.DagsterRunStatus.CANCELING)
            resume(deployment)
            said = answer.result(60)["data"]["terminateRun"]
            assert said["__typename"] == "TerminateRunSuccess", said
            deployment.wait_for(f"{job} is canceled", lambda: status() is dg.DagsterRunStatus.CANCELED)

        cancel("ingest")
        assert readable(store) == []
        assert first.exists()
        assert [path for path in store.settings.staging_path.glob("weather/*") if path.is_file()] == []
        with store.ledger.read() as tx:
            assert unended_readings(tx, "weather", [batch_id]) == {}, "a canceled run speaks against no file"

        drop(store, "weather", "2.csv", file_of(2))
        run_at_its_crash_point(deployment, "ingest")
        resume(deployment)
        cancel("partition_build_day")
        # The run gave the slices back itself, or the sensor settled its build.
        deployment.wait_for("the canceled build is settled", lambda: no_build_is_in_flight(store))
        assert rows_and_different_ones(store) == everything
        assert published(store) == []

        run_at_its_crash_point(deployment, "partition_build_day")
        resume(deployment)
    deployment.wait_for("all rows are published", lambda: published_rows(store) == everything[0])
    deployment.wait_for("all runs end", lambda: all_runs_have_ended(deployment))
    assert rows_and_different_ones(store) == everything
    assert len(set(published(store))) == len(published(store)) == everything[0]


@pytest.mark.parametrize("run_dies", [False, True], ids=["the run goes on", "the run dies too"])
def test_a_daemon_killed_in_mid_flush_and_started_again_loses_and_doubles_nothing(
    deploy: Callable[..., Deployment], drop: Drop, run_dies: bool
):
    deployment = deploy(
        staging_flush_max_rows=1, build_lease_seconds=15, signals=f"{CrashPoint.PARQUET_IN_PLACE}=SIGSTOP"
    )
    store = deployment.store
    drop(store, "weather", "1.csv", file_of(1))
    deployment.start()
    run = run_at_its_crash_point(deployment, "partition_build_day")

    deployment.kill_daemon()

    process = deployment.stopped_run()
    assert process
    if run_dies:
        process.kill()
    else:
        process.resume()
        deployment.wait_for("the run publishes without a daemon", lambda: len(published(store)) == 2)
    assert stations(readable(store)) == each_twice(1)
    drop(store, "weather", "2.csv", file_of(2))
    deployment.start()
    while len(published(store)) < 4:
        # Every run stops at the same place.
        deployment.wait_for(
            "a flush comes that far", lambda: deployment.stopped_run() is not None or len(published(store)) == 4
        )
        stopped = deployment.stopped_run()
        if stopped:
            stopped.resume()
            stopped.wait(60)
        assert stations(readable(store)) in (each_twice(1), each_twice(1, 2))

    assert stations(published(store)) == stations(readable(store)) == each_twice(1, 2)
    deployment.wait_for("all runs end", lambda: all_runs_have_ended(deployment))
    found = deployment.instance.get_run_by_id(run.run_id)
    assert found
    assert found.status is (dg.DagsterRunStatus.FAILURE if run_dies else dg.DagsterRunStatus.SUCCESS)
    assert counted(store, RETRIED_BATCHES).get("flush_abort", 0) == (1 if run_dies else 0)


def test_two_daemons_by_mistake_double_nothing(deploy: Callable[..., Deployment], drop: Drop):
    deployment = deploy(staging_flush_max_rows=1)
    store = deployment.store
    second = replace(deployment)
    deployment.start()
    second.start()
    numbers = range(1, 7)
    try:
        for number in numbers:
            file = drop(store, "weather", f"{number}.csv", file_of(number))
            if number % 2 == 0:
                deployment.wait_for("it is staged", lambda file=file: not file.exists())
            assert set(stations(readable(store))) <= set(each_twice(*numbers))
        deployment.wait_for("all rows are published", lambda: len(published(store)) == 12)
        deployment.wait_for("all runs end", lambda: all_runs_have_ended(deployment))
        deployment.wait_for("Dagster says so", lambda: "multiple daemon processes running at once" in deployment.log)
    finally:
        second.stop()

    assert stations(published(store)) == stations(readable(store)) == each_twice(*numbers)
    statuses = {run.status for run in deployment.instance.get_runs()}
    assert statuses == {dg.DagsterRunStatus.SUCCESS}

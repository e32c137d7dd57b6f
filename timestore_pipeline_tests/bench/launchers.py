"""Run launchers: a burst of build runs, and a file from landing to the table, with processes and with warm workers."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import dagster as dg
import psutil

from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import NEW_YEAR, hourly, published, weather_csv
from timestore_pipeline_tests.distributed.deployment import (
    ROOT,
    CeleryDeployment,
    servers_environment,
    write_instance,
)
from timestore_pipeline_tests.e2e.conftest import processes_of
from timestore_pipeline_tests.postgresql import running_server
from timestore_pipeline_tests.redis_server import running_redis

RUNS = 10
FILES = 3
PROCESSES = 2
_DATASET = "{columns: {ts: timestamptz, station: varchar, temp: double}, time: ts, window: day}"


def run(repeats: int, workspace: Path) -> list[str]:
    """Return the lines of the report. Both have Dagster's storage and the ledger on PostgreSQL; one round each."""
    lines = [
        f"| run launcher | {RUNS} build runs: runs a minute | CPU-seconds per run | a run, from start to end "
        f"| landing to published, median of {FILES} (min to max) |",
        "|---|---|---|---|---|",
    ]
    for name, celery in ((f"Celery, {PROCESSES} processes", True), ("stock, a process per run, 4 at a time", False)):
        folder = workspace / ("celery" if celery else "stock")
        folder.mkdir()
        with _deployed(folder, celery=celery) as deployment:
            per_minute, cpu, lasted = _burst(deployment)
            waits = [_landing_to_published(deployment, number) for number in range(FILES)]
        lines.append(
            f"| {name} | {per_minute:.0f} | {cpu:.2f} | {lasted:.2f} s "
            f"| {statistics.median(waits):.1f} s ({min(waits):.1f} to {max(waits):.1f}) |"
        )
    return lines


def _installed(program: str) -> str:
    path = shutil.which(program)
    assert path, f"{program} is not installed; .ci/install-servers installs it"
    return path


@contextmanager
def _deployed(folder: Path, *, celery: bool) -> Iterator[CeleryDeployment]:
    datasets = "\n".join(f"  d{number:02}: {_DATASET}" for number in range(RUNS))
    (folder / "datasets.yaml").write_text(f"start: 2026-01-01\ndatasets:\n{datasets}\n  landed: {_DATASET}\n")
    home = folder / "dagster_home"
    with running_server() as server, running_redis(_installed, folder) as broker:
        database = server.create_database()
        settings = {
            **servers_environment(server.port, database, broker),
            "TIMESTORE_HOME": str(folder),
            "TIMESTORE_STAGING_FLUSH_MAX_ROWS": "1",
            "DAGSTER_HOME": str(home),
            "TIMESTORE_LANDING_SENSOR_INTERVAL_SECONDS": "1",
            "TIMESTORE_FLUSH_SENSOR_INTERVAL_SECONDS": "1",
            "PYTHONPATH": str(ROOT),
            "DAGSTER_DISABLE_TELEMETRY": "1",
        }
        os.environ.update(settings)
        if celery:
            write_instance(home, poll_seconds=30, max_concurrent_runs=PROCESSES)
        else:
            home.mkdir()
            shutil.copy(ROOT / "deploy" / "postgresql" / "dagster.yaml", home)
        with Store.open() as store, dg.DagsterInstance.from_config(str(home)) as instance:
            deployment = CeleryDeployment(store, instance, dict(os.environ), folder)
            try:
                if celery:
                    deployment.start_worker(processes=PROCESSES)
                deployment.start()
                # The first of everything is slower, and not what is asked.
                _landing_to_published(deployment, FILES)
                yield deployment
            finally:
                deployment.stop()
                for process in processes_of(deployment.environment):
                    process.kill()
                for name in settings:
                    del os.environ[name]


def _burst(deployment: CeleryDeployment) -> tuple[float, float, float]:
    """Return runs a minute, CPU-seconds per run and how long a run takes, of builds that cannot share a run."""
    before, known = _cpu_seconds(deployment), {run.run_id for run in deployment.instance.get_runs()}
    for number in range(RUNS):
        stage(deployment.store, f"d{number:02}", hourly(5, start=NEW_YEAR + timedelta(days=number)))

    def records() -> list[dg.RunRecord]:
        return [each for each in deployment.instance.get_run_records() if each.dagster_run.run_id not in known]

    _until(lambda: sum(each.dagster_run.is_finished for each in records()) >= RUNS, "all runs have ended")
    ended = records()
    assert all(each.dagster_run.is_success for each in ended)
    cpu = (_cpu_seconds(deployment) - before) / len(ended)
    seconds = max(each.end_time or 0 for each in ended) - min(each.create_timestamp.timestamp() for each in ended)
    lasted = statistics.median((each.end_time or 0) - (each.start_time or 0) for each in ended)
    return len(ended) * 60 / seconds, cpu, lasted


def _landing_to_published(deployment: CeleryDeployment, number: int) -> float:
    store = deployment.store
    folder = store.settings.landing_path / "landed"
    folder.mkdir(parents=True, exist_ok=True)
    rows = len(published(store, "landed"))
    started = time.monotonic()
    (folder / f"{number}.csv").write_text(weather_csv(f"2026-01-01T00:00:00Z,S{number},{number}"))
    _until(lambda: len(published(store, "landed")) > rows, "a file is published")
    took = time.monotonic() - started
    _until(lambda: all(run.is_finished for run in deployment.instance.get_runs()), "its runs have ended")
    return took


def _cpu_seconds(deployment: CeleryDeployment) -> float:
    """What the daemon, its servers, the workers and all runs that they have waited for have used."""
    total = 0.0
    for process in processes_of(deployment.environment):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _until(condition: Callable[[], bool], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)

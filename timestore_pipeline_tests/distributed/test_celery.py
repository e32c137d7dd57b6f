"""Runs on Celery workers, by the files of ``deploy/celery``: a real Redis, a real PostgreSQL, real workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from timestore_pipeline import crash_points
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.ledger.counters import RETRIED_BATCHES
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import counted, published, readable
from timestore_pipeline_tests.distributed.deployment import CeleryDeployment
from timestore_pipeline_tests.e2e.test_faults import (
    all_runs_have_ended,
    each_twice,
    file_of,
    resume,
    run_at_its_crash_point,
    stations,
)
from timestore_pipeline_tests.redis_server import RedisServer

pytestmark = [pytest.mark.e2e, pytest.mark.server, pytest.mark.xdist_group("distributed"), pytest.mark.timeout(300)]

Drop = Callable[[Store, str, str, str | bytes], Path]
FAILURE, STARTED, SUCCESS = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS
CANCELED = dg.DagsterRunStatus.CANCELED


def statuses(deployment: CeleryDeployment, job: str) -> Counter[dg.DagsterRunStatus]:
    return Counter(run.status for run in deployment.instance.get_runs(dg.RunsFilter(job_name=job)))


def status_of(deployment: CeleryDeployment, run_id: str) -> dg.DagsterRunStatus:
    run = deployment.instance.get_run_by_id(run_id)
    assert run
    return run.status


def test_what_lands_is_staged_and_built_by_a_worker_also_after_a_run_was_canceled(
    deploy_celery: Callable[..., CeleryDeployment], drop: Drop
):
    deployment = deploy_celery(staging_flush_max_rows=1, signals=f"{CrashPoint.PARQUET_IN_PLACE}=SIGSTOP")
    store = deployment.store
    deployment.start_worker(processes=1)
    deployment.start()
    drop(store, "weather", "1.csv", file_of(1))

    canceled = run_at_its_crash_point(deployment, "partition_build_day")
    assert deployment.instance.run_launcher.terminate(canceled.run_id)
    resume(deployment)
    deployment.wait_for("the run is canceled", lambda: status_of(deployment, canceled.run_id) is CANCELED)

    deployment.wait_for("the next run publishes", lambda: stations(published(store)) == each_twice(1))
    deployment.wait_for("all runs end", lambda: all_runs_have_ended(deployment))
    assert stations(readable(store)) == each_twice(1)
    assert statuses(deployment, "ingest") == {SUCCESS: 1}
    assert statuses(deployment, "partition_build_day") == {CANCELED: 1, SUCCESS: 1}
    worker = deployment.workers.pop("one")
    worker.terminate()
    assert worker.wait(20) == 0, "a worker that is asked to stop ends when its runs have"


def test_a_broker_that_forgets_and_a_worker_that_dies_in_mid_build_lose_and_double_nothing(
    deploy_celery: Callable[..., CeleryDeployment], drop: Drop, broker: RedisServer
):
    # Each file has two windows: the first build stops at its first one, and so does the second.
    point = CrashPoint.PARQUET_IN_PLACE
    deployment = deploy_celery(staging_flush_max_rows=1, signals=f"{point}=SIGSTOP,{point}:3=SIGSTOP")
    store = deployment.store
    deployment.start_worker("one", processes=1)
    deployment.start()

    drop(store, "weather", "1.csv", file_of(1))
    first = run_at_its_crash_point(deployment, "partition_build_day")
    broker.stop()
    drop(store, "weather", "2.csv", file_of(2))
    deployment.wait_for("a run fails for want of a broker", lambda: statuses(deployment, "ingest")[FAILURE] > 0)
    broker.start()
    resume(deployment)
    deployment.wait_for("the second file is staged", lambda: stations(readable(store)) == each_twice(1, 2))
    assert stations(published(store)) == each_twice(1)
    deployment.wait_for("the run ends", lambda: status_of(deployment, first.run_id) is not STARTED)
    assert status_of(deployment, first.run_id) is SUCCESS

    second = run_at_its_crash_point(deployment, "partition_build_day")
    deployment.kill_worker("one")
    del deployment.environment[crash_points.VARIABLE]
    deployment.start_worker("two")

    deployment.wait_for("another worker publishes", lambda: stations(published(store)) == each_twice(1, 2))
    assert status_of(deployment, second.run_id) is FAILURE
    assert "one@" in str(deployment.instance.all_logs(second.run_id)[-1].message)
    deployment.wait_for("all runs end", lambda: all_runs_have_ended(deployment))
    assert stations(readable(store)) == each_twice(1, 2)
    assert counted(store, RETRIED_BATCHES) == {"flush_abort": 1}

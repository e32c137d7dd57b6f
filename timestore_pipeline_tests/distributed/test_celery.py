"""Runs on Celery workers, by the files of ``deploy/celery``; what is shared are PostgreSQL, Redis, an object store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import dagster as dg
import pytest
from deltalake import DeltaTable

from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.ledger.counters import RETRIED_BATCHES
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline_tests.builders import counted, hourly, published, readable, rows_of, weather_csv
from timestore_pipeline_tests.distributed.conftest import Servers
from timestore_pipeline_tests.distributed.deployment import CeleryDeployment
from timestore_pipeline_tests.e2e.test_faults import (
    each_twice,
    file_of,
    published_rows,
    resume,
    run_at_its_crash_point,
    stations,
)
from timestore_pipeline_tests.fault_proxy import Effect, Fault, slow_down

pytestmark = [pytest.mark.e2e, pytest.mark.server, pytest.mark.xdist_group("distributed"), pytest.mark.timeout(1800)]

Land = Callable[[str, str, str], str]
FAILURE, STARTED, SUCCESS = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS
CANCELED = dg.DagsterRunStatus.CANCELED
ROWS_PER_FILE = 30
# One job builds all datasets, as all have windows of a day.
BUILD = "partition_build"


def statuses(deployment: CeleryDeployment, job: str) -> Counter[dg.DagsterRunStatus]:
    return Counter(run.status for run in deployment.runs(job_name=job))


def status_of(deployment: CeleryDeployment, run_id: str) -> dg.DagsterRunStatus:
    run = deployment.instance.get_run_by_id(run_id)
    assert run
    return run.status


def test_what_lands_in_a_bucket_is_published_into_it_by_a_worker_whatever_the_store_does_meanwhile(
    celery: CeleryDeployment, servers: Servers, land: Land
):
    store, bucket = celery.store, servers.bucket

    def land_rows(station: str) -> list[tuple[object, ...]]:
        """Let a file of rows in two windows land; return its rows."""
        table = hourly(ROWS_PER_FILE, station=station)
        lines = (f"{row['ts']:%Y-%m-%dT%H:%M:%SZ},{station},{row['temp']}" for row in table.to_pylist())
        land("landed", f"{station} %.csv", weather_csv(*lines))
        return rows_of(table)

    expected = [row for number in range(3) for row in land_rows(f"first-{number}")]
    land("landed", "bad.csv", "no,such,columns\n1,2,3\n")
    bucket.proxy.add(
        *(slow_down(operation, times=2) for operation in ("LIST", "GET", "PUT", "COPY", "DELETE_MANY")),
        # The first segment, and the first commit of a table: done, and the answer is lost.
        Fault(Effect.DROP_AFTER, "PUT", key="staging/*"),
        Fault(Effect.DROP_AFTER, "PUT", key="tables/*"),
        Fault(Effect.CUT, "GET", key="staging/*"),
    )
    celery.wait_for("the first rows are published", lambda: published_rows(store, "landed") == len(expected))

    land_rows("first-0")  # delivered twice
    expected += [row for number in range(2) for row in land_rows(f"second-{number}")]
    celery.wait_for("all rows are published", lambda: published_rows(store, "landed") == len(expected))
    celery.wait_for("nothing waits", lambda: not bucket.keys("landing/landed/"))
    celery.wait_for_the_end_of_runs()

    assert readable(store, "landed") == sorted(expected, key=repr)
    table = DeltaTable(f"{bucket.url}/tables/landed").to_pyarrow_table()
    assert table.num_rows == len(expected) == 5 * ROWS_PER_FILE
    assert {run.status for run in celery.runs()} == {SUCCESS}
    assert len({bucket.get(key) for key in bucket.keys("archive/landed/")}) == 5
    with store.ledger.read() as tx:
        (entry,) = open_entries(tx)
    assert bucket.get(f"staging/{entry.path}") == b"no,such,columns\n1,2,3\n"
    assert not store.settings.path("data/staging").exists(), "nothing but what may be lost is on the host"
    assert not store.settings.path("data/tables").exists()


def test_a_run_that_is_canceled_loses_and_doubles_nothing_and_a_worker_that_is_asked_to_stop_does(
    celery: CeleryDeployment, land: Land
):
    store = celery.store
    celery.signal_runs(f"{CrashPoint.PARQUET_IN_PLACE}=SIGSTOP")
    land("canceled", "1.csv", file_of(1))

    canceled = run_at_its_crash_point(celery, BUILD)
    celery.signal_runs("")
    assert celery.instance.run_launcher.terminate(canceled.run_id)
    resume(celery)
    celery.wait_for("the run is canceled", lambda: status_of(celery, canceled.run_id) is CANCELED)

    celery.wait_for("the next run publishes", lambda: published_rows(store, "canceled") == 2)
    celery.wait_for_the_end_of_runs()
    assert stations(readable(store, "canceled")) == stations(published(store, "canceled")) == each_twice(1)
    assert statuses(celery, "ingest") == {SUCCESS: 1}
    built = statuses(celery, BUILD)
    assert built.pop(CANCELED) == 1
    assert list(built) == [SUCCESS], "one more than is needed may be asked for before the rows are seen to be published"
    _, worker = celery.workers.popitem()
    worker.terminate()
    assert worker.wait(600) == 0, "a worker that is asked to stop ends when its runs have"


def test_a_broker_that_forgets_and_a_worker_that_dies_in_mid_build_lose_and_double_nothing(
    celery: CeleryDeployment, servers: Servers, land: Land
):
    store = celery.store
    celery.signal_runs(f"{CrashPoint.PARQUET_IN_PLACE}=SIGSTOP")

    land("survivor", "1.csv", file_of(1))
    first = run_at_its_crash_point(celery, BUILD)
    servers.broker.stop()
    land("survivor", "2.csv", file_of(2))
    celery.wait_for("a run fails for want of a broker", lambda: statuses(celery, "ingest")[FAILURE] > 0)
    servers.broker.start()
    resume(celery)
    celery.wait_for("the second file is staged", lambda: statuses(celery, "ingest")[SUCCESS] == 2)
    assert stations(readable(store, "survivor")) == each_twice(1, 2)
    celery.wait_for("the run ends", lambda: status_of(celery, first.run_id) is not STARTED)
    assert status_of(celery, first.run_id) is SUCCESS
    assert stations(published(store, "survivor")) == each_twice(1)

    second = run_at_its_crash_point(celery, BUILD)
    celery.signal_runs("")
    (name,) = celery.workers
    celery.kill_worker(name)
    celery.start_worker("another", processes=1)

    celery.wait_for("another worker publishes", lambda: published_rows(store, "survivor") == 4)
    assert stations(published(store, "survivor")) == each_twice(1, 2)
    assert status_of(celery, second.run_id) is FAILURE
    assert f"{name}@" in str(celery.instance.all_logs(second.run_id)[-1].message)
    celery.wait_for_the_end_of_runs()
    assert stations(readable(store, "survivor")) == each_twice(1, 2)
    assert counted(store, RETRIED_BATCHES, "survivor") == {"flush_abort": 1}

"""Two worker hosts that share servers only: one is cut off in mid-build, the other is killed; every row is counted."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import dagster as dg
import duckdb
import psutil
import pyarrow as pa
import pytest

from examples.demo.accounting import differences, sums_of_reader, sums_of_source
from examples.demo.source import FIRST_DAY, unpack_sources
from timestore_pipeline import crash_points
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import literal
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.counters import RETRIED_BATCHES
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.ledger.windows import published_totals
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.store import Store
from timestore_pipeline_tests import object_store
from timestore_pipeline_tests.builders import counted, published
from timestore_pipeline_tests.distributed.deployment import (
    ROOT,
    WORKER_APP,
    CeleryDeployment,
    servers_environment,
    write_instance,
)
from timestore_pipeline_tests.distributed.hosts import Host, network_of
from timestore_pipeline_tests.e2e.conftest import PACE, stopped_processes
from timestore_pipeline_tests.postgresql import running_server
from timestore_pipeline_tests.redis_server import running_redis

pytestmark = [pytest.mark.e2e, pytest.mark.server, pytest.mark.xdist_group("distributed"), pytest.mark.timeout(1800)]

DAYS = 8
BUCKET = "between-hosts"
FAILURE, SUCCESS = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS


class Cluster:
    """The daemon's host, which is this side of the network, and two worker hosts."""

    def __init__(self, deployment: CeleryDeployment, hosts: tuple[Host, ...]) -> None:
        self.deployment = deployment
        self.store = deployment.store
        self.hosts = hosts

    def environment_of(self, host: Host) -> dict[str, str]:
        """What the processes of a host find: their own directories, and the servers' addresses."""
        home = str(host.folder)
        return self.deployment.environment | {
            "TIMESTORE_HOME": home,
            "DAGSTER_HOME": f"{home}/dagster_home",
            "TMPDIR": f"{home}/tmp",
        }

    def furnish(self, host: Host) -> None:
        """Give a host what an operator puts on it."""
        for name in ("tmp", "incoming"):
            (host.folder / name).mkdir()
        shutil.copytree(self.deployment.environment["DAGSTER_HOME"], host.folder / "dagster_home")
        shutil.copy(self.store.settings.datasets_path, host.folder / "datasets.yaml")

    def start_worker(self, host: Host, signals: str = "") -> None:
        """Start the worker of a host, with one process, and wait until it takes runs."""
        before = host.said("worker").count(" ready.")
        environment = self.environment_of(host) | ({crash_points.VARIABLE: signals} if signals else {})
        command = [sys.executable, "-m", "celery", "-A", WORKER_APP, "worker", "-Q", "dagster"]
        host.start("worker", [*command, "-n", host.name, "-c", "1", "--loglevel", "INFO"], environment)
        self.wait_for(f"{host.name} is ready", lambda: host.said("worker").count(" ready.") > before)

    def start_producer(self, host: Host) -> None:
        """Start what stages the batches that arrive at a host."""
        module = "timestore_pipeline_tests.distributed.producer"
        host.start("producer", [sys.executable, "-m", module, str(host.folder / "incoming")], self.environment_of(host))

    def stopped(self, host: Host) -> psutil.Process | None:
        """The process of a host that has stopped itself in mid-build."""
        return next(iter(stopped_processes(self.environment_of(host))), None)

    def at_work_on(self, dataset: str) -> dg.DagsterRun | None:
        """The run whose build of a dataset is in flight."""
        with self.store.ledger.read() as tx:
            owners = [build.owner for build in builds_in_flight(tx) if build.dataset == dataset]
        return self.deployment.instance.get_run_by_id(owners[0]) if owners else None

    def published(self) -> int:
        """How many rows are."""
        with self.store.ledger.read() as tx:
            return sum(rows for _, rows, _, _ in published_totals(tx).values())

    def staged(self) -> int:
        """How many rows are acknowledged and not published."""
        with self.store.ledger.read() as tx:
            return sum(state.pending_rows for state in queue_states(tx).values())

    def waiting(self, host: Host) -> list[Path]:
        """The batches that arrived at a host and are not acknowledged."""
        return list((host.folder / "incoming").glob("*.arrow"))

    def builds_that_succeeded(self, host: Host) -> list[str]:
        """The lines in which its worker says so."""
        return [
            line for line in host.said("worker").splitlines() if "partition_build" in line and "RUN_SUCCESS" in line
        ]

    def status(self, run: dg.DagsterRun) -> dg.DagsterRunStatus:
        found = self.deployment.instance.get_run_by_id(run.run_id)
        assert found
        return found.status

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = [f"--- {host.name}: {name}\n{host.said(name)[-4_000:]}"
                        for host in self.hosts for name in ("worker", "producer")]  # fmt: skip
                pytest.fail(f"not within {seconds:.0f} s: {what}\n" + "\n".join([*logs, self.deployment.log[-4_000:]]))
            time.sleep(0.3)


def days_of(spec: DatasetSpec, path: Path) -> list[pa.Table]:
    """The rows of the first days of a source, a batch a day."""
    types = ", ".join(f"{literal(column.name)}: {literal(column.type)}" for column in spec.declared_columns or ())
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            "CREATE TABLE source AS SELECT * "
            f"FROM read_csv({literal(str(path))}, header = true, types = {{{types}}}, nullstr = 'NA') "
            f"WHERE make_date(year, month, day) < DATE '{FIRST_DAY + timedelta(days=DAYS)}'"
        )
        return [
            connection.execute(
                f"FROM source WHERE make_date(year, month, day) = DATE '{FIRST_DAY + timedelta(days=day)}'"
            ).to_arrow_table()
            for day in range(DAYS)
        ]


def arrive(host: Host, dataset: str, days: Mapping[int, pa.Table]) -> None:
    """Let batches arrive at a host."""
    for day, table in days.items():
        part = host.folder / "incoming" / f"{dataset}__day-{day:03}.part"
        with pa.ipc.new_file(str(part), table.schema) as writer:
            writer.write_table(table)
        part.rename(part.with_suffix(".arrow"))


@pytest.fixture
def cluster(
    tmp_path: Path, program: Callable[[str], str], store_environment: Callable[..., dict[str, str]]
) -> Iterator[Cluster]:
    names = ("apple", "birch")
    with (
        network_of(names, tmp_path) as network,
        running_server(network.range, fsync="off") as server,
        running_redis(program, tmp_path, network.address, "127.0.0.1") as broker,
        object_store.running_server(network.address) as objects,
    ):
        objects.client.create_bucket(Bucket=BUCKET)
        environment = store_environment(
            (ROOT / "datasets.yaml").read_text(encoding="utf-8"),
            staging_directory=f"s3://{BUCKET}/staging",
            tables_url=f"s3://{BUCKET}/tables",
            landing_directory=f"s3://{BUCKET}/landing",
            landing_archive_directory=f"s3://{BUCKET}/archive",
            object_store_retry_seconds=5,
            object_store_timeout_seconds=10,
            staging_flush_max_rows=1,
            staging_flush_late_max_age_ms=1,
            **PACE,
        )
        servers = servers_environment(server.port, server.create_database(), broker, network.address)
        servers |= object_store.access(objects.endpoint)
        home = tmp_path / "first" / "dagster_home"
        home.parent.mkdir()
        write_instance(home, silence_seconds=15, max_concurrent_runs=2)
        environment |= {**servers, "DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT)}
        with pytest.MonkeyPatch.context() as patched:
            for name, value in servers.items():
                patched.setenv(name, value)
            with Store.open() as store, dg.DagsterInstance.from_config(str(home)) as instance:
                deployment = CeleryDeployment(store, instance, environment, home.parent)
                made = Cluster(deployment, network.hosts)
                for host in network.hosts:
                    host.hidden += (server.folder, home.parent, tmp_path / "home")
                    made.furnish(host)
                try:
                    yield made
                finally:
                    deployment.stop()
                    for host in network.hosts:
                        host.kill()


def test_a_host_is_cut_off_in_mid_build_and_another_dies_and_every_row_is_published_once(
    cluster: Cluster, tmp_path: Path
):
    store, specs, hosts = cluster.store, cluster.store.datasets, cluster.hosts
    paths = unpack_sources(tmp_path / "source")
    batches = {name: days_of(specs[name], paths[name]) for name in ("weather", "flights")}

    def arrive_everywhere(first: int, end: int, *datasets: str) -> None:
        for dataset in datasets or batches:
            for place, host in enumerate(hosts):
                arrive(host, dataset, {day: batches[dataset][day] for day in range(first + place, end, len(hosts))})

    for host in hosts:
        cluster.start_worker(host, signals=f"{CrashPoint.PARQUET_IN_PLACE}=SIGSTOP")
        cluster.start_producer(host)
    cluster.deployment.start_code_server()
    cluster.deployment.start()

    # Each host has one process, and each process stops in its first build.
    arrive_everywhere(0, 4, "weather")
    cluster.wait_for("a host is in mid-build", lambda: any(map(cluster.stopped, hosts)))
    cut_off, dead = sorted(hosts, key=lambda host: cluster.stopped(host) is None)
    weather_run = cluster.at_work_on("weather")
    arrive_everywhere(0, 4, "flights")
    cluster.wait_for("so is the other", lambda: cluster.stopped(dead) is not None)
    flights_run = cluster.at_work_on("flights")
    assert weather_run
    assert flights_run

    cut_off.unplug()
    zombie = cluster.stopped(cut_off)
    assert zombie
    zombie.resume()
    dead.kill()
    arrive_everywhere(4, 6)
    cluster.wait_for(
        "both runs are found out", lambda: {cluster.status(weather_run), cluster.status(flights_run)} == {FAILURE}
    )
    assert cluster.published() == 0

    cluster.start_worker(dead)
    cluster.start_producer(dead)
    cluster.wait_for("what arrived there is staged", lambda: not cluster.waiting(dead))
    cluster.wait_for("all that is staged is published", lambda: cluster.staged() == 0)
    assert cluster.waiting(cut_off), "the host that is cut off can acknowledge nothing"

    cut_off.plug_in()
    cluster.wait_for("it stages what had arrived", lambda: not cluster.waiting(cut_off))
    cluster.wait_for(
        "its run has come to its end", lambda: "Task execute_job" in cut_off.said("worker").split(" received", 1)[-1]
    )
    dead.processes["worker"].terminate()
    assert dead.processes["worker"].wait(600) == 0
    arrive_everywhere(6, DAYS)
    rows = sum(table.num_rows for days in batches.values() for table in days)
    cluster.wait_for("all is published", lambda: cluster.published() == rows)

    for host in hosts:
        (host.folder / "incoming" / "END").touch()
        assert host.processes["producer"].wait(600) == 0
        assert cluster.builds_that_succeeded(host), f"{host.name} has built nothing"
    assert (cluster.status(weather_run), cluster.status(flights_run)) == (FAILURE, FAILURE)
    for name, path in paths.items():
        expected = sums_of_source(specs[name], path, DAYS)
        assert differences(specs[name], "what is readable", expected, sums_of_reader(store, specs[name])) == []
        assert len(published(store, name)) == sum(table.num_rows for table in batches[name])
        assert audit_rows(store, name).wrong == ()
    assert counted(store, RETRIED_BATCHES, "weather")["flush_abort"] >= 1
    assert counted(store, RETRIED_BATCHES, "flights")["flush_abort"] >= 1

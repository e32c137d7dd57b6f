"""Deployments with Celery, PostgreSQL and Redis of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from timestore_pipeline import crash_points
from timestore_pipeline.store import Store
from timestore_pipeline_tests.conftest import DATASETS_YAML
from timestore_pipeline_tests.distributed.deployment import CeleryDeployment, servers_environment, write_instance
from timestore_pipeline_tests.e2e.conftest import ROOT, processes_of
from timestore_pipeline_tests.postgresql import shared_server
from timestore_pipeline_tests.redis_server import RedisServer, running_redis


@pytest.fixture
def broker(program: Callable[[str], str], tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(program, tmp_path) as server:
        yield server


@pytest.fixture
def deploy_celery(
    store_environment: Callable[..., dict[str, str]],
    broker: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., CeleryDeployment]]:
    """Makes deployments by the shipped ``dagster.yaml``, whose waiting times are cut; to be started by the test."""
    server = shared_server()
    made: list[tuple[CeleryDeployment, str]] = []

    def make(datasets_yaml: str = DATASETS_YAML, signals: str = "", **settings: object) -> CeleryDeployment:
        database = server.create_database()
        for variable, value in servers_environment(server.port, database, broker).items():
            monkeypatch.setenv(variable, value)
        environment = store_environment(
            datasets_yaml, **{"landing_sensor_interval_seconds": 1, "flush_sensor_interval_seconds": 1, **settings}
        )
        home = tmp_path / "dagster_home"
        write_instance(home)
        environment |= {"DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT)}
        if signals:
            environment[crash_points.VARIABLE] = signals
        deployment = CeleryDeployment(Store.open(), dg.DagsterInstance.from_config(str(home)), environment, tmp_path)
        made.append((deployment, database))
        return deployment

    yield make
    for deployment, database in made:
        deployment.stop()
        for process in processes_of(deployment.environment):
            process.kill()
        deployment.instance.dispose()
        deployment.store.close()
        server.drop_database(database)

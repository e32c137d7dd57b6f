"""A deployment with Celery, PostgreSQL, Redis and an object store, which the tests of a module share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr

from timestore_pipeline.settings import PREFIX, Settings
from timestore_pipeline.store import Store
from timestore_pipeline_tests import object_store
from timestore_pipeline_tests.conftest import find_program
from timestore_pipeline_tests.distributed.deployment import (
    SIGNALLED_WORKER_APP,
    SIGNALS_VARIABLE,
    CeleryDeployment,
    servers_environment,
    write_instance,
)
from timestore_pipeline_tests.e2e.conftest import PACE, dagster_environment, datasets_of, due, processes_of
from timestore_pipeline_tests.object_store import Bucket
from timestore_pipeline_tests.postgresql import shared_server
from timestore_pipeline_tests.redis_server import RedisServer, running_redis

DATASETS = datasets_of(**dict.fromkeys(("landed", "canceled", "survivor"), due()))


@dataclass
class Servers:
    """What daemon and workers share."""

    broker: RedisServer
    bucket: Bucket


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CeleryDeployment, Servers]]:
    """A deployment by the shipped ``dagster.yaml``, whose waiting times are cut; files land in a bucket."""
    folder = tmp_path_factory.mktemp("celery")
    home, dagster_home = folder / "home", folder / "dagster_home"
    home.mkdir()
    (home / "datasets.yaml").write_text(DATASETS, encoding="utf-8")
    server = shared_server()
    database = server.create_database()
    write_instance(dagster_home)
    with running_redis(find_program, folder) as broker, object_store.bucket() as bucket:
        fields: dict[str, Any] = {
            **PACE,
            "home": home,
            "staging_min_free_disk_bytes": 0,
            "staging_flush_max_rows": 1,
            "build_lease_seconds": 600,
            **{
                f"{name}_directory": f"{bucket.url}/{place}"
                for name, place in (("landing", "landing"), ("landing_archive", "archive"), ("staging", "staging"))
            },
            "tables_url": f"{bucket.url}/tables",
        }
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
        servers = servers_environment(server.port, database, broker) | dict(bucket.environment)
        environment |= servers | {PREFIX + field.upper(): str(value) for field, value in fields.items()}
        environment |= dagster_environment(dagster_home)
        with pytest.MonkeyPatch.context() as patched:
            for name, value in servers.items():
                patched.setenv(name, value)
            with (
                Store.open(Settings(**fields, ledger_url=SecretStr(servers["TIMESTORE_LEDGER_URL"]))) as store,
                dg.DagsterInstance.from_config(str(dagster_home)) as instance,
            ):
                made = CeleryDeployment(store, instance, environment, folder, worker_app=SIGNALLED_WORKER_APP)
                environment[SIGNALS_VARIABLE] = str(made.plan)
                try:
                    yield made, Servers(broker, bucket)
                finally:
                    made.stop()
                    for process in processes_of(environment):
                        process.kill()
        server.drop_database(database)


@pytest.fixture
def servers(deployed: tuple[CeleryDeployment, Servers]) -> Servers:
    return deployed[1]


@pytest.fixture
def celery(deployed: tuple[CeleryDeployment, Servers], monkeypatch: pytest.MonkeyPatch) -> Iterator[CeleryDeployment]:
    """The deployment, with daemon, code server and one worker of one process at work."""
    deployment, servers = deployed
    for name, value in servers.bucket.environment.items():
        monkeypatch.setenv(name, value)
    if not deployment.workers:
        deployment.signal_runs("")
        deployment.start_worker("one", processes=1)
    deployment.begin()
    yield deployment
    deployment.end()


@pytest.fixture
def land(servers: Servers) -> Callable[[str, str, str], str]:
    """Lets a file land: ``land(dataset, file_name, content)`` returns its key."""

    def put(dataset: str, name: str, content: str) -> str:
        key = f"landing/{dataset}/{name}"
        servers.bucket.put(key, content)
        return key

    return put

"""Dagster's own storage and the ledger on one real PostgreSQL, by the ``dagster.yaml`` that we ship for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from pydantic import SecretStr

from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, published, rows_of
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.orchestration.conftest import Location
from timestore_pipeline_tests.postgresql import PostgresqlServer, shared_server

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
DEPLOYED = ROOT / "deploy" / "postgresql"


@pytest.fixture
def server() -> PostgresqlServer:
    return shared_server()


@pytest.fixture
def database(server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One empty database for both."""
    name = server.create_database()
    for variable, value in {
        "USER": "timestore", "PASSWORD": "any", "HOST": "127.0.0.1", "PORT": str(server.port), "DB": name,
    }.items():  # fmt: skip
        monkeypatch.setenv(f"DAGSTER_POSTGRES_{variable}", value)
    yield name
    server.drop_database(name)


@pytest.fixture
def instance(database: str, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    # Compute logs go below DAGSTER_HOME.
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text((DEPLOYED / "dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(home)) as opened:
        yield opened


def test_a_materialization_is_kept_in_the_database_beside_the_ledger(
    make_store: MakeStore,
    location: Callable[[Store], Location],
    server: PostgresqlServer,
    database: str,
    instance: dg.DagsterInstance,
):
    store = make_store(ledger_url=SecretStr(server.url(database)))
    stage(store, "weather", hourly(3))

    result = location(store).materialize("partitions/weather", partition="2026-01-01")

    assert result.success
    assert published(store) == rows_of(hourly(3))
    tables = {row[0] for row in server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database)}
    assert {"event_logs", "runs", "alembic_version", "timestore_version", "slices"} <= tables
    kept = server.execute(
        "SELECT partition FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'", database
    )
    assert ("2026-01-01",) in [tuple(row) for row in kept]
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.is_success
    # Both open again what is there, in either order.
    make_store(ledger_url=SecretStr(server.url(database)))
    assert store.ledger.location.startswith("postgresql+psycopg://")


def test_all_but_the_storage_is_as_on_one_host():
    deployed = yaml.safe_load((DEPLOYED / "dagster.yaml").read_text(encoding="utf-8"))
    one_host = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))

    del deployed["storage"]
    assert deployed == one_host

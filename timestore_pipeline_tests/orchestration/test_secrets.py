"""Credentials of the environment are in nothing that a code location tells Dagster."""

from __future__ import annotations

from dagster._core.remote_representation.external_data import RepositorySnap
from dagster._serdes import serialize_value

from timestore_pipeline.definitions import defs

SECRET = "pl4nted"


def test_what_dagster_is_told_has_no_password(store_environment):
    store_environment(
        ledger_url=f"postgresql://timestore:{SECRET}@127.0.0.1/timestore",
        pushgateway_url=f"http://timestore:{SECRET}@127.0.0.1:9091",
    )

    snapshot = serialize_value(RepositorySnap.from_def(defs().get_repository_def()))

    assert "partitions" in snapshot
    assert SECRET not in snapshot

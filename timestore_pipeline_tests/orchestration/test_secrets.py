"""Credentials of the environment are in nothing that a code location tells Dagster."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster._serdes import serialize_value

from timestore_pipeline.definitions import defs
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import published
from timestore_pipeline_tests.conftest import WEATHER_CSV
from timestore_pipeline_tests.e2e.conftest import ROOT
from timestore_pipeline_tests.ports import unused_port
from timestore_pipeline_tests.stub_server import QuietHandler, answering_with

SECRET = "pl4nted"


def test_what_dagster_is_told_has_no_password(store_environment):
    store_environment(
        ledger_url=f"postgresql://timestore:{SECRET}@127.0.0.1/timestore",
        pushgateway_url=f"http://timestore:{SECRET}@127.0.0.1:9091",
    )

    snapshot = serialize_value(RepositorySnap.from_def(defs().get_repository_def()))

    assert "partitions" in snapshot
    assert SECRET not in snapshot


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A real instance with everything on disk, as deployed."""
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_bytes((ROOT / "dagster.yaml").read_bytes())
    with dg.DagsterInstance.from_config(str(home)) as opened:
        yield opened


@pytest.fixture
def refusing_pushgateway() -> Iterator[int]:
    """A server that lets nobody in and repeats what it was told."""

    class Refuse(QuietHandler):
        def do_PUT(self) -> None:
            self.send_response(401)
            self.end_headers()
            sent = self.headers["Authorization"]
            decoded = base64.b64decode(sent.removeprefix("Basic ")).decode() if sent.startswith("Basic ") else ""
            self.wfile.write(f"no: {sent} {decoded}".encode())

    with answering_with(Refuse) as port:
        yield port


def run_everything(instance: dg.DagsterInstance) -> dict[str, bool]:
    """Run the assets of ``weather`` and tick every sensor; returns what succeeded."""
    definitions = defs()
    job = definitions.resolve_implicit_global_asset_job_def()
    done = {}
    for asset in ("staging", "partitions"):
        result = job.execute_in_process(
            asset_selection=[dg.AssetKey([asset, "weather"])], instance=instance, raise_on_error=False
        )
        done[asset] = result.success
    for sensor in ("landing_sensor", "flush_sensor", "metrics_sensor", "housekeeping_sensor"):
        context = dg.build_sensor_context(
            instance=instance,
            sensor_name=sensor,
            definitions=definitions,
            resources=dict(definitions.resources or {}),
        )
        try:
            with context:
                said = str(definitions.resolve_sensor_def(sensor).evaluate_tick(context))
            done[sensor] = True
        except Exception as error:
            said, done[sensor] = f"{error!r} {error.__cause__!r}", False
        assert SECRET not in said
    return done


def all_that_dagster_keeps(instance: dg.DagsterInstance) -> str:
    kept = []
    for run in instance.get_runs():
        kept += [serialize_value(run), *(serialize_value(event) for event in instance.all_logs(run.run_id))]
        if run.job_snapshot_id:
            kept.append(serialize_value(instance.get_job_snapshot(run.job_snapshot_id)))
        if run.execution_plan_snapshot_id:
            kept.append(serialize_value(instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)))
    return "\n".join(kept)


def files_with_the_secret(*folders: Path) -> list[Path]:
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["in the URL", "as a password", "as a token", "and nobody is there"])
@pytest.mark.process
def test_a_run_leaves_the_pushgateways_credentials_nowhere(
    store_environment,
    drop: Callable[..., Path],
    home: Path,
    tmp_path: Path,
    instance: dg.DagsterInstance,
    refusing_pushgateway: int,
    how: str,
    capfd: pytest.CaptureFixture[str],
):
    url = f"http://127.0.0.1:{refusing_pushgateway}"
    with_password = f"http://timestore:{SECRET}@127.0.0.1"
    fields = {
        "in the URL": {"pushgateway_url": f"{with_password}:{refusing_pushgateway}"},
        "as a password": {"pushgateway_url": url, "pushgateway_username": "u", "pushgateway_password": SECRET},
        "as a token": {"pushgateway_url": url, "pushgateway_bearer_token": SECRET},
        "and nobody is there": {"pushgateway_url": f"{with_password}:{unused_port()}"},
    }[how]
    store_environment(**fields)
    with Store.open() as store:
        drop(store, "weather", "a.csv", WEATHER_CSV)
        drop(store, "weather", "bad.csv", "bad")

        done = run_everything(instance)

        assert all(done.values()), done
        assert len(published(store)) == 3
    kept = all_that_dagster_keeps(instance)
    printed = capfd.readouterr()
    assert "metrics were not pushed" in kept
    assert SECRET not in kept + printed.out + printed.err
    assert base64.b64encode(f"timestore:{SECRET}".encode()).decode() not in kept + printed.out + printed.err
    assert files_with_the_secret(home, tmp_path / "dagster_home") == []


@pytest.mark.long
def test_a_run_that_cannot_reach_the_ledger_leaves_its_password_nowhere(
    store_environment, home: Path, tmp_path: Path, instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]
):
    store_environment(
        ledger_url=f"postgresql://timestore:{SECRET}@127.0.0.1:{unused_port()}/timestore",
        ledger_busy_timeout_seconds=0.2,
    )

    done = run_everything(instance)

    assert not any(done.values()), done
    kept = all_that_dagster_keeps(instance)
    printed = capfd.readouterr()
    assert "cannot be opened" in kept
    assert SECRET not in kept + printed.out + printed.err
    assert files_with_the_secret(home, tmp_path / "dagster_home") == []

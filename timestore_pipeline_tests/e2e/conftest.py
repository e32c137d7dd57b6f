"""A deployment of the test's own: a daemon on a DAGSTER_HOME in a temporary folder, over an installation in another."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import psutil
import pytest

from timestore_pipeline import crash_points
from timestore_pipeline.store import Store
from timestore_pipeline_tests.conftest import DATASETS_YAML

ROOT = Path(__file__).parents[2]


def processes_of(environment: Mapping[str, str]) -> list[psutil.Process]:
    """All processes that serve the DAGSTER_HOME of an environment."""
    return [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("DAGSTER_HOME") == environment["DAGSTER_HOME"]
    ]


def stopped_processes(environment: Mapping[str, str]) -> list[psutil.Process]:
    """Those of :func:`processes_of` that have stopped themselves at a crash point."""
    found = []
    for process in processes_of(environment):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                found.append(process)
    return found


@dataclass
class Deployment:
    """A daemon, started and stopped at will; ``instance`` is what it writes to."""

    store: Store
    instance: dg.DagsterInstance
    environment: dict[str, str]
    folder: Path
    daemon: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "dagster._daemon", "run", "-w", str(ROOT / "workspace.yaml")],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_daemon(self) -> None:
        """Kill the daemon alone; its code servers and runs learn of it by themselves."""
        assert self.daemon
        self.daemon.kill()
        self.daemon.wait()

    def stopped_run(self) -> psutil.Process | None:
        """The process of a run that has stopped itself at a crash point."""
        for process in processes_of(self.environment):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_STOPPED:
                    return process
        return None

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon and, once it had its chance, whatever it has started."""
        if self.daemon is None:
            return
        group = self.daemon.pid
        if how is signal.SIGKILL:
            os.killpg(group, how)
        else:
            self.daemon.send_signal(how)
        try:
            self.daemon.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(group, signal.SIGKILL)
            self.daemon.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self.daemon = None

    @property
    def log(self) -> str:
        return (self.folder / "daemon.log").read_text(encoding="utf-8", errors="replace")

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until ``condition`` holds; say ``what`` did not happen, and the daemon's last words, if it does not."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds:.0f} s: {what}\n{self.log[-6_000:]}")
            time.sleep(0.2)


@pytest.fixture
def deploy(store_environment: Callable[..., dict[str, str]], tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    """Makes deployments with settings of the test's own, to be started by it; stops them at its end."""
    made: list[Deployment] = []

    def make(datasets_yaml: str = DATASETS_YAML, signals: str = "", **settings: object) -> Deployment:
        environment = store_environment(
            datasets_yaml,
            **{"landing_sensor_interval_seconds": 1, "flush_sensor_interval_seconds": 1, **settings},
        )
        home = tmp_path / "dagster_home"
        home.mkdir()
        (home / "dagster.yaml").write_bytes((ROOT / "dagster.yaml").read_bytes())
        environment |= {
            "DAGSTER_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1",
        }
        if signals:
            environment[crash_points.VARIABLE] = signals
        deployment = Deployment(Store.open(), dg.DagsterInstance.from_config(str(home)), environment, tmp_path)
        made.append(deployment)
        return deployment

    yield make
    for deployment in made:
        deployment.stop()
        for process in processes_of(deployment.environment):
            process.kill()
        deployment.instance.dispose()
        deployment.store.close()

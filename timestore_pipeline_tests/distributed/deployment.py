"""A deployment with Celery: a daemon here and workers, over one PostgreSQL and one Redis, by ``deploy/celery``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from timestore_pipeline_tests.e2e.conftest import ROOT, Site
from timestore_pipeline_tests.redis_server import RedisServer

SHIPPED = ROOT / "deploy" / "celery"
WORKER_APP = "timestore_pipeline.orchestration.celery_worker"
SIGNALLED_WORKER_APP = "timestore_pipeline_tests.distributed.worker"
"""The same, and runs send themselves the signals that the file named by :data:`SIGNALS_VARIABLE` says."""
SIGNALS_VARIABLE = "SIGNALS_OF_RUNS"


def servers_environment(
    postgresql_port: int, database: str, broker: RedisServer, host: str = "127.0.0.1"
) -> dict[str, str]:
    """The variables that the shipped ``dagster.yaml`` asks for, and where the ledger is: in the same database."""
    return {
        "DAGSTER_POSTGRES_USER": "timestore",
        "DAGSTER_POSTGRES_PASSWORD": "any",
        "DAGSTER_POSTGRES_HOST": host,
        "DAGSTER_POSTGRES_PORT": str(postgresql_port),
        "DAGSTER_POSTGRES_DB": database,
        "CELERY_BROKER_URL": broker.url(0),
        "CELERY_RESULT_BACKEND": broker.url(1),
        "TIMESTORE_LEDGER_URL": f"postgresql+psycopg://timestore@{host}:{postgresql_port}/{database}",
    }


def write_instance(home: Path, *, poll_seconds: int = 2, silence_seconds: float = 30.0, **runs: object) -> None:
    """Write the shipped ``dagster.yaml`` with shorter waiting times; ``runs`` are of ``concurrency.runs``."""
    home.mkdir()
    configuration = yaml.safe_load((SHIPPED / "dagster.yaml").read_text(encoding="utf-8"))
    configuration["run_monitoring"] |= {"poll_interval_seconds": poll_seconds}
    configuration["run_launcher"]["config"] |= {"worker_silence_seconds": silence_seconds}
    configuration["concurrency"]["runs"] |= runs
    (home / "dagster.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")


@dataclass
class CeleryDeployment(Site):
    """A daemon and workers, started and stopped at will."""

    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    worker_app: str = WORKER_APP

    def start_worker(self, name: str = "one", processes: int = 2) -> None:
        """Start a worker and wait until it takes runs."""
        before = self.worker_said(name).count(" ready.")
        with self.worker_log(name).open("ab") as log:
            self.workers[name] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", self.worker_app, "worker", "-Q", "dagster"),
                    *("-n", f"{name}@%h", "-c", str(processes), "--loglevel", "INFO"),
                ],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_for(f"worker {name} is ready", lambda: self.worker_said(name).count(" ready.") > before)

    def kill_worker(self, name: str) -> None:
        """Kill a worker with its pool, as the death of its host does."""
        worker = self.workers.pop(name)
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        for name in list(self.workers):
            self.kill_worker(name)
        super().stop(how)

    def worker_log(self, name: str) -> Path:
        return self.folder / f"worker-{name}.log"

    def worker_said(self, name: str) -> str:
        path = self.worker_log(name)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @property
    def log(self) -> str:
        workers = [f"--- worker {name}\n{self.worker_said(name)[-6_000:]}" for name in self.workers]
        return "\n".join([*workers, "--- daemon", super().log])

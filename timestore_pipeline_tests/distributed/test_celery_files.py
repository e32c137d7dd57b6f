"""What ``deploy/celery`` ships: an instance like that of one host, services with options that their programs have."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from runpy import run_module

import click
import pytest
import yaml

from timestore_pipeline.errors import SettingsError
from timestore_pipeline.settings import load_settings
from timestore_pipeline_tests.distributed.deployment import ROOT, SHIPPED, WORKER_APP

COMMANDS = {
    # Of a worker's arguments the app comes first, which belongs to `celery` itself.
    "timestore-worker@.service": ("celery.bin.worker:worker", 4),
    "timestore-code.service": ("dagster._cli.api:grpc_command", 3),
    "timestore-daemon.service": ("dagster._daemon.cli:run_command", 2),
    "timestore-webserver.service": ("dagster_webserver.cli:dagster_webserver", 1),
}


@pytest.mark.parametrize("unit", COMMANDS)
def test_a_service_starts_its_program_with_options_that_it_has(unit: str):
    from celery import Celery
    from celery.bin.base import CLIContext

    text = (SHIPPED / unit).read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall("^ExecStart=(.+)$", text, re.M)
    # As systemd does.
    for name, value in {"${QUEUES}": "dagster", "${CONCURRENCY}": "2", "%i": "1", "%H": "host"}.items():
        line = line.replace(name, value)
    line = line.replace("/etc/timestore/workspace.yaml", str(SHIPPED / "workspace.yaml"))
    words = shlex.split(line)
    program, before = COMMANDS[unit]
    command: click.Command = resolve_name(program)

    with command.make_context(unit, words[before:], obj=CLIContext(Celery(), no_color=True, workdir="")) as context:
        assert not context.args


def test_every_service_reads_the_same_environment():
    for unit in COMMANDS:
        assert "\nEnvironmentFile=/etc/timestore/environment\n" in (SHIPPED / unit).read_text(encoding="utf-8")


def test_the_example_of_an_environment_is_one(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    lines = (SHIPPED / "environment.example").read_text(encoding="utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for name, value in example.items():
        monkeypatch.setenv(name, value)

    assert load_settings().ledger_pool_size == 2
    assert caplog.text == ""
    needed = set(re.findall(r"env: (\w+)", (SHIPPED / "dagster.yaml").read_text(encoding="utf-8")))
    assert needed <= example.keys()


def test_all_but_storage_launcher_and_the_number_of_runs_is_as_on_one_host():
    deployed = yaml.safe_load((SHIPPED / "dagster.yaml").read_text(encoding="utf-8"))
    one_host = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))

    transport = deployed["run_launcher"]["config"]["config_source"]["broker_transport_options"]
    assert transport["visibility_timeout"] < deployed["run_monitoring"]["start_timeout_seconds"]
    for part in ("storage", "run_launcher"):
        del deployed[part]
    for configuration in (deployed, one_host):
        del configuration["concurrency"]["runs"]["max_concurrent_runs"]
    assert deployed == one_host


@pytest.mark.process
def test_nothing_has_started_a_thread_when_the_processes_of_a_worker_are_forked(home: Path):
    (home / "datasets.yaml").write_text("datasets: {}\n", encoding="utf-8")
    (home / "dagster.yaml").write_bytes((SHIPPED / "dagster.yaml").read_bytes())
    program = (
        "import os, timestore_pipeline.orchestration.celery_worker as worker\n"
        "print(sorted(name for name in worker.app.tasks if not name.startswith('celery.')))\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    postgres = {f"DAGSTER_POSTGRES_{name}": "5432" for name in ("USER", "PASSWORD", "HOST", "PORT", "DB")}
    celery = {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/1"}

    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **postgres, **celery, "DAGSTER_HOME": str(home), "TIMESTORE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert finished.stdout.splitlines() == ["['execute_job', 'resume_job']", "1"], finished.stderr


def test_a_worker_says_what_it_misses(home: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SettingsError, match="DAGSTER_HOME is not set"):
        run_module(WORKER_APP)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    (home / "dagster.yaml").write_text(yaml.safe_dump({"telemetry": {"enabled": False}}), encoding="utf-8")
    with pytest.raises(SettingsError, match=f"the run launcher in {home}/dagster.yaml is DefaultRunLauncher"):
        run_module(WORKER_APP)

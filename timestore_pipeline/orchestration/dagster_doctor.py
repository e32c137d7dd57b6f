"""Looks at Dagster: its home, whether the code location loads, the daemon's heartbeats, sensors and the schedule."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorState

from timestore_pipeline.datasets import load_datasets
from timestore_pipeline.operating.doctor import Finding, Level
from timestore_pipeline.orchestration.location import build_definitions
from timestore_pipeline.orchestration.maintenance_job import MAINTENANCE_SCHEDULE
from timestore_pipeline.orchestration.sensors import (
    FLUSH_SENSOR,
    HOUSEKEEPING_SENSOR,
    LANDING_SENSOR,
    METRICS_SENSOR,
)
from timestore_pipeline.settings import load_settings

_SENSORS = (LANDING_SENSOR, FLUSH_SENSOR, METRICS_SENSOR, HOUSEKEEPING_SENSOR)
_SILENT_SECONDS = 300


def look_at_dagster() -> Iterator[Finding]:
    """Say what keeps Dagster from doing this installation's work; without ``DAGSTER_HOME`` there is nothing to see."""
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        yield Finding("dagster", Level.WARNING, "DAGSTER_HOME is not set; it was not looked at", "export DAGSTER_HOME")
        return
    if not Path(home).is_dir():
        yield Finding("dagster", Level.ERROR, f"DAGSTER_HOME {home} is no folder", f"mkdir -p {home}, or correct it")
        return
    if not (Path(home) / "dagster.yaml").is_file():
        yield Finding("dagster", Level.WARNING, f"{home} has no dagster.yaml", f"cp dagster.yaml {home}/")
    with dg.DagsterInstance.get() as instance:
        yield from _daemons(instance)
        states = {state.instigator_name: state for state in instance.all_instigator_state()}
        for name in _SENSORS:
            yield _instigator(instance, f"sensor {name}", states.get(name), _SILENT_SECONDS)
        # How often it ticks is a setting, so only its last tick tells anything.
        yield _instigator(instance, f"schedule {MAINTENANCE_SCHEDULE}", states.get(MAINTENANCE_SCHEDULE), None)


def look_at_code_location() -> Iterator[Finding]:
    """Say whether the code location loads."""
    settings = load_settings()
    build_definitions(settings, load_datasets(settings.datasets_path)).get_repository_def()
    yield Finding("code location", Level.OK, "it loads")


def _daemons(instance: dg.DagsterInstance) -> Iterator[Finding]:
    for name, status in instance.get_daemon_statuses().items():
        if status.required and not status.healthy:
            beat = status.last_heartbeat
            message = "it has never run" if beat is None else "its last heartbeat is too old, or reports errors"
            yield Finding(f"daemon {name}", Level.ERROR, message, "start it: dagster-daemon run (or make dev)")
        elif status.required:
            yield Finding(f"daemon {name}", Level.OK, "it runs")


def _instigator(
    instance: dg.DagsterInstance, part: str, state: InstigatorState | None, silent_seconds: float | None
) -> Finding:
    """Say how a sensor or schedule is; without ``silent_seconds`` it may not have ticked for any time."""
    if state is None:
        return Finding(part, Level.WARNING, "no daemon has looked at it yet", "start the daemon")
    if not state.is_running:
        return Finding(part, Level.ERROR, "it is off", "switch it on in the UI under Automation")
    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
    if silent_seconds is not None and (not ticks or time.time() - ticks[0].timestamp > silent_seconds):
        return Finding(part, Level.WARNING, "it has not ticked for long", "restart the daemon")
    if ticks and ticks[0].error is not None:
        return Finding(part, Level.ERROR, f"its last tick failed: {ticks[0].error.message.strip()}", "see the UI")
    return Finding(part, Level.OK, "it is on and ticks" if ticks else "it is on, and has not been due yet")

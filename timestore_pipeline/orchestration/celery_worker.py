"""The Celery app of a worker: ``celery -A timestore_pipeline.orchestration.celery_worker worker``.

Broker, queues and the rest are what the run launcher in ``$DAGSTER_HOME/dagster.yaml`` says, so that both sides agree.
Dagster and the definitions are loaded once, before the processes of the pool are forked. What starts threads when it is
imported (pyarrow, deltalake) each of them loads itself, before it takes its first run.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from celery import Celery
from celery.signals import worker_process_init
from dagster._core.instance.ref import InstanceRef
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tasks import create_execute_job_task, create_resume_job_task

from timestore_pipeline.errors import SettingsError
from timestore_pipeline.orchestration.location import installed_definitions
from timestore_pipeline.settings import load_settings

_USED_BY_RUNS = (
    "timestore_pipeline.staging.ingest",
    "timestore_pipeline.building.flush",
    "timestore_pipeline.upkeep.maintenance",
    "timestore_pipeline.metrics.pushgateway",
    "dagster_postgres",
)


def worker_app() -> Celery:
    """Return the app with the tasks that the launcher sends.

    Raises:
        SettingsError: ``DAGSTER_HOME`` is not set, or its ``dagster.yaml`` has another run launcher.
    """
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        raise SettingsError("DAGSTER_HOME is not set: a worker finds its broker in $DAGSTER_HOME/dagster.yaml")
    launcher = InstanceRef.from_dir(home).run_launcher
    if not isinstance(launcher, CeleryRunLauncher):
        raise SettingsError(
            f"the run launcher in {home}/dagster.yaml is {type(launcher).__name__}: a worker needs that of "
            "deploy/celery/dagster.yaml"
        )
    create_execute_job_task(launcher.celery)
    create_resume_job_task(launcher.celery)
    return launcher.celery


@worker_process_init.connect
def warm_up(**_: Any) -> None:
    """Import in a new process of the pool what its runs would import."""
    for module in _USED_BY_RUNS:
        import_module(module)
    import pyarrow as pa

    # Looks for pandas, the first time that it makes an array of Python values.
    pa.array([0])


app = worker_app()
installed_definitions(load_settings()).get_repository_def()

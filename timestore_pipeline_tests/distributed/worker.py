"""The Celery app of workers whose runs send themselves signals: those that the file ``$SIGNALS_OF_RUNS`` says then.

All else is the shipped app.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery.signals import task_prerun

from timestore_pipeline import crash_points
from timestore_pipeline.orchestration.celery_worker import app
from timestore_pipeline_tests.distributed.deployment import SIGNALS_VARIABLE

__all__ = ["app"]


@task_prerun.connect
def arm(**_: Any) -> None:
    """Do what the file says in the run that begins."""
    crash_points.arm(Path(os.environ[SIGNALS_VARIABLE]).read_text(encoding="utf-8"))

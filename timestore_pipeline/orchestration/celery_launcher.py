"""Runs as tasks of Celery: dagster-celery's launcher, which also finds out whether a run's worker is still there.

Celery remembers that a task began and on which worker, not that the worker's host died since: the stock launcher takes
such a run for a running one until it is too old. Here the worker itself is asked. What is concluded is a hint, as
everything that is known of runs: a worker that was only cut off meets a fence of the table when it comes back.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG
from typing_extensions import override

if TYPE_CHECKING:
    from dagster._config import UserConfigSchema

_ANSWER_SECONDS = 3.0
# The checks of all runs of a host follow each other within moments, and a silent host costs each of them the wait.
_SAME_LOOK_SECONDS = 10.0


class _Silence(NamedTuple):
    since: float
    last_asked: float


class WatchfulCeleryRunLauncher(CeleryRunLauncher):
    """dagster-celery's ``CeleryRunLauncher`` with its configuration, which also notices that a worker is gone.

    Args:
        worker_silence_seconds: a worker that does not answer for as long counts as gone.
        others: those of ``CeleryRunLauncher``.
    """

    def __init__(self, worker_silence_seconds: float, **others: Any) -> None:
        super().__init__(**others)
        self._worker_silence_seconds = worker_silence_seconds
        self._silent: dict[str, _Silence] = {}

    @classmethod
    @override
    def config_type(cls) -> UserConfigSchema:
        """Return Dagster's schema of the configuration in ``dagster.yaml``."""
        described = "A worker that does not answer for as long counts as gone, and its runs as failed."
        seconds = dg.Field(float, is_required=False, default_value=30.0, description=described)
        return {**cast("dict[str, Any]", super().config_type()), "worker_silence_seconds": seconds}

    @override
    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return how the worker of a run is; raises what the broker's client raises while the broker is away.

        Then nothing is known of any worker, and Dagster asks again.
        """
        task_id = run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
        if task_id is None:
            # The daemon died after it had sent the task and before it had noted it; the run may well go on.
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        result = self.celery.AsyncResult(task_id)
        state, information = result.state, result.info
        if state == "STARTED" and isinstance(information, dict) and information.get("hostname"):
            return self._ask(information["hostname"], task_id)
        if state == "PENDING" and self._anybody_has(task_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING, "The broker has forgotten the task, its worker has not.")
        return super().check_run_worker_health(run)

    @override
    def terminate(self, run_id: str) -> bool:
        """Kill the process of a run, or take it out of the queue; run monitoring then notes it as canceled."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or DAGSTER_CELERY_TASK_ID_TAG not in run.tags:
            return False
        self._instance.report_run_canceling(run)
        return super().terminate(run_id)

    def _ask(self, worker: str, task_id: str) -> CheckRunHealthResult:
        now = time.monotonic()
        silence = self._silent.get(worker)
        if silence is None or now - silence.last_asked > _SAME_LOOK_SECONDS:
            answer = self._query(task_id, [worker])
            if worker in answer:
                self._silent.pop(worker, None)
                return self._judge(worker, task_id, knows_it=task_id in answer[worker])
            silence = self._silent[worker] = _Silence(silence.since if silence else now, now)
        seconds = now - silence.since
        if seconds < self._worker_silence_seconds:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"{worker} does not answer")
        return CheckRunHealthResult(
            WorkerStatus.FAILED, f"{worker} has not answered for {seconds:.0f} s: its host is down, or cut off"
        )

    def _judge(self, worker: str, task_id: str, *, knows_it: bool) -> CheckRunHealthResult:
        # The task may have ended between the look at its state and the question.
        if knows_it or self.celery.AsyncResult(task_id).state != "STARTED":
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(
            WorkerStatus.FAILED, f"{worker} was restarted and does not know of the run any more"
        )

    def _anybody_has(self, task_id: str) -> bool:
        return any(task_id in tasks for tasks in self._query(task_id, None).values())

    def _query(self, task_id: str, workers: list[str] | None) -> dict[str, dict[str, Any]]:
        return self.celery.control.inspect(destination=workers, timeout=_ANSWER_SECONDS).query_task(task_id) or {}

"""How many runs the instance of the demo has had."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from timestore_pipeline.orchestration.runs import FAILED, UNFINISHED


@dataclass(frozen=True)
class RunCounts:
    """Runs of one instance; ``by_job`` has all of them, finished or not."""

    by_job: dict[str, int]
    unfinished: int
    failed: int

    @property
    def all(self) -> int:
        """All runs."""
        return sum(self.by_job.values())


class RunWatcher:
    """Counts the runs of the instance in ``dagster_home``, whichever process launched them."""

    def __init__(self, dagster_home: Path) -> None:
        self._instance = dg.DagsterInstance.from_config(str(dagster_home))

    def unfinished(self) -> int:
        """Return how many runs are queued or in progress."""
        return self._instance.get_runs_count(dg.RunsFilter(statuses=UNFINISHED))

    def all(self) -> int:
        """Return how many runs there have been, finished or not."""
        return self._instance.get_runs_count()

    def counts(self) -> RunCounts:
        """Return the runs by job and outcome."""
        by_job: dict[str, int] = {}
        failed = unfinished = 0
        for run in self._instance.get_runs():
            by_job[run.job_name] = by_job.get(run.job_name, 0) + 1
            failed += run.status in FAILED
            unfinished += run.status in UNFINISHED
        return RunCounts(by_job, unfinished, failed)

    def close(self) -> None:
        """Close the instance's storage."""
        self._instance.dispose()

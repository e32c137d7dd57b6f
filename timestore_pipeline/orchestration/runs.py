"""What Dagster knows of runs: which still go on, and which only look as if they did.

A run whose machine died stays "started" for Dagster until a timeout of an hour. The ledger keeps everything
right meanwhile, so what is found here is only ever a hint: a wrong one costs work, never rows.
"""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from timestore_pipeline.orchestration.tags import SENSOR_TAG

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.MANAGED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
FAILED = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_WITH_PROCESS = {dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING}
# Where the stock launcher notes the code server that is the parent of the run's process.
_PARENT_TAG = ".dagster/grpc_info"
# The launcher puts the note there at once; only what it launches takes seconds to start.
_LAUNCH_SECONDS = 15
_MOST_RUNS = 200


def runs_of_job(instance: dg.DagsterInstance, job_name: str) -> Sequence[dg.RunRecord]:
    """Return the unfinished runs of a job, newest first."""
    return instance.get_run_records(dg.RunsFilter(job_name=job_name, statuses=UNFINISHED), limit=_MOST_RUNS)


def runs_of_sensor(
    instance: dg.DagsterInstance,
    sensor_name: str,
    statuses: Sequence[dg.DagsterRunStatus] = tuple(UNFINISHED),
    updated_after: datetime | None = None,
) -> Sequence[dg.RunRecord]:
    """Return the runs that a sensor asked for and that have one of ``statuses``, newest first."""
    return instance.get_run_records(
        dg.RunsFilter(tags={SENSOR_TAG: sensor_name}, statuses=list(statuses), updated_after=updated_after),
        limit=_MOST_RUNS,
    )


def process_is_gone(instance: dg.DagsterInstance, record: dg.RunRecord) -> bool:
    """Whether an unfinished run certainly has no process (any more).

    Told with Dagster's stock launcher, where the parent of a run's process is a server on this host: it is gone, or it
    was never told of the run because everything was killed just then. False where it cannot be told.
    """
    run = record.dagster_run
    if run.status not in _WITH_PROCESS:
        return False
    if _PARENT_TAG not in run.tags:
        silent_seconds = datetime.now(UTC).timestamp() - record.update_timestamp.timestamp()
        never_launched = run.status is dg.DagsterRunStatus.STARTING and silent_seconds > _LAUNCH_SECONDS
        return never_launched and isinstance(instance.run_launcher, dg.DefaultRunLauncher)
    path = json.loads(run.tags[_PARENT_TAG]).get("socket")
    if not path:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            return False
    return False


def owner_is_gone(instance: dg.DagsterInstance, owner: str) -> bool:
    """Whether the owner of a build is a run of this instance that has ended or lost its process.

    An owner that this instance does not know may be alive in another one that shares the ledger, so its lease decides.
    """
    try:
        uuid.UUID(owner)
    except ValueError:
        return False
    record = instance.get_run_record_by_id(owner)
    return record is not None and (record.dagster_run.is_finished or process_is_gone(instance, record))


def end_runs_without_process(instance: dg.DagsterInstance, sensor_names: Sequence[str]) -> list[str]:
    """Report runs of our sensors whose process is gone as failed and return their ids.

    Each would otherwise count against the limit of concurrent runs for up to an hour. Only runs that the daemon
    launched: it is next to this process, so the servers that it can't find are gone and not elsewhere.
    """
    ended = []
    for sensor_name in sensor_names:
        for record in runs_of_sensor(instance, sensor_name, list(_WITH_PROCESS)):
            if process_is_gone(instance, record):
                instance.report_run_failed(
                    record.dagster_run, "The process of this run is gone: it was killed, or its machine was."
                )
                ended.append(record.dagster_run.run_id)
    return ended

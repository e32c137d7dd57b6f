"""The sensors: they ask the ledger what to do, ask Dagster for as few runs as possible, and say why not otherwise.

Each is one for all datasets, because a tick costs 80 ms of CPU however little it finds. None keeps truth in its
cursor. They start switched on. What is said of a dataset is put in words by the parts that decide: ``building/due.py``,
``pace.py``, ``landing/files.py``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from timestore_pipeline.building.due import FlushPlan, FlushRequest, plan_flushes
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.inert import visible
from timestore_pipeline.landing.files import files_for_one_run, scan_landing, waiting_for_room
from timestore_pipeline.landing.found import LandingScan, record_backlog
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.operating.observed_places import Expected, observe_near_places, problems_in_words
from timestore_pipeline.orchestration.assets import partitions_key, partitions_op, staging_key
from timestore_pipeline.orchestration.checks import report_refused
from timestore_pipeline.orchestration.config import BuildConfig
from timestore_pipeline.orchestration.cursor import read_cursor, select_new, write_cursor
from timestore_pipeline.orchestration.jobs import INGEST_JOB, build_job_names
from timestore_pipeline.orchestration.logs import log_of
from timestore_pipeline.orchestration.pace import FlushRun, held_back
from timestore_pipeline.orchestration.resources import MetricsResource, StoreResource
from timestore_pipeline.orchestration.runs import (
    FAILED,
    end_runs_without_process,
    owner_is_gone,
    process_is_gone,
    runs_of_job,
    runs_of_sensor,
)
from timestore_pipeline.orchestration.tags import LANDING, run_tags
from timestore_pipeline.placement import PlaceName
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.suspects import suspected_datasets
from timestore_pipeline.store import Store

LANDING_SENSOR = "landing_sensor"
FLUSH_SENSOR = "flush_sensor"
METRICS_SENSOR = "metrics_sensor"
HOUSEKEEPING_SENSOR = "housekeeping_sensor"

# Dagster retries runs whose process died, but these sensors ask again by themselves for what is still to be done.
_NEVER_RETRIED = {"dagster/max_retries": "0"}

_HOUSEKEEPING_SECONDS = 60
_FAILURES_COUNT_FOR = timedelta(hours=1)
_MAX_LINES = 40


def landing_sensor(settings: Settings) -> dg.SensorDefinition:
    """Return the sensor that asks for one ingest run for all datasets in whose landing folders new files are ready.

    Datasets with a file that may have ended a run get one each.
    """

    @dg.sensor(
        name=LANDING_SENSOR,
        job_name=INGEST_JOB,
        minimum_interval_seconds=settings.landing_sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks for one ingest run for all datasets in whose landing folders new files are ready.",
    )
    def look_for_files(
        context: dg.SensorEvaluationContext, store: StoreResource
    ) -> list[dg.RunRequest] | dg.SkipReason:
        report_refused(context.instance, store.opened)
        scan = scan_landing(store.opened)
        record_backlog(store.opened, scan)
        lacking = _lacking(store.opened, PlaceName.STAGING, PlaceName.ARCHIVE)
        if lacking:
            return dg.SkipReason(bounded(lacking))
        for record in runs_of_job(context.instance, INGEST_JOB):
            run = record.dagster_run
            if not process_is_gone(context.instance, record):
                return dg.SkipReason(
                    f"ingest run {run.run_id[:8]} is {run.status.value.lower()}; new files wait for its end"
                )
        shares = files_for_one_run(store.opened, scan)
        wanted, remembered = select_new(shares, read_cursor(context.cursor), time.time())
        context.update_cursor(write_cursor(remembered))
        if not wanted:
            return dg.SkipReason(bounded(_why_no_ingest(store.opened, scan, shares)))
        for name in wanted:
            files = shares[name]
            size = sum(file.bytes for file in files) / 1e6
            log_of(context).info(
                "%s: %s files of %s MB are ready, an ingest run is asked for", name, f"{len(files):,}", f"{size:,.1f}"
            )
        # A file that ends its run ends no other dataset's.
        alone = suspected_datasets(store.opened, {name: shares[name] for name in wanted})
        together = [name for name in wanted if name not in alone]
        return [ingest_request(names) for names in (together, *([name] for name in alone)) if names]

    return look_for_files


def ingest_request(names: Sequence[str]) -> dg.RunRequest:
    """Return the request for a run that takes the landing files of datasets."""
    return dg.RunRequest(
        asset_selection=[staging_key(name) for name in names],
        tags={**run_tags(dict.fromkeys(names, LANDING)), **_NEVER_RETRIED},
    )


def flush_sensor(settings: Settings, datasets: Mapping[str, DatasetSpec], jobs: Sequence[Any]) -> dg.SensorDefinition:
    """Return the sensor that flushes: driven by the clock, so that an idle dataset's age threshold fires too.

    It asks for a run per group of due datasets. The run has no Dagster partitions: a range would make Dagster write an
    event for every window in it before the run starts (8,700 of them take 12 s), and show windows without rows as
    failed when another dataset of the run fails. The windows are in the run config instead, those of each dataset.
    """
    job_of = build_job_names(datasets)

    @dg.sensor(
        name=FLUSH_SENSOR,
        jobs=jobs,
        minimum_interval_seconds=settings.flush_sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks for a build run for each group of datasets that reached a flush threshold.",
    )
    def look_for_due_datasets(
        context: dg.SensorEvaluationContext, store: StoreResource
    ) -> list[dg.RunRequest] | dg.SkipReason:
        lacking = _lacking(store.opened, PlaceName.STAGING, PlaceName.TABLES)
        if lacking:
            return dg.SkipReason(bounded(lacking))
        settled = settle_builds_of_ended_runs(store.opened, context.instance)
        plan = plan_flushes(store.opened)
        held = _held_back(context.instance, store.opened, plan)
        requests = [
            flush_request(ready, settings, job_of[ready[0].dataset])
            for group in plan.groups
            if (ready := [request for request in group.requests if request.dataset not in held])
        ]
        others = [*settled, *held.values(), *plan.waiting]
        if not requests:
            return dg.SkipReason(bounded(others) or "nothing is staged")
        launched = [
            f"{request.why}: a flush by {request.trigger} is asked for, "
            f"windows {request.first.key} … {request.last.key}"
            for group in plan.groups
            for request in group.requests
            if request.dataset not in held
        ]
        # Dagster shows a reason only of a tick that asks for nothing; what one asked for and why is in its log.
        for line in bounded([*launched, *others]).splitlines():
            log_of(context).info("%s", line)
        return requests

    return look_for_due_datasets


def metrics_sensor(settings: Settings) -> dg.SensorDefinition:
    """Return the sensor that keeps the metrics current between runs: ages grow, and runs die, without a run to tell.

    Steps push at their end, so no run status sensor is needed: a third and fourth sensor would cost their ticks, and
    of a killed run the ledger knows as soon as flush_sensor has settled its builds.
    """

    @dg.sensor(
        name=METRICS_SENSOR,
        minimum_interval_seconds=settings.metrics_sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Pushes the metrics to the Pushgateway.",
    )
    def push(context: dg.SensorEvaluationContext, store: StoreResource, metrics: MetricsResource) -> dg.SkipReason:
        return dg.SkipReason(metrics.push(store.opened, log_of(context)))

    return push


def housekeeping_sensor() -> dg.SensorDefinition:
    """Return the sensor that ends runs which only look as if they went on; all else is the maintenance job's."""

    @dg.sensor(
        name=HOUSEKEEPING_SENSOR,
        minimum_interval_seconds=_HOUSEKEEPING_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Ends runs whose process is gone, so that they hold no place of another.",
    )
    def tidy_up(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        said = [
            f"run {run_id[:8]} was ended, as its process is gone"
            for run_id in end_runs_without_process(context.instance, (LANDING_SENSOR, FLUSH_SENSOR))
        ]
        return dg.SkipReason(bounded(said) or "every run that goes on has a process")

    return tidy_up


def _lacking(store: Store, *names: PlaceName) -> list[str]:
    """Say which of these places cannot be used, so that no run is asked for that could do nothing without them."""
    with store.ledger.read() as tx:
        expected = Expected.of(tx)
    found = observe_near_places(store, expected)
    return problems_in_words(each for each in found if each.name in names)


def settle_builds_of_ended_runs(store: Store, instance: dg.DagsterInstance) -> list[str]:
    """Settle builds that did not end by themselves and return what became of each; without any it is one query."""
    with store.ledger.read() as tx:
        if not builds_in_flight(tx):
            return []
    # Brings deltalake, so only when there is something to settle.
    from timestore_pipeline.building.recovery import settle_dead_builds

    settled = settle_dead_builds(store, owner_is_gone=lambda owner: owner_is_gone(instance, owner))
    return [
        f"{item.build.dataset}: build {item.build.id} of {item.build.owner} had died; "
        + ("it was in the table and is published" if item.published else "its slices are staged again")
        for item in settled
    ]


def flush_request(ready: Sequence[FlushRequest], settings: Settings, job_name: str) -> dg.RunRequest:
    """Return one run for due datasets, each with its windows and its thresholds; the launchpad can change them."""
    config = {
        partitions_op(request.dataset): BuildConfig(
            when="due",
            first_window=request.first.key,
            last_window=request.last.key,
            flush_max_rows=request.thresholds.max_rows,
            flush_max_bytes=request.thresholds.max_bytes,
            flush_max_age_ms=request.thresholds.max_age_ms,
            flush_late_max_age_ms=request.thresholds.late_max_age_ms,
            target_file_bytes=settings.build_target_file_bytes,
            trigger=request.trigger.value,
        )
        for request in ready
    }
    return dg.RunRequest(
        job_name=job_name,
        asset_selection=[partitions_key(request.dataset) for request in ready],
        run_config=dg.RunConfig(ops=config),
        tags={
            **run_tags(
                {request.dataset: request.trigger.value for request in ready},
                [window for request in ready for window in (request.first, request.last)],
            ),
            **_NEVER_RETRIED,
        },
    )


def bounded(lines: Sequence[str]) -> str:
    """Return lines as the text of a tick: sentences, at most 40 of them, which say how many more there are."""
    more = [f"… and {len(lines) - _MAX_LINES:,} more"] if len(lines) > _MAX_LINES else []
    return "\n".join(map(visible, [*lines[:_MAX_LINES], *more]))


def _why_no_ingest(store: Store, scan: LandingScan, shares: Mapping[str, Sequence[Any]]) -> list[str]:
    lines = [*(str(error) for error in store.datasets.refused.values()), *scan.problems]
    if len(shares) < len({file.dataset for file in scan.files}):
        lines += waiting_for_room(store, scan)
    lines += [
        f"{name}: the last ingest run left {len(files):,} files in place, its log says why; the sensor asks again later"
        for name, files in sorted(shares.items())
    ]
    return lines or ["no dataset has new files"]


def _held_back(instance: dg.DagsterInstance, store: Store, plan: FlushPlan) -> dict[str, str]:
    wanted = [request.dataset for group in plan.groups for request in group.requests]
    if not wanted:
        return {}
    since = datetime.now(UTC) - _FAILURES_COUNT_FOR
    unfinished = [
        _flush_run(record) for record in runs_of_sensor(instance, FLUSH_SENSOR) if not process_is_gone(instance, record)
    ]
    failed = [_flush_run(record) for record in runs_of_sensor(instance, FLUSH_SENSOR, FAILED, updated_after=since)]
    if not unfinished and not failed:
        return {}
    with store.ledger.read() as tx:
        latest = latest_builds(tx)
        builders: defaultdict[str, set[str]] = defaultdict(set)
        for build in builds_in_flight(tx):
            builders[build.dataset].add(build.owner)
    return held_back(wanted, [*unfinished, *failed], latest, time.time(), store.settings.build_lease_seconds, builders)


def _flush_run(record: dg.RunRecord) -> FlushRun:
    keys = record.dagster_run.asset_selection or ()
    return FlushRun(
        run_id=record.dagster_run.run_id,
        datasets=frozenset(key.path[1] for key in keys if key.path[0] == "partitions" and len(key.path) == 2),
        started_at=record.start_time,
        failed_at=record.end_time or record.update_timestamp.timestamp() if record.dagster_run.is_finished else None,
    )

"""The ``maintenance`` job and its schedule: one run keeps disk, table, ledger and Dagster's storage small."""

# No `from __future__ import annotations`: Dagster reads the annotations of a context and of resources as they stand.
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.orchestration.checks import DECLARATION, GUARDRAILS, QUARANTINE_EMPTY
from timestore_pipeline.orchestration.keys import partitions_key, staging_key
from timestore_pipeline.orchestration.logs import failure, log_of
from timestore_pipeline.orchestration.resources import MetricsResource, StoreResource
from timestore_pipeline.orchestration.run_pruning import OldRuns, RunRetention, delete_runs, find_old_runs
from timestore_pipeline.orchestration.runs import owner_is_gone
from timestore_pipeline.orchestration.table_checks import FILE_SIZES, ROW_AUDIT
from timestore_pipeline.orchestration.tags import TRIGGER_TAG
from timestore_pipeline.settings import Settings
from timestore_pipeline.store import Store

if TYPE_CHECKING:
    from timestore_pipeline.upkeep.maintenance import MaintenanceReport

MAINTENANCE_JOB = "maintenance"
MAINTENANCE_SCHEDULE = "maintenance_schedule"


class MaintenanceConfig(dg.Config):
    """How to maintain."""

    dry_run: bool = False
    """Say in the log and in the metadata what would be done, and change nothing."""


@dg.op(name="maintain", out=dg.Out(dg.Nothing))
def maintain_installation(
    context: dg.OpExecutionContext, config: MaintenanceConfig, store: StoreResource, metrics: MetricsResource
) -> Iterator[dg.Output]:
    """Compact, drop what has had its time, and free its disk; what cannot be done fails the run at its end."""
    # Brings deltalake: code locations that only load definitions do without.
    from timestore_pipeline.upkeep.maintenance import in_words, maintain

    opened = store.opened
    try:
        report = maintain(
            opened,
            owner=context.run_id,
            owner_is_gone=lambda owner: owner_is_gone(context.instance, owner),
            dry_run=config.dry_run,
        )
        prune = find_dagster_runs if config.dry_run else prune_dagster_runs
        runs = prune(context.instance, opened)
    finally:
        metrics.push(opened, log_of(context))
    for line in [*in_words(report), *_runs_in_words(runs, dry_run=config.dry_run)]:
        log_of(context).info("%s", line)
    yield dg.Output(None, metadata=maintenance_metadata(report, runs))
    if report.problems:
        raise failure("; ".join(report.problems))


@dg.job(
    name=MAINTENANCE_JOB,
    description="Merges small files, drops windows, segments, files, batches and runs that have had their time. "
    "Bounded per run, and safe to kill. With `dry_run` it says what it would do.",
)
def maintenance():
    """One step does it all: a run costs more than most of what it finds to do."""
    maintain_installation()


def maintenance_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Return the schedule of the maintenance job; it starts switched on, and asks for no run where nothing is to do."""

    @dg.schedule(
        name=MAINTENANCE_SCHEDULE,
        job_name=MAINTENANCE_JOB,
        cron_schedule=settings.maintenance_cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Asks for a maintenance run where there is anything to do.",
    )
    def ask_for_maintenance(
        context: dg.ScheduleEvaluationContext, store: StoreResource
    ) -> dg.RunRequest | dg.SkipReason:
        from timestore_pipeline.upkeep.maintenance import in_words, maintain

        report = maintain(store.opened, owner="a look", dry_run=True)
        runs = find_dagster_runs(context.instance, store.opened)
        lines = [*in_words(report), *_runs_in_words(runs, dry_run=True), *report.problems]
        if not lines:
            return dg.SkipReason("there is nothing to do")
        for line in lines:
            log_of(context).info("%s", line)
        return dg.RunRequest(tags={TRIGGER_TAG: Trigger.MAINTENANCE.value})

    return ask_for_maintenance


def find_dagster_runs(instance: dg.DagsterInstance, store: Store) -> OldRuns:
    """Return the old automatic runs that are to go as the settings say, none that the UI needs."""
    settings = store.settings
    if not _runs_go(settings):
        return OldRuns()
    retention = RunRetention(timedelta(seconds=settings.dagster_run_retention_seconds), settings.dagster_keep_runs)
    checks = _check_keys(store.datasets.declared)
    return find_old_runs(instance, retention, checks, most=settings.maintenance_max_removals)


def prune_dagster_runs(instance: dg.DagsterInstance, store: Store) -> OldRuns:
    """Delete what :func:`find_dagster_runs` finds."""
    found = find_dagster_runs(instance, store)
    return delete_runs(instance, found) if _runs_go(store.settings) else found


def _runs_go(settings: Settings) -> bool:
    return bool(settings.dagster_run_retention_seconds or settings.dagster_keep_runs)


def maintenance_metadata(report: "MaintenanceReport", runs: OldRuns) -> Mapping[str, int]:
    """Return what a pass did, as numbers."""
    return {
        **report.numbers,
        "runs_deleted": runs.runs,
        "runs_kept": runs.kept,
        "files_removed": report.freed.files + runs.freed.files,
        "bytes_freed": report.freed.bytes + runs.freed.bytes,
    }


def _runs_in_words(runs: OldRuns, *, dry_run: bool) -> Iterable[str]:
    would = "would be " if dry_run else ""
    if runs.runs or runs.freed.files:
        yield (
            f"{runs.runs:,} old runs of Dagster {would}deleted, {runs.freed.files:,} files of "
            f"{runs.freed.bytes:,} bytes with them; {runs.kept:,} as old are still shown"
        )


def _check_keys(datasets: Mapping[str, DatasetSpec]) -> list[dg.AssetCheckKey]:
    return [
        dg.AssetCheckKey(key, name)
        for dataset in datasets
        for key, name in (
            (staging_key(dataset), GUARDRAILS),
            (staging_key(dataset), DECLARATION),
            (staging_key(dataset), QUARANTINE_EMPTY),
            (partitions_key(dataset), ROW_AUDIT),
            (partitions_key(dataset), FILE_SIZES),
        )
    ]

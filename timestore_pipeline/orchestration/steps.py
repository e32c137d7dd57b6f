"""What a run does for one dataset: it stages the files that have landed, or publishes what is staged.

A step is one dataset's; its failure never holds another's (invariant 9).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import dagster as dg

from timestore_pipeline.building.due import distance_in_words
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.thresholds import Trigger, due_trigger
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import BuildInFlight, RebuildRefused
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.limits import all_pauses, pause_of
from timestore_pipeline.ledger.queue import queue_of
from timestore_pipeline.ledger.windows import window_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import EVERY_WINDOW, Window, WindowRange, windows_between
from timestore_pipeline.orchestration.config import BuildConfig, CheckedConfig, checked
from timestore_pipeline.orchestration.keys import (
    is_partition,
    partition_key,
    partitions_definition,
    partitions_key,
    staging_key,
)
from timestore_pipeline.orchestration.logs import failure, log_of
from timestore_pipeline.orchestration.metadata import (
    Metadata,
    built_window_metadata,
    column_schema,
    ingest_metadata,
    lines_per_window,
    published_totals,
    untouched_window_metadata,
)
from timestore_pipeline.orchestration.resources import StoreResource
from timestore_pipeline.orchestration.tags import tag_run_of_a_person
from timestore_pipeline.policy import Policy
from timestore_pipeline.store import Store

if TYPE_CHECKING:
    from timestore_pipeline.building.report import BuildReport

_BACKFILL_TAG = "dagster/backfill"
_MAX_WARNINGS = 20

# An operator's build waits for one in flight: 5, 10, 20, 40, 60, 60 … seconds, 5 minutes in all.
_IN_FLIGHT_RETRIES = 8
_IN_FLIGHT_FIRST_WAIT = 5
_IN_FLIGHT_LONGEST_WAIT = 60
# The runs of a backfill wait for each other: there may be more of them than builds at a time. An hour in all.
_IN_FLIGHT_RETRIES_OF_A_BACKFILL = 64


def stage_landed(
    context: dg.AssetExecutionContext, resource: StoreResource, spec: DatasetSpec
) -> Iterator[dg.MaterializeResult]:
    """Stage the dataset's share of this run's landing files; what cannot be staged is a warning, never a failure."""
    # Brings the readers and the segment writer: code locations that only load definitions do without.
    from timestore_pipeline.staging.ingest import ingest_files

    store = resource.opened
    refuse_contradicting(store, spec)
    trigger = Trigger.BACKFILL if _BACKFILL_TAG in context.run.tags else Trigger.MANUAL
    tag_run_of_a_person(context, _datasets_of_run(context, store), trigger.value)
    files = resource.landing_share(spec.name, _ingested_datasets(context, store))
    if not files:
        log_of(context).info("%s: %s", spec.name, _why_nothing(store, spec))
        # A later step of the same run would be skipped without an output, and publishing must not depend on new files.
        if partitions_key(spec.name) in _assets_of_run(context):
            yield dg.MaterializeResult(metadata={"rows": 0, "bytes": 0, "batches": 0})
        return
    started = now_micros()
    report = ingest_files(store, spec.name, files)
    if not store.settings.staging_enabled:
        _mark_published_since(context, store, spec, started)
    warnings = [f"{entry.source} was quarantined: {entry.reason}" for entry in report.quarantined]
    _warn(context, spec, [*warnings, *report.skipped])
    if not (report.receipts or report.quarantined) and partitions_key(spec.name) not in _assets_of_run(context):
        log_of(context).info("%s: none of %s files was staged", spec.name, len(files))
        return
    yield dg.MaterializeResult(metadata={**ingest_metadata(report), **_inferred_schema(store, spec)})


def refuse_contradicting(store: Store, spec: DatasetSpec) -> None:
    """Fail the step, without another try, where ``datasets.yaml`` contradicts what the ledger has of the dataset."""
    if spec.name in store.datasets.refused:
        error = store.datasets.refused[spec.name]
        raise failure(str(error)) from error


def publish_staged(
    context: dg.AssetExecutionContext, store: Store, spec: DatasetSpec, config: BuildConfig
) -> Generator[dg.MaterializeResult, None, list[Window]]:
    """Publish what is staged in the windows of this run, record the windows in Dagster and return those published to.

    A run with partitions (from the UI or a backfill) marks every window that it was asked for, so that a backfill ends.
    One without (from a sensor) marks only the windows in which it published something: what is staged may be a day
    now and a day of last year, and thousands of empty windows between them are neither built nor to be marked.
    """
    wanted = checked(config, spec, Policy.of(store.settings, spec).flush)
    requested = _requested_windows(context, spec, wanted)
    trigger = wanted.trigger
    if trigger is Trigger.MANUAL and _BACKFILL_TAG in context.run.tags:
        trigger = Trigger.BACKFILL
    datasets = _datasets_of_run(context, store)
    tag_run_of_a_person(context, datasets, trigger.value, requested)
    if wanted.only_if_due and not _still_due(context, store, spec, wanted):
        return []
    # Brings deltalake: code locations that only load definitions do without.
    from timestore_pipeline.building.flush import flush_windows
    from timestore_pipeline.operating.backfill import materialize_again, materialize_windows

    order = BuildOrder(
        spec.name,
        WindowRange(requested[0], requested[-1]) if requested else wanted.windows,
        owner=context.run.run_id,
        trigger=trigger,
        target_file_bytes=wanted.target_file_bytes,
    )
    try:
        if wanted.only_if_due:
            report, merged = flush_windows(store, order), None
        else:
            materialize = materialize_again if wanted.rebuild else materialize_windows
            report, merged = materialize(store, order)
    except RebuildRefused as error:
        raise failure(str(error)) from error
    except BuildInFlight as error:
        if wanted.only_if_due:
            log_of(context).info("%s flush_sensor asks again if anything is left.", error)
            return []
        wait = min(_IN_FLIGHT_FIRST_WAIT * 2**context.retry_number, _IN_FLIGHT_LONGEST_WAIT)
        log_of(context).info("%s Trying again in %s seconds.", error, wait)
        retries = _IN_FLIGHT_RETRIES_OF_A_BACKFILL if _BACKFILL_TAG in context.run.tags else _IN_FLIGHT_RETRIES
        raise dg.RetryRequested(max_retries=retries, seconds_to_wait=wait) from error
    windows = _windows_metadata(store, spec, report, requested)
    log_of(context).info("%s: %s", spec.name, _summary(report))
    if merged is not None and (merged.files or merged.stopped):
        into = f"{merged.files:,} small files were merged into {merged.merged_files:,}"
        log_of(context).info("%s: %s", spec.name, merged.stopped if merged.stopped and not merged.files else into)
    tag_run_of_a_person(context, datasets, trigger.value, windows)
    if requested:
        for window, metadata in windows.items():
            context.add_asset_metadata(metadata, asset_key=partitions_key(spec.name), partition_key=window.key)
        yield dg.MaterializeResult(asset_key=partitions_key(spec.name))
        return requested
    definition = partitions_definition(spec)
    for window, metadata in windows.items():
        if not is_partition(window):
            continue
        context.log_event(
            dg.AssetMaterialization(
                partitions_key(spec.name), partition=partition_key(definition, window), metadata=metadata
            )
        )
    return list(windows)


def _mark_published_since(context: dg.AssetExecutionContext, store: Store, spec: DatasetSpec, moment: int) -> None:
    """Record in Dagster the windows that an ingest straight to the table has published to."""
    with store.ledger.read() as tx:
        published = [totals for totals in window_totals(tx, spec.name) if totals.published_at >= moment]
    definition = partitions_definition(spec)
    for totals in published:
        if not is_partition(spec.window_at(totals.window_start)):
            continue
        context.log_event(
            dg.AssetMaterialization(
                partitions_key(spec.name),
                partition=partition_key(definition, spec.window_at(totals.window_start)),
                metadata={"trigger": str(Trigger.DIRECT), **published_totals(totals)},
            )
        )


def _requested_windows(context: dg.AssetExecutionContext, spec: DatasetSpec, wanted: CheckedConfig) -> list[Window]:
    if not (context.has_partition_key or context.has_partition_key_range):
        return []
    if wanted.windows != EVERY_WINDOW:
        raise failure(
            f"partitions/{spec.name}: the run has partitions, so first_window and last_window must not be set"
        )
    keys = context.partition_key_range
    first, last = spec.window_from_key(keys.start), spec.window_from_key(keys.end)
    if last < first:  # no window would be taken for every window
        raise failure(f"partitions/{spec.name}: the run's last partition {keys.end} is before its first, {keys.start}")
    return list(windows_between(first, last))


def _still_due(context: dg.AssetExecutionContext, store: Store, spec: DatasetSpec, wanted: CheckedConfig) -> bool:
    with store.ledger.read() as tx:
        state = queue_of(tx, spec.name)
        limit = store.policy(tx, spec).limits.max_pending
    now = now_micros()
    if due_trigger(state, wanted.thresholds, limit, now) is not None:
        return True
    log_of(context).info(
        "Nothing is built, no threshold is reached any more: %s",
        distance_in_words(state, wanted.thresholds, limit, now),
    )
    return False


def _windows_metadata(
    store: Store, spec: DatasetSpec, report: BuildReport | None, requested: list[Window]
) -> dict[Window, Metadata]:
    built = {part.window: part for part in report.windows} if report else {}
    with store.ledger.read() as tx:
        totals = {spec.window_at(total.window_start): total for total in window_totals(tx, spec.name)}
    schema = _inferred_schema(store, spec)
    now = now_micros()
    lines = lines_per_window(len(built))
    return {
        window: {
            **(
                built_window_metadata(report, built[window], totals.get(window), now, lines)
                if report and window in built
                else untouched_window_metadata(totals.get(window))
            ),
            **schema,
        }
        for window in (requested or sorted(built))
    }


def _summary(report: BuildReport | None) -> str:
    if report is None:
        return "nothing was staged in these windows"
    taken = f"{report.taken:,} rows left out that corrections took back, " if report.taken else ""
    return (
        f"published {report.rows:,} rows of {report.batches:,} batches in {len(report.windows):,} windows "
        f"and {report.files:,} files, {taken}table version {report.table_version}, build {report.build_id}, "
        f"{report.duration_seconds:.2f} s"
    )


def _inferred_schema(store: Store, spec: DatasetSpec) -> Metadata:
    if spec.declared_columns is not None:
        return {}
    with store.ledger.read() as tx:
        columns = dataset_columns(tx, spec)
    return {} if columns is None else {"dagster/column_schema": column_schema(columns)}


def _why_nothing(store: Store, spec: DatasetSpec) -> str:
    with store.ledger.read() as tx:
        pause = pause_of(all_pauses(tx), spec.name)
    return f"intake is paused by {pause.paused_by}: {pause.reason}" if pause else "no file is ready"


def _assets_of_run(context: dg.AssetExecutionContext) -> set[dg.AssetKey]:
    return set(context.job_def.asset_layer.executable_asset_keys)


def _datasets_of_run(context: dg.AssetExecutionContext, store: Store) -> list[str]:
    assets = _assets_of_run(context)
    return [name for name in store.datasets if assets & {staging_key(name), partitions_key(name)}]


def _ingested_datasets(context: dg.AssetExecutionContext, store: Store) -> list[str]:
    assets = _assets_of_run(context)
    return [name for name in store.datasets if staging_key(name) in assets]


def _warn(context: dg.AssetExecutionContext, spec: DatasetSpec, problems: list[str]) -> None:
    for problem in problems[:_MAX_WARNINGS]:
        log_of(context).warning("%s: %s", spec.name, problem)
    if len(problems) > _MAX_WARNINGS:
        log_of(context).warning("%s: … and %s more", spec.name, len(problems) - _MAX_WARNINGS)

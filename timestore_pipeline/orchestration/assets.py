"""The assets of a dataset: ``landing/<dataset>`` → ``staging/<dataset>`` → ``partitions/<dataset>``.

Factories take a :class:`DatasetSpec`. Nothing here opens the ledger before a step runs, so that a code location
loads whatever state the installation is in.
"""

# No `from __future__ import annotations`: Dagster refuses a context whose annotation is text.
import warnings
from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.inert import as_code
from timestore_pipeline.model.durations import SHORTEST_FRESHNESS
from timestore_pipeline.model.windows import Granularity, Window
from timestore_pipeline.orchestration.config import BuildConfig
from timestore_pipeline.orchestration.keys import (
    landing_key,
    partitions_definition,
    partitions_key,
    partitions_op,
    staging_key,
)
from timestore_pipeline.orchestration.logs import log_of
from timestore_pipeline.orchestration.metadata import Metadata, column_schema
from timestore_pipeline.orchestration.quarantine_check import quarantine_watched
from timestore_pipeline.orchestration.resources import MetricsResource, StoreResource
from timestore_pipeline.orchestration.steps import publish_staged, refuse_contradicting, stage_landed
from timestore_pipeline.orchestration.table_checks import table_check_results, table_check_specs
from timestore_pipeline.policy import Policy
from timestore_pipeline.settings import Settings

DATASET_TAG = "timestore/dataset"

# Windows of one run of a backfill that is divided: a month of hours or days, a year of months.
_WINDOWS_PER_RUN = {Granularity.HOUR: 744, Granularity.DAY: 31, Granularity.MONTH: 12}


def landing_asset(spec: DatasetSpec, settings: Settings) -> dg.AssetSpec:
    """Return the folder in which the dataset's files land, as an asset that others fill."""
    format_ = spec.landing.format
    return dg.AssetSpec(
        landing_key(spec.name),
        description=f"Files for {spec.name}, dropped by its producers as {as_code(spec.landing.pattern)}. "
        f"{spec.description}",
        group_name=spec.name,
        kinds={"file" if format_ is FileFormat.AUTO else str(format_)},
        owners=list(spec.owners),
        tags={DATASET_TAG: spec.name},
        metadata={"dagster/uri": (settings.landing_location / spec.name).as_uri(), **_links(settings)},
    )


def staging_asset(spec: DatasetSpec, settings: Settings) -> dg.AssetsDefinition:
    """Return the dataset's staging queue: each run stages the files that are there when it starts."""

    @dg.asset(
        key=staging_key(spec.name),
        deps=[landing_key(spec.name)],
        description=f"Rows of {spec.name} that are acknowledged and can be queried. {spec.description}",
        group_name=spec.name,
        kinds={"duckdb"},
        owners=list(spec.owners),
        tags={DATASET_TAG: spec.name},
        metadata={
            "dagster/uri": settings.staging_location.as_uri(),
            "concurrent_ingests": Policy.of(settings, spec).limits.concurrent_ingests or "no limit",
            **_links(settings),
            **_declared_schema(spec),
        },
        output_required=False,
    )
    def staging(
        context: dg.AssetExecutionContext, store: StoreResource, metrics: MetricsResource
    ) -> Iterator[dg.MaterializeResult]:
        try:
            yield from stage_landed(context, store, spec)
        finally:
            metrics.push(store.opened, log_of(context))

    return staging


def partitions_asset(spec: DatasetSpec, settings: Settings) -> dg.AssetsDefinition:
    """Return the dataset's table: each run publishes what is staged for its windows, and then checks the table.

    One step does both, because a step of its own would not run after builds that a sensor asked for: they record
    their windows as events and have no output that a later step could wait for.
    """
    key = partitions_key(spec.name)

    @dg.multi_asset(
        name=partitions_op(spec.name),
        specs=[
            dg.AssetSpec(
                key,
                deps=[staging_key(spec.name)],
                partitions_def=partitions_definition(spec),
                description=f"The published table of {spec.name}, in windows of one {spec.window}. {spec.description}",
                group_name=spec.name,
                kinds={"parquet", "deltalake"},
                owners=list(spec.owners),
                tags={DATASET_TAG: spec.name},
                metadata={
                    "dagster/uri": settings.table_location(spec.name).as_uri(),
                    "dagster/table_name": spec.name,
                    "table": dg.MetadataValue.path(str(settings.table_location(spec.name))),
                    "concurrent_builds": Policy.of(settings, spec).limits.concurrent_builds,
                    **_links(settings),
                    **_declared_schema(spec),
                },
                freshness_policy=freshness_policy(spec, settings),
                skippable=True,
            )
        ],
        check_specs=table_check_specs(spec),
        backfill_policy=backfill_policy(spec, settings),
        # So that the checks can be run without publishing anything.
        can_subset=True,
    )
    def partitions(
        context: dg.AssetExecutionContext, config: BuildConfig, store: StoreResource, metrics: MetricsResource
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        touched: list[Window] | None = None
        try:
            if key in context.selected_asset_keys:
                refuse_contradicting(store.opened, spec)
                with quarantine_watched(context, store.opened, spec):
                    touched = yield from publish_staged(context, store.opened, spec, config)
        finally:
            # Failures are counted in the ledger too. (A run that is killed is seen by the next tick of metrics_sensor.)
            metrics.push(store.opened, log_of(context))
        yield from table_check_results(store.opened, spec, context.selected_asset_check_keys, touched)

    return partitions


def backfill_policy(spec: DatasetSpec, settings: Settings) -> dg.BackfillPolicy:
    """Return how Dagster divides a backfill: one run, or where a dataset may have several builds at once, several.

    A run costs seconds before it does anything, so each gets many windows. Limits that are changed at run time do not
    count, as this is part of the definitions.
    """
    if Policy.of(settings, spec).limits.concurrent_builds == 1:
        return dg.BackfillPolicy.single_run()
    return dg.BackfillPolicy.multi_run(max_partitions_per_run=_WINDOWS_PER_RUN[spec.window])


def freshness_policy(spec: DatasetSpec, settings: Settings) -> dg.FreshnessPolicy | None:
    """Return what is promised of the dataset's table: rows every so often; None where nothing is.

    Dagster holds it against the last materialization of any window: a backfill of an old one counts too.
    """
    promised = timedelta(microseconds=Policy.of(settings, spec).freshness_micros)
    if not promised:
        return None
    warning = promised / 2
    return dg.FreshnessPolicy.time_window(promised, warning if warning >= SHORTEST_FRESHNESS else None)


def dataset_assets(spec: DatasetSpec, settings: Settings) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """Return all assets of a dataset, in the order in which rows go through them."""
    with warnings.catch_warnings():
        # Backfill policies have been called beta for years; a warning at each start of a process helps nobody.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return [landing_asset(spec, settings), staging_asset(spec, settings), partitions_asset(spec, settings)]


def _links(settings: Settings) -> Metadata:
    """Return where to look next, for the page of an asset."""
    url = settings.runbook_url
    return {"runbook": dg.MetadataValue.url(url) if "://" in url else dg.MetadataValue.path(url)}


def _declared_schema(spec: DatasetSpec) -> Metadata:
    columns = spec.declared_columns
    return {} if columns is None else {"dagster/column_schema": column_schema(columns)}

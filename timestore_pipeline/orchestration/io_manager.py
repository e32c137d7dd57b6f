"""The IO manager: assets of anyone's own code location that return frames to be staged, or take the rows of datasets.

What an asset returns becomes one batch, whose id says which asset, which partition and which execution it is of: see
:func:`batch_id_of`. With partitions of time it takes the place of what is there of their times, else it comes to what
there is: see ``write_mode.py``. What an asset takes are the rows of its time window, staged and published.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of a resource as they stand.
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dagster as dg
import pyarrow as pa
from blake3 import blake3
from pydantic import Field

from timestore_pipeline.datasets import DatasetSpec, load_datasets
from timestore_pipeline.errors import BatchConflict
from timestore_pipeline.ledger.batches import known_batches, latest_batch
from timestore_pipeline.ledger.corrections import is_taken, last_word, latest_replacement
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.segments import segment_bytes
from timestore_pipeline.model.windows import TimeRange, Window
from timestore_pipeline.orchestration.assets import DATASET_TAG, partitions_key
from timestore_pipeline.orchestration.keys import partitions_definition
from timestore_pipeline.orchestration.logs import failure, log_of
from timestore_pipeline.orchestration.metadata import column_schema, ingest_metadata
from timestore_pipeline.orchestration.resources import Installation, MetricsResource, StoreResource, duckdb_resource
from timestore_pipeline.orchestration.time_ranges import Range, in_words, times_of
from timestore_pipeline.orchestration.write_mode import WRITE_MODES, WriteMode, range_to_replace
from timestore_pipeline.reading.rows import Rows, query_rows, range_query
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.identity import MAX_BATCH_ID
from timestore_pipeline.settings import Settings, load_settings
from timestore_pipeline.staging.frame_rows import Incoming
from timestore_pipeline.staging.ingest import IngestReport
from timestore_pipeline.staging.load import receipt_of
from timestore_pipeline.staging.receipts import Receipt, settle_known
from timestore_pipeline.staging.stage import incoming_of, stage_incoming
from timestore_pipeline.store import Store

DATASET_METADATA = DATASET_TAG
"""Metadata of an asset or input: which dataset it is; by default the last part of the asset's key."""

RANGE_METADATA = "timestore/range"
"""Metadata of an input: ``all`` reads all rows, whatever the partitions of the asset that takes them."""

COLUMNS_METADATA = "columns"
"""Metadata of an input: the names of the columns that are wanted."""


class TimestoreIOManager(dg.ConfigurableIOManager):
    """Stages what assets return, and reads what they take: pyarrow, pandas or Polars, as they are annotated.

    Make one with :func:`timestore_io_manager`.
    """

    store: dg.ResourceDependency[StoreResource]
    wait_seconds: float = Field(
        default=60.0,
        description="How long a frame is tried to be staged again, at growing intervals, while the staging queue has "
        "no room. After that the step fails, and its retry policy says what comes next.",
    )
    write_mode: WriteMode = Field(default="auto", description=WRITE_MODES)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Stage a frame as one batch; nothing where the asset returned None."""
        if obj is None:
            log_of(context).info("%s returned nothing, so nothing is staged", context.asset_key.to_user_string())
            return
        store = self.store.opened
        spec = store.datasets[_dataset(context.definition_metadata, context.asset_key)]
        replaces = range_to_replace(context, self.write_mode)
        started = time.perf_counter()
        try:
            source, batch_id = context.asset_key.to_user_string(), _batch_id(context)
            incoming = incoming_of(store, spec.name, obj, batch_id, source, replaces)
            receipt = _stage(context, store, spec, incoming, self.wait_seconds)
        finally:
            MetricsResource().push(store, log_of(context))
        report = IngestReport(
            spec.name,
            receipts=(receipt,),
            segment_id=receipt.segment_id,
            segment_bytes=_segment_bytes(store, receipt),
            duration_seconds=time.perf_counter() - started,
        )
        context.add_output_metadata(
            {
                **ingest_metadata(report),
                "batch_id": receipt.batch_id,
                **_replaced(store, spec, receipt, replaces),
                **_schema(store, spec),
            }
        )
        if replaces is None and context.has_asset_partitions:
            _warn_of_other_windows(context, receipt)

    def load_input(self, context: dg.InputContext) -> Any:
        """Return the rows of the time window that the asset is run for, as what its parameter is annotated with."""
        store = self.store.opened
        metadata = {**_upstream_metadata(context), **context.definition_metadata}
        spec = store.datasets[_dataset(metadata, context.asset_key)]
        wanted = metadata.get(COLUMNS_METADATA)
        with store.ledger.read() as tx:
            known = dataset_columns(tx, spec)
        if known is not None:
            ranges = None if metadata.get(RANGE_METADATA) == "all" else _times_wanted(context)
            if ranges is not None and not ranges:
                raise failure(f"{spec.name}: no partition is asked for; a range must not end before it begins")
            columns = None if wanted is None else list(wanted)
            sql = " UNION ALL ".join(
                range_query(spec, known, start, end, columns, None)
                for start, end in (ranges if ranges is not None else [(None, None)])
            )
            rows = query_rows(store, sql)
            log_of(context).info("%s: reading %s", spec.name, in_words(ranges))
            return _as_annotated(rows, context)
        raise failure(f"dataset {spec.name!r} has no columns yet: its first batch says what they are")


def timestore_io_manager(
    settings: Settings | None = None, wait_seconds: float = 60.0, write_mode: WriteMode = "auto"
) -> TimestoreIOManager:
    """Return the IO manager of the installation that ``settings`` describe, by default the ``TIMESTORE_*`` variables.

    With ``write_mode`` "auto" an asset with partitions of time replaces the rows of these times, and any other one
    appends.

    Example:
        >>> defs = dg.Definitions(assets=[...], resources={"io_manager": timestore_io_manager()})

    Raises:
        SettingsError, DatasetsFileError: the environment or the datasets file is not usable; says what to correct.
    """
    settings = settings or load_settings()
    installation = Installation(settings, load_datasets(settings.datasets_path))
    store = StoreResource(duckdb=duckdb_resource(settings), installation=installation)
    return TimestoreIOManager(store=store, wait_seconds=wait_seconds, write_mode=write_mode)


def published_asset(spec: DatasetSpec, io_manager_key: str = "io_manager") -> dg.AssetSpec:
    """Return ``partitions/<dataset>`` for a code location that only reads it: with its windows, for partition mappings.

    ``load_datasets`` of this package gives the spec. A location that does without may name the key alone, and reads
    the windows of its own partitions.
    """
    return dg.AssetSpec(
        partitions_key(spec.name),
        partitions_def=partitions_definition(spec),
        metadata={DATASET_METADATA: spec.name, "dagster/io_manager_key": io_manager_key},
    )


def batch_id_of(asset: dg.AssetKey, partition: str | None, execution: str) -> str:
    """Return the id of the batch that one execution of an asset makes.

    ``execution`` is the run in which it was first tried: a retry of the step, an automatic retry of the run and a
    re-execution from failure all go on with what that run began, so they have the same id and stage nothing twice.
    A new run, or the re-execution of a step that had succeeded, is an execution of its own.
    """
    name = f"{_prefix(asset, partition)}{execution}"
    if len(name) <= MAX_BATCH_ID:
        return name
    return f"asset:{blake3(_prefix(asset, partition).encode()).hexdigest()}:{execution}"


def _prefix(asset: dg.AssetKey, partition: str | None) -> str:
    return f"asset:{asset.to_user_string()}:{partition or '-'}:"


def _stage(
    context: dg.OutputContext, store: Store, spec: DatasetSpec, incoming: Incoming, wait_seconds: float
) -> Receipt:
    batch = incoming.batch
    before = _last_time(store, spec, batch)
    if before is not None:
        log_of(context).info("%s: these rows are staged already, as batch %s", spec.name, before.batch_id)
        return before
    try:
        return stage_incoming(store, spec.name, incoming, wait_seconds)
    except BatchConflict:
        # An earlier attempt was acknowledged, and its process ended before Dagster heard of it.
        log_of(context).warning(
            "%s: an earlier attempt of this execution has staged other rows as batch %s. They stand, and those of this "
            "attempt are not staged: materialize in a new run to stage them.",
            spec.name,
            batch.batch_id,
        )
        with store.ledger.read() as tx:
            known = known_batches(tx, spec.name, [batch.batch_id])[batch.batch_id]
        (answer,) = settle_known(store, spec, [replace(batch, fingerprint=known.fingerprint)])
        assert answer is not None
        return receipt_of(answer)


def _last_time(store: Store, spec: DatasetSpec, batch: IncomingBatch) -> Receipt | None:
    """Return the receipt of the batch that had the very same rows, if they are what was said last.

    So a materialization that brings nothing new changes nothing. For a range of times anybody may have said it; what is
    appended is compared with the last batch of the asset and partition. Only the last one counts: going back to what
    was before it is a change.
    """
    with store.ledger.read() as tx:
        if batch.replaces is not None:
            last = last_word(tx, spec.name, batch.fingerprint)
        else:
            last = latest_batch(tx, spec.name, batch.batch_id.rpartition(":")[0] + ":")
            if last is not None and last.segment_id is not None and is_taken(tx, last.segment_id):
                return None
    if last is None or last.fingerprint != batch.fingerprint:
        return None
    (answer,) = settle_known(store, spec, [replace(batch, batch_id=last.batch_id)])
    return None if answer is None else receipt_of(answer)


def _replaced(store: Store, spec: DatasetSpec, receipt: Receipt, replaces: TimeRange | None) -> dict[str, Any]:
    """Return what is said of the rows that a batch has taken the place of."""
    if replaces is None:
        return {"write_mode": "append"}
    with store.ledger.read() as tx:
        known = known_batches(tx, spec.name, [receipt.batch_id]).get(receipt.batch_id)
        correction = latest_replacement(tx, spec.name, known.fingerprint) if known else None
    return {
        "write_mode": "replace",
        "replaced_range": str(replaces),
        **({} if correction is None else {"correction": correction.number}),
    }


def _segment_bytes(store: Store, receipt: Receipt) -> int:
    """Return the size of the segment that a batch came into now, 0 where it came into none."""
    if receipt.duplicate or receipt.segment_id is None:
        return 0
    with store.ledger.read() as tx:
        return segment_bytes(tx, receipt.segment_id)


def _first_tried_in(context: dg.OutputContext) -> str:
    """Return the run in which this execution of the step was first tried: past runs whose step did not succeed."""
    run, first = context.step_context.dagster_run, context.run_id
    instance = context.step_context.instance
    while run is not None and run.parent_run_id is not None:
        run = instance.get_run_by_id(run.parent_run_id)
        if run is None:
            break
        steps = instance.get_run_step_stats(run.run_id, [context.step_key])
        if not steps or any(step.status is not None and step.status.value == "SUCCESS" for step in steps):
            break
        first = run.run_id
    return first


def _batch_id(context: dg.OutputContext) -> str:
    return batch_id_of(context.asset_key, _partition(context), _first_tried_in(context))


def _partition(context: dg.OutputContext) -> str | None:
    if not context.has_asset_partitions:
        return None
    keys = context.asset_partition_key_range
    return keys.start if keys.start == keys.end else f"{keys.start}...{keys.end}"


def _dataset(metadata: Mapping[str, Any], asset: dg.AssetKey) -> str:
    named = metadata.get(DATASET_METADATA)
    return asset.path[-1] if named is None else str(getattr(named, "value", named))


def _upstream_metadata(context: dg.InputContext) -> Mapping[str, Any]:
    return context.upstream_output.definition_metadata if context.upstream_output else {}


def _times_wanted(context: dg.InputContext) -> list[Range] | None:
    """Return the times that an input is to have rows of, None for all: after one another and apart.

    Those of the partitions that the mapping gives where the input's asset has any, else those of the asset that
    takes it.
    """
    if context.has_asset_partitions:
        ranges = times_of(context.asset_partitions_def, context.asset_partition_keys)
        if ranges is None:
            raise failure(
                f"{context.asset_key.to_user_string()} is partitioned, but not by time, so its partitions say nothing "
                f"of which rows are wanted. Read all with metadata {{{RANGE_METADATA!r}: 'all'}} on the input."
            )
        return ranges
    step = context.step_context
    if not step.has_partitions or (definition := step.run_partitions_def) is None:
        return None
    return times_of(definition, definition.get_partition_keys_in_range(step.partition_key_range))


def _as_annotated(rows: Rows, context: dg.InputContext) -> Any:
    """Return rows as what the parameter is annotated with; as a pyarrow table where it is not."""
    wanted = context.dagster_type.typing_type
    library, name = getattr(wanted, "__module__", "").partition(".")[0], getattr(wanted, "__name__", "")
    if wanted in (Any, pa.Table, None):
        return rows.to_arrow()
    if wanted is pa.RecordBatchReader:
        return rows.to_reader()
    if wanted is Rows:
        return rows
    if library in ("duckdb", "_duckdb") and name == "DuckDBPyRelation":
        return rows.relation
    if library == "pandas" and name == "DataFrame":
        return rows.to_pandas()
    if library == "polars" and name in ("DataFrame", "LazyFrame"):
        frame = rows.to_polars()
        return frame.lazy() if name == "LazyFrame" else frame
    raise failure(
        f"the input {context.name!r} is annotated as {wanted}: annotate it as a pyarrow Table or RecordBatchReader, a "
        "pandas DataFrame, a Polars DataFrame or LazyFrame, a DuckDB relation, or not at all (a pyarrow Table)"
    )


def _schema(store: Store, spec: DatasetSpec) -> dict[str, Any]:
    with store.ledger.read() as tx:
        columns = dataset_columns(tx, spec)
    return {} if columns is None else {"dagster/column_schema": column_schema(columns)}


def _warn_of_other_windows(context: dg.OutputContext, receipt: Receipt) -> None:
    """Say where rows lie outside of the partition: they are staged, but who reads the partition does not get them."""
    ranges = times_of(context.asset_partitions_def, context.asset_partition_keys)
    if ranges is None:
        return
    outside: list[Window] = [
        window
        for window in receipt.windows
        if not any(window.start < end and start < window.end for start, end in ranges)
    ]
    if outside:
        keys = ", ".join(window.key for window in outside[:5]) + (" …" if len(outside) > 5 else "")
        log_of(context).warning("%s: rows were staged in windows outside of the partition: %s", receipt.dataset, keys)

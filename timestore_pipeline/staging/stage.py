"""``stage()``: one batch of Arrow data from a caller's own code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
from blake3 import blake3

from timestore_pipeline.columns import Column
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import (
    BatchRejected,
    CommitUnknown,
    TimestoreError,
)
from timestore_pipeline.landing.readers import (
    RowSource,
    UnreadableFile,
    columns_of,
    describe_arrow,
    readable_reason,
    select_rows,
)
from timestore_pipeline.ledger.registry import dataset_columns
from timestore_pipeline.staging.direct import publish_if_direct, warn_of_direct_write
from timestore_pipeline.staging.receipts import (
    IncomingBatch,
    Receipt,
    StagedMeanwhile,
    acknowledge_segment,
    duplicate_receipts,
)
from timestore_pipeline.staging.retry import when_there_is_room
from timestore_pipeline.staging.room import check_room
from timestore_pipeline.staging.segment import write_segment
from timestore_pipeline.staging.turns import turn
from timestore_pipeline.store import Store

# A fixed chunking makes the hash independent of how the caller happened to chunk the same rows.
_ROWS_PER_HASHED_CHUNK = 1 << 16


def stage(
    store: Store,
    dataset: str,
    data: pa.Table | pa.RecordBatchReader,
    batch_id: str | None = None,
    source: str = "stage()",
    wait_seconds: float = 0.0,
) -> Receipt:
    """Stage Arrow data as one batch; when this returns, the batch is acknowledged.

    Args:
        store: the installation.
        dataset: a declared dataset.
        data: its columns, by name in any order; values are cast to the dataset's types where that loses nothing.
        batch_id: the caller's idempotency key; derived from the content where left out.
        source: where the data comes from, for lineage.
        wait_seconds: how long to try again, at growing intervals, while there is no room.

    Returns:
        The receipt; ``duplicate`` is true where the same batch was staged before, and nothing changed.

    Raises:
        BatchRejected: the data does not fit the dataset; nothing was staged.
        BatchConflict: ``batch_id`` is known with other content.
        StagingQueueFull, GuardrailExceeded, DiskFull, TooManyIngests, IntakePaused: refused for now, and counted
            as dropped.
        UnknownDataset, ColumnsChanged, LedgerError: as they say.
    """
    spec = store.datasets[dataset]
    table = data if isinstance(data, pa.Table) else data.read_all()
    fingerprint = table_fingerprint(table)
    batch = IncomingBatch(batch_id or f"arrow-{fingerprint}", fingerprint, source, table.nbytes)
    warn_of_direct_write(store, dataset)
    receipt = when_there_is_room(store, dataset, lambda: _stage(store, spec, table, batch), wait_seconds)
    publish_if_direct(store, dataset)
    return receipt


def table_fingerprint(table: pa.Table) -> str:
    """Return the BLAKE3 hash of a table's schema and values, in hex, however they lie in memory.

    Chunks, dictionaries, metadata and what stands under nulls are no part of the content.
    """
    digest = blake3(table.schema.to_string(show_field_metadata=False, show_schema_metadata=False).encode())
    for part in _content(table):
        with pa.ipc.new_stream(pa.PythonFile(_HashSink(digest), mode="w"), part.schema) as writer:
            writer.write_table(part.combine_chunks(), max_chunksize=_ROWS_PER_HASHED_CHUNK)
    return digest.hexdigest()


def _content(table: pa.Table) -> Iterator[pa.Table]:
    """Yield tables that are equal, byte for byte, if and only if the values of ``table`` are."""
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    whole = [column for column in columns if not column.null_count]
    yield pa.table(whole, [str(number) for number in range(len(whole))])
    for column in columns:
        if column.null_count:
            yield pa.table([column.is_valid()], ["valid"])
            yield pa.table([column.drop_null()], ["values"])


class _HashSink:
    """A writable file that only hashes."""

    closed = False

    def __init__(self, digest: Any) -> None:
        self._digest = digest

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is held open."""


def _stage(store: Store, spec: DatasetSpec, table: pa.Table, batch: IncomingBatch) -> Receipt:
    while True:
        duplicate = duplicate_receipts(store, spec, [batch]).get(batch.batch_id)
        if duplicate is not None:
            return duplicate
        limits = check_room(store, spec, 1)
        try:
            with turn(store, spec, limits):
                return _stage_once(store, spec, table, batch)
        except StagedMeanwhile:
            continue


def _stage_once(store: Store, spec: DatasetSpec, table: pa.Table, batch: IncomingBatch) -> Receipt:
    try:
        with store.writers.connection() as connection:
            columns, rows = _row_source(store, connection, spec, table)
            written = write_segment(store, connection, spec, columns, [rows], expected_bytes=table.nbytes)
    except UnreadableFile as error:
        raise BatchRejected(spec.name, batch.source, str(error)) from error
    except (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException) as error:
        raise BatchRejected(spec.name, batch.source, readable_reason(error)) from error
    except (duckdb.Error, OSError) as error:
        raise TimestoreError(
            f"dataset {spec.name!r}: {batch.source} could not be written to a segment: {readable_reason(error)}. "
            "Nothing was staged; check disk and memory (TIMESTORE_DUCKDB_MEMORY_LIMIT) and try again."
        ) from error
    try:
        return acknowledge_segment(store, spec, columns, written, [batch]).receipts[0]
    except CommitUnknown:
        raise  # the ledger may have the segment; if not, it is swept
    except Exception:
        written.discard(store)
        raise


def _row_source(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, table: pa.Table
) -> tuple[tuple[Column, ...], RowSource]:
    with store.ledger.read() as tx:
        columns = dataset_columns(tx, spec)
    found = describe_arrow(connection, table.schema)
    if columns is None:
        columns = columns_of(spec, found)
    return columns, RowSource(select_rows(spec, columns, found, "incoming", "0"), {"incoming": table})

"""Staging several batches as one segment and one ledger transaction: what ``stage()`` and the writer both do.

Each batch has an answer of its own: what is wrong with one never touches another (invariant 9), and one that is
answered with a receipt is acknowledged (invariant 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from timestore_pipeline.columns import BATCH_COLUMN, Column
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import (
    BatchConflict,
    BatchRejected,
    CommitUnknown,
    StagingQueueFull,
    TimestoreError,
)
from timestore_pipeline.landing.readers import (
    RowSource,
    UnreadableFile,
    columns_of,
    describe_arrow,
    read_through,
    readable_reason,
    select_rows,
    with_ordinals,
)
from timestore_pipeline.ledger.registry import dataset_columns
from timestore_pipeline.staging.frames import as_table, content_batch_id, table_fingerprint
from timestore_pipeline.staging.receipts import (
    IncomingBatch,
    Receipt,
    StagedMeanwhile,
    acknowledge_segment,
    settle_known,
)
from timestore_pipeline.staging.room import room_for
from timestore_pipeline.staging.segment import WrittenSegment, write_segment
from timestore_pipeline.staging.turns import turn
from timestore_pipeline.store import Store


@dataclass(frozen=True)
class Incoming:
    """A batch on its way in, with its rows."""

    batch: IncomingBatch
    table: pa.Table

    @classmethod
    def of(cls, dataset: str, data: object, batch_id: str | None, source: str) -> Incoming:
        """Return ``data`` as a batch, named after its content where it has no ``batch_id``.

        Raises:
            NoFrame, BatchRejected: it has no rows that can be read as Arrow.
        """
        table = as_table(dataset, data, source)
        fingerprint = table_fingerprint(table)
        return cls(IncomingBatch(batch_id or content_batch_id(fingerprint), fingerprint, source, table.nbytes), table)


Answer = Receipt | TimestoreError
"""What became of one batch."""

# One segment with this many batches: what every batch adds to the ledger's transaction is small, but not nothing.
_Group = dict[int, Incoming]


def stage_together(store: Store, spec: DatasetSpec, incoming: Sequence[Incoming]) -> list[Answer]:
    """Stage batches whose ids are all different, as one segment; return their answers in the same order.

    An answer is a receipt, or one of the errors that ``stage()`` raises. When there is room for some only, the first
    ones go.
    """
    answers: dict[int, Answer] = {}
    left: _Group = dict(enumerate(incoming))
    while left:
        try:
            found = _attempt(store, spec, left)
        except TimestoreError as error:
            found = dict.fromkeys(left, error)
        answers.update(found)
        left = {number: item for number, item in left.items() if number not in answers}
    return [answers[number] for number in range(len(incoming))]


def _attempt(store: Store, spec: DatasetSpec, left: _Group) -> Mapping[int, Answer]:
    """Answer some of the batches; none where another process was in the way and it is to be tried again."""
    known = settle_known(store, spec, [item.batch for item in left.values()])
    if known:
        return {number: known[item.batch.batch_id] for number, item in left.items() if item.batch.batch_id in known}
    limits, room = room_for(store, spec, len(left))
    group = dict(list(left.items())[:room])
    try:
        with turn(store, spec, limits):
            return _stage(store, spec, group)
    except (StagedMeanwhile, BatchConflict):
        return {}  # the ledger knows more by now
    except StagingQueueFull:
        if len(group) == 1:
            raise
        return {}  # it filled up meanwhile, but not so far that none of them fits


def _stage(store: Store, spec: DatasetSpec, group: _Group) -> dict[int, Answer]:
    answers: dict[int, Answer] = {}
    with store.writers.connection() as connection:
        columns, order, sources = _plan(store, connection, spec, group, answers)
        if not order:
            return answers
        expected_bytes = sum(group[number].table.nbytes for number in order)
        try:
            written = write_segment(store, connection, spec, columns, sources, expected_bytes=expected_bytes)
        except (duckdb.Error, OSError) as error:
            if isinstance(error, duckdb.Error) and not isinstance(error, duckdb.OutOfMemoryException):
                answers.update(_unreadable(connection, spec, columns, group, order))
            if answers:
                return answers
            raise TimestoreError(
                f"dataset {spec.name!r}: {_named(group)} could not be written to a segment: {readable_reason(error)}. "
                "Nothing was staged; check disk and memory (TIMESTORE_DUCKDB_MEMORY_LIMIT) and try again."
            ) from error
    batches = [group[number].batch for number in order]
    receipts = _acknowledge(store, spec, columns, written, batches)
    return {**answers, **dict(zip(order, receipts, strict=True))}


def _acknowledge(
    store: Store,
    spec: DatasetSpec,
    columns: Sequence[Column],
    written: WrittenSegment,
    batches: Sequence[IncomingBatch],
) -> Sequence[Receipt]:
    try:
        return acknowledge_segment(store, spec, columns, written, batches).receipts
    except CommitUnknown:
        raise  # the ledger may have the segment; if not, it is swept
    except BaseException:
        written.discard(store)
        raise


def _plan(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    group: _Group,
    answers: dict[int, Answer],
) -> tuple[tuple[Column, ...], list[int], list[RowSource]]:
    """Return the dataset's columns, the batches that have them, by ordinal, and how to read these.

    Batches of one schema are read in one statement. Those that do not fit get their answer.
    """
    with store.ledger.read() as tx:
        columns = dataset_columns(tx, spec)
    shapes: dict[pa.Schema, list[int]] = {}
    for number, item in group.items():
        shapes.setdefault(item.table.schema, []).append(number)
    order: list[int] = []
    sources: list[RowSource] = []
    for schema, numbers in shapes.items():
        first = len(order)
        try:
            found = _described(connection, schema)
            if columns is None:
                columns = columns_of(spec, found)
            name = f"incoming_{first}"
            if len(numbers) == 1:
                table = group[numbers[0]].table
                sql = select_rows(spec, columns, found, name, str(first))
            else:
                table = with_ordinals([group[number].table for number in numbers], first)
                sql = select_rows(spec, columns, found, name, BATCH_COLUMN)
        except UnreadableFile as error:
            answers.update({number: _rejected(spec, group[number], str(error), error) for number in numbers})
            continue
        sources.append(RowSource(sql, {name: table}))
        order += numbers
    return columns or (), order, sources


def _unreadable(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    columns: tuple[Column, ...],
    group: _Group,
    order: Sequence[int],
) -> dict[int, Answer]:
    """Find the batches that made a segment fail, by reading each alone."""
    found: dict[int, Answer] = {}
    for number in order:
        table = group[number].table
        sql = select_rows(spec, columns, _described(connection, table.schema), "alone", "0")
        try:
            read_through(connection, RowSource(sql, {"alone": table}))
        except duckdb.OutOfMemoryException:
            return {}  # which says nothing of the rows
        except duckdb.Error as error:
            found[number] = _rejected(spec, group[number], readable_reason(error), error)
    return found


def _rejected(spec: DatasetSpec, item: Incoming, reason: str, cause: BaseException) -> BatchRejected:
    error = BatchRejected(spec.name, item.batch.source, reason)
    error.__cause__ = cause
    return error


def _named(group: _Group) -> str:
    first = next(iter(group.values())).batch.source
    return first if len(group) == 1 else f"{first} and {len(group) - 1} more batches"


# What a schema is to DuckDB costs more to ask than a small batch takes to write; a process sees few schemas.
_MOST_DESCRIBED = 256
_described_schemas: dict[bytes, list[tuple[str, str]]] = {}


def _described(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> list[tuple[str, str]]:
    """Return what :func:`describe_arrow` does, remembered; metadata counts, as it may say what a type means."""
    key = schema.serialize().to_pybytes()
    found = _described_schemas.get(key)
    if found is None:
        found = describe_arrow(connection, schema)
        if len(_described_schemas) >= _MOST_DESCRIBED:
            _described_schemas.clear()
        _described_schemas[key] = found
    return found

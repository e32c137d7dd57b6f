"""Frames as one load: what ``stage()`` and the writer both do with the batches that callers hand over."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import duckdb
import pyarrow as pa

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import BatchRejected, SegmentNotWritten, TimestoreError
from timestore_pipeline.ledger.schemas import required_columns
from timestore_pipeline.model.columns import BATCH_COLUMN, Column
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.fit import select_rows
from timestore_pipeline.rows.inference import brought_columns, columns_of, grown_schema
from timestore_pipeline.rows.readers import RowSource, with_ordinals
from timestore_pipeline.rows.reasons import UnreadableFile, readable_reason
from timestore_pipeline.rows.shapes import describe_arrow
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.identity import Client, content_batch_id
from timestore_pipeline.segments.judging import BatchTimes, batch_times
from timestore_pipeline.staging.frames import table_fingerprint
from timestore_pipeline.staging.incoming import OF_ROWS, Growth, Plan, Rows
from timestore_pipeline.staging.load import Loaded, Outlook, load
from timestore_pipeline.staging.receipts import check_texts
from timestore_pipeline.store import Store

# To write less than this has nothing for a second thread to do (a row group of a segment has 122,880 rows), and sharing
# it between threads costs more than it brings.
_ONE_THREAD_BYTES = 4 << 20


@dataclass(frozen=True)
class Incoming:
    """A batch on its way in, with its rows."""

    batch: IncomingBatch
    table: pa.Table

    @classmethod
    def of(
        cls,
        dataset: str,
        table: pa.Table,
        batch_id: str | None,
        source: str,
        fingerprint: str | None = None,
        client: Client | None = None,
    ) -> Incoming:
        """Return a table as a batch, named after its content where it has no ``batch_id``.

        ``fingerprint`` is the hash of what the table was read from, where that is the batch's content. ``client`` is
        who sent it, where there are several.

        Raises:
            BatchRejected: its id or source is one that no ledger can hold.
        """
        try:
            fingerprint = fingerprint or table_fingerprint(table)
        except OF_ROWS as error:
            raise BatchRejected(dataset, source, readable_reason(error)) from error
        batch = IncomingBatch(batch_id or content_batch_id(fingerprint), fingerprint, source, table.nbytes, client)
        return cls(check_texts(dataset, batch), table)


def stage_together(
    store: Store, spec: DatasetSpec, incoming: Sequence[Incoming], outlook: Outlook | None = None
) -> Loaded:
    """Stage batches as one segment; an answer is a receipt, or one of the errors that ``stage()`` raises."""
    loaded = load(FrameRows(store, spec, incoming), outlook)
    failed = {number: answer for number, answer in loaded.answers.items() if isinstance(answer, SegmentNotWritten)}
    if not failed:
        return loaded
    first = incoming[min(failed)].batch.source
    named = first if len(failed) == 1 else f"{first} and {len(failed) - 1} more batches"
    return replace(
        loaded,
        answers={**loaded.answers, **{number: _not_written(named, error) for number, error in failed.items()}},
    )


def _not_written(named: str, cause: SegmentNotWritten) -> TimestoreError:
    """Return in words for callers, who have no landing folder, that a segment could not be written."""
    error = TimestoreError(
        f"dataset {cause.dataset!r}: {named} could not be written to a segment: {cause.reason}. "
        "Nothing was staged; check disk and memory (TIMESTORE_DUCKDB_MEMORY_LIMIT) and try again."
    )
    error.__cause__ = cause
    return error


@dataclass(frozen=True)
class _Shape:
    """Batches of one Arrow schema, which are read in one statement, and those of its columns that tell no type yet."""

    numbers: list[int]
    found: list[tuple[str, str]]
    passed_over: frozenset[str]


class FrameRows(Rows):
    """The rows of tables in memory."""

    def __init__(self, store: Store, spec: DatasetSpec, incoming: Sequence[Incoming]) -> None:
        super().__init__(store, spec, [item.batch for item in incoming])
        self._tables = [item.table for item in incoming]

    def connection(self, numbers: Sequence[int]) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Return a connection, of one thread where there is little to write."""
        size = sum(self.batches[number].source_bytes for number in numbers)
        return self.store.writers.connection(threads=1 if size < _ONE_THREAD_BYTES else None)

    def plan(self, connection: duckdb.DuckDBPyConnection, schema: Schema | None, numbers: Sequence[int]) -> Plan:
        """Take up what the batches bring, and refuse those that do not fit; batches of one schema are read together."""
        by_schema: dict[pa.Schema, list[int]] = {}
        for number in numbers:
            by_schema.setdefault(self._tables[number].schema, []).append(number)
        shapes: list[_Shape] = []
        growth: list[Growth] = []
        refused: dict[int, str] = {}
        for arrow_schema, members in by_schema.items():
            try:
                schema, brought, shape = self._grown(connection, schema, arrow_schema, members)
            except UnreadableFile as error:
                refused.update(dict.fromkeys(members, str(error)))
            else:
                growth += brought
                shapes.append(shape)
        if schema is None:
            return Plan(None, refused=refused)
        order: list[int] = []
        sources: list[RowSource] = []
        for shape in _in_order_of_arrival(shapes) if self.spec.key else shapes:
            sources.append(self._source(schema, shape, len(order)))
            order += shape.numbers
        return Plan(schema, order, sources, refused, growth, self._times(order, schema))

    def _grown(
        self,
        connection: duckdb.DuckDBPyConnection,
        schema: Schema | None,
        arrow_schema: pa.Schema,
        numbers: list[int],
    ) -> tuple[Schema, list[Growth], _Shape]:
        """Return a dataset's columns with those of an Arrow schema, and what these add.

        Raises:
            UnreadableFile: its batches do not fit.
        """
        found = _described(connection, arrow_schema)
        growth: list[Growth] = []
        if schema is None:
            columns = columns_of(self.spec, found)
            schema = Schema(0, columns, required_columns(self.spec, columns))
            growth.append(Growth(columns, numbers[0]))
        passed_over: frozenset[str] = frozenset()
        if self.spec.evolves:
            brought, passed_over = brought_columns(self.spec, schema, found)
            later = grown_schema(self.spec, schema, [name for name, _ in found], brought)
            if later.columns != schema.columns:
                growth.append(Growth(later.columns, numbers[0]))
                schema = later
        select_rows(self.spec, schema, found, "incoming", "0", passed_over)
        return schema, growth, _Shape(numbers, found, passed_over)

    def _source(self, schema: Schema, shape: _Shape, first: int) -> RowSource:
        """Read the batches of a shape, whose first ordinal is given, as rows of the columns that all shapes have."""
        name = f"incoming_{first}"
        if len(shape.numbers) == 1:
            table, ordinal = self._tables[shape.numbers[0]], str(first)
        else:
            table, ordinal = with_ordinals([self._tables[number] for number in shape.numbers], first), BATCH_COLUMN
        return RowSource(select_rows(self.spec, schema, shape.found, name, ordinal, shape.passed_over), {name: table})

    def _times(self, order: Sequence[int], schema: Schema) -> list[BatchTimes] | None:
        column: Column = self.spec.time_column(schema.columns)
        found = [batch_times(self._tables[number], column) for number in order]
        known = [each for each in found if each is not None]
        return known if len(known) == len(found) else None


def _in_order_of_arrival(shapes: Sequence[_Shape]) -> list[_Shape]:
    """Split shapes so that their batches follow one another as they came: with a key the later one wins."""
    shape_of = {number: shape for shape in shapes for number in shape.numbers}
    found: list[tuple[_Shape, list[int]]] = []
    for number in sorted(shape_of):
        if found and found[-1][0] is shape_of[number]:
            found[-1][1].append(number)
        else:
            found.append((shape_of[number], [number]))
    return [replace(shape, numbers=numbers) for shape, numbers in found]


# What a schema is to DuckDB costs more to ask than a small batch takes to write; a process sees few schemas.
_MOST_DESCRIBED = 256
_MOST_REMEMBERED_BYTES = 1 << 16
_described_schemas: dict[bytes, list[tuple[str, str]]] = {}


def _described(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> list[tuple[str, str]]:
    """Return what :func:`describe_arrow` does, remembered; metadata counts, as it may say what a type means."""
    key = schema.serialize().to_pybytes()
    found = _described_schemas.get(key)
    if found is None:
        found = describe_arrow(connection, schema)
        if len(key) > _MOST_REMEMBERED_BYTES:
            return found
        if len(_described_schemas) >= _MOST_DESCRIBED:
            _described_schemas.clear()
        _described_schemas[key] = found
    return found

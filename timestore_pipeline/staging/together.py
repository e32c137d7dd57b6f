"""Staging several batches as one segment and one ledger transaction: what ``stage()`` and the writer both do.

Each batch has an answer of its own: what is wrong with one never touches another (invariant 9), and one that is
answered with a receipt is acknowledged (invariant 1).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import duckdb
import pyarrow as pa

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import (
    BatchConflict,
    BatchesRefused,
    BatchRejected,
    StagingQueueFull,
    StorageError,
    TimestoreError,
    TooManyWindows,
)
from timestore_pipeline.ledger.datasets import dataset_schema
from timestore_pipeline.ledger.schemas import SchemaStep, required_columns
from timestore_pipeline.model.columns import BATCH_COLUMN, Column
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.fit import select_rows
from timestore_pipeline.rows.inference import brought_columns, columns_of, grown_schema
from timestore_pipeline.rows.readers import RowSource, read_through, with_ordinals
from timestore_pipeline.rows.reasons import UnreadableFile, readable_reason
from timestore_pipeline.rows.shapes import describe_arrow
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.identity import Client, claims_given_id, content_batch_id
from timestore_pipeline.segments.judging import BatchTimes, batch_times
from timestore_pipeline.segments.segment import write_segment
from timestore_pipeline.staging.frames import table_fingerprint
from timestore_pipeline.staging.receipts import (
    Receipt,
    SegmentSchema,
    StagedMeanwhile,
    acknowledge_segment,
    check_texts,
    known_of,
    reserved_id,
    settle_known,
)
from timestore_pipeline.staging.room import Admission, check_disk, over_share, room_for
from timestore_pipeline.staging.turns import turn
from timestore_pipeline.store import Store

log = logging.getLogger(__name__)

# To write less than this has nothing for a second thread to do (a row group of a segment has 122,880 rows), and sharing
# it between threads costs more than it brings.
_ONE_THREAD_BYTES = 4 << 20


_OF_ROWS = (pa.ArrowException, duckdb.Error, ValueError, TypeError, OverflowError, NotImplementedError, RecursionError)
"""What libraries raise of rows that they cannot read."""


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
        except _OF_ROWS as error:
            raise BatchRejected(dataset, source, readable_reason(error)) from error
        batch = IncomingBatch(batch_id or content_batch_id(fingerprint), fingerprint, source, table.nbytes, client)
        return cls(check_texts(dataset, batch), table)


Answer = Receipt | TimestoreError
"""What became of one batch."""

_Group = dict[int, Incoming]


@dataclass
class Outlook:
    """What a writer's last group found in the ledger, by which the next one is written without asking first.

    The acknowledging transaction looks at everything anyway. Where something has changed it records nothing, and the
    group is done again after asking: a writer that meets batches which are known, or no room, asks each time.
    """

    schema: Schema | None = None
    most_windows: int = 0


def stage_together(
    store: Store, spec: DatasetSpec, incoming: Sequence[Incoming], outlook: Outlook | None = None
) -> list[Answer]:
    """Stage batches whose ids are all different, as one segment; return their answers in the same order.

    An answer is a receipt, or one of the errors that ``stage()`` raises. When there is room for some only, the first
    ones go. ``outlook`` is kept by the caller from one group to its next.
    """
    outlook = outlook or Outlook()
    answers: dict[int, Answer] = {}
    left: _Group = dict(enumerate(incoming))
    while left:
        try:
            found = _attempt(store, spec, left, outlook)
        except TimestoreError as error:
            found = dict.fromkeys(left, error)
        except Exception as error:
            # Of a kind that nobody foresaw. Whichever batch it comes from must not take the others with it.
            outlook.schema = None
            found = _each_alone(store, spec, left, error)
        answers.update(found)
        left = {number: item for number, item in left.items() if number not in answers}
    return [answers[number] for number in range(len(incoming))]


def _each_alone(store: Store, spec: DatasetSpec, left: _Group, error: Exception) -> Mapping[int, Answer]:
    """Stage each batch by itself; one that cannot be read is refused. What was acknowledged before is found again.

    Raises:
        Exception: there is one batch, and its rows are not what is wrong.
    """
    found: dict[int, Answer] = {}
    if len(left) == 1:
        ((number, item),) = left.items()
        if not isinstance(error, _OF_ROWS) or isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException):
            raise error
        return {number: _rejected(spec, item, readable_reason(error), error)}
    for number, item in left.items():
        try:
            found[number] = stage_together(store, spec, [item])[0]
        except Exception as alone:
            log.exception("dataset %r: %s could not be staged", spec.name, item.batch.source)
            failed = TimestoreError(f"dataset {spec.name!r}: {item.batch.source} could not be staged; see the log")
            failed.__cause__ = alone
            found[number] = failed
    return found


def _attempt(store: Store, spec: DatasetSpec, left: _Group, outlook: Outlook) -> Mapping[int, Answer]:
    """Answer some of the batches; none where another process was in the way and it is to be tried again."""
    claims = {
        number
        for number, item in left.items()
        if claims_given_id(item.batch.batch_id, item.batch.fingerprint, item.batch.client)
    }
    if outlook.schema is not None and not claims:
        check_disk(store)
        try:
            return _stage(store, spec, outlook.schema, left, outlook, in_turn=False)
        except (StagedMeanwhile, BatchConflict, StagingQueueFull):
            return {}  # it is not as it was: ask
    with store.ledger.read() as tx:
        batches = [item.batch for item in left.values()]
        known = known_of(tx, spec.name, batches)
        found = None if known or claims else (*room_for(tx, store, spec, batches), dataset_schema(tx, spec))
    if found is None and not known:
        # What has such an id from before they were kept for us is known, and is a repeat.
        return {number: reserved_id(spec.name, left[number].batch) for number in claims}
    if found is None:
        settled = settle_known(store, spec, [item.batch for item in left.values()])
        return {number: settled[item.batch.batch_id] for number, item in left.items() if item.batch.batch_id in settled}
    limits, admitted, schema = found
    outlook.most_windows = limits.max_windows
    check_disk(store)
    group: _Group = {}
    over: dict[int, Answer] = {}
    for (number, item), admission in zip(left.items(), admitted, strict=True):
        if admission is Admission.TAKEN:
            group[number] = item
        elif admission is Admission.OVER_SHARE:
            over[number] = over_share(spec, limits, item.batch)
    if not group:
        return over
    try:
        with turn(store, spec, limits) as in_turn:
            return {**over, **_stage(store, spec, schema, group, outlook, in_turn=in_turn)}
    except (StagedMeanwhile, BatchConflict):
        return {}  # the ledger knows more by now
    except StagingQueueFull:
        if len(group) == 1:
            raise
        return {}  # it filled up meanwhile, but not so far that none of them fits


def _stage(
    store: Store, spec: DatasetSpec, schema: Schema | None, group: _Group, outlook: Outlook, *, in_turn: bool
) -> dict[int, Answer]:
    outlook.schema = None
    answers: dict[int, Answer] = {}
    size = sum(item.batch.source_bytes for item in group.values())
    with store.writers.connection(threads=1 if size < _ONE_THREAD_BYTES else None) as connection:
        plan = _plan(connection, spec, schema, group, answers)
        order = plan.order
        if not order or plan.schema is None:
            return answers
        batches = [group[number].batch for number in order]
        expected_bytes = sum(batch.source_bytes for batch in batches)
        try:
            written = write_segment(
                store,
                connection,
                spec,
                plan.schema.columns,
                plan.sources,
                batches=batches,
                expected_bytes=expected_bytes,
                times=_times([group[number].table for number in order], spec.time_column(plan.schema.columns)),
                most_windows=outlook.most_windows,
            )
        except TooManyWindows as error:
            with store.ledger.read() as tx:
                if store.policy(tx, spec).limits.max_windows == error.limit:
                    answers.update(_refused(spec, group, order, error))
            return answers  # if the limit is another one now, it is asked for again
        except StorageError:
            raise  # says all that there is to say
        except (duckdb.Error, OSError) as error:
            if isinstance(error, duckdb.Error) and not isinstance(error, duckdb.OutOfMemoryException):
                answers.update(_unreadable(connection, spec, plan.schema, group, order))
            if answers:
                return answers
            raise TimestoreError(
                f"dataset {spec.name!r}: {_named(group)} could not be written to a segment: {readable_reason(error)}. "
                "Nothing was staged; check disk and memory (TIMESTORE_DUCKDB_MEMORY_LIMIT) and try again."
            ) from error
    segment_schema = SegmentSchema(plan.schema.version, tuple(plan.steps))
    try:
        receipts = acknowledge_segment(store, spec, segment_schema, written, batches, in_turn=in_turn).receipts
    except BatchesRefused as error:
        return {**answers, **_refused(spec, group, order, error)}
    if not (answers or plan.steps or in_turn):
        outlook.schema = plan.schema
    return {**answers, **dict(zip(order, receipts, strict=True))}


@dataclass
class _Plan:
    """The dataset's columns, what is to be taken up for them, and how to read the batches that fit, by ordinal."""

    schema: Schema | None = None
    steps: list[SchemaStep] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    sources: list[RowSource] = field(default_factory=list)


@dataclass(frozen=True)
class _Shape:
    """Batches of one Arrow schema, which are read in one statement, and those of its columns that tell no type yet."""

    numbers: list[int]
    found: list[tuple[str, str]]
    passed_over: frozenset[str]


def _plan(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    schema: Schema | None,
    group: _Group,
    answers: dict[int, Answer],
) -> _Plan:
    """Plan one segment: take up what the batches bring, and answer those that do not fit."""
    plan = _Plan(schema, [SchemaStep(schema.columns)] if schema is not None and schema.version == 0 else [])
    by_schema: dict[pa.Schema, list[int]] = {}
    for number, item in group.items():
        by_schema.setdefault(item.table.schema, []).append(number)
    shapes: list[_Shape] = []
    for arrow_schema, numbers in by_schema.items():
        try:
            shapes.append(_take_up(connection, spec, plan, group, arrow_schema, numbers))
        except UnreadableFile as error:
            answers.update({number: _rejected(spec, group[number], str(error), error) for number in numbers})
    for shape in _in_order_of_arrival(shapes) if spec.key else shapes:
        _add_source(spec, plan, group, shape)
    return plan


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


def _take_up(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    plan: _Plan,
    group: _Group,
    arrow_schema: pa.Schema,
    numbers: list[int],
) -> _Shape:
    """Let the plan's columns grow by those of a schema, unless its batches do not fit.

    Raises:
        UnreadableFile: they do not.
    """
    found = _described(connection, arrow_schema)
    batch = group[numbers[0]].batch
    steps: list[SchemaStep] = []
    schema = plan.schema
    if schema is None:
        columns = columns_of(spec, found)
        schema = Schema(0, columns, required_columns(spec, columns))
        steps.append(SchemaStep(columns, batch.batch_id, batch.source))
    passed_over: frozenset[str] = frozenset()
    if spec.evolves:
        brought, passed_over = brought_columns(spec, schema, found)
        later = grown_schema(spec, schema, [name for name, _ in found], brought)
        if later.columns != schema.columns:
            steps.append(SchemaStep(later.columns, batch.batch_id, batch.source))
            schema = later
    select_rows(spec, schema, found, "incoming", "0", passed_over)
    plan.schema, plan.steps = schema, [*plan.steps, *steps]
    return _Shape(numbers, found, passed_over)


def _add_source(spec: DatasetSpec, plan: _Plan, group: _Group, shape: _Shape) -> None:
    """Read the batches of a shape as rows of the columns that all shapes together have."""
    first = len(plan.order)
    name = f"incoming_{first}"
    if len(shape.numbers) == 1:
        table, ordinal = group[shape.numbers[0]].table, str(first)
    else:
        table, ordinal = with_ordinals([group[number].table for number in shape.numbers], first), BATCH_COLUMN
    assert plan.schema is not None
    sql = select_rows(spec, plan.schema, shape.found, name, ordinal, shape.passed_over)
    plan.sources.append(RowSource(sql, {name: table}))
    plan.order += shape.numbers


def _times(tables: Sequence[pa.Table], column: Column) -> list[BatchTimes] | None:
    found = [batch_times(table, column) for table in tables]
    known = [each for each in found if each is not None]
    return known if len(known) == len(found) else None


def _unreadable(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    schema: Schema,
    group: _Group,
    order: Sequence[int],
) -> dict[int, Answer]:
    """Find the batches that made a segment fail, by reading each alone."""
    found: dict[int, Answer] = {}
    for number in order:
        table = group[number].table
        described = _described(connection, table.schema)
        passed_over = {name for name, _ in described} - {column.name for column in schema.columns}
        sql = select_rows(spec, schema, described, "alone", "0", passed_over)
        try:
            read_through(connection, RowSource(sql, {"alone": table}))
        except duckdb.OutOfMemoryException:
            return {}  # which says nothing of the rows
        except UnreadableFile as error:
            found[number] = _rejected(spec, group[number], str(error), error)
    return found


def _refused(spec: DatasetSpec, group: _Group, order: Sequence[int], error: BatchesRefused) -> dict[int, Answer]:
    found = {order[ordinal]: reason for ordinal, reason in error.reasons.items()}
    return {number: _rejected(spec, group[number], reason, error) for number, reason in found.items()}


def _rejected(spec: DatasetSpec, item: Incoming, reason: str, cause: BaseException) -> BatchRejected:
    error = BatchRejected(spec.name, item.batch.source, reason)
    error.__cause__ = cause
    return error


def _named(group: _Group) -> str:
    first = next(iter(group.values())).batch.source
    return first if len(group) == 1 else f"{first} and {len(group) - 1} more batches"


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

"""Frames as one load: what ``stage()`` and the writer both do with the batches that callers hand over."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import duckdb
import pyarrow as pa

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import BadRange, BatchRejected, SegmentNotWritten, TimestoreError
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.model.windows import Moment, TimeRange
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.formats.format import Reader
from timestore_pipeline.rows.read_plan import ReadPlan, plan_reads
from timestore_pipeline.rows.reasons import readable_reason
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.identity import Client, content_batch_id
from timestore_pipeline.segments.judging import BatchTimes, batch_times
from timestore_pipeline.staging.frames import table_fingerprint
from timestore_pipeline.staging.incoming import OF_ROWS, Rows, as_replacement
from timestore_pipeline.staging.load import Loaded, Outlook, load
from timestore_pipeline.staging.receipts import check_texts
from timestore_pipeline.store import Store

# To write less than this has nothing for a second thread to do (a row group of a segment has 122,880 rows), and sharing
# it between threads costs more than it brings.
_ONE_THREAD_BYTES = 4 << 20


@dataclass(frozen=True)
class Sent:
    """What a server knows of a batch that was sent to it: the hash of what it was read from, and who sent it."""

    fingerprint: str | None = None
    client: Client | None = None


NOT_SENT = Sent()
"""Of a batch that came from the program itself."""


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
        sent: Sent = NOT_SENT,
    ) -> Incoming:
        """Return a table as a batch, named after its content where it has no ``batch_id``.

        Where it was ``sent`` with a hash of what it was read from, that is its content.

        Raises:
            BatchRejected: its id or source is one that no ledger can hold.
        """
        try:
            fingerprint = sent.fingerprint or table_fingerprint(table)
        except OF_ROWS as error:
            raise BatchRejected(dataset, source, readable_reason(error)) from error
        batch = IncomingBatch(batch_id or content_batch_id(fingerprint), fingerprint, source, table.nbytes, sent.client)
        return cls(check_texts(dataset, batch), table)

    def replacing(self, store: Store, dataset: str, replaces: TimeRange, *, named: bool) -> Incoming:
        """Return the batch as one that replaces a range of times, as :func:`as_replacement` does.

        Without a column, and so without a row, it has the dataset's: frames that were made of no row often have none.
        """
        table = self.table
        if not table.num_columns:
            with store.ledger.read() as tx:
                columns = dataset_columns(tx, store.datasets[dataset]) or ()
            table = pa.table({column.name: pa.nulls(0) for column in columns})
        return Incoming(as_replacement(store, dataset, self.batch, replaces, named=named), table)


def range_of(dataset: str, ends: tuple[Moment, Moment] | None) -> TimeRange | None:
    """Return the range of times from the first to before the second of two moments; None of none.

    Raises:
        BadRange: they are no such range.
    """
    if ends is None:
        return None
    try:
        start, end = ends
        return TimeRange.between(start, end)
    except (ValueError, TypeError, AttributeError) as error:
        raise BadRange(dataset, str(error)) from error


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


class FrameRows(Rows):
    """The rows of tables in memory."""

    def __init__(self, store: Store, spec: DatasetSpec, incoming: Sequence[Incoming]) -> None:
        super().__init__(store, spec, [item.batch for item in incoming])
        self._tables = [item.table for item in incoming]

    def connection(self, numbers: Sequence[int]) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Return a connection, of one thread where there is little to write."""
        size = sum(self.batches[number].source_bytes for number in numbers)
        return self.store.writers.connection(threads=1 if size < _ONE_THREAD_BYTES else None)

    def plan(self, connection: duckdb.DuckDBPyConnection, schema: Schema | None, numbers: Sequence[int]) -> ReadPlan:
        """Plan to read batches of one schema together."""
        reader = Reader(connection, self.spec, Bounds.of(self.store.settings))
        return plan_reads(reader, schema, {number: self._tables[number] for number in numbers}, {})

    def times(self, plan: ReadPlan) -> Sequence[BatchTimes] | None:
        """Return the times in the tables."""
        assert plan.schema is not None
        column = self.spec.time_column(plan.schema.columns)
        found = [batch_times(self._tables[number], column) for number in plan.order]
        known = [each for each in found if each is not None]
        return known if len(known) == len(found) else None

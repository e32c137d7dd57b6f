"""Batches on their way in: what a load has to know of their rows, be they frames, files or rows out of quarantine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import duckdb
import pyarrow as pa
from sqlalchemy import Connection

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import BatchRejected, TimestoreError
from timestore_pipeline.ledger.batches import BatchOrder
from timestore_pipeline.ledger.corrections import corrections_so_far, last_word
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.model.windows import TimeRange
from timestore_pipeline.rows.read_plan import ReadPlan
from timestore_pipeline.rows.reasons import UnreadableFile
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.identity import replacement_batch_id, replacement_fingerprint
from timestore_pipeline.segments.judging import BatchTimes
from timestore_pipeline.segments.segment import WrittenSegment
from timestore_pipeline.store import Store

OF_ROWS = (
    UnreadableFile,
    pa.ArrowException,
    duckdb.Error,
    ValueError,
    TypeError,
    OverflowError,
    NotImplementedError,
    RecursionError,
)
"""What is raised of rows that cannot be read."""


def as_replacement(
    store: Store, dataset: str, batch: IncomingBatch, replaces: TimeRange, *, named: bool
) -> IncomingBatch:
    """Return a batch as one whose rows are all that there is to be of a range of times.

    ``named`` says that its caller has named it. Else it has the name that it was given before, where it is the last
    that was said of the range, and so is a repeat; and a new one where anything came after it.
    """
    fingerprint = replacement_fingerprint(batch.fingerprint, replaces)
    batch_id = batch.batch_id
    if not named:
        with store.ledger.read() as tx:
            last = last_word(tx, dataset, fingerprint)
            number = corrections_so_far(tx, dataset) + 1
        batch_id = last.batch_id if last is not None else replacement_batch_id(fingerprint, number)
    return replace(batch, batch_id=batch_id, fingerprint=fingerprint, replaces=replaces)


class Rows(ABC):
    """The rows of batches, which go by their numbers: frames, files, or rows out of quarantine."""

    take_late = False
    """Stage rows of closed windows whatever the dataset does with them, because somebody said so."""

    ids_are_ours = False
    """The batches have ids that the project has given them."""

    order: BatchOrder | None = None
    """Where the rows stand among others, where they keep the places that they had."""

    def __init__(self, store: Store, spec: DatasetSpec, batches: Sequence[IncomingBatch]) -> None:
        self.store = store
        self.spec = spec
        self.batches = batches

    def connection(self, numbers: Sequence[int]) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Return a connection that reads these batches and writes their segment."""
        del numbers
        return self.store.writers.connection()

    @abstractmethod
    def plan(self, connection: duckdb.DuckDBPyConnection, schema: Schema | None, numbers: Sequence[int]) -> ReadPlan:
        """Plan a segment of these batches, of a dataset that has the columns of ``schema``; None: none yet."""

    def times(self, plan: ReadPlan) -> Sequence[BatchTimes] | None:
        """Return the times of the batches of a plan, where they are known without reading them."""
        del plan
        return None

    def unreadable(
        self, connection: duckdb.DuckDBPyConnection, schema: Schema | None, number: int, reason: str
    ) -> TimestoreError | None:
        """Return what a batch is answered that cannot be read; None where it is to be read in another way now."""
        del connection, schema
        return self.rejected(number, reason)

    def withheld(self, order: Sequence[int], written: WrittenSegment) -> Mapping[int, TimestoreError]:
        """Return what batches are answered that are not to be acknowledged after all, now that they are written."""
        del order, written
        return {}

    def record(self, tx: Connection) -> None:
        """Do what is to be done in the transaction that acknowledges the batches: by default nothing."""
        del tx

    def rejected(self, number: int, reason: str, cause: BaseException | None = None) -> BatchRejected:
        """Return what a batch is answered that cannot be staged as it is."""
        error = BatchRejected(self.spec.name, self.batches[number].source, reason)
        error.__cause__ = cause
        return error

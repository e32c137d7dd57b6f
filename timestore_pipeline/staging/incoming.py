"""Batches on their way in: what a load has to know of their rows, be they frames, files or rows out of quarantine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
from sqlalchemy import Connection

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import BatchRejected, TimestoreError
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.readers import RowSource
from timestore_pipeline.rows.reasons import UnreadableFile
from timestore_pipeline.segments.description import IncomingBatch
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


@dataclass(frozen=True)
class Growth:
    """Columns that the dataset gets, and the number of the batch that brings them."""

    columns: tuple[Column, ...]
    number: int


@dataclass(frozen=True)
class Plan:
    """How the rows of batches become those of one segment.

    ``order`` has the batches' numbers by ordinal, ``refused`` why others do not fit. ``sources`` select the columns of
    ``schema``, to which each of ``growth`` has added something; it is None where nothing tells what columns there are.
    ``times`` are those of the batches by ordinal, where they are known without reading them; ``position`` is the
    place of row number 0, where the rows keep the places that they had.
    """

    schema: Schema | None
    order: Sequence[int] = ()
    sources: Sequence[RowSource] = ()
    refused: Mapping[int, str] = field(default_factory=dict)
    growth: Sequence[Growth] = ()
    times: Sequence[BatchTimes] | None = None
    position: int | None = None


class Rows(ABC):
    """The rows of batches, which go by their numbers: frames, files, or rows out of quarantine."""

    take_late = False
    """Stage rows of closed windows whatever the dataset does with them, because somebody said so."""

    ids_are_ours = False
    """The batches have ids that the project has given them."""

    def __init__(self, store: Store, spec: DatasetSpec, batches: Sequence[IncomingBatch]) -> None:
        self.store = store
        self.spec = spec
        self.batches = batches

    def connection(self, numbers: Sequence[int]) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Return a connection that reads these batches and writes their segment."""
        del numbers
        return self.store.writers.connection()

    @abstractmethod
    def plan(self, connection: duckdb.DuckDBPyConnection, schema: Schema | None, numbers: Sequence[int]) -> Plan:
        """Plan a segment of these batches, of a dataset that has the columns of ``schema``; None: none yet."""

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

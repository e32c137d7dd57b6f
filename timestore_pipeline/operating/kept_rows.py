"""Rows out of quarantine as one load: the refused rows of a batch, which are staged as a batch of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
from sqlalchemy import Connection

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import file_literal, select_as
from timestore_pipeline.errors import EntryUnusable, TimestoreError
from timestore_pipeline.ledger.batches import order_of_batch, ordinal_of_batch
from timestore_pipeline.ledger.quarantine import QuarantineEntry, resolve_entry
from timestore_pipeline.ledger.states import QuarantineState
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import BATCH_COLUMN, ROW_COLUMN, Column
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.formats.format import describe
from timestore_pipeline.rows.read_plan import ReadPlan, RowSource
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.identity import MAX_BATCH_ID, RETRY_MARK
from timestore_pipeline.segments.judging import reason_in_words
from timestore_pipeline.segments.segment import WrittenSegment
from timestore_pipeline.staging.arrivals import file_fingerprint
from timestore_pipeline.staging.incoming import Rows
from timestore_pipeline.store import Store


def retry_batch_id(entry: QuarantineEntry) -> str:
    """Return the batch id under which the rows of an entry are staged again; the same each time."""
    mark = f"{RETRY_MARK}{entry.id}"
    short, hashed = origins_of_retry(entry.batch_id)
    return (short if len(short) + len(mark) <= MAX_BATCH_ID else hashed) + mark


def origins_of_retry(batch_id: str) -> tuple[str, str]:
    """Return with what the ids of retried rows of a batch begin: its own id, or where that is too long its hash.

    Rows that were impossible twice do not make the id longer each time.
    """
    origin = batch_id.partition(RETRY_MARK)[0]
    return origin, f"batch-{hashlib.sha256(origin.encode()).hexdigest()}"


class KeptRows(Rows):
    """The refused rows of one batch, which are staged as a batch of their own; closed windows take them."""

    take_late = True
    ids_are_ours = True

    def __init__(self, store: Store, spec: DatasetSpec, entry: QuarantineEntry, path: Path, by: str) -> None:
        with store.ledger.read() as tx:
            self._ordinal = ordinal_of_batch(tx, spec.name, entry.batch_id)
            self.order = order_of_batch(tx, spec.name, entry.batch_id)
        content = hashlib.sha256(f"{file_fingerprint(path)}/{self._ordinal}".encode()).hexdigest()
        super().__init__(store, spec, [IncomingBatch(retry_batch_id(entry), content, entry.source, entry.bytes)])
        self._entry = entry
        self._path = path
        self._by = by
        self.left: str | None = None

    def plan(self, connection: duckdb.DuckDBPyConnection, schema: Schema | None, numbers: Sequence[int]) -> ReadPlan:
        """Read the rows back as they are; with a key they keep their places: what was staged since then is newer."""
        if schema is None:
            raise EntryUnusable(self._entry.id, self._path)  # rows of a dataset without columns cannot be
        kept = f"read_parquet({file_literal(self._path)})"
        number = f", {ROW_COLUMN}" if self.spec.key else ""
        stored = [Column(name, type_) for name, type_ in describe(connection, kept)]
        rows = RowSource(
            f"SELECT {select_as(schema.columns, stored)}, 0 AS {BATCH_COLUMN}{number} FROM {kept} "
            f"WHERE {BATCH_COLUMN} = {self._ordinal}",
            numbered=self.spec.key is not None,
        )
        return ReadPlan(schema, [rows], numbers)

    def unreadable(
        self, connection: duckdb.DuckDBPyConnection, schema: Schema | None, number: int, reason: str
    ) -> TimestoreError | None:
        """Return that the file is damaged."""
        del connection, schema
        return self.rejected(number, f"the rows cannot be read back: {reason}")

    def withheld(self, order: Sequence[int], written: WrittenSegment) -> Mapping[int, TimestoreError]:
        """Leave the rows where they are unless one of them can be staged; of the others there is an entry then."""
        self.left = reason_in_words(written.refused.get(0, ())) or None
        if written.row is not None:
            return {}
        return dict.fromkeys(order, self.rejected(0, self.left or "the file has no rows of this batch"))

    def record(self, tx: Connection) -> None:
        """Resolve the entry."""
        resolve_entry(tx, self._entry.id, QuarantineState.RETRIED, self._by, now_micros())

"""Batches from requests into the library: one writer per dataset, opened when it is first needed, shared by all."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace

import duckdb
import pyarrow as pa
from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from timestore_pipeline.cpu_time import CpuBudget, TookTooLong
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import BatchConflict, BatchIdReserved, BatchRejected
from timestore_pipeline.http.bodies import Holding
from timestore_pipeline.http.decoding import ROWS_AT_ONCE, Format, Reading, content_of, read_rows, reading_connection
from timestore_pipeline.http.offending import BadRows, bad_rows
from timestore_pipeline.http.problems import Problem, later, rejected
from timestore_pipeline.http.shares import Turns
from timestore_pipeline.ledger.datasets import dataset_schema
from timestore_pipeline.model.windows import TimeRange, from_micros
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.formats.arrow_files import describe_arrow
from timestore_pipeline.rows.reasons import NoRows, UnreadableFile
from timestore_pipeline.segments.identity import Client, file_batch_id
from timestore_pipeline.staging.frame_rows import Sent
from timestore_pipeline.staging.incoming import as_replacement
from timestore_pipeline.staging.receipts import IncomingBatch, Receipt, settle_known
from timestore_pipeline.staging.writer import Writer
from timestore_pipeline.timestore import Timestore


@dataclass(frozen=True)
class Posted:
    """A request's batch, with its body as it came."""

    dataset: str
    key: str | None
    replaces: TimeRange | None
    source: str
    client: Client | None
    format: Format
    encoding: str
    body: bytes
    holding: Holding


@dataclass(frozen=True)
class _Submitted:
    """A batch that a writer has; ``future`` gets its receipt."""

    spec: DatasetSpec
    batch: IncomingBatch
    table: pa.Table
    future: Future[Receipt]


class Intake:
    """Stages what is posted. Bodies are read in a few threads; the writers' own threads do the rest."""

    def __init__(self, timestore: Timestore) -> None:
        settings = timestore.store.settings
        self._timestore = timestore
        self._settings = settings
        self._bounds = replace(Bounds.of(settings), bytes=settings.http_max_decoded_bytes, rows=settings.http_max_rows)
        # Reading is work for a core, and holds what it reads.
        threads = max(2, os.cpu_count() or 2)
        self._reading = CapacityLimiter(threads)
        self._turns = Turns(threads // 2)
        self._writers: dict[str, Writer] = {}
        self._opening = threading.Lock()

    def close(self) -> None:
        """Answer all that was posted, and take nothing more."""
        for writer in list(self._writers.values()):
            writer.close()

    async def stage(self, posted: Posted, seconds: float) -> Receipt:
        """Stage a batch, and return once it is durable.

        Raises:
            Problem: it cannot be read, or took more than ``seconds``.
            TimestoreError: as ``stage()`` raises.
        """
        submitted = None
        try:
            async with asyncio.timeout(seconds):
                async with self._turns.of(posted.holding.client):
                    submitted = await run_sync(self._submit, posted, limiter=self._reading)
                if isinstance(submitted, Receipt):
                    return submitted
                # Cancelled by the timeout it is taken out of the writer's queue, unless it is being written.
                return await asyncio.wrap_future(submitted.future)
        except TimeoutError:
            detail = "the batch was not durable in time, and may be yet: send it again with the same Idempotency-Key"
            raise later(503, "too-slow", detail, 1) from None
        except BatchRejected as error:
            if not isinstance(submitted, _Submitted) or isinstance(error, BatchIdReserved):
                raise
            async with self._turns.of(posted.holding.client):
                return await run_sync(self._look_again, submitted, error, limiter=self._reading)

    def _submit(self, posted: Posted) -> _Submitted | Receipt:
        store = self._timestore.store
        spec = store.datasets[posted.dataset]
        budget = CpuBudget.of(self._settings.http_decode_seconds)
        reading = Reading(self._bounds, posted.holding, budget)
        key = posted.client.batch_id if posted.client else posted.key
        with content_of(store, posted.format, posted.body, posted.encoding, reading) as content:
            batch_id = key or file_batch_id(content.fingerprint)
            batch = IncomingBatch(batch_id, content.fingerprint, posted.source, content.size, posted.client)
            sent = Sent(batch.fingerprint, batch.client)
            if posted.replaces is not None:
                batch = as_replacement(store, spec.name, batch, posted.replaces, named=key is not None)
            try:
                table = read_rows(store, spec, posted.format, content, reading)
            except Problem as problem:
                # What was taken once is not refused when it is repeated, whatever the dataset's columns are by now.
                known = self._known(spec, batch)
                if known is not None:
                    return known
                if posted.replaces is None or not isinstance(problem.__cause__, NoRows):
                    raise
                table = pa.table({})
        # A replacement without a key gets its name when its turn comes.
        ends = posted.replaces and (from_micros(posted.replaces.start), from_micros(posted.replaces.end))
        batch_id = key if ends else batch.batch_id
        future = self._writer(spec.name).submit(table, batch_id, batch.source, timeout=0, sent=sent, replace=ends)
        return _Submitted(spec, batch, table, future)

    def _look_again(self, submitted: _Submitted, error: BatchRejected) -> Receipt:
        """Find the rows for which the writer refused a typed table, unless it is a repeat."""
        spec, table = submitted.spec, submitted.table
        known = self._known(spec, submitted.batch)
        if known is not None:
            return known
        store = self._timestore.store
        with store.ledger.read() as tx:
            schema = dataset_schema(tx, spec)
        if schema is None:
            raise rejected(str(error))
        bad = BadRows([], more=False)
        cpu_seconds = self._settings.http_decode_seconds
        with (
            suppress(UnreadableFile, TookTooLong, duckdb.Error),
            reading_connection(store, cpu_seconds) as connection,
        ):
            parts = (table.slice(at, ROWS_AT_ONCE) for at in range(0, table.num_rows, ROWS_AT_ONCE))
            bad = bad_rows(connection, spec, schema, parts, describe_arrow(connection, table.schema))
        if not bad.rows:
            raise rejected(str(error))
        raise rejected(f"dataset {spec.name!r}: {bad.in_words}; nothing was staged", bad.rows, more_rows=bad.more)

    def _writer(self, dataset: str) -> Writer:
        with self._opening:
            writer = self._writers.get(dataset)
            if writer is None:
                writer = self._writers[dataset] = self._timestore.writer(
                    dataset, source="HTTP", max_waiting_bytes=self._settings.http_max_held_bytes
                )
            return writer

    def _known(self, spec: DatasetSpec, batch: IncomingBatch) -> Receipt | None:
        (known,) = settle_known(self._timestore.store, spec, [batch])
        if isinstance(known, BatchConflict):
            raise known
        return known

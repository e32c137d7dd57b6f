"""Batches from requests into the library: one writer per dataset, opened when it is first needed, shared by all."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass

import pyarrow as pa
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from blake3 import blake3

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import BatchConflict, BatchIdReserved, BatchRejected
from timestore_pipeline.http.bodies import unpack
from timestore_pipeline.http.decoding import Bounds, Format, read_rows
from timestore_pipeline.http.offending import BadRows, bad_rows
from timestore_pipeline.http.problems import Problem, later, rejected
from timestore_pipeline.landing.shapes import UnreadableFile, describe_arrow
from timestore_pipeline.ledger.schemas import dataset_schema
from timestore_pipeline.staging.identity import Client, file_batch_id
from timestore_pipeline.staging.receipts import IncomingBatch, Receipt, settle_known
from timestore_pipeline.staging.writer import Writer
from timestore_pipeline.timestore import Timestore


@dataclass(frozen=True)
class Posted:
    """A request's batch, with its body as it came."""

    dataset: str
    key: str | None
    source: str
    client: Client | None
    format: Format
    encoding: str
    body: bytes


@dataclass(frozen=True)
class _Submitted:
    """A batch that a writer has; ``future`` gets its receipt."""

    spec: DatasetSpec
    batch: IncomingBatch
    table: pa.Table
    future: Future[Receipt]


class Intake:
    """Stages what is posted. Bodies are read in a few threads; the writers' own threads do the rest."""

    def __init__(self, timestore: Timestore, bounds: Bounds) -> None:
        self._timestore = timestore
        self._bounds = bounds
        # Reading is work for a core, and holds an unpacked body.
        self._reading = CapacityLimiter(max(2, os.cpu_count() or 2))
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
            return await run_sync(self._look_again, submitted, error, limiter=self._reading)

    def _submit(self, posted: Posted) -> _Submitted | Receipt:
        store = self._timestore.store
        spec = store.datasets[posted.dataset]
        content = unpack(posted.body, posted.encoding, self._bounds.bytes)
        fingerprint = blake3(content).hexdigest()
        key = posted.client.batch_id if posted.client else posted.key
        batch_id = key or file_batch_id(fingerprint)
        batch = IncomingBatch(batch_id, fingerprint, posted.source, len(content), posted.client)
        try:
            table = read_rows(store, spec, posted.format, content, self._bounds)
        except Problem:
            # What was taken once is not refused when it is repeated, whatever the dataset's columns are by now.
            known = self._known(spec, batch)
            if known is None:
                raise
            return known
        future = self._writer(spec.name).submit(
            table, batch.batch_id, batch.source, timeout=0, fingerprint=batch.fingerprint, client=batch.client
        )
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
        with store.writers.connection() as connection:
            try:
                bad = bad_rows(connection, spec, schema, table, describe_arrow(connection, table.schema))
            except UnreadableFile:
                bad = BadRows([], more=False)
        if not bad.rows:
            raise rejected(str(error))
        raise rejected(f"dataset {spec.name!r}: {bad.in_words}; nothing was staged", bad.rows, more_rows=bad.more)

    def _writer(self, dataset: str) -> Writer:
        with self._opening:
            writer = self._writers.get(dataset)
            if writer is None:
                writer = self._writers[dataset] = self._timestore.writer(dataset, source="HTTP")
            return writer

    def _known(self, spec: DatasetSpec, batch: IncomingBatch) -> Receipt | None:
        known = settle_known(self._timestore.store, spec, [batch]).get(batch.batch_id)
        if isinstance(known, BatchConflict):
            raise known
        return known

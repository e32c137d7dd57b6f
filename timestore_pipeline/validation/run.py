"""Runs a load through an installation: half of the batches by ``stage()``, half as landing files.

Batches come from threads at a chosen rate, while this process does what the sensors and their runs do: it takes
landing files in and flushes what is due, by the installation's own thresholds and limits, at its sensors' intervals.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc

from timestore_pipeline.building.due import plan_flushes
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.errors import BuildInFlight, TimestoreError
from timestore_pipeline.landing.files import files_for_one_run, scan_landing
from timestore_pipeline.ledger.history import arrivals, flushes
from timestore_pipeline.ledger.queue import QueueState, queue_of
from timestore_pipeline.policy import Policy, ServiceLevels
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.staging.ingest import ingest_files
from timestore_pipeline.staging.retry import REFUSALS
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage.table_folder import has_table
from timestore_pipeline.store import Store
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.validation.scratch import extend_lease, scratch_name, scratch_store
from timestore_pipeline.validation.verdict import Check, LoadSize, Measurements, RowCount, checks

PRODUCERS = 4
_LOOK_SECONDS = 0.2
_LEASE_SECONDS = 10
_READ_SECONDS = 2.0
_SAY_SECONDS = 5.0
# What settling may take beyond the age at which rows are flushed.
_GRACE_SECONDS = 30.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Validation:
    """What was measured, what was promised, and whether the one keeps the other."""

    measurements: Measurements
    levels: ServiceLevels
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether all that is promised was kept."""
        return all(check.passed is not False for check in self.checks)


def validate(
    store: Store, load: LoadSize, *, like: str | None = None, progress: Progress = lambda text: None
) -> Validation:
    """Put ``load`` through the installation in a scratch dataset, and hold what happens against what is promised.

    Args:
        store: the installation.
        load: how much, and for how long.
        like: a dataset whose window, thresholds and limits the scratch dataset gets.
        progress: called with a sentence every few seconds.

    Raises:
        UnknownDataset: ``like`` is not declared.
        TimestoreError: the installation cannot be used at all.
    """
    with scratch_store(store, like) as scratch:
        spec = scratch.datasets[scratch_name(scratch)]
        levels = Policy.of(scratch.settings, spec).levels
        measurements = _Run(scratch, load, progress).measure()
    return Validation(measurements, levels, tuple(checks(measurements, levels)))


@dataclass
class _Tally:
    """What the producers and the taking in of their files have reached; guarded by ``lock``."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    offered_rows: int = 0
    last_began: float = 0.0
    acknowledged: dict[int, int] = field(default_factory=dict)
    in_files: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    stage_seconds: list[float] = field(default_factory=list)

    def acknowledge(self, batch: int, rows: int) -> None:
        with self.lock:
            self.acknowledged[batch] = rows

    @property
    def acknowledged_rows(self) -> int:
        with self.lock:
            return sum(self.acknowledged.values())

    def fail(self, error: Exception) -> None:
        with self.lock:
            if type(error) in REFUSALS:
                self.refused += 1
            else:
                self.errors.append(str(error) or type(error).__name__)


class _Run:
    def __init__(self, scratch: Store, load: LoadSize, progress: Progress) -> None:
        self._store = scratch
        self._name = scratch_name(scratch)
        self._spec = scratch.datasets[self._name]
        self._load = load
        self._progress = progress
        self._tally = _Tally()
        self._stop = threading.Event()
        self._owner = f"validation:{socket.gethostname()}:{os.getpid()}"
        self._next: dict[str, float] = {}
        self._most_pending = 0
        self._reads = 0
        self._wrong_reads: list[str] = []
        self._by_hand = 0

    def measure(self) -> Measurements:
        started = time.monotonic()
        with ThreadPoolExecutor(PRODUCERS, thread_name_prefix="timestore-load") as pool:
            try:
                futures = [pool.submit(self._produce, number, started) for number in range(self._load.batches)]
                while not all(future.done() for future in futures):
                    self._work(started)
                    time.sleep(_LOOK_SECONDS)
            finally:
                self._stop.set()
        # Until the last batch had its turn: what this process did meanwhile in place of the sensors is no load.
        loaded = self._tally.last_began - started + 1 / self._load.batches_per_second
        ended = time.monotonic()
        self._take_files()
        self._settle(started)
        settled = time.monotonic() - ended
        with self._store.ledger.read() as tx:
            past, flushed = arrivals(tx, self._name, 0), flushes(tx, self._name, 0)
        return Measurements(
            load=self._load,
            loaded_seconds=loaded,
            settled_seconds=settled,
            acknowledged=self._tally.acknowledged,
            refused=self._tally.refused,
            errors=self._tally.errors,
            pending_batches=self._queue().pending_batches,
            most_pending=self._most_pending,
            flushed_by_hand=self._by_hand,
            flushes=[each.duration_micros / 1e6 for each in flushed],
            waits=[(each.published_at - each.staged_at) / 1e6 for each in past if each.published_at is not None],
            reads=self._reads,
            wrong_reads=self._wrong_reads,
            readable=self._readable(),
            in_table=self._in_table(),
            stage_seconds=self._tally.stage_seconds,
        )

    def _produce(self, number: int, started: float) -> None:
        self._stop.wait(max(0.0, started + number / self._load.batches_per_second - time.monotonic()))
        if self._stop.is_set():
            return
        table = _rows(number, self._load.rows_per_batch)
        with self._tally.lock:
            self._tally.offered_rows += table.num_rows
            self._tally.last_began = time.monotonic()
        try:
            if number % 2:
                self._drop_file(number, table)
                return
            began = time.monotonic()
            stage(self._store, self._name, table, batch_id=f"batch {number}", source="timestore validate")
            self._tally.stage_seconds.append(time.monotonic() - began)
            self._tally.acknowledge(number, table.num_rows)
        except Exception as error:  # what goes wrong is what a validation is there to find
            self._tally.fail(error)

    def _drop_file(self, number: int, table: pa.Table) -> None:
        name = f"batch-{number}.csv"
        with self._tally.lock:
            self._tally.in_files[name] = number
        landing = self._store.landing
        scratch = landing.scratch(f"{self._name}/{name}")
        pc.write_csv(table, scratch)
        landing.put(scratch, f"{self._name}/{name}")

    def _work(self, started: float) -> None:
        """Do what is due now of what the daemon does, and look whether all rows are there."""
        settings = self._store.settings
        self._every("lease", _LEASE_SECONDS, lambda: extend_lease(self._store, self._name))
        self._every("landing", settings.landing_sensor_interval_seconds, self._take_files)
        self._every("flush", settings.flush_sensor_interval_seconds, self._flush_if_due)
        self._every("read", _READ_SECONDS, self._read)
        self._every("say", _SAY_SECONDS, lambda: self._say(started))
        self._most_pending = max(self._most_pending, self._queue().pending_batches)

    def _every(self, what: str, seconds: float, act: Callable[[], Any]) -> None:
        if time.monotonic() >= self._next.get(what, 0.0):
            self._next[what] = time.monotonic() + seconds
            act()

    def _take_files(self) -> None:
        try:
            shares = files_for_one_run(self._store, scan_landing(self._store, [self._name]))
            if not shares:
                return
            files = shares[self._name]
            report = ingest_files(self._store, self._name, files)
            if report.quarantined or report.skipped:
                said = [*(entry.reason for entry in report.quarantined), *report.skipped]
                raise TimestoreError("; ".join(said))
        except Exception as error:
            self._tally.fail(error)
            return
        for file in files:
            self._tally.acknowledge(self._tally.in_files[file.path.name], self._load.rows_per_batch)

    def _flush_if_due(self) -> None:
        for group in plan_flushes(self._store).groups:
            for request in group.requests:
                self._build(request.trigger)

    def _build(self, trigger: Trigger) -> None:
        try:
            flush_windows(self._store, BuildOrder(self._name, owner=self._owner, trigger=trigger))
        except BuildInFlight:
            pass
        except Exception as error:
            self._tally.fail(error)

    def _settle(self, started: float) -> None:
        """Wait until nothing is staged: until its age at most, or by hand where no threshold will ever take it."""
        max_age_ms = Policy.of(self._store.settings, self._spec).flush.max_age_ms
        deadline = time.monotonic() + max_age_ms / 1e3 + _GRACE_SECONDS
        while self._outstanding() and time.monotonic() < deadline:
            self._work(started)
            self._flush_if_due()
            left = self._queue()
            if left.pending_batches and not max_age_ms:
                # Nothing more comes in, so no threshold of rows or bytes will be reached any more.
                self._by_hand += left.pending_batches
                self._build(Trigger.MANUAL)
            time.sleep(_LOOK_SECONDS)
        self._read()

    def _outstanding(self) -> bool:
        return bool(self._queue().pending_batches or scan_landing(self._store, [self._name]).files)

    def _queue(self) -> QueueState:
        with self._store.ledger.read() as tx:
            return queue_of(tx, self._name)

    def _read(self) -> None:
        """Count the rows as a reader sees them: no fewer than were acknowledged before, no more than were offered."""
        least = self._tally.acknowledged_rows
        if not least:
            return
        try:
            with open_reader(self._store, [self._name]) as connection:
                row = connection.execute(f'SELECT count(*), count(DISTINCT number) FROM "{self._name}"').fetchone()
        except Exception as error:
            self._tally.fail(error)
            return
        assert row is not None
        with self._tally.lock:
            most = self._tally.offered_rows
        self._reads += 1
        rows, distinct = row
        if distinct < least or rows > most or rows != distinct:
            self._wrong_reads.append(
                f"{rows:,} rows were readable ({distinct:,} different), {least:,} were acknowledged"
            )

    def _say(self, started: float) -> None:
        queue = self._queue()
        acknowledged = len(self._tally.acknowledged)
        self._progress(
            f"{time.monotonic() - started:.0f} s: {acknowledged:,} of {self._load.batches:,} batches acknowledged, "
            f"{queue.pending_batches:,} staged"
        )

    def _readable(self) -> dict[int, RowCount]:
        with open_reader(self._store, [self._name]) as connection:
            found = connection.execute(
                f'SELECT batch, count(*), count(DISTINCT number) FROM "{self._name}" GROUP BY batch'
            ).fetchall()
        return {batch: RowCount(rows, distinct) for batch, rows, distinct in found}

    def _in_table(self) -> dict[int, RowCount]:
        place = self._store.table(self._name)
        if not has_table(place):
            return {}
        table = open_table(place, self._name).to_pyarrow_table(columns=["batch", "number"])
        grouped = table.group_by("batch").aggregate([("number", "count"), ("number", "count_distinct")])
        return {
            row["batch"]: RowCount(row["number_count"], row["number_count_distinct"]) for row in grouped.to_pylist()
        }


def _rows(number: int, rows: int) -> pa.Table:
    """A batch: rows of the last ten minutes, each with a number that no other row has."""
    now = datetime.now(UTC)
    first = number * rows
    return pa.table(
        {
            "ts": pa.array(
                [now - timedelta(seconds=600 * index / rows) for index in range(rows)], pa.timestamp("us", "UTC")
            ),
            "source": [f"source {number % 10}"] * rows,
            "batch": pa.array([number] * rows, pa.int64()),
            "number": pa.array(range(first, first + rows), pa.int64()),
            "value": [index / 7 for index in range(rows)],
        }
    )

"""Staged reads are as good as published ones: while batches come, are flushed and compacted, each of them is whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from timestore_pipeline import Settings, Timestore
from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.errors import BuildInFlight
from timestore_pipeline.model.windows import WindowRange
from timestore_pipeline.upkeep.published_segments import unlink_published_segments

DATASETS = """
datasets:
  ticks:
    columns: {at: timestamptz, batch: integer, x: bigint}
    time: at
    window: hour
"""
START = datetime(2026, 1, 1, tzinfo=UTC)
PER_BATCH = "SELECT batch, count(*), sum(x) FROM ticks GROUP BY batch"
DEADLINE_SECONDS = 90
ENOUGH = {"batches": 40, "builds": 6, "unlinked": 4, "compactions": 2, "polls": 20}


def batch(number: int) -> pa.Table:
    """Between 4 and 12 rows, spread over three windows, so that a part of them is easily flushed without the rest."""
    rows = 4 + number % 9
    times = [START + timedelta(minutes=20 * row + number % 7) for row in range(rows)]
    return pa.table(
        {
            "at": pa.array(times, pa.timestamp("us", "UTC")),
            "batch": pa.array([number] * rows, pa.int32()),
            "x": [1_000 * number + row for row in range(rows)],
        }
    )


def whole(number: int) -> tuple[int, int]:
    table = batch(number)
    return table.num_rows, sum(table["x"].to_pylist())


class Load:
    """Writes, flushes, compacts and retires until it has been enough; notes what it did and what went wrong."""

    def __init__(self, timestore: Timestore, acked: int = 0) -> None:
        self.timestore = timestore
        self.acked = acked
        self.done = dict.fromkeys(ENOUGH, 0)
        self.errors: list[BaseException] = []
        self.stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._until_stopped, args=(work,)) for work in (self._write, self._keep)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(60)

    def enough(self) -> bool:
        return bool(self.errors) or all(self.done[what] >= count for what, count in ENOUGH.items())

    def _until_stopped(self, work: Callable[[], Iterator[None]]) -> None:
        try:
            for _ in work():
                if self.stop.is_set():
                    return
        except BaseException as error:
            self.errors.append(error)

    def _write(self) -> Iterator[None]:
        with self.timestore.writer("ticks") as writer:
            while True:
                futures = [writer.submit(batch(self.acked + ahead), f"b{self.acked + ahead}") for ahead in range(3)]
                for future in futures:
                    assert not future.result(60).duplicate
                    self.acked += 1
                    self.done["batches"] += 1
                yield

    def _keep(self) -> Iterator[None]:
        store = self.timestore.store
        window = store.datasets["ticks"].window_at
        first = round(START.timestamp() * 1e6)
        turn = 0
        while True:
            turn += 1
            # One window alone, every other time: half of each batch is published then, and half is staged.
            only = window(first + (turn % 3) * 3_600_000_000) if turn % 2 else None
            with suppress(BuildInFlight):
                self.done["builds"] += (
                    flush_windows(store, BuildOrder("ticks", WindowRange(only, only), owner="the test")) is not None
                )
            yield
            self.done["unlinked"] += unlink_published_segments(store).files
            if turn % 4 == 0:
                report = compact_fully(store, BuildOrder("ticks", owner="the test"))
                self.done["compactions"] += report.builds
            yield


@pytest.fixture
def timestore(home: Path, make_settings: Callable[..., Settings]) -> Iterator[Timestore]:
    (home / "datasets.yaml").write_text(DATASETS, encoding="utf-8")
    settings = make_settings(staging_retention_seconds=0, staging_max_pending=0, duckdb_threads=1)
    with Timestore.open(settings) as opened:
        yield opened


@pytest.mark.long
def test_no_batch_is_ever_missing_partial_or_double(timestore: Timestore):
    deadline = time.monotonic() + DEADLINE_SECONDS
    with Load(timestore) as load:
        while not load.enough() and time.monotonic() < deadline:
            before = load.acked
            seen = {number: (rows, total) for number, rows, total in timestore.sql(PER_BATCH).fetchall()}

            assert seen == {number: whole(number) for number in seen}
            assert set(range(before)) <= set(seen), "an acknowledged batch is missing"
            load.done["polls"] += 1

    assert not load.errors
    assert load.enough(), load.done
    everything = {number: (rows, total) for number, rows, total in timestore.sql(PER_BATCH).fetchall()}
    assert everything == {number: whole(number) for number in range(load.acked)}


@pytest.mark.long
def test_what_is_held_all_the_while_stays_as_it_was(timestore: Timestore):
    deadline = time.monotonic() + DEADLINE_SECONDS
    for number in range(10):
        timestore.stage("ticks", batch(number), f"b{number}")
        if number == 5:
            flush_windows(timestore.store, BuildOrder("ticks", owner="the test"))
    expected = {number: whole(number) for number in range(10)}
    held, rows = timestore.sql(PER_BATCH), timestore.read("ticks", start="2026-01-01T00:20Z")
    first = rows.to_arrow().sort_by([("batch", "ascending"), ("x", "ascending")])
    with Load(timestore, acked=10) as load:
        load.done["polls"] = ENOUGH["polls"]
        while not load.enough() and time.monotonic() < deadline:
            assert {number: (count, total) for number, count, total in held.fetchall()} == expected
            again = rows.to_arrow().sort_by([("batch", "ascending"), ("x", "ascending")])
            assert again.equals(first)

    assert not load.errors
    assert load.enough(), load.done

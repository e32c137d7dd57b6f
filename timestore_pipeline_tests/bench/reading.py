"""Reading the last hour while 5 % of it is staged, against the same rows all published."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.store import Store
from timestore_pipeline.timestore import Timestore
from timestore_pipeline_tests.bench.measure import HEADER, Pair, in_turn, timed
from timestore_pipeline_tests.bench.staging import START_MICROS, open_store, ticks

ROWS_PER_HOUR = 2_000_000
HOURS = 3
STAGED_SHARE = 0.05
STAGED_BATCHES = 10
"""As many as a daemon that looks every five seconds takes in, in the minute for which rows wait to be flushed."""

_RANGE = (f"2026-01-01T0{HOURS - 1}", f"2026-01-01T0{HOURS}")


def run(repeats: int, workspace: Path) -> list[str]:
    """Return the lines of the report."""
    with (
        tempfile.TemporaryDirectory(dir=workspace) as one,
        tempfile.TemporaryDirectory(dir=workspace) as other,
        open_store(Path(one)) as staged,
        open_store(Path(other)) as published,
    ):
        _fill(staged, staged_share=STAGED_SHARE)
        _fill(published, staged_share=0)
        sql = f"SELECT tag, count(*), avg(a) FROM ticks WHERE time >= '{_RANGE[0]}:00' GROUP BY tag"
        pairs = [
            (Pair(name, "all of it published", ROWS_PER_HOUR), _reader(staged, sql), _reader(published, sql))
            for name, sql in (
                ("`sql`: mean by tag of the last hour, 5 % of it staged", sql),
                ("`read`: all rows of the last hour, 5 % of it staged", None),
            )
        ]
        in_turn(pairs, repeats)
    return [HEADER, *(pair.line() for pair, _, _ in pairs)]


def _fill(store: Store, staged_share: float) -> None:
    timestore = Timestore(store)
    step = 3_600_000_000 // ROWS_PER_HOUR
    table = ticks(ROWS_PER_HOUR * HOURS, step_micros=step)
    staged = round(ROWS_PER_HOUR * staged_share)
    timestore.stage("ticks", table.slice(0, table.num_rows - staged))
    flush_windows(store, BuildOrder("ticks", owner="the benchmark"))
    for number in range(STAGED_BATCHES if staged else 0):
        size = staged // STAGED_BATCHES
        timestore.stage("ticks", table.slice(table.num_rows - staged + number * size, size))
    assert table["time"][0].cast(pa.int64()).as_py() == START_MICROS


def _reader(store: Store, sql: str | None):
    timestore = Timestore(store)

    def read() -> float:
        def work() -> None:
            if sql is None:
                assert timestore.read("ticks", *_RANGE).to_arrow().num_rows == ROWS_PER_HOUR
            else:
                assert sum(row[1] for row in timestore.sql(sql).fetchall()) == ROWS_PER_HOUR

        return timed(work)

    return read

"""Table quality: a day of flushes every minute, then the window closes, against one Parquet file per batch.

The batches are the same. The clock is simulated: maintenance comes by every ten minutes, and once after the end. Files
are to have 16 MiB, so that the day is several of them.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from timestore_pipeline.building.compact import compact_windows
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.duck.connections import connection_config
from timestore_pipeline.duck.sql import file_literal
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import TableFile, live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline_tests.bench.measure import Pair, in_turn, timed
from timestore_pipeline_tests.bench.staging import DATASETS, START_MICROS, open_store, ticks

MINUTES = 24 * 60
ROWS_PER_BATCH = 1_000
MAINTENANCE_EVERY = 10
TARGET_BYTES = 16 << 20
_MINUTE_MICROS = 60_000_000
_QUERY = "SELECT tag, count(*), sum(a), max(time) FROM {rows} GROUP BY tag"


def run(repeats: int, workspace: Path) -> list[str]:
    """Return the lines of the report."""
    direct = workspace / "direct"
    direct.mkdir()
    written = 0
    (workspace / "store").mkdir()
    datasets = DATASETS.replace("window: hour", "window: day")
    with open_store(workspace / "store", datasets, build_target_file_bytes=TARGET_BYTES) as store:
        for minute in range(MINUTES):
            start = START_MICROS + minute * _MINUTE_MICROS
            batch = ticks(ROWS_PER_BATCH, seed=minute, start_micros=start, step_micros=_MINUTE_MICROS // ROWS_PER_BATCH)
            _write_directly(batch, direct / f"{minute:04d}.parquet")
            stage(store, "ticks", batch)
            flush_windows(store, BuildOrder("ticks", owner="bench", trigger=Trigger.AGE))
            if minute % MAINTENANCE_EVERY == MAINTENANCE_EVERY - 1:
                written += _maintain(store, start)
        lines = ["| the day as | files | bytes | a file has | query, median | one file per batch, median | ratio |"]
        lines.append("|---|---|---|---|---|---|---|")
        files = [path.stat().st_size for path in direct.iterdir()]
        lines.append(f"| one Parquet file per batch, written directly | {_sizes(files)} | | | |")
        lines.append(_line("open window, at the end of the day", store, direct, repeats))
        written += _maintain(store, START_MICROS + 10 * MINUTES * _MINUTE_MICROS)
        lines.append(_line("closed window", store, direct, repeats))
        size = sum(file.bytes for file in _live(store))
        lines += ["", f"{MINUTES:,} flushes; compaction wrote {written / size:.1f} times the bytes of the day."]
    return lines


def _write_directly(batch: pa.Table, path: Path) -> None:
    pq.write_table(batch, path, compression="zstd")


def _query_directly(store: Store, folder: Path) -> None:
    with duckdb.connect(":memory:", config=connection_config(store.settings)) as connection:
        rows = f"read_parquet({file_literal(folder)} || '/*.parquet')"
        connection.execute(_QUERY.format(rows=rows)).fetchall()


def _maintain(store: Store, now: int) -> int:
    return compact_windows(store, BuildOrder("ticks", owner="bench", trigger=Trigger.MAINTENANCE), now=now).merged_bytes


def _live(store: Store) -> list[TableFile]:
    return live_files(open_table(store.table("ticks"), "ticks"))


def _line(name: str, store: Store, direct: Path, repeats: int) -> str:
    """Query our table and the files that were written directly, in turn."""
    pair = Pair(name, "one file per batch", 1)
    ours = partial(timed, lambda: query_rows(store, _QUERY.format(rows="ticks")).to_arrow())
    in_turn([(pair, ours, partial(timed, lambda: _query_directly(store, direct)))], repeats)
    sizes = [file.bytes for file in _live(store)]
    mine, other = statistics.median(pair.ours), statistics.median(pair.baseline)
    return f"| {name} | {_sizes(sizes)} | {mine * 1e3:,.0f} ms | {other * 1e3:,.0f} ms | **{pair.ratio:.2f}** |"


def _sizes(files: list[int]) -> str:
    """Number, sum and range of file sizes, as three columns."""
    low, high = (size / 2**20 for size in (min(files), max(files)))
    return f"{len(files):,} | {sum(files):,} | {low:.2f} to {high:.2f} MiB"

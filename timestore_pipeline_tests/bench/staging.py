"""Staging: 1,000 files of 1,000 rows in one ingest call, and one batch of 1,000,000 rows."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from timestore_pipeline.landing.files import files_for_one_run, scan_landing
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.ingest import ingest_files
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.bench.measure import HEADER, Pair, in_turn, timed

FILES = 1_000
ROWS_PER_FILE = 1_000
DATASETS = """
datasets:
  ticks:
    columns: {time: timestamp, id: bigint, a: double, b: double, c: double, d: double, tag: varchar}
    time: time
    window: hour
    start: 2026-01-01
"""
START_MICROS = 1_767_225_600_000_000  # 2026-01-01


def ticks(rows: int, *, seed: int = 0, start_micros: int = START_MICROS, step_micros: int = 100_000) -> pa.Table:
    """Return ``rows`` rows in time order: time, id, four doubles and a string."""
    random = np.random.default_rng(seed)
    times = start_micros + np.arange(rows, dtype=np.int64) * step_micros
    tags = pa.DictionaryArray.from_arrays(
        pa.array(random.integers(0, 50, rows, dtype=np.int32)), [f"sensor-{n:02d}" for n in range(50)]
    ).cast(pa.string())
    return pa.table(
        {
            "time": pa.array(times).cast(pa.timestamp("us")),
            "id": pa.array(random.integers(0, 1_000, rows)),
            **{name: pa.array(random.random(rows)) for name in "abcd"},
            "tag": tags,
        }
    )


def open_store(folder: Path, datasets: str = DATASETS, **settings: object) -> Store:
    """Open a store with the benchmark's dataset in an empty folder."""
    (folder / "datasets.yaml").write_text(datasets)
    unlimited = {"staging_max_pending": 0, "staging_max_dataset_bytes": 0}
    return Store.open(Settings.model_validate({"home": folder, **unlimited, **settings}))


def run(repeats: int, workspace: Path) -> list[str]:
    """Return the lines of the report."""
    million = ticks(FILES * ROWS_PER_FILE)
    small = [million.slice(n * ROWS_PER_FILE, ROWS_PER_FILE) for n in range(FILES)]
    pairs = [(Pair("stage(): one batch of 1,000,000 rows", "one INSERT, commit, fsync", million.num_rows),
              lambda: _stage_one(workspace, million), lambda: _insert(workspace, [million]))]  # fmt: skip
    for ending, write in _WRITERS.items():
        files = workspace / f"files-{ending}"
        files.mkdir()
        for number, table in enumerate(small):
            write(table, files / f"{number:04d}.{ending}")
        pairs += [
            (Pair(f"ingest: 1,000 {ending} files of 1,000 rows", name, million.num_rows),
             _ingest_action(workspace, files), _insert_action(workspace, tables))
            for name, tables in (("1,000 INSERTs, each with commit and fsync", small),
                                 ("one INSERT of all, one commit and fsync", [million]))
        ]  # fmt: skip
    in_turn(pairs, repeats)
    return [HEADER, *(pair.line() for pair, _, _ in pairs)]


def _write_arrow(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


_WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "arrow": _write_arrow,
    "parquet": lambda table, path: parquet.write_table(table, str(path)),
    "csv": lambda table, path: csv.write_csv(table, str(path)),
}


def _stage_one(workspace: Path, table: pa.Table) -> float:
    with tempfile.TemporaryDirectory(dir=workspace) as folder, open_store(Path(folder)) as store:
        # The baseline has its file open already; a first batch does the same for us.
        stage(store, "ticks", table.slice(0, 1))
        return timed(lambda: stage(store, "ticks", table))


def _ingest_action(workspace: Path, files: Path) -> Callable[[], float]:
    def ingest() -> float:
        with tempfile.TemporaryDirectory(dir=workspace) as folder, open_store(Path(folder)) as store:
            shutil.copytree(files, store.settings.landing_path / "ticks")
            # Written back now, or the copies' pages would be flushed by the fsyncs that are measured.
            os.sync()

            def take() -> None:
                report = ingest_files(store, "ticks", files_for_one_run(store, scan_landing(store))["ticks"])
                assert report.rows == FILES * ROWS_PER_FILE, report

            return timed(take)

    return ingest


def _insert_action(workspace: Path, tables: list[pa.Table]) -> Callable[[], float]:
    return lambda: _insert(workspace, tables)


def _insert(workspace: Path, tables: list[pa.Table]) -> float:
    """Insert Arrow tables into one open DuckDB file, a commit and an fsync each."""
    with tempfile.TemporaryDirectory(dir=workspace) as folder:
        path = Path(folder) / "plain.duckdb"
        with duckdb.connect(str(path)) as connection:
            connection.register("incoming", tables[0])
            connection.execute("CREATE TABLE ticks AS SELECT * FROM incoming LIMIT 0")

            def insert() -> None:
                for table in tables:
                    connection.register("incoming", table)
                    # Autocommit: DuckDB syncs its write-ahead log (or the blocks, for a bulk load) at the commit.
                    connection.execute("INSERT INTO ticks SELECT * FROM incoming")

            return timed(insert)

"""Writing the Parquet files of one window: durable and in place before the table hears of them (invariant 6)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import duckdb

from timestore_pipeline.building.statistics import delta_statistics
from timestore_pipeline.building.table import ParquetFile, file_prefix
from timestore_pipeline.columns import WINDOW_COLUMN, Column, column_list, literal, quote, time_range_sql
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.durable_files import TEMPORARY_SUFFIX, fsync_path, make_folder, sync_private
from timestore_pipeline.errors import SegmentUnreadable
from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.ledger.queue import Slice
from timestore_pipeline.store import Store
from timestore_pipeline.windows import Window


def write_window(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    columns: Sequence[Column],
    build: Build,
    window: Window,
    slices: Sequence[Slice],
    tables: Sequence[str],
    target_file_bytes: int,
) -> list[ParquetFile]:
    """Write the slices of one window, in time order, to as many files as their size asks for.

    ``tables`` are the SQL names of what holds their rows: a table per slice, in the order of the slices, or one for
    all of them.

    Raises:
        SegmentUnreadable: a segment is damaged, or has another number of rows than the ledger says.
        duckdb.Error: the files cannot be written.
    """
    folder = store.table_path(spec.name) / f"{WINDOW_COLUMN}={window.key}"
    make_folder(folder)
    temporary = folder / f".{file_prefix(build.sequence)}{TEMPORARY_SUFFIX}"
    shutil.rmtree(temporary, ignore_errors=True)
    time = spec.time_column(columns)
    condition = time_range_sql(time, window.start_micros, window.end_micros)
    # Files are filled side by side, a row group here and one there. Row groups never overlap in time; sorting keeps
    # files from overlapping too, where there will be several.
    one_file = sum(piece.bytes for piece in slices) < target_file_bytes
    one_after_the_other = all(earlier.max_time <= later.min_time for earlier, later in pairwise(slices))
    may_lie_in_order = one_file and (one_after_the_other or len(tables) == 1)
    in_order = may_lie_in_order and _in_time_order(connection, tables, time, condition)
    order = "" if in_order else f" ORDER BY {quote(time.name)}"
    rows = " UNION ALL ".join(f"SELECT {column_list(columns)} FROM {table} WHERE {condition}" for table in tables)
    metadata = f"{{dataset: {literal(spec.name)}, window_key: {literal(window.key)}, build: '{build.id}'}}"
    written = connection.execute(
        f"COPY ({rows}{order}) TO {literal(str(temporary))} (FORMAT parquet, COMPRESSION zstd, "
        f"FILE_SIZE_BYTES {target_file_bytes}, KV_METADATA {metadata}, RETURN_STATS)"
    ).fetchall()
    reach(CrashPoint.PARQUET_WRITTEN)
    expected = sum(piece.rows for piece in slices)
    found = sum(row[1] for row in written)
    if found != expected:
        raise SegmentUnreadable(
            spec.name,
            ", ".join(str(store.segment_path(piece.path)) for piece in slices[:3]),
            f"{found} rows of window {window.key} were read where the ledger has {expected}",
        )
    # DuckDB numbers the files by which of its threads was first.
    in_time_order = sorted(written, key=lambda row: _time_range(time, row[4]))
    files = []
    for number, (name, count, size, _, statistics, *_) in enumerate(in_time_order):
        final = folder / f"{file_prefix(build.sequence)}{number:03d}.parquet"
        sync_private(Path(name))
        reach(CrashPoint.PARQUET_SYNCED)
        Path(name).rename(final)
        reach(CrashPoint.PARQUET_RENAMED)
        files.append(
            ParquetFile(
                path=str(final.relative_to(store.table_path(spec.name))),
                window_key=window.key,
                rows=count,
                bytes=size,
                modified_at_ms=int(final.stat().st_mtime * 1_000),
                statistics=delta_statistics(columns, count, statistics),
            )
        )
    shutil.rmtree(temporary, ignore_errors=True)
    fsync_path(folder)
    reach(CrashPoint.PARQUET_IN_PLACE)
    return files


def _in_time_order(connection: duckdb.DuckDBPyConnection, tables: Sequence[str], time: Column, condition: str) -> bool:
    """Whether the rows of each table lie in time order already; a look costs a tenth of a sort.

    Time series mostly arrive in order, and DuckDB keeps the order of insertion through a scan and a COPY.
    """
    return all(
        connection.execute(
            f"SELECT coalesce(bool_and(time >= previous), true) FROM (SELECT {quote(time.name)} AS time, "
            f"lag({quote(time.name)}) OVER () AS previous FROM {table} WHERE {condition})"
        ).fetchall()
        == [(True,)]
        for table in tables
    )


def _time_range(time: Column, statistics: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
    """First and last time of a file as the footer has them; of one type, so their texts sort as the times do."""
    found = statistics[quote(time.name)]
    return found["min"], found["max"]

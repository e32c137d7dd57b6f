"""Writing the Parquet files of one window: durable and in place before the table hears of them (invariant 6)."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import duckdb

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.remote_files import duckdb_name
from timestore_pipeline.duck.sql import column_list, literal, quote, time_range_sql, typed_nulls
from timestore_pipeline.durable_files import (
    PRIVATE_FOLDER,
    TEMPORARY_SUFFIX,
    side_by_side,
)
from timestore_pipeline.errors import SegmentUnreadable, TimestoreError
from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.ledger.slices import Slice
from timestore_pipeline.model.columns import WINDOW_COLUMN, Column
from timestore_pipeline.model.windows import Window
from timestore_pipeline.settings import Settings
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.table_folder import PARQUET_SUFFIX, folder_for_windows, put_files_of_window
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import ParquetFile, file_prefix
from timestore_pipeline.table.statistics import delta_statistics

# So many rows are sorted faster than it is found out whether they must be.
_SORTED_UNSEEN = 10_000


# DuckDB hands rows on, and counts them for row groups, by so many; and a row group has at most so many.
_ROWS_PER_VECTOR = 2_048
_ROWS_PER_GROUP = 122_880

# So many windows may wait for the disk, or be on their way to an object store: all files of a build need not find room
# on the local disk.
_WAITING_AT_ONCE = 16


@dataclass(frozen=True)
class WindowFolders:
    """Where the windows of a build are written, with the ``columns`` that its table has then.

    ``folder`` is that of the table at ``place``, or local scratch on the way there; ``later`` takes what makes a
    window's files durable.
    """

    build: Build
    spec: DatasetSpec
    columns: Sequence[Column]
    place: Storage
    folder: Path
    later: Callable[[Callable[[], object]], None]

    def of(self, window: Window) -> Path:
        """Return the folder of a window, which exists from now on."""
        folder = self.folder / f"{WINDOW_COLUMN}={window.key}"
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        return folder


@contextmanager
def window_folders(store: Store, build: Build, columns: Sequence[Column]) -> Iterator[WindowFolders]:
    """Let the windows of a build be written; when the block ends all their files are in place and durable.

    Syncs wait for the disk side by side, while the next windows are written; so do uploads for an object store.

    Raises:
        OSError: a file could not be made durable; the build must not commit.
    """
    place = store.table(build.dataset)
    scratch = scratch_of_build(store.settings, build.dataset, build.sequence)
    room = threading.BoundedSemaphore(_WAITING_AT_ONCE)
    with folder_for_windows(place, scratch) as folder, side_by_side() as later:

        def when_there_is_room(work: Callable[[], object]) -> None:
            room.acquire()
            later(lambda: _and_make_room(work, room))

        yield WindowFolders(build, store.datasets[build.dataset], columns, place, folder, when_there_is_room)


def scratch_of_build(settings: Settings, dataset: str, sequence: int) -> Path:
    """Return the local folder for Parquet files of a build on their way to an object store; an old one is an orphan."""
    return settings.temp_path / f"{dataset}-{file_prefix(sequence)}parquet{TEMPORARY_SUFFIX}"


def _and_make_room(upload: Callable[[], object], room: threading.BoundedSemaphore) -> None:
    try:
        upload()
    finally:
        room.release()


@dataclass(frozen=True)
class EvenSplit:
    """Files of so many row groups of so many rows each; the last one has what is left."""

    groups_per_file: int
    rows_per_group: int

    @property
    def rows_per_file(self) -> int:
        """Rows of every file but the last."""
        return self.groups_per_file * self.rows_per_group

    def files(self, rows: int) -> int:
        """Return how many files so many rows make."""
        return max(1, -(-rows // self.rows_per_file))


def even_split(rows: int, files: int) -> EvenSplit:
    """Return how ``rows`` become at most so many files, of as many rows each as whole vectors let them have."""
    wanted = -(-rows // files)
    groups = max(1, -(-wanted // _ROWS_PER_GROUP))
    vectors = max(1, -(-wanted // (groups * _ROWS_PER_VECTOR)))
    return EvenSplit(groups, vectors * _ROWS_PER_VECTOR)


@dataclass(frozen=True)
class WindowSource:
    """Rows that become the files of one window.

    ``relations`` are SQL names or expressions that hold them; of rows of other windows in them, nothing is taken.
    ``bytes`` is about their size, ``rows`` how many there are, None where only reading them tells.
    ``one_after_the_other`` says that no relation begins before the one before it ends. ``counted_by`` is who says how
    many rows there are, and ``wrong`` makes the error for another number.
    """

    relations: Sequence[str]
    rows: int | None
    bytes: int
    one_after_the_other: bool
    counted_by: str
    wrong: Callable[[str], TimestoreError]


def slices_as_source(store: Store, slices: Sequence[Slice], tables: Sequence[str], taken: int = 0) -> WindowSource:
    """Return the rows of slices of one window: of a table per slice, in their order, or of one table with all of them.

    ``tables`` are the SQL names. So many rows as ``taken`` says are not in them, as corrections take these.
    """
    ordered = all(earlier.max_time <= later.min_time for earlier, later in pairwise(slices))
    named = ", ".join(store.staging.shown(piece.path) for piece in slices[:3])
    return WindowSource(
        relations=tables,
        rows=sum(piece.rows for piece in slices) - taken,
        bytes=sum(piece.bytes for piece in slices),
        one_after_the_other=ordered or len(tables) == 1,
        counted_by="the ledger",
        wrong=lambda reason: SegmentUnreadable(slices[0].dataset, named, reason),
    )


def parquet_relation(place: Storage, paths: Iterable[str], columns: Sequence[Column] | None = None) -> str:
    """Return the SQL for the rows of Parquet files of the table at ``place``, one file after the other.

    ``columns`` are those that the rows are to have where files may have fewer or narrower ones.
    """
    files = ", ".join(literal(duckdb_name(place, path)) for path in paths)
    rows = f"read_parquet([{files}], hive_partitioning = false, union_by_name = true)"
    if columns is None:
        return rows
    # Gives every column its type, also one that no file has.
    return f"(SELECT * FROM {rows} UNION ALL BY NAME SELECT {typed_nulls(columns)} WHERE false)"


def write_window(
    folders: WindowFolders,
    connection: duckdb.DuckDBPyConnection,
    window: Window,
    source: WindowSource,
    target_file_bytes: int,
    most_files: int | None = None,
) -> list[ParquetFile]:
    """Write the rows of one window, in time order, to as many files as their size asks for.

    With ``most_files`` that many, or fewer, of about as many rows each, none of which begins before the one before it
    ends; for sources that know their rows, and a ``connection`` with one thread where it is more than one file.

    They have their names, and are durable, when the block of ``folders`` has ended.

    Raises:
        SegmentUnreadable, TableError: what the rows are read from is damaged, or has another number of rows.
        duckdb.Error: the files cannot be written.
    """
    build, spec, columns = folders.build, folders.spec, folders.columns
    folder = folders.of(window)
    temporary = folder / f".{file_prefix(build.sequence)}{TEMPORARY_SUFFIX}"
    shutil.rmtree(temporary, ignore_errors=True)
    time = spec.time_column(columns)
    condition = time_range_sql(time, window.start_micros, window.end_micros)
    # Files are filled side by side, a row group here and one there: row groups never overlap in time, files may.
    split = even_split(source.rows, most_files) if source.rows and most_files and most_files > 1 else None
    one_file = split is None if most_files else source.bytes < target_file_bytes
    may_lie_in_order = one_file and source.one_after_the_other
    few = source.rows is not None and source.rows < _SORTED_UNSEEN
    in_order = may_lie_in_order and not few and _in_time_order(connection, source.relations, time, condition)
    order = "" if in_order else f" ORDER BY {quote(time.name)}"
    rows = " UNION ALL ".join(
        f"SELECT {column_list(columns)} FROM {relation} WHERE {condition}" for relation in source.relations
    )
    metadata = f"{{dataset: {literal(spec.name)}, window_key: {literal(window.key)}, build: '{build.id}'}}"
    if split:
        size = f"ROW_GROUPS_PER_FILE {split.groups_per_file}, ROW_GROUP_SIZE {split.rows_per_group}"
    elif most_files:
        # What is to be one file must not become two because it compresses a little worse than its parts.
        size = f"FILE_SIZE_BYTES {2 * max(target_file_bytes, source.bytes)}"
    else:
        size = f"FILE_SIZE_BYTES {target_file_bytes}"
    written = connection.execute(
        f"COPY ({rows}{order}) TO {literal(str(temporary))} (FORMAT parquet, COMPRESSION zstd, {size}, "
        f"KV_METADATA {metadata}, RETURN_STATS)"
    ).fetchall()
    reach(CrashPoint.PARQUET_WRITTEN)
    found = sum(row[1] for row in written)
    if source.rows is not None and found != source.rows:
        raise source.wrong(f"{found} rows of window {window.key} were read where {source.counted_by} has {source.rows}")
    # DuckDB numbers the files by which of its threads was first, and writes one where there is no row.
    in_time_order = sorted((row for row in written if row[1]), key=lambda row: _time_range(time, row[4]))
    place, partition = folders.place, folder.name
    keys = [
        f"{partition}/{file_prefix(build.sequence)}{number:03d}{PARQUET_SUFFIX}" for number in range(len(in_time_order))
    ]
    files = [
        ParquetFile(
            path=key,
            window_key=window.key,
            rows=count,
            bytes=size,
            modified_at_ms=int(Path(name).stat().st_mtime * 1_000),
            statistics=delta_statistics(columns, count, statistics),
        )
        for key, (name, count, size, _, statistics, *_) in zip(keys, in_time_order, strict=True)
    ]
    moves = [(Path(row[0]), key) for row, key in zip(in_time_order, keys, strict=True)]
    folders.later(partial(_put_in_place, place, moves, temporary))
    return files


def _put_in_place(place: Storage, moves: Sequence[tuple[Path, str]], temporary: Path) -> None:
    """Give whole files their final names, durably, and remove the folder that they were written to."""
    put_files_of_window(place, moves)
    shutil.rmtree(temporary, ignore_errors=True)
    place.sync(temporary.parent.name)
    reach(CrashPoint.PARQUET_IN_PLACE)


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

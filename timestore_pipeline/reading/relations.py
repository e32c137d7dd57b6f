"""One view per dataset over its published and its staged rows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb

from timestore_pipeline.building.parquet import attach_segment
from timestore_pipeline.building.table import live_files, open_table
from timestore_pipeline.columns import Column, column_list, literal, quote, time_range_sql
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import QueryError, SegmentUnreadable
from timestore_pipeline.landing.readers import glob_literal
from timestore_pipeline.ledger.queue import Slice, unpublished_slices
from timestore_pipeline.ledger.registry import dataset_columns, table_versions
from timestore_pipeline.staging.segment import SEGMENT_TABLE
from timestore_pipeline.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

# A segment can only go missing under a reader if it was published and unlinked after the snapshot was taken;
# then a new snapshot finds its rows in the table.
_ATTEMPTS = 5


@dataclass(frozen=True)
class Snapshot:
    """Where all rows of a dataset are at one moment: a table version, and the slices that it does not have yet."""

    spec: DatasetSpec
    columns: tuple[Column, ...] | None
    table_version: int | None
    slices: tuple[Slice, ...]


def take_snapshots(store: Store, datasets: Iterable[str] | None = None) -> list[Snapshot]:
    """Return snapshots of the given datasets, by default of all, from one ledger transaction.

    Raises:
        UnknownDataset: one is not declared.
        LedgerError: the ledger cannot be read.
    """
    specs = [store.datasets[name] for name in (store.datasets if datasets is None else datasets)]
    with store.ledger.read() as tx:
        versions = table_versions(tx)
        slices: dict[str, list[Slice]] = defaultdict(list)
        for piece in unpublished_slices(tx):
            slices[piece.dataset].append(piece)
        return [
            Snapshot(spec, dataset_columns(tx, spec), versions.get(spec.name), tuple(slices[spec.name]))
            for spec in specs
        ]


@contextmanager
def open_reader(store: Store, datasets: Iterable[str] | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a DuckDB connection with one view per dataset, over published and staged rows at one consistent moment.

    A dataset without a first batch and without declared columns has no view yet. What is written while the
    connection is open does not show in it.

    Raises:
        UnknownDataset, LedgerError, TableError, SegmentUnreadable: as they say.
    """
    names = None if datasets is None else list(datasets)
    with store.connect() as connection:
        for attempt in range(_ATTEMPTS):
            try:
                for snapshot in take_snapshots(store, names):
                    _create_view(store, connection, snapshot)
                break
            except SegmentUnreadable:
                if attempt == _ATTEMPTS - 1:
                    raise
        yield connection


def run_query(store: Store, sql: str) -> pa.Table:
    """Return the result of a SQL query in which every dataset is a view.

    Only the datasets that the query can mean are opened, so a damaged one does not stand in the way of the others.

    Raises:
        QueryError: the query cannot be run.
    """
    words = set(re.findall(r"[a-z][a-z0-9_]*", sql.lower()))
    with open_reader(store, [name for name in store.datasets if name in words]) as connection:
        try:
            relation = connection.sql(sql)
        except duckdb.Error as error:
            raise QueryError(str(error)) from error
        if relation is None:
            raise QueryError("the query returns no rows; use a SELECT")
        try:
            return relation.to_arrow_table()
        except duckdb.Error as error:
            raise QueryError(str(error)) from error


def _create_view(store: Store, connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    if snapshot.columns is None:
        return
    parts = [f"SELECT {column_list(snapshot.columns)} FROM {relation}" for relation in _published(store, snapshot)]
    for pieces in _by_segment(snapshot.slices):
        _attach_once(store, connection, pieces[0])
        parts.append(
            f'SELECT {column_list(snapshot.columns)} FROM "{pieces[0].segment_id}".{SEGMENT_TABLE} '
            f"WHERE {_in_windows(snapshot, pieces)}"
        )
    body = " UNION ALL ".join(parts) or f"SELECT {_nulls(snapshot.columns)} WHERE false"
    connection.execute(f"CREATE OR REPLACE VIEW {quote(snapshot.spec.name)} AS {body}")


def _published(store: Store, snapshot: Snapshot) -> list[str]:
    if snapshot.table_version is None:
        return []
    table = open_table(store.table_path(snapshot.spec.name), snapshot.spec.name, snapshot.table_version)
    folder = store.table_path(snapshot.spec.name)
    paths = [folder / file.path for file in live_files(table)]
    if not paths:
        return []
    files = ", ".join(literal(glob_literal(path)) for path in paths)
    return [f"read_parquet([{files}], hive_partitioning = false, union_by_name = true)"]


def _by_segment(slices: Sequence[Slice]) -> list[list[Slice]]:
    found: dict[str, list[Slice]] = defaultdict(list)
    for piece in slices:
        found[piece.segment_id].append(piece)
    return list(found.values())


def _attach_once(store: Store, connection: duckdb.DuckDBPyConnection, piece: Slice) -> None:
    attached = connection.execute("SELECT 1 FROM duckdb_databases() WHERE database_name = ?", [piece.segment_id])
    if attached.fetchone() is None:
        attach_segment(store, connection, piece)


def _in_windows(snapshot: Snapshot, pieces: Sequence[Slice]) -> str:
    """A condition for the rows of the unpublished windows; neighbours are merged into one range."""
    time = snapshot.spec.time_column(snapshot.columns or ())
    ranges: list[list[int]] = []
    for piece in sorted(pieces, key=lambda item: item.window_start):
        window = snapshot.spec.window_at(piece.window_start)
        if ranges and ranges[-1][1] == window.start_micros:
            ranges[-1][1] = window.end_micros
        else:
            ranges.append([window.start_micros, window.end_micros])
    return " OR ".join(time_range_sql(time, start, end) for start, end in ranges)


def _nulls(columns: Sequence[Column]) -> str:
    return ", ".join(f"CAST(NULL AS {column.type}) AS {quote(column.name)}" for column in columns)

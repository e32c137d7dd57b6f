"""One view per dataset over its published and its staged rows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb

from timestore_pipeline.building.damage import unreadable_slices
from timestore_pipeline.building.table import live_files, open_table
from timestore_pipeline.columns import Column, column_list, glob_literal, literal, quote
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import QueryError, SegmentUnreadable
from timestore_pipeline.ledger.queue import Slice, unpublished_slices
from timestore_pipeline.ledger.registry import dataset_columns, table_versions
from timestore_pipeline.reading.queries import select
from timestore_pipeline.staging.slices import (
    MOST_ATTACHED,
    attach_segment,
    by_segment,
    detach_segment,
    gather_slices,
    scratch_table,
    select_slices,
)
from timestore_pipeline.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

# A segment can only go missing under a reader if it was published and unlinked after the snapshot was taken;
# then a new snapshot finds its rows in the table.
_ATTEMPTS = 5

# What DuckDB says of a damaged file; anything else does not cost a look at all segments.
_SIGNS_OF_DAMAGE = ("Corrupt database file", "IO Error", "INTERNAL Error", "FATAL Error")


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
    connection is open does not show in it. It reaches no files but those of these datasets, yet it may write there:
    SQL that others wrote belongs into :func:`run_query`.

    Raises:
        UnknownDataset, LedgerError, TableError: as they say.
        SegmentUnreadable: staged rows are damaged; also where a query in the ``with`` block comes upon them.
    """
    names = None if datasets is None else list(datasets)
    folders = [
        folder
        for name in (store.datasets if names is None else names)
        for folder in (*store.segment_folders(store.datasets[name].name), store.table_path(name))
    ]
    with store.connect(store.settings.temp_path, *folders) as connection:
        snapshots: list[Snapshot] = []
        for attempt in range(_ATTEMPTS):
            try:
                snapshots = take_snapshots(store, names)
                for snapshot in snapshots:
                    _create_view(store, connection, snapshot)
                break
            except SegmentUnreadable as error:
                if attempt == _ATTEMPTS - 1:
                    _raise_if_damaged(store, snapshots, error)  # it may name a group of segments
                    raise
                _detach_all(connection)
        try:
            yield connection
        except Exception as error:
            # Of whatever class: Arrow has its own for what goes wrong while it fetches the rows of a query.
            if any(sign in str(error) for sign in _SIGNS_OF_DAMAGE):
                _raise_if_damaged(store, snapshots, error)
            raise


def _detach_all(connection: duckdb.DuckDBPyConnection) -> None:
    attached = connection.execute(
        "SELECT database_name FROM duckdb_databases() WHERE NOT internal AND database_name <> 'memory'"
    )
    for (name,) in attached.fetchall():
        detach_segment(connection, name)


def run_query(store: Store, sql: str) -> pa.Table:
    """Return the result of a SQL query in which every dataset is a view.

    Only the datasets that the query can mean are opened, so a damaged one does not stand in the way of the others.
    The query may come from anyone: it can read the datasets, and nothing else.

    Raises:
        QueryError: the query cannot be run, or would do more than read.
    """
    words = set(re.findall(r"[a-z][a-z0-9_]*", sql.lower()))
    try:
        with open_reader(store, [name for name in store.datasets if name in words]) as connection:
            return select(connection, sql).to_arrow_table()
    except duckdb.Error as error:
        raise QueryError(str(error)) from error


def _raise_if_damaged(store: Store, snapshots: Iterable[Snapshot], error: Exception) -> None:
    """Say which segment is damaged, if one is: DuckDB's message names only a place in it."""
    for snapshot in snapshots:
        # One that is gone was published meanwhile; whoever has attached it can still read it.
        there = [piece for piece in snapshot.slices if store.segment_path(piece.path).exists()]
        found = unreadable_slices(store, snapshot.spec, snapshot.columns or (), there)
        for damaged in found.values():
            piece, reason = next(iter(damaged.items()))
            raise SegmentUnreadable(snapshot.spec.name, store.segment_path(piece.path), reason) from error


def _create_view(store: Store, connection: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> None:
    if snapshot.columns is None:
        return
    parts = [f"SELECT {column_list(snapshot.columns)} FROM {relation}" for relation in _published(store, snapshot)]
    parts += _staged(store, connection, snapshot, snapshot.columns)
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


def _staged(
    store: Store, connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, columns: tuple[Column, ...]
) -> list[str]:
    """Return SELECTs for the staged rows, having made sure that what they name is there."""
    groups = by_segment(snapshot.slices)
    if len(groups) > MOST_ATTACHED:
        table = scratch_table(snapshot.spec.name)
        connection.execute(f"DROP TABLE IF EXISTS {table}")
        gather_slices(store, connection, snapshot.spec, columns, snapshot.slices, table)
        return [f"SELECT {column_list(columns)} FROM {table}"]
    for pieces in groups.values():
        attach_segment(store, connection, pieces[0])
    return [select_slices(snapshot.spec, columns, pieces) for pieces in groups.values()]


def _nulls(columns: Sequence[Column]) -> str:
    return ", ".join(f"CAST(NULL AS {column.type}) AS {quote(column.name)}" for column in columns)

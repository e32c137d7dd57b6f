"""One view per dataset over its published and its staged rows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa

from timestore_pipeline.building.completion import follow_others
from timestore_pipeline.building.damage import unreadable_slices
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.connections import Reach, Share
from timestore_pipeline.duck.sql import column_list, quote, typed_nulls
from timestore_pipeline.errors import SegmentUnreadable, TableError, TimestoreError, TooManyOpenFiles
from timestore_pipeline.exhaustion import out_of_files
from timestore_pipeline.ledger.corrections import Correction
from timestore_pipeline.ledger.datasets import dataset_schema
from timestore_pipeline.ledger.slices import Slice, unpublished_slices
from timestore_pipeline.ledger.tables import VisibleTable, visible_tables
from timestore_pipeline.model.columns import WINDOW_COLUMN, Column
from timestore_pipeline.reading.pruning import HIGH, LOW, READ_ALL, Pruning, prune
from timestore_pipeline.reading.queries import query_bounds
from timestore_pipeline.rows.corrected import kept_rows
from timestore_pipeline.rows.one_per_key import winning_rows, without_deleted
from timestore_pipeline.segments.slices import (
    MOST_ATTACHED,
    SCRATCH_SCHEMA,
    attach_segment,
    bring_segments,
    by_segment,
    detach_segment,
    gather_slices,
    scratch_table,
    select_slices,
)
from timestore_pipeline.storage.table_folder import file_name
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import file_bounds, sequence_of_file
from timestore_pipeline.table.damaged_files import may_be_damage, refuse_damaged_files, without_query
from timestore_pipeline.table.own_table import OwnTable, open_to_read
from timestore_pipeline.table.parquet import parquet_relation

# A segment can only go missing under a reader if it was published and unlinked after the snapshot was taken;
# then a new snapshot finds its rows in the table.
_ATTEMPTS = 5


@dataclass(frozen=True)
class Snapshot:
    """Where all rows of a dataset are at one moment: a table version, and the slices that it does not have yet.

    ``evolved`` says that files of the table may have fewer or narrower columns, ``table_id`` which table it is.
    ``pending`` are the corrections that may take rows of the table's files, by the key of their window; those that take
    rows of slices go with these.
    """

    spec: DatasetSpec
    columns: tuple[Column, ...] | None
    table_version: int | None
    slices: tuple[Slice, ...]
    evolved: bool = False
    table_id: str | None = None
    pending: Mapping[str, tuple[Correction, ...]] = field(default_factory=dict)


def take_snapshots(store: Store, datasets: Iterable[str] | None = None) -> list[Snapshot]:
    """Return snapshots of the given datasets, by default of all, from one ledger transaction.

    Raises:
        UnknownDataset: one is not declared.
        LedgerError: the ledger cannot be read.
    """
    specs = [store.datasets[name] for name in (store.datasets if datasets is None else datasets)]
    with store.ledger.read() as tx:
        names = [spec.name for spec in specs]
        tables = visible_tables(tx, names)
        slices: dict[str, list[Slice]] = defaultdict(list)
        for piece in unpublished_slices(tx, names):
            if not piece.is_taken:
                slices[piece.dataset].append(piece)
        return [
            Snapshot(
                spec,
                schema.columns if schema else None,
                table.version,
                tuple(slices[spec.name]),
                evolved=schema is not None and schema.version > 1,
                table_id=table.table_id,
                pending={spec.window_at(start).key: acting for start, acting in table.pending.items()},
            )
            for spec in specs
            for table in [tables.get(spec.name, VisibleTable())]
            for schema in [dataset_schema(tx, spec)]
        ]


def current_snapshots(store: Store, datasets: Iterable[str] | None = None) -> list[Snapshot]:
    """Return snapshots as :func:`take_snapshots` does, of tables of which the ledger knows all that is published.

    Raises:
        UnknownDataset, LedgerError: as they say.
        TableError: a table has builds that the ledger does not know, or lacks one: rows would be missing.
    """
    snapshots = take_snapshots(store, datasets)
    for snapshot in snapshots:
        OwnTable(store, snapshot.spec.name).refuse_to_read_old(snapshot.table_version)
    return snapshots


@contextmanager
def open_reader(store: Store, datasets: Iterable[str] | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a DuckDB connection with one view per dataset, over published and staged rows at one consistent moment.

    A dataset without a first batch and without declared columns has no view yet. What is written while the
    connection is open does not show in it. It reaches no files but those of these datasets, yet it may write there:
    SQL that others wrote belongs into :func:`timestore_pipeline.reading.rows.query_rows`.

    Raises:
        UnknownDataset, LedgerError, TableError: as they say.
        SegmentUnreadable: staged rows are damaged; also where a query in the ``with`` block comes upon them.
    """
    names = list(store.datasets if datasets is None else datasets)
    share = Share(bounds=query_bounds(store.settings))
    with store.connect(store.settings.temp_path, *reader_folders(store, names), share=share) as connection:
        snapshots = create_views(store, connection, lambda: current_snapshots(store, names))
        with damage_named(store, snapshots):
            yield connection


def reader_folders(store: Store, datasets: Iterable[str]) -> list[Reach]:
    """Return the folders and places in which the files of ``datasets`` lie."""
    return [
        folder for name in datasets for folder in (*store.segment_folders(store.datasets[name].name), store.table(name))
    ]


def create_views(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    take: Callable[[], list[Snapshot]],
    query: str | None = None,
) -> list[Snapshot]:
    """Create a view per dataset over the snapshots that ``take`` gives, and return these.

    What ``query`` cannot have rows of is left out of them.

    Raises:
        SegmentUnreadable, LedgerError, TableError: as they say.
    """
    for attempt in range(_ATTEMPTS):
        snapshots = take()
        try:
            known = {snapshot.spec.name: snapshot.columns for snapshot in snapshots if snapshot.columns}
            pruning = READ_ALL if query is None else prune(connection, query, known)
            for snapshot in snapshots:
                with _table_named(store, snapshot):
                    _create_view(store, connection, snapshot, pruning)
            return snapshots
        except TableError:
            # Another program may have cleaned up what this version has; then its own later one has the rows.
            moved = [follow_others(store, each.spec.name) for each in snapshots if each.table_version is not None]
            if attempt == _ATTEMPTS - 1 or not any(moved):
                for each in snapshots:
                    if each.table_version is not None:
                        OwnTable(store, each.spec.name).refuse_to_read()
                raise
            _detach_all(connection)
        except SegmentUnreadable as error:
            if attempt == _ATTEMPTS - 1:
                _raise_if_damaged(store, snapshots, error)  # it may name a group of segments
                raise
            _detach_all(connection)
    raise AssertionError("unreachable")


@contextmanager
def _table_named(store: Store, snapshot: Snapshot) -> Iterator[None]:
    """Say what is wrong with the table where its files cannot be read.

    Raises:
        TableError: it is named, with the files that are gone and what to do.
    """
    try:
        yield
    except duckdb.Error as error:
        _refuse_damaged(store, snapshot, error)
        name, place = snapshot.spec.name, store.table(snapshot.spec.name).location
        raise TableError(f"dataset {name!r}: the table at {place} cannot be read: {without_query(error)}") from error


def _refuse_damaged(store: Store, snapshot: Snapshot, error: Exception) -> None:
    if snapshot.table_version is not None:
        files = _published_files(store, snapshot)["path"].to_pylist()
        share = Share(bounds=query_bounds(store.settings))
        refuse_damaged_files(store, snapshot.spec.name, snapshot.table_version, files, share, error)


@contextmanager
def damage_named(store: Store, snapshots: Iterable[Snapshot]) -> Iterator[None]:
    """Say which segment is damaged where reading the rows of ``snapshots`` comes upon one.

    Raises:
        SegmentUnreadable: one is.
        TableError: files of a table are gone, or one is damaged.
        TooManyOpenFiles: none is, but no more files can be opened.
    """
    snapshots = list(snapshots)
    try:
        yield
    except TimestoreError:
        raise
    except Exception as error:
        if out_of_files(error):
            raise TooManyOpenFiles("segments and tables were read") from error
        # Of whatever class: Arrow has its own for what goes wrong while it fetches the rows of a query.
        if may_be_damage(error):
            _raise_if_damaged(store, snapshots, error)
            for snapshot in snapshots:
                _refuse_damaged(store, snapshot, error)
        raise


def _detach_all(connection: duckdb.DuckDBPyConnection) -> None:
    attached = connection.execute(
        "SELECT database_name FROM duckdb_databases() WHERE NOT internal AND database_name <> 'memory'"
    )
    for (name,) in attached.fetchall():
        detach_segment(connection, name)


def datasets_named(store: Store, sql: str) -> list[str]:
    """Return the datasets that a query can mean: those whose names are words in it, for SHOW TABLES all of them.

    Only they are opened, so a damaged one does not stand in the way of the others.
    """
    words = set(re.findall(r"[a-z][a-z0-9_]*", sql.lower()))
    return [name for name in store.datasets if name in words or words == {"show", "tables"}]


def _raise_if_damaged(store: Store, snapshots: Iterable[Snapshot], error: Exception) -> None:
    """Say which segment is damaged, if one is: DuckDB's message names only a place in it."""
    for snapshot in snapshots:
        # One that is gone was published meanwhile; whoever has attached it can still read it.
        there = [piece for piece in snapshot.slices if store.staging.size(piece.path) is not None]
        found = unreadable_slices(store, snapshot.spec, there)
        for damaged in found.values():
            piece, reason = next(iter(damaged.items()))
            raise SegmentUnreadable(snapshot.spec.name, store.staging.shown(piece.path), reason) from error


def _create_view(store: Store, connection: duckdb.DuckDBPyConnection, snapshot: Snapshot, pruning: Pruning) -> None:
    columns = snapshot.columns
    if columns is None:
        return
    if snapshot.spec.key and snapshot.slices:
        parts = _keyed(store, connection, snapshot, columns, pruning)
    else:
        files = _published_files(store, snapshot)
        wanted, slices = _wanted(connection, snapshot, columns, pruning, files)
        parts = _from_files(store, snapshot, columns, wanted)
        parts += _staged(store, connection, snapshot, columns, slices)
    body = " UNION ALL ".join(parts) or f"SELECT {typed_nulls(columns)} WHERE false"
    rows = without_deleted(snapshot.spec, columns, body)
    connection.execute(f"CREATE OR REPLACE VIEW {quote(snapshot.spec.name)} AS {rows}")


def _keyed(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    snapshot: Snapshot,
    columns: tuple[Column, ...],
    pruning: Pruning,
) -> list[str]:
    """Return SELECTs of one row per key: windows with staged rows are looked through, the others have just that.

    A window with staged rows is read whole or not at all: a row that a query does not ask for may be the one that
    takes the place of one that it does ask for.
    """
    spec = snapshot.spec
    keys = {spec.window_at(piece.window_start).key: piece.window_start for piece in snapshot.slices}
    files = _published_files(store, snapshot)
    wanted, slices = _wanted(connection, snapshot, columns, pruning, files)
    asked = {key for _, key in wanted if key in keys}
    asked |= {spec.window_at(piece.window_start).key for piece in slices}
    parts = _from_files(store, snapshot, columns, [(path, key) for path, key in wanted if key not in keys])
    if asked:
        starts = {keys[key] for key in asked}
        stored = spec.table_columns(columns)
        rows = _from_files(store, snapshot, stored, [(path, key) for path, key in _keyed_paths(files) if key in asked])
        pieces = [piece for piece in snapshot.slices if piece.window_start in starts]
        rows += _staged(store, connection, snapshot, stored, pieces)
        parts.append(f"SELECT {column_list(columns)} FROM ({winning_rows(spec, stored, ' UNION ALL '.join(rows))})")
    return parts


def _published_files(store: Store, snapshot: Snapshot) -> pa.Table:
    """Return the published files and their bounds, as :func:`file_bounds` does."""
    if snapshot.table_version is None:
        return pa.table({name: pa.array([], pa.string()) for name in ("path", WINDOW_COLUMN)})
    name = snapshot.spec.name
    return file_bounds(open_to_read(store.table(name), name, snapshot.table_version, snapshot.table_id))


def _keyed_paths(files: pa.Table) -> list[tuple[str, str]]:
    """Return the path of each file with its window's key."""
    return list(zip(files["path"].to_pylist(), files[WINDOW_COLUMN].to_pylist(), strict=True))


def _wanted(
    connection: duckdb.DuckDBPyConnection,
    snapshot: Snapshot,
    columns: tuple[Column, ...],
    pruning: Pruning,
    files: pa.Table,
) -> tuple[list[tuple[str, str]], Sequence[Slice]]:
    """Return the published files, with their windows' keys, and the slices that a query can have rows of."""
    time = snapshot.spec.time_column(columns).name
    bounds = {
        f"{LOW}{time}": [piece.min_time for piece in snapshot.slices],
        f"{HIGH}{time}": [piece.max_time for piece in snapshot.slices],
    }
    type_ = pa.timestamp("us", "UTC")
    slices = pa.table({name: pa.array(values, pa.int64()).cast(type_) for name, values in bounds.items()})
    found = pruning.surviving(connection, snapshot.spec.name, columns, [files, slices])
    named = _keyed_paths(files)
    if found is None:
        return named, snapshot.slices
    of_files, of_slices = found
    return [named[number] for number in of_files], [snapshot.slices[number] for number in of_slices]


def _from_files(
    store: Store, snapshot: Snapshot, columns: tuple[Column, ...], files: Sequence[tuple[str, str]]
) -> list[str]:
    """Return SELECTs for the rows of files, each with the key of its window, without what corrections take."""
    alike: dict[tuple[Correction, ...], list[str]] = defaultdict(list)
    sequences = {path: sequence_of_file(file_name(path)) for path, _ in files}
    for path, key in files:
        pending = snapshot.pending.get(key, ())
        alike[tuple(each for each in pending if each.acts_on_file(sequences[path]))].append(path)
    # Older files may have fewer or narrower columns, and so may those of another program.
    may_differ = snapshot.evolved or None in sequences.values()
    parts = []
    for acting, paths in alike.items():
        relation = parquet_relation(store.table(snapshot.spec.name), paths, columns if may_differ else None)
        parts.append(f"SELECT {column_list(columns)} FROM {kept_rows(snapshot.spec, columns, relation, acting)}")
    return parts


def _staged(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    snapshot: Snapshot,
    columns: tuple[Column, ...],
    slices: Sequence[Slice],
) -> list[str]:
    """Return SELECTs for staged rows, having made sure that what they name is there."""
    groups = by_segment(slices)
    if len(groups) > MOST_ATTACHED:
        table = scratch_table(snapshot.spec.name)
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCRATCH_SCHEMA}; DROP TABLE IF EXISTS {table}")
        gather_slices(store, connection, snapshot.spec, columns, slices, table)
        return [f"SELECT {column_list(columns)} FROM {table}"]
    bring_segments(store, (pieces[0] for pieces in groups.values()))
    for pieces in groups.values():
        attach_segment(store, connection, pieces[0])
    return [select_slices(snapshot.spec, columns, pieces) for pieces in groups.values()]

"""Rows that are read when they are asked for: a query, bound to the moment at which it was made.

A DuckDB relation keeps its connection, and that the segments that it has attached: they can be read to the end when
they are published and unlinked meanwhile. Published files stay for as long as readers are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.connections import kept_connection
from timestore_pipeline.duck.sql import column_list, quote, time_range_sql
from timestore_pipeline.errors import QueryError, TableError, TimestoreError
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.windows import Moment, to_micros, utc_moment
from timestore_pipeline.reading.queries import query_bounds, select, unfinished
from timestore_pipeline.reading.relations import (
    Snapshot,
    create_views,
    current_snapshots,
    damage_named,
    datasets_named,
    reader_folders,
    take_snapshots,
)
from timestore_pipeline.store import Store
from timestore_pipeline.table.opening import version_at

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

BATCH_ROWS = 122_880
"""Rows of an Arrow batch unless told otherwise: DuckDB's own row group."""

_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


class Rows:
    """The rows of a query at one moment, fetched when they are asked for, as often as they are.

    Anything that takes the Arrow PyCapsule interface takes this: ``polars.DataFrame(rows)``, ``pyarrow.table(rows)``.
    """

    def __init__(self, store: Store, relation: duckdb.DuckDBPyRelation, snapshots: list[Snapshot]) -> None:
        self._store = store
        self._relation = relation
        self._snapshots = snapshots

    @property
    def relation(self) -> duckdb.DuckDBPyRelation:
        """The rows as a DuckDB relation."""
        return self._relation

    def to_reader(self, batch_rows: int = BATCH_ROWS) -> pa.RecordBatchReader:
        """Return a reader that fetches the rows in batches as it goes, so that memory stays bounded.

        Raises:
            QueryError, SegmentUnreadable: the rows cannot be read; so does the reader.
        """
        with self._translated():
            reader = self._relation.to_arrow_reader(batch_rows)
        return pa.RecordBatchReader.from_batches(reader.schema, self._fetched(reader))

    def to_arrow(self) -> pa.Table:
        """Return all rows as an Arrow table.

        Raises:
            QueryError, SegmentUnreadable: the rows cannot be read.
        """
        with self._translated():
            return self._relation.to_arrow_table()

    def to_pandas(self) -> pd.DataFrame:
        """Return all rows as a pandas frame; raises as :meth:`to_arrow`."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> pl.DataFrame:
        """Return all rows as a Polars frame; raises as :meth:`to_arrow`."""
        import polars

        return polars.DataFrame(self.to_arrow())

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> Any:
        return self.to_reader().__arrow_c_stream__(requested_schema)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in batches; raises as :meth:`to_reader`."""
        return iter(self.to_reader())

    def _fetched(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        while True:
            with self._translated():
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
            yield batch

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with damage_named(self._store, self._snapshots):
                yield
        except TimestoreError:
            raise
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            # Of what goes wrong while rows are fetched Arrow makes an OSError.
            raise unfinished(error, self._store.settings) from error


def query_rows(store: Store, sql: str, take: Callable[[list[str]], list[Snapshot]] | None = None) -> Rows:
    """Return the rows of a SQL query in which every dataset is a view, at the moment of the call.

    ``take`` gives the snapshots of the datasets that the query can mean, by default those of now. The query may come
    from anyone: it can read the datasets, and nothing else.

    Raises:
        QueryError: the query cannot be run, or would do more than read.
        SegmentUnreadable, LedgerError, TableError: as they say.
    """
    names = datasets_named(store, sql)
    folders = (store.settings.temp_path, *reader_folders(store, names))
    connection = kept_connection(store.settings, *folders, bounds=query_bounds(store.settings))
    snapshots = create_views(store, connection, lambda: (take or _now(store))(names), sql)
    try:
        with damage_named(store, snapshots):
            return Rows(store, select(connection, sql, store.datasets), snapshots)
    except duckdb.CatalogException as error:
        empty = [snapshot.spec.name for snapshot in snapshots if snapshot.columns is None]
        hint = f"\nNothing was staged yet, and no columns are declared: {', '.join(empty)}" if empty else ""
        raise QueryError(str(error).strip() + hint) from error
    except duckdb.Error as error:
        raise unfinished(error, store.settings) from error


def range_query(
    spec: DatasetSpec,
    known: tuple[Column, ...] | None,
    start: Moment | None,
    end: Moment | None,
    columns: list[str] | None,
    condition: str | None,
) -> str:
    """Return the SELECT of a dataset's rows whose time is in ``start`` (inclusive) … ``end`` (exclusive).

    Args:
        spec: the dataset.
        known: its columns, None where they are still to be inferred.
        start: first time, None for the beginning.
        end: first time that is not wanted any more, None for no end.
        columns: names of those that are wanted, in order; None for all.
        condition: more to ask of a row, as in a WHERE clause.

    Raises:
        QueryError: a column does not exist, a time cannot be read, the end is before the start, or there are no columns
            yet.
    """
    if known is None:
        raise QueryError(f"dataset {spec.name!r} has no columns yet: its first batch says what they are")
    names = {column.name: column for column in known}
    unknown = [name for name in columns or () if name not in names]
    if unknown:
        raise QueryError(
            f"dataset {spec.name!r} has no column {', '.join(map(repr, unknown))}; its columns are {', '.join(names)}"
        )
    time = spec.time_column(known)
    conditions = []
    if start is not None or end is not None:
        low, high = _moment(start, _EARLIEST, "start"), _moment(end, _LATEST, "end")
        if high < low:
            raise QueryError(f"end is {end}, which is before start, {start}")
        conditions.append(time_range_sql(time, to_micros(low), to_micros(high)))
    if condition is not None:
        conditions.append(f"({condition}\n)")  # a comment at its end must not hide what follows
    wanted = column_list(known if columns is None else [names[name] for name in columns])
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {wanted} FROM {quote(spec.name)}{where}"


def past_snapshots(
    store: Store, datasets: list[str], version: int | None = None, time: Moment | None = None
) -> list[Snapshot]:
    """Return snapshots of the published part alone, as it was at a table version or at a time.

    Raises:
        TableError: there is no such version (any more).
        QueryError: ``time`` cannot be read.
    """
    return [_past(store, snapshot, version, time) for snapshot in take_snapshots(store, datasets)]


def _past(store: Store, now: Snapshot, version: int | None, time: Moment | None) -> Snapshot:
    name = now.spec.name
    if version is None and now.table_version is not None:
        moment = _moment(time, _LATEST, "time")
        version = min(version_at(store.table(name), name, moment), now.table_version)
    elif version is not None and (now.table_version is None or version > now.table_version):
        latest = "it has no table yet" if now.table_version is None else f"the latest is {now.table_version}"
        raise TableError(f"dataset {name!r}: there is no table version {version}; {latest}")
    return replace(now, table_version=version, slices=(), pending={})


def _now(store: Store) -> Callable[[list[str]], list[Snapshot]]:
    return lambda names: current_snapshots(store, names)


def _moment(value: Moment | None, default: datetime, name: str) -> datetime:
    try:
        return default if value is None else utc_moment(value, name)
    except ValueError as error:
        raise QueryError(str(error)) from error

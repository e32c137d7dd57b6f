"""Windows that a build writes anew: those of a dataset with a key, and those whose files have narrower types.

A reader of Delta tables takes a file without a column for nulls, but not every one takes an INT32 for a BIGINT or a
DECIMAL(6,2) for a DECIMAL(8,4). So the commit that widens a column replaces all files that have it narrower.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import duckdb

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.remote_files import duckdb_name, duckdb_path
from timestore_pipeline.duck.sql import column_list, literal, time_range_sql
from timestore_pipeline.errors import TableError, TimestoreError
from timestore_pipeline.ledger.schemas import schema_history
from timestore_pipeline.ledger.slices import Slice
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.windows import Window
from timestore_pipeline.rows.one_per_key import winning_rows
from timestore_pipeline.store import Store
from timestore_pipeline.table.delta import DeltaTable
from timestore_pipeline.table.parquet import WindowSource, parquet_relation, slices_as_source
from timestore_pipeline.table.table import TableFile, has_columns, live_files, types_that_differ

_FILES_PER_LOOK = 500


def published_columns(store: Store, spec: DatasetSpec, table: DeltaTable) -> tuple[Column, ...]:
    """Return the columns that the files of the table have, as the dataset's latest may not be published yet.

    With a key the position is among them.

    Raises:
        TableError: the dataset never had such columns: somebody else has changed the table.
    """
    with store.ledger.read() as tx:
        history = schema_history(tx, spec.name)
    for version in reversed(history):
        columns = spec.table_columns(version.columns)
        if has_columns(table, columns):
            return columns
    raise TableError(
        f"dataset {spec.name!r}: its table has columns that the dataset never had; "
        f"'timestore schema {spec.name}' shows those that it had. Restore the table's log from a backup."
    )


def narrow_windows(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, columns: Sequence[Column], table: DeltaTable
) -> set[str]:
    """Return the keys of the windows with a file in which a column is narrower than in ``columns``.

    The footers are read only where the table itself has a narrower column.
    """
    wider = {column.name: column.type for column in columns if column.name in types_that_differ(table, columns)}
    if not wider:
        return set()
    place = store.table(spec.name)
    live = live_files(table)
    # DuckDB gives the name back without what escapes it.
    window_of = {str(duckdb_path(place, file.path)): file.window_key for file in live}
    found: set[str] = set()
    for start in range(0, len(live), _FILES_PER_LOOK):
        some = live[start : start + _FILES_PER_LOOK]
        files = ", ".join(literal(duckdb_name(place, file.path)) for file in some)
        rows = connection.execute(f"SELECT file_name, name, duckdb_type FROM parquet_schema([{files}])").fetchall()
        narrow = {window_of[path] for path, name, type_ in rows if name in wider and type_ != wider[name]}
        found |= {key for key in narrow if key is not None}
    return found


def rewritten_source(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    columns: Sequence[Column],
    window: Window,
    pieces: Sequence[Slice],
    tables: Sequence[str],
    files: Iterable[TableFile],
) -> WindowSource:
    """Return the rows of a window from its live files and from slices; with a key just those that win.

    Raises:
        SegmentUnreadable, TableError: with a key, another number of rows was read than there should be.
    """
    live = sorted(files, key=lambda file: file.path)
    published = [parquet_relation(store.table(spec.name), [file.path for file in live], columns)] if live else []
    staged = slices_as_source(store, pieces, tables) if pieces else None

    def wrong(reason: str) -> TimestoreError:
        return TableError(
            f"dataset {spec.name!r}: the files of window {window.key} cannot be read again: {reason}. "
            f"Restore them from a backup: {', '.join(file.path for file in live[:3])}"
        )

    if staged and not live and not spec.key:
        return staged
    source = WindowSource(
        relations=[*tables, *published],
        rows=sum(piece.rows for piece in pieces) + sum(file.rows for file in live),
        bytes=sum(piece.bytes for piece in pieces) + sum(file.bytes for file in live),
        one_after_the_other=False,
        counted_by="the ledger and the table",
        wrong=staged.wrong if staged and not live else wrong,
    )
    if not spec.key:
        return source
    condition = time_range_sql(spec.time_column(columns), window.start_micros, window.end_micros)
    parts = [f"SELECT {column_list(columns)} FROM {relation} WHERE {condition}" for relation in source.relations]
    rows = " UNION ALL ".join(parts)
    found = connection.execute(f"SELECT count(*) FROM ({rows})").fetchall()[0][0]
    if found != source.rows:
        raise source.wrong(f"{found} rows were read where {source.counted_by} have {source.rows}")
    return WindowSource(
        relations=[f"({winning_rows(spec, columns, rows)})"],
        rows=None,
        bytes=source.bytes,
        one_after_the_other=False,
        counted_by=source.counted_by,
        wrong=source.wrong,
    )

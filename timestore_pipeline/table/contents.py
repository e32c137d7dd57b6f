"""What a version of a table has: its live files with their rows and bounds, and its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import PyFileSystem

from timestore_pipeline.model.columns import POSITION_COLUMN, WINDOW_COLUMN, Column, delta_type, type_in_delta
from timestore_pipeline.storage.table_folder import file_name
from timestore_pipeline.table.delta import (
    DeltaError,
    DeltaStorageHandler,
    DeltaTable,
    Field,
    PrimitiveType,
    Schema,
)

_CUT_MICROS = 999


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file in place and durable; ``path`` is relative to the table, ``statistics`` as Delta has them."""

    path: str
    window_key: str
    rows: int
    bytes: int
    modified_at_ms: int
    statistics: Mapping[str, Any]


@dataclass(frozen=True)
class TableFile:
    """A file that is live in the table. ``window_key`` may be any text, or None, where another program wrote it."""

    path: str
    window_key: str | None
    rows: int
    bytes: int


def table_columns(table: DeltaTable) -> tuple[Column, ...]:
    """Return the columns of a dataset's table, without the partition column and the position of a row.

    Raises:
        ValueError: one has a type that no dataset can hold.
    """
    found = []
    for field in table.schema().fields:
        if field.name in (WINDOW_COLUMN, POSITION_COLUMN):
            continue
        type_ = type_in_delta(field.type.type)
        if type_ is None:
            raise ValueError(f"column {field.name!r} of the table has the type {field.type.type}")
        found.append(Column(field.name, type_))
    return tuple(found)


def live_files(table: DeltaTable) -> list[TableFile]:
    """Return the files of the table at the version of ``table``."""
    partition = f"partition.{WINDOW_COLUMN}"
    # Only these: Python has no datetime for some of the bounds that the statistics may have.
    found = pa.table(table.get_add_actions(flatten=True))
    wanted = ["path", partition, "num_records", "size_bytes"]
    return [
        TableFile(
            path=unquote(action["path"]),
            window_key=action.get(partition),
            rows=_rows_of(table, action),
            bytes=action["size_bytes"],
        )
        for action in found.select([name for name in wanted if name in found.column_names]).to_pylist()
    ]


def _rows_of(table: DeltaTable, action: Mapping[str, Any]) -> int:
    """Return the rows of a file by the log, or where another program left them out there, by its footer."""
    rows = action.get("num_records")
    if rows is not None:
        return rows
    files = PyFileSystem(DeltaStorageHandler.from_table(table._table))
    try:
        return pq.read_metadata(unquote(action["path"]), filesystem=files).num_rows
    except (OSError, DeltaError, pa.ArrowException):
        return 0  # it is gone or damaged: the row audit says so


def last_position(table: DeltaTable) -> int:
    """Return the highest position of a row by the statistics in the log; 0 where there is none."""
    found = pa.table(table.get_add_actions(flatten=True))
    name = f"max.{POSITION_COLUMN}"
    positions = found[name].to_pylist() if name in found.column_names else []
    return max((position for position in positions if position is not None), default=0)


def file_bounds(table: DeltaTable) -> pa.Table:
    """Return a row per live file, in no order: ``path``, ``window_key``, and ``min.<column>``, ``max.<column>``.

    The bounds have the columns' own types; one that the log does not have is null, or missing in all rows.
    """
    actions = pa.table(table.get_add_actions(flatten=True))
    names = [name for name in actions.column_names if name == "path" or name.startswith(("min.", "max."))]
    bounds = actions.select(names).append_column(WINDOW_COLUMN, actions[f"partition.{WINDOW_COLUMN}"])
    paths = [unquote(path) for path in actions["path"].to_pylist()]
    foreign = [sequence_of_file(file_name(path)) is None for path in paths]
    for number, field in enumerate(bounds.schema if any(foreign) else ()):
        if field.name.startswith("max.") and pa.types.is_timestamp(field.type):
            # Other programs cut the times in statistics to milliseconds, as Delta's protocol lets them.
            later = pc.call_function("add", [bounds.column(number), pa.scalar(_CUT_MICROS, pa.duration("us"))])
            either = pc.call_function("if_else", [pa.array(foreign), later, bounds.column(number)])
            bounds = bounds.set_column(number, field, either)
    return bounds.set_column(bounds.column_names.index("path"), "path", pa.array(paths, pa.string()))


def file_prefix(sequence: int) -> str:
    """Return how the names of all files of a build start; no two builds share it, also not those of two ledgers."""
    return f"{sequence:010d}-"


def sequence_of_file(name: str) -> int | None:
    """Return the sequence of the build that wrote a file of that name; None for files of other tools."""
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() and name.startswith(file_prefix(int(number))) else None


def delta_schema(columns: Sequence[Column]) -> Schema:
    """Return the schema of a table with these columns and the partition column."""
    types = [*((column.name, delta_type(column.type)) for column in columns), (WINDOW_COLUMN, delta_type("VARCHAR"))]
    return Schema([Field(name, PrimitiveType(type_)) for name, type_ in types])


def has_columns(table: DeltaTable, columns: Sequence[Column]) -> bool:
    """Whether the table has just these columns at its version; those of the ledger may be ahead until a flush."""
    return types_by_name(table.schema()) == types_by_name(delta_schema(columns))


def types_that_differ(table: DeltaTable, columns: Sequence[Column]) -> set[str]:
    """Return the names of those columns that the table has with another type."""
    had = types_by_name(table.schema())
    wanted = types_by_name(delta_schema(columns))
    return {name for name, type_ in wanted.items() if had.get(name, type_) != type_}


def types_by_name(schema: Schema) -> dict[str, str]:
    """Return the types of columns, in words of Delta."""
    return {field.name: field.type.to_json() for field in schema.fields}

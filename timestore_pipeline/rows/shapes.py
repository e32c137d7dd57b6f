"""What is in a landing file before a row of it is read: its format, the names of its columns, and their types.

Text files tell names only (CSV), or not even these (JSON lines); there types are inferred from the values.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.duck.sql import file_literal, list_of_files
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.packed import unpacked_start
from timestore_pipeline.rows.reasons import UnreadableFile, readable_reason, unreadable

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_HEADER_BYTES = 1 << 20
_EXTENSIONS = {
    ".csv": FileFormat.CSV,
    ".tsv": FileFormat.CSV,
    ".txt": FileFormat.CSV,
    ".jsonl": FileFormat.JSON_LINES,
    ".ndjson": FileFormat.JSON_LINES,
    ".json": FileFormat.JSON_LINES,
    ".parquet": FileFormat.PARQUET,
    ".pq": FileFormat.PARQUET,
    ".arrow": FileFormat.ARROW,
    ".arrows": FileFormat.ARROW,
    ".feather": FileFormat.ARROW,
    ".ipc": FileFormat.ARROW,
}


@dataclass(frozen=True)
class Shape:
    """What files must have in common to be read together: format, column names in order, and types if typed.

    Arrow files must have the very same schema, which says more than DuckDB's names of its types do.
    """

    format: FileFormat
    names: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    gzip: bool = False
    schema: pa.Schema | None = None


def file_format(spec: DatasetSpec, path: Path) -> FileFormat:
    """Return the format of a landing file.

    Raises:
        UnreadableFile: the dataset says ``auto`` and the name does not tell.
    """
    if spec.landing.format is not FileFormat.AUTO:
        return spec.landing.format
    name = path.name.lower().removesuffix(".gz")
    found = _EXTENSIONS.get(Path(name).suffix)
    if found is None:
        raise UnreadableFile(
            f"its name does not tell its format (known endings: {', '.join(sorted(_EXTENSIONS))}); "
            "rename the file or set landing.format of the dataset"
        )
    return found


def is_gzip(path: Path) -> bool:
    """Whether the name says that the file is packed."""
    return path.name.lower().endswith(".gz")


def compression(shape: Shape) -> str:
    """Said outright, because DuckDB's own look at the name is led astray by a question mark in it."""
    return "'gzip'" if shape.gzip else "'none'"


def csv_header(spec: DatasetSpec, path: Path, bounds: Bounds) -> tuple[str, ...]:
    """Return the names of a CSV file's columns, from the dataset's options or from its first line.

    Raises:
        UnreadableFile: it has no header line, one that cannot be read, or too many columns.
    """
    options = spec.landing.csv
    if options.header:
        return options.header
    with path.open("rb") as stream:
        packed = is_gzip(path)
        start = unpacked_start(stream, _MAX_HEADER_BYTES) if packed else stream.read(_MAX_HEADER_BYTES)
    text = start.decode("utf-8-sig", errors="replace")
    quoting = {"quotechar": options.quote, "doublequote": options.escape == options.quote}
    if options.escape != options.quote:
        quoting["escapechar"] = options.escape
    try:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=options.delimiter, **quoting), None)
    except csv.Error as error:
        raise UnreadableFile(f"its header line cannot be read: {error}") from error
    if not header:
        raise UnreadableFile("it has no header line")
    bounds.check_columns(len(header))
    return tuple(header)


def arrow_shape(connection: duckdb.DuckDBPyConnection, schema: pa.Schema, known: dict[pa.Schema, Shape]) -> Shape:
    """Return the shape of Arrow files with this schema; ``known`` has those that were looked at before."""
    if schema not in known:
        found = describe_arrow(connection, schema)
        names, types = tuple(name for name, _ in found), tuple(type_ for _, type_ in found)
        known[schema] = Shape(FileFormat.ARROW, names, types, schema=schema.remove_metadata())
    return known[schema]


def describe_arrow(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> list[tuple[str, str]]:
    """Return (name, DuckDB type) of the columns of an Arrow schema.

    Raises:
        UnreadableFile: it has no columns, or one of a type that DuckDB does not know.
    """
    names = schema.names
    if not names:
        raise UnreadableFile("it has no columns")
    lower = Counter(name.lower() for name in names)  # DuckDB would give one of two that differ in case another name
    twice = sorted({name for name in names if lower[name.lower()] > 1})
    if twice:
        raise UnreadableFile(f"wrong columns; repeated columns: {', '.join(map(repr, twice))}")
    try:
        connection.register("described", schema.empty_table())
        return describe(connection, "described")
    except (duckdb.Error, NotImplementedError) as error:
        raise UnreadableFile(readable_reason(error)) from error
    finally:
        connection.unregister("described")


def parquet_shapes(
    connection: duckdb.DuckDBPyConnection, files: Sequence[Path], refused: dict[Path, str], bounds: Bounds
) -> dict[Path, Shape]:
    """Return the shapes of Parquet files; those that cannot be read are ``refused`` and left out."""
    files = [path for path in files if _is_within(bounds, path, refused)]
    shapes = _flat_parquet_shapes(connection, files)
    for path in files:
        if path in shapes:
            continue
        try:
            found = describe(connection, f"read_parquet({file_literal(path)}, hive_partitioning = false)")
            names, types = tuple(name for name, _ in found), tuple(type_ for _, type_ in found)
            shapes[path] = Shape(FileFormat.PARQUET, names, types)
        except duckdb.Error as error:
            refused[path] = readable_reason(error)
    return shapes


def _is_within(bounds: Bounds, path: Path, refused: dict[Path, str]) -> bool:
    try:
        bounds.check_parquet(path)
    except UnreadableFile as error:
        refused[path] = str(error)
    except OSError as error:
        refused[path] = unreadable(error)
    return path not in refused


def _flat_parquet_shapes(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> dict[Path, Shape]:
    """Read all schemas in one statement; files with nested columns, and all of them if one is damaged, are left out."""
    if not files:
        return {}
    paths = list_of_files(files)
    try:
        rows = connection.execute(
            f"SELECT file_name, list(name ORDER BY column_id), list(duckdb_type ORDER BY column_id), "
            f"FROM parquet_schema({paths}) WHERE num_children IS NULL AND file_name NOT IN ("
            f"SELECT file_name FROM parquet_schema({paths}) WHERE num_children IS NOT NULL "
            f"GROUP BY file_name HAVING count(*) > 1) GROUP BY file_name"
        ).fetchall()
    except duckdb.Error:
        return {}
    return {Path(name): Shape(FileFormat.PARQUET, tuple(names), tuple(types)) for name, names, types in rows}


def describe(connection: duckdb.DuckDBPyConnection, relation: str) -> list[tuple[str, str]]:
    """Return (name, DuckDB type) of the columns of a relation."""
    rows = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    return [(row[0], row[1]) for row in rows]

"""What is in a landing file before a row of it is read: its format, the names of its columns, and their types.

Text files tell names only (CSV), or not even these (JSON lines); there types are inferred from the values.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from timestore_pipeline.columns import glob_literal, literal
from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.errors import TooManyOpenFiles
from timestore_pipeline.exhaustion import out_of_files

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_HEADER_CHARACTERS = 1 << 20
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


class UnreadableFile(Exception):
    """A file that cannot be staged as it is; the message is the reason."""


class NoRowsToInferFrom(UnreadableFile):
    """A text file without rows tells the names of columns, not their types."""

    def __init__(self) -> None:
        super().__init__(
            "it has no rows to infer the dataset's columns from; let a file with rows come first or declare the columns"
        )


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


def readable_reason(error: BaseException) -> str:
    """Return the part of a library's message that tells a producer what is wrong, on one line.

    Raises:
        TooManyOpenFiles: nothing is wrong with what was read.
    """
    if out_of_files(error):
        raise TooManyOpenFiles("files and segments were read") from error
    lines = []
    for line in str(error).splitlines():
        text = line.strip()
        if text.lower().startswith(
            ("possible ", "* ", "try setting", "line 1:", "column ", "this type was", "file = ")
        ):
            break
        if text:
            lines.append(text)
    return "; ".join(lines[:4])[:1_000] or type(error).__name__


def is_gzip(path: Path) -> bool:
    """Whether the name says that the file is packed."""
    return path.name.lower().endswith(".gz")


def compression(shape: Shape) -> str:
    """Said outright, because DuckDB's own look at the name is led astray by a question mark in it."""
    return "'gzip'" if shape.gzip else "'none'"


def csv_header(spec: DatasetSpec, path: Path) -> tuple[str, ...]:
    """Return the names of a CSV file's columns, from the dataset's options or from its first line.

    Raises:
        UnreadableFile: it has no header line, or one that cannot be read.
    """
    options = spec.landing.csv
    if options.header:
        return options.header
    opener = gzip.open if is_gzip(path) else open
    try:
        with opener(path, "rb") as stream:
            start = stream.read(_MAX_HEADER_CHARACTERS).decode("utf-8-sig", errors="replace")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UnreadableFile(f"it is not a whole gzip file: {error}") from error
    quoting = {"quotechar": options.quote, "doublequote": options.escape == options.quote}
    if options.escape != options.quote:
        quoting["escapechar"] = options.escape
    try:
        header = next(csv.reader(io.StringIO(start, newline=""), delimiter=options.delimiter, **quoting), None)
    except csv.Error as error:
        raise UnreadableFile(f"its header line cannot be read: {error}") from error
    if not header:
        raise UnreadableFile("it has no header line")
    return tuple(header)


def read_arrow(path: Path) -> pa.Table:
    """Return the table in an Arrow file or stream, with every value checked.

    Raises:
        UnreadableFile: it is damaged.
    """
    import pyarrow as pa

    try:
        # Not mapped: a producer that cuts the file short would end this process, and one that writes to it could
        # change what has been validated.
        with pa.OSFile(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            table = reader.read_all()
        # Offsets in a damaged file may point anywhere; DuckDB would follow them.
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system; Arrow's own, for a file that is cut short, have no number
        raise UnreadableFile(f"it is not a whole Arrow file: {readable_reason(error)}") from error
    return table


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
    lower = [name.lower() for name in names]  # DuckDB would give one of two that differ in case another name
    twice = sorted({name for name in names if lower.count(name.lower()) > 1})
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
    connection: duckdb.DuckDBPyConnection, files: Sequence[Path], refused: dict[Path, str]
) -> dict[Path, Shape]:
    """Return the shapes of Parquet files; those that cannot be read are ``refused`` and left out."""
    shapes = _flat_parquet_shapes(connection, files)
    for path in files:
        if path in shapes:
            continue
        try:
            found = describe(connection, f"read_parquet({literal(glob_literal(path))}, hive_partitioning = false)")
            names, types = tuple(name for name, _ in found), tuple(type_ for _, type_ in found)
            shapes[path] = Shape(FileFormat.PARQUET, names, types)
        except duckdb.Error as error:
            refused[path] = readable_reason(error)
    return shapes


def _flat_parquet_shapes(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> dict[Path, Shape]:
    """Read all schemas in one statement; files with nested columns, and all of them if one is damaged, are left out."""
    if not files:
        return {}
    paths = "[" + ", ".join(literal(glob_literal(path)) for path in files) + "]"
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

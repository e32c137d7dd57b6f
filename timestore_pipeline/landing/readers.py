"""Reading landing files in bulk: files of the same shape become one DuckDB statement.

Every file's columns are held against the dataset's before any row is read, because DuckDB maps CSV columns by
position and drops unknown JSON keys in silence; a dataset takes neither.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from timestore_pipeline.columns import BATCH_COLUMN, Column, check_name, glob_literal, inferred_type, literal, quote
from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.landing.casts import LossyCast, cast_sql, time_sql, type_in_text

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
class RowSource:
    """Rows of one or more batches that DuckDB reads in one statement.

    ``sql`` selects the dataset's columns in order and then ``_batch``, the ordinal of each row's batch;
    ``tables`` are to be registered under their names first.
    """

    sql: str
    tables: Mapping[str, pa.Table] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadPlan:
    """How to read files: the sources, the files by ordinal, and those whose shape is wrong with the reason."""

    sources: tuple[RowSource, ...]
    order: tuple[Path, ...]
    refused: Mapping[Path, str]


@dataclass(frozen=True)
class _Shape:
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


def plan_reads(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, columns: Sequence[Column], files: Sequence[Path]
) -> ReadPlan:
    """Group ``files`` by shape into as few statements as possible; wrongly shaped ones are refused one by one."""
    shapes: dict[_Shape, list[Path]] = defaultdict(list)
    arrow_tables: dict[Path, pa.Table] = {}
    arrow_shapes: dict[pa.Schema, _Shape] = {}
    refused: dict[Path, str] = {}
    parquet = []
    for path in files:
        try:
            format_ = file_format(spec, path)
            if path.stat().st_size == 0:
                raise UnreadableFile("the file is empty (0 bytes)")
            if format_ is FileFormat.PARQUET:
                parquet.append(path)
                continue
            if format_ is FileFormat.CSV:
                shape = _Shape(format_, _csv_header(spec, path), gzip=_is_gzip(path))
            elif format_ is FileFormat.ARROW:
                arrow_tables[path] = _read_arrow(path)
                shape = _arrow_shape(connection, arrow_tables[path].schema, arrow_shapes)
            else:
                shape = _Shape(format_, gzip=_is_gzip(path))
            shapes[shape].append(path)
        except (UnreadableFile, OSError, EOFError) as error:
            refused[path] = _reason(error)
    for path, shape in _parquet_shapes(connection, parquet, refused).items():
        shapes[shape].append(path)
    sources: list[RowSource] = []
    order: list[Path] = []
    for shape, members in shapes.items():
        try:
            accepted = members
            if shape.format is FileFormat.JSON_LINES:
                accepted = _check_json_keys(connection, spec, columns, shape, members, refused)
            if accepted:
                sources.append(_source(spec, columns, shape, accepted, len(order), arrow_tables))
                order += accepted
        except UnreadableFile as error:
            refused.update(dict.fromkeys(members, str(error)))
    return ReadPlan(tuple(sources), tuple(order), refused)


def infer_columns(connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, path: Path) -> tuple[Column, ...]:
    """Return the columns that a dataset gets when this file is its first batch.

    Raises:
        NoRowsToInferFrom: the file is text and has no rows.
        UnreadableFile: the file cannot be read, or has a column that no dataset can hold.
    """
    try:
        found = _describe_file(connection, spec, path)
    except duckdb.Error as error:
        raise UnreadableFile(readable_reason(error)) from error
    return columns_of(spec, found)


def columns_of(spec: DatasetSpec, found: Sequence[tuple[str, str]]) -> tuple[Column, ...]:
    """Return the columns under which a first batch with columns ``found`` (name, DuckDB type) is kept.

    Raises:
        UnreadableFile: a name or type cannot be kept, or the time column is missing or no time.
    """
    columns = []
    for name, type_ in found:
        if name in spec.landing.ignore_columns:
            continue
        try:
            is_converted_time = name == spec.time.column and (spec.time.format or spec.time.unit)
            kept = "TIMESTAMP" if is_converted_time else inferred_type(type_)
            columns.append(Column(check_name(name), kept))
        except ValueError as error:
            raise UnreadableFile(f"column {name!r}: {error}") from error
    by_name = {column.name: column.type for column in columns}
    time_type = by_name.get(spec.time.column)
    if time_type is None:
        raise UnreadableFile(f"the time column {spec.time.column!r} is missing; the columns are {', '.join(by_name)}")
    if time_type not in ("TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "DATE"):
        raise UnreadableFile(
            f"the time column {spec.time.column!r} has type {time_type}; "
            "set time.format (for text) or time.unit (for integers) of the dataset"
        )
    return tuple(columns)


def select_rows(
    spec: DatasetSpec, columns: Sequence[Column], found: Sequence[tuple[str, str]], relation: str, ordinal: str
) -> str:
    """Return SQL that casts ``relation``, whose columns are ``found`` (name, DuckDB type), to the dataset's columns.

    Raises:
        UnreadableFile: columns are missing, unknown, or of a type that would lose something.
    """
    types = dict(found)
    _compare_names(spec, columns, [name for name, _ in found])
    expressions = [f"{_cast(spec, column, types[column.name])} AS {quote(column.name)}" for column in columns]
    return f"SELECT {', '.join(expressions)}, CAST({ordinal} AS INTEGER) AS {BATCH_COLUMN} FROM {relation}"


def read_through(connection: duckdb.DuckDBPyConnection, source: RowSource) -> None:
    """Read every value of a source and keep nothing: where that raises, what is to be read is at fault."""
    for name, table in source.tables.items():
        connection.register(name, table)
    # A hash needs every value, so no cast can be optimized away.
    try:
        connection.execute(f"SELECT bit_xor(hash(row_value)) FROM ({source.sql}) AS row_value").fetchall()
    finally:
        for name in source.tables:
            connection.unregister(name)


def readable_reason(error: BaseException) -> str:
    """Return the part of a library's message that tells a producer what is wrong, on one line."""
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


def _cast(spec: DatasetSpec, column: Column, source_type: str) -> str:
    try:
        if column.name == spec.time.column:
            return time_sql(column, spec.time, source_type)
        return cast_sql(column, source_type)
    except LossyCast as error:
        raise UnreadableFile(str(error)) from error


def _compare_names(spec: DatasetSpec, columns: Sequence[Column], names: Sequence[str]) -> None:
    expected = [column.name for column in columns]
    ignored = set(spec.landing.ignore_columns)
    missing = [name for name in expected if name not in names]
    unknown = [name for name in names if name not in expected and name not in ignored]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [
        f"{label}: {', '.join(map(repr, found[:20]))}"
        for label, found in (("missing columns", missing), ("unknown columns", unknown), ("repeated columns", twice))
        if found
    ]
    if problems:
        raise UnreadableFile(f"wrong columns; {'; '.join(problems)}. The dataset has {', '.join(expected)}")


def _source(
    spec: DatasetSpec,
    columns: Sequence[Column],
    shape: _Shape,
    files: Sequence[Path],
    first_ordinal: int,
    arrow_tables: Mapping[Path, pa.Table],
) -> RowSource:
    paths = "[" + ", ".join(literal(glob_literal(path)) for path in files) + "]"
    ordinal = f"{first_ordinal} + file_index"
    if shape.format is FileFormat.CSV:
        _compare_names(spec, columns, shape.names)
        found = [(name, _text_type(spec, columns, name)) for name in shape.names]
        return RowSource(select_rows(spec, columns, found, _read_csv(spec, shape, found, paths), ordinal))
    if shape.format is FileFormat.JSON_LINES:
        found = [(column.name, _text_type(spec, columns, column.name)) for column in columns]
        relation = (
            f"read_json({paths}, format = 'newline_delimited', columns = {_struct(found)}, "
            f"compression = {_compression(shape)})"
        )
        return RowSource(select_rows(spec, columns, found, relation, ordinal))
    found = list(zip(shape.names, shape.types, strict=True))
    if shape.format is FileFormat.PARQUET:
        relation = f"read_parquet({paths}, hive_partitioning = false)"
        return RowSource(select_rows(spec, columns, found, relation, ordinal))
    name = f"arrow_{first_ordinal}"
    table = with_ordinals([arrow_tables[path] for path in files], first_ordinal)
    return RowSource(select_rows(spec, columns, found, name, BATCH_COLUMN), {name: table})


def _read_csv(spec: DatasetSpec, shape: _Shape, found: Sequence[tuple[str, str]], paths: str) -> str:
    options = spec.landing.csv
    nulls = "[" + ", ".join(literal(text) for text in options.null) + "]"
    return (
        f"read_csv({paths}, columns = {_struct(found)}, auto_detect = false, "
        f"header = {'false' if options.header else 'true'}, delim = {literal(options.delimiter)}, "
        f"quote = {literal(options.quote)}, escape = {literal(options.escape)}, nullstr = {nulls}, "
        f"compression = {_compression(shape)})"
    )


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _compression(shape: _Shape) -> str:
    """Said outright, because DuckDB's own look at the name is led astray by a question mark in it."""
    return "'gzip'" if shape.gzip else "'none'"


def _struct(found: Sequence[tuple[str, str]]) -> str:
    return "{" + ", ".join(f"{literal(name)}: {literal(type_)}" for name, type_ in found) + "}"


def _text_type(spec: DatasetSpec, columns: Sequence[Column], name: str) -> str:
    """The type as which a column is parsed out of a text file."""
    if name == spec.time.column and (spec.time.format or spec.time.unit):
        return "VARCHAR"
    kept = next((column.type for column in columns if column.name == name), "VARCHAR")
    return type_in_text(kept)


def _csv_header(spec: DatasetSpec, path: Path) -> tuple[str, ...]:
    options = spec.landing.csv
    if options.header:
        return options.header
    opener = gzip.open if _is_gzip(path) else open
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


def _read_arrow(path: Path) -> pa.Table:
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


def _arrow_shape(connection: duckdb.DuckDBPyConnection, schema: pa.Schema, known: dict[pa.Schema, _Shape]) -> _Shape:
    if schema not in known:
        found = describe_arrow(connection, schema)
        names, types = tuple(name for name, _ in found), tuple(type_ for _, type_ in found)
        known[schema] = _Shape(FileFormat.ARROW, names, types, schema=schema.remove_metadata())
    return known[schema]


def describe_arrow(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> list[tuple[str, str]]:
    """Return (name, DuckDB type) of the columns of an Arrow schema.

    Raises:
        UnreadableFile: it has no columns, or one of a type that DuckDB does not know.
    """
    names = schema.names
    if not names:
        raise UnreadableFile("it has no columns")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UnreadableFile(f"wrong columns; repeated columns: {', '.join(map(repr, twice))}")
    try:
        connection.register("described", schema.empty_table())
        return _describe(connection, "described")
    except (duckdb.Error, NotImplementedError) as error:
        raise UnreadableFile(readable_reason(error)) from error
    finally:
        connection.unregister("described")


def with_ordinals(tables: Sequence[pa.Table], first_ordinal: int) -> pa.Table:
    """Return tables of one schema as one, with the column ``_batch``: the ordinal of each row's table."""
    import numpy as np
    import pyarrow as pa

    ordinals = np.repeat(
        np.arange(first_ordinal, first_ordinal + len(tables), dtype=np.int32), [table.num_rows for table in tables]
    )
    return pa.concat_tables(tables).append_column(BATCH_COLUMN, pa.array(ordinals))


def _parquet_shapes(
    connection: duckdb.DuckDBPyConnection, files: Sequence[Path], refused: dict[Path, str]
) -> dict[Path, _Shape]:
    shapes = _flat_parquet_shapes(connection, files)
    for path in files:
        if path in shapes:
            continue
        try:
            found = _describe(connection, f"read_parquet({literal(glob_literal(path))}, hive_partitioning = false)")
            names, types = tuple(name for name, _ in found), tuple(type_ for _, type_ in found)
            shapes[path] = _Shape(FileFormat.PARQUET, names, types)
        except duckdb.Error as error:
            refused[path] = readable_reason(error)
    return shapes


def _flat_parquet_shapes(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> dict[Path, _Shape]:
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
    return {Path(name): _Shape(FileFormat.PARQUET, tuple(names), tuple(types)) for name, names, types in rows}


def _check_json_keys(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    columns: Sequence[Column],
    shape: _Shape,
    files: Sequence[Path],
    refused: dict[Path, str],
) -> list[Path]:
    """Return the JSON lines files whose keys are all known; the others are refused."""
    known = ", ".join(literal(name) for name in (*(column.name for column in columns), *spec.landing.ignore_columns))
    accepted = []
    for group in (files, *([path] for path in files)) if len(files) > 1 else (files,):
        paths = "[" + ", ".join(literal(glob_literal(path)) for path in group) + "]"
        try:
            rows = connection.execute(
                f"SELECT file_index, list(DISTINCT key ORDER BY key) FROM ("
                f"SELECT file_index, unnest(json_keys(json)) AS key "
                f"FROM read_ndjson_objects({paths}, compression = {_compression(shape)})) "
                f"WHERE key NOT IN ({known}) GROUP BY file_index"
            ).fetchall()
        except duckdb.Error as error:
            if len(group) == 1:
                refused[group[0]] = readable_reason(error)
            continue
        unknown = {group[index]: names for index, names in rows}
        for path in group:
            if path in unknown:
                names = ", ".join(map(repr, unknown[path][:20]))
                expected = ", ".join(column.name for column in columns)
                refused[path] = f"wrong columns; unknown columns: {names}. The dataset has {expected}"
            else:
                accepted.append(path)
        if len(group) > 1:
            break
    return accepted


def _describe_file(connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, path: Path) -> list[tuple[str, str]]:
    format_ = file_format(spec, path)
    if path.stat().st_size == 0:
        raise UnreadableFile("the file is empty (0 bytes)")
    source = literal(glob_literal(path))
    if format_ is FileFormat.ARROW:
        return describe_arrow(connection, _read_arrow(path).schema)
    if format_ is FileFormat.PARQUET:
        return _describe(connection, f"read_parquet({source}, hive_partitioning = false)")
    compression = _compression(_Shape(format_, gzip=_is_gzip(path)))
    if format_ is FileFormat.JSON_LINES:
        relation = f"read_json({source}, format = 'newline_delimited', sample_size = -1, compression = {compression})"
    else:
        names = _csv_header(spec, path)
        options = spec.landing.csv
        nulls = "[" + ", ".join(literal(text) for text in options.null) + "]"
        relation = (
            f"read_csv({source}, header = {'false' if options.header else 'true'}, sample_size = -1, "
            f"delim = {literal(options.delimiter)}, quote = {literal(options.quote)}, "
            f"escape = {literal(options.escape)}, nullstr = {nulls}, compression = {compression}, "
            f"names = [{', '.join(literal(name) for name in names)}])"
        )
    if connection.execute(f"SELECT 1 FROM {relation} LIMIT 1").fetchone() is None:
        raise NoRowsToInferFrom
    return _describe(connection, relation)


def _describe(connection: duckdb.DuckDBPyConnection, relation: str) -> list[tuple[str, str]]:
    rows = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    return [(row[0], row[1]) for row in rows]


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror or error}"
    return str(error) or type(error).__name__

"""Which columns a dataset gets from its batches: those of the first one, and what later ones add or widen.

Typed formats say what they have. Of text the values of all files at hand are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.duck.sql import file_literal, quote
from timestore_pipeline.model.columns import TIME_TYPES, Column, check_name, inferred_type
from timestore_pipeline.model.evolution import Schema, grown
from timestore_pipeline.rows.arrow import read_arrow_schema
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.fit import WrongColumns, wrong_names
from timestore_pipeline.rows.reasons import NoRowsToInferFrom, UnreadableFile, readable_reason
from timestore_pipeline.rows.shapes import (
    Shape,
    csv_header,
    describe,
    describe_arrow,
    file_format,
    is_gzip,
)
from timestore_pipeline.rows.texts import inferring_sql, json_objects_sql


def infer_columns(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, path: Path, bounds: Bounds
) -> tuple[Column, ...]:
    """Return the columns that a dataset gets when this file is its first batch.

    Raises:
        NoRowsToInferFrom: the file is text and has no rows.
        UnreadableFile: the file cannot be read, or has a column that no dataset can hold.
    """
    try:
        found = _describe_file(connection, spec, path, bounds)
    except duckdb.Error as error:
        raise UnreadableFile(readable_reason(error)) from error
    return columns_of(spec, found)


def types_of_values(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, schema: Schema, path: Path, bounds: Bounds
) -> Sequence[Column]:
    """Return the columns that a file seems to have where the dataset's are too narrow for them, else nothing."""
    known = {column.name for column in schema.columns}
    try:
        columns = [column for column in infer_columns(connection, spec, path, bounds) if column.name in known]
        return columns if grown(schema.columns, columns) != schema.columns else ()
    except (UnreadableFile, OSError, ValueError):
        return ()


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
    if time_type not in TIME_TYPES:
        raise UnreadableFile(
            f"the time column {spec.time.column!r} has type {time_type}; "
            "set time.format (for text) or time.unit (for integers) of the dataset"
        )
    for name in spec.key.needed if spec.key else ():
        if name not in by_name:
            raise UnreadableFile(f"the key's column {name!r} is missing; the columns are {', '.join(by_name)}")
    return tuple(columns)


def brought_columns(
    spec: DatasetSpec, schema: Schema, found: Sequence[tuple[str, str]]
) -> tuple[list[Column], frozenset[str]]:
    """Return what a batch with columns ``found`` (name, DuckDB type) brings, and the new names that tell no type yet.

    A new column in which all is null is passed over until a batch has a value in it: its type would be a guess, and
    for ever.

    Raises:
        UnreadableFile: a new column has a name or a type that no dataset can have.
    """
    known = {column.name for column in schema.columns}
    brought, without_type = [], set()
    for name, type_ in found:
        if name in spec.landing.ignore_columns:
            continue
        if name not in known and type_.upper().strip('"') == "NULL":
            without_type.add(name)
            continue
        try:
            kept = inferred_type(type_)
            if name not in known:
                check_name(name)
        except ValueError as error:
            if name in known:
                continue  # the cast tells what is wrong with it
            raise UnreadableFile(f"column {name!r}: {error}") from error
        is_converted_time = name == spec.time.column and (spec.time.format or spec.time.unit)
        if not is_converted_time:
            brought.append(Column(name, kept))
    return brought, frozenset(without_type)


def grown_schema(spec: DatasetSpec, schema: Schema, names: Sequence[str], brought: Sequence[Column]) -> Schema:
    """Return the schema with what a batch brings, as it was where the dataset does not evolve.

    Also as it was where the batch lacks a column that it must have: what looks new may be that one, renamed.

    Raises:
        UnreadableFile: the dataset cannot have these columns.
    """
    if not spec.evolves or any(name not in names for name in schema.required):
        return schema
    try:
        columns = grown(schema.columns, brought)
    except ValueError as error:
        raise WrongColumns(spec, schema.columns, [*wrong_names(spec, schema, names), str(error)]) from error
    return Schema(schema.version, columns, schema.required)


def columns_of_texts(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, shape: Shape, files: Sequence[Path]
) -> list[tuple[str, str]]:
    """Return (name, DuckDB type) of the columns of text files of one shape, by all values in them.

    A column without any value has the type ``NULL``.

    Raises:
        UnreadableFile: they cannot be read.
    """
    relation = inferring_sql(spec, shape, files)
    try:
        found = describe(connection, relation)
        texts = [name for name, type_ in found if type_ == "VARCHAR"]
        if texts:
            counts = ", ".join(f"count({quote(name)})" for name in texts)
            values = connection.execute(f"SELECT {counts} FROM {relation}").fetchall()[0]
            empty = {name for name, count in zip(texts, values, strict=True) if not count}
            found = [(name, "NULL" if name in empty else type_) for name, type_ in found]
    except duckdb.Error as error:
        raise UnreadableFile(readable_reason(error)) from error
    return found


def _describe_file(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, path: Path, bounds: Bounds
) -> list[tuple[str, str]]:
    format_ = file_format(spec, path)
    if path.stat().st_size == 0:
        raise UnreadableFile("the file is empty (0 bytes)")
    if format_ is FileFormat.ARROW:
        return describe_arrow(connection, read_arrow_schema(path, bounds))
    if format_ is FileFormat.PARQUET:
        bounds.check_parquet(path)
        return describe(connection, f"read_parquet({file_literal(path)}, hive_partitioning = false)")
    shape = Shape(
        format_,
        () if format_ is FileFormat.JSON_LINES else csv_header(spec, path, bounds),
        gzip=is_gzip(path),
    )
    if format_ is FileFormat.JSON_LINES:
        bounds.check_columns(most_keys(connection, shape, [path]))
    relation = inferring_sql(spec, shape, [path])
    if connection.execute(f"SELECT 1 FROM {relation} LIMIT 1").fetchone() is None:
        raise NoRowsToInferFrom
    return describe(connection, relation)


def most_keys(connection: duckdb.DuckDBPyConnection, shape: Shape, files: Sequence[Path]) -> int:
    """Return how many different keys the rows of JSON lines have together."""
    found = connection.execute(
        f"SELECT count(DISTINCT key) FROM (SELECT unnest(json_keys(json)) AS key FROM {json_objects_sql(shape, files)})"
    ).fetchall()
    return found[0][0]

"""Reading landing files in bulk: files of the same shape become one DuckDB statement.

Every file's columns are held against the dataset's before any row is read, because DuckDB maps CSV columns by
position and drops unknown JSON keys in silence; a dataset takes neither.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.duck.sql import EVERY_VALUE, list_of_files, literal
from timestore_pipeline.model.columns import BATCH_COLUMN, Column
from timestore_pipeline.model.evolution import Schema, types_by_name
from timestore_pipeline.rows.arrow import read_arrow
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.casts import type_in_text
from timestore_pipeline.rows.culprits import attempt_by_halves
from timestore_pipeline.rows.fit import WrongColumns, select_rows, wrong_names
from timestore_pipeline.rows.inference import brought_columns, columns_of_texts, grown_schema
from timestore_pipeline.rows.reasons import UnreadableFile, readable_reason, unreadable
from timestore_pipeline.rows.shapes import (
    Shape,
    arrow_shape,
    csv_header,
    file_format,
    is_gzip,
    parquet_shapes,
)
from timestore_pipeline.rows.texts import json_objects_sql, read_csv_sql, read_json_lines_sql

if TYPE_CHECKING:
    import pyarrow as pa

_TEXTS = (FileFormat.CSV, FileFormat.JSON_LINES)
_SAMPLE_CHARACTERS = 60


@dataclass(frozen=True)
class RowSource:
    """Rows of one or more batches that DuckDB reads in one statement.

    ``sql`` selects the dataset's columns in order and then ``_batch``, the ordinal of each row's batch;
    ``tables`` are to be registered under their names first. ``numbered`` says that ``_row`` comes last: rows that had
    their numbers before.
    """

    sql: str
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    numbered: bool = False


@dataclass(frozen=True)
class Growth:
    """Columns that the dataset gets, and the file that brings them."""

    columns: tuple[Column, ...]
    path: Path


@dataclass(frozen=True)
class ReadPlan:
    """How to read files: the sources, the files by ordinal, and those whose shape is wrong with the reason.

    The sources select the columns of ``schema``, to which each of ``growth`` has added something.
    """

    sources: tuple[RowSource, ...]
    order: tuple[Path, ...]
    refused: Mapping[Path, str]
    schema: Schema
    growth: tuple[Growth, ...] = ()


@dataclass(frozen=True)
class _Group:
    """Files that are read together: of one shape, and of JSON lines with the same unknown keys."""

    shape: Shape
    files: Sequence[Path]
    unknown: tuple[str, ...] = ()
    passed_over: frozenset[str] = frozenset()


def plan_reads(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    schema: Schema,
    files: Sequence[Path],
    bounds: Bounds,
    wider: Mapping[Path, Sequence[Column]] | None = None,
) -> ReadPlan:
    """Group ``files`` by shape into as few statements as possible; wrongly shaped ones are refused one by one.

    Where the dataset evolves, what the files add to its columns or widen is taken up. ``wider`` has, for text files
    whose values did not fit, the columns under which they would.
    """
    refused: dict[Path, str] = {}
    arrow_tables: dict[Path, pa.Table] = {}
    shapes = _shapes(connection, spec, files, bounds, arrow_tables, refused)
    groups: list[_Group] = []
    growth: list[Growth] = []
    before = schema
    for group in _groups(connection, spec, schema, shapes, bounds, refused):
        try:
            later, passed_over = _grown(connection, spec, schema, group, wider or {})
        except UnreadableFile as error:
            refused.update(dict.fromkeys(group.files, str(error)))
            continue
        if later.columns != schema.columns:
            growth.append(Growth(later.columns, group.files[0]))
            schema = later
        groups.append(_Group(group.shape, group.files, group.unknown, passed_over))
    sources: list[RowSource] = []
    order: list[Path] = []
    for group in _in_file_order(groups, files) if spec.key else groups:
        try:
            sources.append(_source(spec, schema, group, len(order), arrow_tables))
            order += group.files
        except UnreadableFile as error:
            refused.update(dict.fromkeys(group.files, str(error)))
    if any(step.path in refused for step in growth):
        # Nothing is taken up from a file that is not staged.
        again = plan_reads(connection, spec, before, [path for path in files if path not in refused], bounds, wider)
        return replace(again, refused={**refused, **again.refused})
    return ReadPlan(tuple(sources), tuple(order), refused, schema, tuple(growth))


def _in_file_order(groups: Sequence[_Group], files: Sequence[Path]) -> list[_Group]:
    """Split groups so that their files follow one another as in ``files``: with a key the later file wins."""
    group_of = {path: group for group in groups for path in group.files}
    found: list[_Group] = []
    for path in files:
        group = group_of.get(path)
        if group is None:
            continue
        if found and found[-1].shape == group.shape and found[-1].unknown == group.unknown:
            found[-1] = replace(found[-1], files=[*found[-1].files, path])
        else:
            found.append(replace(group, files=[path]))
    return found


def _shapes(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    files: Sequence[Path],
    bounds: Bounds,
    arrow_tables: dict[Path, pa.Table],
    refused: dict[Path, str],
) -> dict[Shape, list[Path]]:
    shapes: dict[Shape, list[Path]] = defaultdict(list)
    arrow_shapes: dict[pa.Schema, Shape] = {}
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
                shape = Shape(format_, csv_header(spec, path, bounds), gzip=is_gzip(path))
            elif format_ is FileFormat.ARROW:
                arrow_tables[path] = read_arrow(path, bounds)
                shape = arrow_shape(connection, arrow_tables[path].schema, arrow_shapes)
            else:
                shape = Shape(format_, gzip=is_gzip(path))
            shapes[shape].append(path)
        except (UnreadableFile, OSError) as error:
            refused[path] = unreadable(error)
    for path, shape in parquet_shapes(connection, parquet, refused, bounds).items():
        shapes[shape].append(path)
    return shapes


def _groups(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    schema: Schema,
    shapes: Mapping[Shape, list[Path]],
    bounds: Bounds,
    refused: dict[Path, str],
) -> list[_Group]:
    known = {column.name for column in schema.columns}.union(spec.landing.ignore_columns)
    groups = []
    for shape, members in shapes.items():
        if shape.format is not FileFormat.JSON_LINES:
            unknown = tuple(name for name in shape.names if name not in known)
            groups.append(_Group(shape, members, unknown))
            continue
        by_keys: dict[tuple[str, ...], list[Path]] = defaultdict(list)
        for path, keys in _unknown_keys(connection, known, shape, members, bounds, refused).items():
            by_keys[keys].append(path)
        groups += [_Group(shape, paths, keys) for keys, paths in by_keys.items()]
    return groups


def _grown(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    schema: Schema,
    group: _Group,
    wider: Mapping[Path, Sequence[Column]],
) -> tuple[Schema, frozenset[str]]:
    """Return the schema with what a group of files brings, and those of its columns that tell no type yet."""
    shape = group.shape
    if not spec.evolves:
        return schema, frozenset()
    names = [*shape.names] or [*schema.required]
    if shape.format not in _TEXTS:
        found = list(zip(shape.names, shape.types, strict=True))
    else:
        found = [(column.name, column.type) for path in group.files for column in wider.get(path, ())]
        if group.unknown:
            texts = columns_of_texts(connection, spec, shape, group.files)
            names = [name for name, _ in texts]
            found += [(name, type_) for name, type_ in texts if name in group.unknown]
    brought, without_type = brought_columns(spec, schema, found)
    later = grown_schema(spec, schema, names, brought)
    if shape.format is FileFormat.JSON_LINES and group.unknown:
        problems = wrong_names(spec, later, names, without_type)
        if problems:
            raise WrongColumns(spec, schema.columns, problems)
    return later, without_type


def _source(
    spec: DatasetSpec,
    schema: Schema,
    group: _Group,
    first_ordinal: int,
    arrow_tables: Mapping[Path, pa.Table],
) -> RowSource:
    shape, files = group.shape, group.files
    ordinal = f"{first_ordinal} + file_index"
    if shape.format is FileFormat.CSV:
        found = [(name, _text_type(spec, schema, name)) for name in shape.names]
        relation = read_csv_sql(spec, shape, found, files)
        return RowSource(select_rows(spec, schema, found, relation, ordinal, group.passed_over))
    if shape.format is FileFormat.JSON_LINES:
        problems = wrong_names(spec, schema, [*schema.required, *group.unknown], group.passed_over)
        if problems:
            raise WrongColumns(spec, schema.columns, problems)
        names = [column.name for column in schema.columns]
        found = [(name, "VARCHAR") for name in names]
        relation = read_json_lines_sql(names, shape, files)
        return RowSource(select_rows(spec, schema, found, relation, ordinal, group.passed_over))
    found = list(zip(shape.names, shape.types, strict=True))
    if shape.format is FileFormat.PARQUET:
        relation = f"read_parquet({list_of_files(files)}, hive_partitioning = false)"
        return RowSource(select_rows(spec, schema, found, relation, ordinal, group.passed_over))
    name = f"arrow_{first_ordinal}"
    table = with_ordinals([arrow_tables[path] for path in files], first_ordinal)
    return RowSource(select_rows(spec, schema, found, name, BATCH_COLUMN, group.passed_over), {name: table})


def _text_type(spec: DatasetSpec, schema: Schema, name: str) -> str:
    """The type as which a column is parsed out of a text file."""
    if name == spec.time.column and (spec.time.format or spec.time.unit):
        return "VARCHAR"
    return type_in_text(types_by_name(schema.columns).get(name, "VARCHAR"))


def read_through(connection: duckdb.DuckDBPyConnection, source: RowSource) -> None:
    """Read every value of a source and keep nothing.

    Raises:
        UnreadableFile: what is to be read is at fault.
        duckdb.OutOfMemoryException: which says nothing of it.
    """
    for name, table in source.tables.items():
        connection.register(name, table)
    try:
        connection.execute(f"SELECT {EVERY_VALUE} FROM ({source.sql})").fetchall()
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        raise UnreadableFile(readable_reason(error)) from error
    finally:
        for name in source.tables:
            connection.unregister(name)


def with_ordinals(tables: Sequence[pa.Table], first_ordinal: int) -> pa.Table:
    """Return tables of one schema as one, with the column ``_batch``: the ordinal of each row's table."""
    import numpy as np
    import pyarrow as pa

    ordinals = np.repeat(
        np.arange(first_ordinal, first_ordinal + len(tables), dtype=np.int32), [table.num_rows for table in tables]
    )
    return pa.concat_tables(tables).append_column(BATCH_COLUMN, pa.array(ordinals))


def _unknown_keys(
    connection: duckdb.DuckDBPyConnection,
    known: Collection[str],
    shape: Shape,
    files: Sequence[Path],
    bounds: Bounds,
    refused: dict[Path, str],
) -> dict[Path, tuple[str, ...]]:
    """Return the keys of JSON lines files that are no columns; files with lines that are no rows are refused."""
    names = ", ".join(map(literal, sorted(known)))

    def keys_by_file(group: Sequence[Path]) -> list[tuple[int, list[str], str | None, str | None]]:
        # Few lists of keys are different, so it costs little to look at each.
        return connection.execute(
            f"SELECT file_index, list_sort(list_filter(list_distinct(flatten(list(keys))), lambda key: key NOT IN "
            f"({names}))), any_value(sample) FILTER (kind <> 'OBJECT'), "
            f"any_value(sample) FILTER (kind = 'OBJECT' AND list_unique(keys) < len(keys)) FROM ("
            f"SELECT file_index, json_keys(json) AS keys, json_type(json) AS kind, "
            f"any_value(concat(json_type(json), ' ', left(json, {_SAMPLE_CHARACTERS}))) AS sample "
            f"FROM {json_objects_sql(shape, group)} GROUP BY ALL) GROUP BY file_index"
        ).fetchall()

    found: dict[Path, tuple[str, ...]] = {}
    for group, rows in attempt_by_halves(files, keys_by_file, duckdb.Error):
        if isinstance(rows, duckdb.Error):
            refused[group[0]] = readable_reason(rows)
            continue
        found.update(dict.fromkeys(group, ()))
        for index, keys, no_object, repeating in rows:
            found[group[index]] = tuple(keys)
            try:
                bounds.check_columns(len(keys))
            except UnreadableFile as error:
                refused[group[index]] = str(error)
                continue
            if no_object is not None:
                refused[group[index]] = f"a line of it is no JSON object but {no_object}; write one object on each line"
            elif repeating is not None:
                refused[group[index]] = f"a line of it has a key twice: {repeating.removeprefix('OBJECT ')}"
    return {path: keys for path, keys in found.items() if path not in refused}

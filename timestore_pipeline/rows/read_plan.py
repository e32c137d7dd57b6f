"""How the rows of batches are read, be they files or tables: batches of one shape become one DuckDB statement.

Every batch's columns are held against the dataset's before any row is read, because DuckDB maps CSV columns by
position and drops unknown JSON keys in silence; a dataset takes neither.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import EVERY_VALUE, quote
from timestore_pipeline.errors import TooManyOpenFiles
from timestore_pipeline.model.columns import BATCH_COLUMN, Column
from timestore_pipeline.model.evolution import Schema, grown
from timestore_pipeline.rows.culprits import attempt_by_halves, find_culprits
from timestore_pipeline.rows.fit import WrongColumns, select_plain_rows, select_rows
from timestore_pipeline.rows.formats.format import (
    Brought,
    File,
    Format,
    Identified,
    NamesAndTypes,
    Reader,
    Shape,
    each_alone,
)
from timestore_pipeline.rows.formats.known import TABLES, file_of
from timestore_pipeline.rows.growth import first_schema, grow
from timestore_pipeline.rows.reasons import NoRowsToInferFrom, UnreadableFile, readable_reason, unreadable

_OF_VALUES = (duckdb.DataError, duckdb.InvalidInputException, duckdb.InternalException)
_TELLS_WHERE = re.compile(r"\b(column|line)\b", re.IGNORECASE)


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
    """Columns that the dataset gets, and the number of the batch that brings them."""

    columns: tuple[Column, ...]
    number: int


@dataclass(frozen=True)
class ReadPlan:
    """How to read batches, which go by numbers: ``order`` has these by ordinal, ``refused`` why others do not fit.

    The sources select the columns of ``schema``, to which each of ``growth`` has added something. It is None where
    nothing tells what columns there are.
    """

    schema: Schema | None
    sources: Sequence[RowSource] = ()
    order: Sequence[int] = ()
    refused: Mapping[int, str] = field(default_factory=dict)
    growth: Sequence[Growth] = ()


@dataclass(frozen=True)
class _Group:
    """Batches that are read together, the names of their columns, and those of these that tell no type yet."""

    shape: Shape
    contents: Mapping[int, File | pa.Table]
    names: Sequence[str]
    passed_over: frozenset[str]


def plan_reads(
    reader: Reader,
    schema: Schema | None,
    batches: Mapping[int, Path | File | pa.Table],
    wider: Mapping[int, Sequence[Column]],
) -> ReadPlan:
    """Group batches by shape into as few statements as possible; those of a wrong shape are refused one by one.

    Where the dataset has no columns yet it gets those of the first batch that tells some. Where it evolves, what the
    batches add to its columns or widen is taken up. ``wider`` has, for texts whose values did not fit, the columns
    under which they would. With a key the batches are read in their order, as the later one wins.
    """
    opened = each_alone(batches, lambda batch: _content(reader.spec, batch))
    contents = {number: content for number, content in opened.items() if not isinstance(content, str)}
    refused = {number: reason for number, reason in opened.items() if isinstance(reason, str)}
    growth: list[Growth] = []
    if schema is None:
        schema, brought_by, unread = _first_schema(reader, contents)
        refused.update(unread)
        if schema is None:
            return ReadPlan(None, refused=refused)
        growth.append(Growth(schema.columns, brought_by))
    fitting = {number: content for number, content in contents.items() if number not in refused}
    plan = _plan(reader, schema, fitting, wider, schema.columns)
    return replace(plan, refused={**refused, **plan.refused}, growth=[*growth, *plan.growth])


def schema_alone(reader: Reader, batch: Path | File | pa.Table) -> Schema:
    """Return the schema that a dataset gets when this is its first batch.

    Raises:
        NoRowsToInferFrom: it is text and has no rows.
        UnreadableFile, OSError: it cannot be read, or has a column that no dataset can hold.
    """
    content = _content(reader.spec, batch)
    try:
        return first_schema(reader.spec, _format_of(content).describe(reader, content))
    except duckdb.Error as error:
        raise UnreadableFile(readable_reason(error)) from error


def wider_columns(reader: Reader, schema: Schema, batch: Path | File | pa.Table) -> Sequence[Column]:
    """Return the columns that a batch seems to have where the dataset's are too narrow for them, else nothing."""
    known = {column.name for column in schema.columns}
    try:
        brought = [column for column in schema_alone(reader, batch).columns if column.name in known]
        return brought if grown(schema.columns, brought) != schema.columns else ()
    except (UnreadableFile, OSError, ValueError):
        return ()


def plain_sql(reader: Reader, schema: Schema, file: File) -> str | None:
    """Return SQL that reads a small file in short, where it is as most are: the dataset's columns, and a truth.

    Where that is true for every row, a plan reads the very same rows. Else, and where anything goes wrong, nothing is
    known. None where a plan is as short.

    Raises:
        UnreadableFile, OSError: it is not as most are.
    """
    plain = file.format.plain_relation(reader, schema, file)
    if plain is None:
        return None
    return select_plain_rows(reader.spec, schema, plain.columns, plain.sql, plain.condition)


def read_as_written(reader: Reader, schema: Schema, batch: Path | File) -> tuple[str, NamesAndTypes]:
    """Return SQL that reads a file's values as they are written, and its columns: what fits no type is read as well.

    Raises:
        UnreadableFile: it cannot be read.
    """
    shapes, refused = _shapes(reader, schema, {0: _content(reader.spec, batch)})
    for shape, contents in shapes.items():
        columns = shape.format.columns_as_written(schema, shape)
        relation = shape.format.relation(reader.spec, shape, columns, list(contents.values()), 0)
        return f"SELECT {', '.join(quote(name) for name, _ in columns)} FROM {relation.sql}", columns
    raise UnreadableFile(refused[0])


def read_through(connection: duckdb.DuckDBPyConnection, source: RowSource) -> None:
    """Read every value of a source and keep nothing.

    Raises:
        UnreadableFile: what is to be read is at fault.
        duckdb.OutOfMemoryException: which says nothing of it.
    """
    try:
        _select(connection, source, f"SELECT {EVERY_VALUE} FROM ({source.sql})")
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        raise UnreadableFile(_reason_with_column(connection, source, error)) from error


def _select(connection: duckdb.DuckDBPyConnection, source: RowSource, sql: str) -> list[tuple[Any, ...]]:
    """Return what a statement over a source says; nothing of an earlier one is needed, as an error may end DuckDB."""
    for name, table in source.tables.items():
        connection.register(name, table)
    try:
        return connection.execute(sql).fetchall()
    finally:
        for name in source.tables:
            connection.unregister(name)


def _reason_with_column(connection: duckdb.DuckDBPyConnection, source: RowSource, error: duckdb.Error) -> str:
    """Return what is wrong with a value, and in which column where DuckDB tells neither that nor the row."""
    reason = readable_reason(error)
    if not isinstance(error, _OF_VALUES) or _TELLS_WHERE.search(reason):
        return reason

    def read(names: Sequence[str]) -> None:
        _select(connection, source, f"SELECT bit_xor(hash({', '.join(map(quote, names))})) FROM ({source.sql})")

    try:
        names = [row[0] for row in _select(connection, source, f"DESCRIBE {source.sql}")]
        read([BATCH_COLUMN])  # else it is not a matter of one column
    except duckdb.Error:
        return reason
    culprit = next(find_culprits(names, read, duckdb.Error), None)
    return f"{reason}, in column {culprit[0]!r}" if culprit else reason


def _content(spec: DatasetSpec, batch: Path | File | pa.Table) -> File | pa.Table:
    if isinstance(batch, pa.Table):
        return batch
    file = batch if isinstance(batch, File) else file_of(spec, batch)
    if file.path.stat().st_size == 0:
        raise UnreadableFile("the file is empty (0 bytes)")
    return file


def _format_of(content: File | pa.Table) -> Format:
    return content.format if isinstance(content, File) else TABLES


def _first_schema(reader: Reader, contents: Mapping[int, File | pa.Table]) -> tuple[Schema | None, int, dict[int, str]]:
    """Return the columns of the first batch that tells some, its number, and why batches before it are refused.

    Without such a batch those are among them that have no rows.
    """
    refused: dict[int, str] = {}
    without_rows: dict[int, str] = {}
    for number, content in contents.items():
        try:
            schema = schema_alone(reader, content)
        except NoRowsToInferFrom as error:
            without_rows[number] = str(error)
        except TooManyOpenFiles:
            raise  # an OSError that says nothing of the file
        except (UnreadableFile, OSError) as error:
            refused[number] = unreadable(error)
        else:
            # Its columns may still not be what it says: two of one name, for instance.
            alone = _plan(reader, schema, {number: content}, {}, ())
            if number not in alone.refused:
                return schema, number, refused
            refused.update(alone.refused)
    return None, 0, {**refused, **without_rows}


def _plan(
    reader: Reader,
    schema: Schema,
    contents: Mapping[int, File | pa.Table],
    wider: Mapping[int, Sequence[Column]],
    had: Sequence[Column],
) -> ReadPlan:
    """Plan to read batches of a dataset that gets the columns of ``schema``; ``had`` is what it has without them."""
    spec = reader.spec
    shapes, refused = _shapes(reader, schema, contents)
    groups: list[_Group] = []
    growth: list[Growth] = []

    def grown_by(part: Sequence[tuple[Shape, int]]) -> tuple[Schema, _Group] | WrongColumns:
        shape = part[0][0]
        members = {number: shapes[shape][number] for _, number in part}
        try:
            return _grown(reader, schema, shape, members, wider)
        except WrongColumns as error:
            return WrongColumns(spec, had, error.problems)  # as for each that has these names

    for shape, members in shapes.items():
        # Of text the values tell what is new, and those of one file may be what cannot be read.
        for part, found in attempt_by_halves([(shape, number) for number in members], grown_by, UnreadableFile):
            if isinstance(found, UnreadableFile):
                refused.update({number: str(found) for _, number in part})
                continue
            later, group = found
            if later.columns != schema.columns:
                growth.append(Growth(later.columns, part[0][1]))
                had = later.columns
            schema = later
            groups.append(group)
    sources: list[RowSource] = []
    order: list[int] = []
    for group in _in_order(groups, contents) if spec.key else groups:
        sources.append(_source(spec, schema, group, len(order)))
        order += group.contents
    return ReadPlan(schema, sources, order, refused, growth)


def _shapes(
    reader: Reader, schema: Schema, contents: Mapping[int, File | pa.Table]
) -> tuple[Mapping[Shape, dict[int, File | pa.Table]], dict[int, str]]:
    """Return batches by shape, and why others cannot be read."""
    known = {column.name for column in schema.columns}.union(reader.spec.landing.ignore_columns)
    by_format: dict[Format, dict[int, File | pa.Table]] = defaultdict(dict)
    for number, content in contents.items():
        by_format[_format_of(content)][number] = content
    identified: dict[int, Identified | str] = {}
    for format_, members in by_format.items():
        identified.update(format_.identify(reader, known, members))
    shapes: dict[Shape, dict[int, File | pa.Table]] = defaultdict(dict)
    refused: dict[int, str] = {}
    for number in contents:
        found = identified[number]
        if isinstance(found, Identified):
            shapes[found.shape][number] = found.content
        else:
            refused[number] = found
    return shapes, refused


def _grown(
    reader: Reader,
    schema: Schema,
    shape: Shape,
    contents: Mapping[int, File | pa.Table],
    wider: Mapping[int, Sequence[Column]],
) -> tuple[Schema, _Group]:
    """Return the schema with what batches of a shape bring, and how these are read.

    Raises:
        WrongColumns: they do not fit; of what they bring nothing is taken up.
        UnreadableFile: one of them cannot be read, or has a column that no dataset can hold.
    """
    brought = Brought([*schema.required, *shape.names])
    if reader.spec.evolves:
        brought = shape.format.brought(reader, schema, shape, list(contents.values()))
    asked_for = [(column.name, column.type) for number in contents for column in wider.get(number, ())]
    later, passed_over = grow(reader.spec, schema, brought.names, [*asked_for, *brought.columns])
    columns = shape.format.columns(reader.spec, later, shape, brought.names)
    select_rows(reader.spec, later, columns, "", "0", passed_over)
    return later, _Group(shape, contents, brought.names, passed_over)


def _source(spec: DatasetSpec, schema: Schema, group: _Group, first: int) -> RowSource:
    known = {column.name for column in schema.columns}
    # What is known not to be wanted is not read where that can be: another name may be the same but for its case.
    columns = group.shape.format.columns(spec, schema, group.shape, [name for name in group.names if name in known])
    relation = group.shape.format.relation(spec, group.shape, columns, list(group.contents.values()), first)
    sql = select_rows(spec, schema, columns, relation.sql, relation.ordinal, group.passed_over)
    return RowSource(sql, relation.tables)


def _in_order(groups: Sequence[_Group], order: Iterable[int]) -> list[_Group]:
    """Split groups so that their batches follow one another in their order."""
    group_of = {number: group for group in groups for number in group.contents}
    runs: list[tuple[_Group, list[int]]] = []
    for number in order:
        group = group_of.get(number)
        if group is None:
            continue
        if not runs or runs[-1][0] is not group:
            runs.append((group, []))
        runs[-1][1].append(number)
    return [replace(group, contents={n: group.contents[n] for n in numbers}) for group, numbers in runs]

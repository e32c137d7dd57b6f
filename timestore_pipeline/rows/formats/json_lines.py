"""JSON lines: an object per row, with its own keys.

DuckDB's reader of JSON makes floats of fractions before any type is heard of. So JSON lines are read as they are
written, each value as text: what a column cannot hold is then seen by the casts, digit by digit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.duck.sql import list_of_files, literal
from timestore_pipeline.model.columns import ROW_COLUMN
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.bounds import LONG_ROW, MOST_ROW_BYTES
from timestore_pipeline.rows.culprits import attempt_by_halves
from timestore_pipeline.rows.formats.format import File, Identified, NamesAndTypes, PlainRelation, Reader, Shape
from timestore_pipeline.rows.formats.texts import TextFormat, compression, refuse_nameless
from timestore_pipeline.rows.reasons import UnreadableFile, UnreadableRow, readable_reason

_SAMPLE_CHARACTERS = 60


class JsonLines(TextFormat):
    """A JSON object on each line. A key that a row lacks is null."""

    name = FileFormat.JSON_LINES
    media_types = ("application/x-ndjson", "application/jsonl")

    def identify(
        self, reader: Reader, known: Collection[str], contents: Mapping[int, Any]
    ) -> Mapping[int, Identified | str]:
        """Look at all keys; files with lines that are no rows are refused."""
        found: dict[int, Identified | str] = {}
        for is_packed in (False, True):
            files = [(number, file) for number, file in contents.items() if file.is_packed is is_packed]
            for part, rows in attempt_by_halves(files, lambda part: _keys(reader, known, part), duckdb.Error):
                if isinstance(rows, duckdb.Error):
                    found[part[0][0]] = readable_reason(rows)
                    continue
                by_index = {index: row for index, *row in rows}
                for index, (number, file) in enumerate(part):
                    keys, no_object, repeating = by_index.get(index, ((), None, None))
                    wrong = _what_is_wrong(reader, keys, no_object, repeating)
                    shape = Shape(self, tuple(keys), is_packed=is_packed)
                    found[number] = Identified(shape, file) if wrong is None else wrong
        return found

    def shape_alone(self, reader: Reader, file: File) -> Shape:
        """Count the keys."""
        shape = Shape(self, is_packed=file.is_packed)
        keys = reader.connection.execute(
            f"SELECT count(DISTINCT key), min(key) FROM ("
            f"SELECT unnest(json_keys(json)) AS key FROM {_objects(shape, [file])})"
        ).fetchall()
        reader.bounds.check_columns(keys[0][0])
        refuse_nameless([] if keys[0][1] is None else [keys[0][1]])  # nothing sorts before no name
        return shape

    def columns(self, spec: DatasetSpec, schema: Schema, shape: Shape, names: Sequence[str]) -> NamesAndTypes:
        """Return text for the dataset's columns, for they may be in any row; and for what the rows have besides."""
        del spec, shape
        has = [column.name for column in schema.columns]
        wanted = [name for name in has if name in names or name not in schema.required]
        return [(name, "VARCHAR") for name in (*wanted, *(name for name in names if name not in has))]

    def columns_as_written(self, schema: Schema, shape: Shape) -> NamesAndTypes:
        """Return text."""
        del shape
        return [(column.name, "VARCHAR") for column in schema.columns]

    def inferring_sql(self, spec: DatasetSpec, shape: Shape, files: Sequence[File]) -> str:
        """Return a call that looks at all lines."""
        del spec
        return (
            f"read_json({list_of_files(file.path for file in files)}, format = 'newline_delimited', sample_size = -1, "
            f"maximum_sample_files = {len(files)}, compression = {compression(shape)})"
        )

    def reading_sql(self, spec: DatasetSpec, shape: Shape, columns: NamesAndTypes, files: Sequence[File]) -> str:
        """Return what reads the values as they are written. That the lines are objects is to be known before."""
        del spec
        return f"(SELECT file_index, {_values(columns)} FROM {_objects(shape, files)})"

    def plain_relation(self, reader: Reader, schema: Schema, file: File) -> PlainRelation:
        """Count the keys of each row, and those that are known: then none is unknown or there twice."""
        shape, columns = Shape(self, is_packed=file.is_packed), self.columns_as_written(schema, Shape(self))
        known = {name for name, _ in columns}.union(reader.spec.landing.ignore_columns)
        pointers = ", ".join(literal(f"/{name.replace('~', '~0').replace('/', '~1')}") for name in sorted(known))
        fits = f"len(json_keys(json)) = list_count(json_type(json, [{pointers}])) AND json_type(json) = 'OBJECT'"
        # No column has a space in its name.
        return PlainRelation(
            f'(SELECT ({fits}) IS true AS "is plain", {_values(columns)} FROM {_objects(shape, [file])})',
            columns,
            '"is plain"',
        )

    def bad_row(self, spec: DatasetSpec, path: Path, reason: str, check: Callable[[], None]) -> UnreadableRow | None:
        """Return the first line that is no JSON object; empty lines are no rows."""
        del spec, reason
        number = 0
        with path.open("rb") as file:
            while line := file.readline(MOST_ROW_BYTES + 1):
                check()
                if not line.strip():
                    continue
                number += 1
                problem = _problem_of_line(line)
                if problem is not None:
                    return UnreadableRow(number, problem)
        return None


def _keys(reader: Reader, known: Collection[str], files: Sequence[tuple[int, File]]) -> list[tuple[Any, ...]]:
    """Return of each file: its index, its keys that are not known, and a line that is no object or has a key twice."""
    names = ", ".join(map(literal, sorted(known)))
    shape = Shape(files[0][1].format, is_packed=files[0][1].is_packed)
    # Few lists of keys are different, so it costs little to look at each.
    return reader.connection.execute(
        f"SELECT file_index, list_sort(list_filter(list_distinct(flatten(list(keys))), lambda key: key NOT IN "
        f"({names}))), any_value(sample) FILTER (kind <> 'OBJECT'), "
        f"any_value(sample) FILTER (kind = 'OBJECT' AND list_unique(keys) < len(keys)) FROM ("
        f"SELECT file_index, json_keys(json) AS keys, json_type(json) AS kind, "
        f"any_value(concat(json_type(json), ' ', left(json, {_SAMPLE_CHARACTERS}))) AS sample "
        f"FROM {_objects(shape, [file for _, file in files])} GROUP BY ALL) GROUP BY file_index"
    ).fetchall()


def _what_is_wrong(reader: Reader, keys: Sequence[str], no_object: str | None, repeating: str | None) -> str | None:
    try:
        reader.bounds.check_columns(len(keys))
    except UnreadableFile as error:
        return str(error)
    if no_object is not None:
        return f"a line of it is no JSON object but {no_object}; write one object on each line"
    if repeating is not None:
        return f"a line of it has a key twice: {repeating.removeprefix('OBJECT ')}"
    return None


def _values(columns: NamesAndTypes) -> str:
    # A decimal among the types, which no row has, makes DuckDB leave all numbers as they are written.
    types = json.dumps({**{name: "VARCHAR" for name, _ in columns}, ROW_COLUMN: "DECIMAL(1,0)"})
    return f"unnest(json_transform(json, {literal(types)}))"


def _objects(shape: Shape, files: Sequence[File]) -> str:
    """Return the call that reads JSON lines into the one column ``json``, and ``file_index``."""
    return f"read_ndjson_objects({list_of_files(file.path for file in files)}, compression = {compression(shape)})"


def _problem_of_line(line: bytes) -> str | None:
    if len(line) > MOST_ROW_BYTES:
        return LONG_ROW
    try:
        return None if isinstance(json.loads(line), dict) else "it is no JSON object"
    except ValueError as error:
        return f"it is no JSON: {error}"
    except RecursionError:
        return "it is nested too deeply"

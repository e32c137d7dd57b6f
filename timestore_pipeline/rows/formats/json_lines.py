"""JSON lines: an object per row, with its own keys.

DuckDB's reader of JSON makes floats of fractions before any type is heard of. So JSON lines are read as they are
written, each value as text: what a column cannot hold is then seen by the casts, digit by digit. It takes more than is
JSON (RFC 8259), which is looked for here; and a byte order mark only where it takes several objects on a line as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import duckdb

from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.duck.sql import list_of_files, literal
from timestore_pipeline.model.columns import ROW_COLUMN
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.bounds import LONG_ROW, MOST_ROW_BYTES, unpacked_start
from timestore_pipeline.rows.culprits import attempt_by_halves
from timestore_pipeline.rows.formats.format import (
    File,
    Identified,
    NamesAndTypes,
    PlainRelation,
    Reader,
    Shape,
    each_alone,
)
from timestore_pipeline.rows.formats.texts import TextFormat, compression, refuse_nameless, unpacked_stream
from timestore_pipeline.rows.reasons import UnreadableFile, UnreadableRow, readable_reason

_SAMPLE_CHARACTERS = 60
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# What DuckDB takes although no JSON has it: a comma with nothing behind it, and numbers that are none. Each pattern
# begins with a character, as such a one is found fast; in a text all of it may stand.
_NO_NUMBER = "-?(?i:nan|inf)"
_LOOSE = (rf",\s*(?:[}}\]]|{_NO_NUMBER})", rf":\s*{_NO_NUMBER}", rf"\[\s*{_NO_NUMBER}")
_MAY_BE_LOOSE = " OR ".join(f"regexp_matches(json, {literal(pattern)})" for pattern in _LOOSE)
_WITHOUT_TEXTS = """regexp_replace(json, '"(?:[^"\\\\]|\\\\.)*"', '""', 'g')"""
_IS_LOOSE = f"CASE WHEN {_MAY_BE_LOOSE} THEN regexp_matches({_WITHOUT_TEXTS}, {literal('|'.join(_LOOSE))}) END"


class JsonLines(TextFormat):
    """A JSON object on each line. A key that a row lacks is null."""

    name = FileFormat.JSON_LINES
    media_types = ("application/x-ndjson", "application/jsonl")

    def identify(
        self, reader: Reader, known: Collection[str], contents: Mapping[int, Any]
    ) -> Mapping[int, Identified | str]:
        """Look at all keys; files with lines that are no rows are refused."""
        shapes = each_alone(contents, self._shape)
        found: dict[int, Identified | str] = {number: no for number, no in shapes.items() if isinstance(no, str)}
        for alike in {shape for shape in shapes.values() if isinstance(shape, Shape)}:
            files = [(number, contents[number]) for number, shape in shapes.items() if shape == alike]
            for part, rows in attempt_by_halves(files, partial(_keys, reader, known, alike), duckdb.Error):
                if isinstance(rows, duckdb.Error):
                    number, file = part[0]
                    is_of_lines = isinstance(rows, duckdb.InvalidInputException)
                    found[number] = (is_of_lines and _bad_line_in_words(file)) or readable_reason(rows)
                    continue
                by_index = {index: row for index, *row in rows}
                for index, (number, file) in enumerate(part):
                    keys, is_loose, no_object, repeating = by_index.get(index, ((), False, None, None))
                    wrong = _bad_line_in_words(file) if is_loose else None
                    wrong = wrong or _what_is_wrong(reader, keys, no_object, repeating)
                    found[number] = Identified(replace(alike, names=tuple(keys)), file) if wrong is None else wrong
        return found

    def _shape(self, file: File) -> Shape:
        """Return how a file is read.

        Raises:
            UnreadableFile: it begins with a byte order mark, and a line of it is no JSON object.
        """
        with file.path.open("rb") as stream:
            size = len(_BYTE_ORDER_MARK)
            start = unpacked_start(stream, size) if file.is_packed else stream.read(size)
        shape = Shape(self, is_packed=file.is_packed, is_marked=start == _BYTE_ORDER_MARK)
        wrong = _bad_line_in_words(file) if shape.is_marked else None
        if wrong is not None:
            raise UnreadableFile(wrong)
        return shape

    def shape_alone(self, reader: Reader, file: File) -> Shape:
        """Count the keys."""
        shape = self._shape(file)
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
            f"read_json({list_of_files(file.path for file in files)}, format = {_lines(shape)}, sample_size = -1, "
            f"maximum_sample_files = {len(files)}, compression = {compression(shape)})"
        )

    def reading_sql(self, spec: DatasetSpec, shape: Shape, columns: NamesAndTypes, files: Sequence[File]) -> str:
        """Return what reads the values as they are written. That the lines are objects is to be known before."""
        del spec
        return f"(SELECT file_index, {_values(columns)} FROM {_objects(shape, files)})"

    def plain_relation(self, reader: Reader, schema: Schema, file: File) -> PlainRelation:
        """Count the keys of each row, and those that are known: then none is unknown or there twice."""
        shape = self._shape(file)
        columns = self.columns_as_written(schema, shape)
        known = {name for name, _ in columns}.union(reader.spec.landing.ignore_columns)
        pointers = ", ".join(literal(f"/{name.replace('~', '~0').replace('/', '~1')}") for name in sorted(known))
        has = f"len(json_keys(json)) = list_count(json_type(json, [{pointers}])) AND json_type(json) = 'OBJECT'"
        fits = f"{has} AND NOT ({_MAY_BE_LOOSE})"
        # No column has a space in its name.
        return PlainRelation(
            f'(SELECT ({fits}) IS true AS "is plain", {_values(columns)} FROM {_objects(shape, [file])})',
            columns,
            '"is plain"',
        )

    def bad_row(self, spec: DatasetSpec, path: Path, reason: str, check: Callable[[], None]) -> UnreadableRow | None:
        """Return the first line that is no JSON object; empty lines are no rows."""
        del spec, reason
        bad = _first_bad_line(File(path, self), check)
        return None if bad is None else bad[1]


def _first_bad_line(file: File, check: Callable[[], None]) -> tuple[int, UnreadableRow] | None:
    """Return the number of the first line that is no JSON object, and the row; lines without anything are no rows."""
    row = 0
    with unpacked_stream(file) as stream:
        for number in count(1):
            line = stream.readline(MOST_ROW_BYTES + 1)
            check()
            if not line:
                break
            text = (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).strip()
            row += bool(text)
            problem = _problem_of_line(text) if text else None
            if problem is not None:
                return number, UnreadableRow(row, problem)
    return None


def _bad_line_in_words(file: File) -> str | None:
    bad = _first_bad_line(file, lambda: None)
    return None if bad is None else f"line {bad[0]}: {bad[1]}"


def _keys(
    reader: Reader, known: Collection[str], shape: Shape, files: Sequence[tuple[int, File]]
) -> list[tuple[Any, ...]]:
    """Return of each file what :func:`_what_is_wrong` is told: first its index, then its keys that are not known."""
    names = ", ".join(map(literal, sorted(known)))
    # Few lists of keys are different, so it costs little to look at each.
    return reader.connection.execute(
        f"SELECT file_index, list_sort(list_filter(list_distinct(flatten(list(keys))), lambda key: key NOT IN "
        f"({names}))), bool_or(is_loose), any_value(concat(kind, ' ', sample)) FILTER (kind <> 'OBJECT'), "
        f"any_value(sample) FILTER (kind = 'OBJECT' AND list_unique(keys) < len(keys)) FROM ("
        f"SELECT file_index, json_keys(json) AS keys, "
        f"CASE WHEN len(json_keys(json)) > 0 THEN 'OBJECT' ELSE json_type(json) END AS kind, "
        f"bool_or({_IS_LOOSE}) AS is_loose, "
        f"left(any_value(json), {_SAMPLE_CHARACTERS}) AS sample "
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
        return f"a line of it has a key twice: {repeating}"
    return None


def _values(columns: NamesAndTypes) -> str:
    # A decimal among the types, which no row has, makes DuckDB leave all numbers as they are written.
    types = json.dumps({**{name: "VARCHAR" for name, _ in columns}, ROW_COLUMN: "DECIMAL(1,0)"})
    return f"unnest(json_transform(json, {literal(types)}))"


def _objects(shape: Shape, files: Sequence[File]) -> str:
    """Return the call that reads JSON lines into the one column ``json``, and ``file_index``."""
    paths = list_of_files(file.path for file in files)
    return f"read_json_objects({paths}, format = {_lines(shape)}, compression = {compression(shape)})"


def _lines(shape: Shape) -> str:
    # With a byte order mark lines are read by more than one thread only as objects that follow one another.
    return "'unstructured'" if shape.is_marked else "'newline_delimited'"


def _problem_of_line(line: bytes) -> str | None:
    if len(line) > MOST_ROW_BYTES:
        return LONG_ROW
    try:
        row = STRICT.decode(line.decode())
        json.dumps(row, ensure_ascii=False).encode()  # half a character, escaped, is none
    except ValueError as error:
        return f"it is no JSON: {error}"
    except RecursionError:
        return "it is nested too deeply"
    return None if isinstance(row, dict) else "it is no JSON object"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


STRICT = json.JSONDecoder(parse_constant=_no_constant, parse_int=str, parse_float=str)
"""Takes JSON and nothing else. Numbers stay as they are written: Python makes no integer of many digits."""

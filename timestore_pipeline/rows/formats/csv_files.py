"""CSV, written as the dataset's options say: a header line tells the names of columns, unless the dataset does."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.duck.sql import list_of_files, literal
from timestore_pipeline.model.evolution import Schema, types_by_name
from timestore_pipeline.rows.bounds import LONG_ROW, MOST_ROW_BYTES, unpacked_start
from timestore_pipeline.rows.casts import type_in_text
from timestore_pipeline.rows.formats.format import (
    File,
    Identified,
    NamesAndTypes,
    PlainRelation,
    Reader,
    Shape,
    each_alone,
)
from timestore_pipeline.rows.formats.texts import TextFormat, compression, unpacked_stream
from timestore_pipeline.rows.reasons import UnreadableFile, UnreadableRow

_MAX_HEADER_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20
# A byte of gzip holds no more than so many.
_MOST_PACKED = 1_032
_LINE = re.compile(r"\b[Ll]ine:? (\d+)")


class Csv(TextFormat):
    """Lines of fields."""

    name = FileFormat.CSV
    media_types = ("text/csv",)

    def identify(
        self, reader: Reader, known: Collection[str], contents: Mapping[int, Any]
    ) -> Mapping[int, Identified | str]:
        """Read header lines."""
        del known
        return each_alone(contents, lambda file: Identified(self.shape_alone(reader, file), file))

    def shape_alone(self, reader: Reader, file: File) -> Shape:
        """Read the header line, and refuse lines of which DuckDB's reader would drop the last one without a word."""
        if _has_long_line(file):
            raise UnreadableFile(f"a line is too long: {LONG_ROW}")
        return Shape(self, _header(reader, file), is_packed=file.is_packed)

    def columns(self, spec: DatasetSpec, schema: Schema, shape: Shape, names: Sequence[str]) -> NamesAndTypes:
        """Return types that the parser takes without a loss; what it would round is text."""
        del names
        types = types_by_name(schema.columns)
        is_converted = spec.time.format or spec.time.unit
        return [
            (name, "VARCHAR" if name == spec.time.column and is_converted else type_in_text(types.get(name, "VARCHAR")))
            for name in shape.names
        ]

    def plain_relation(self, reader: Reader, schema: Schema, file: File) -> PlainRelation:
        """Read the header line."""
        shape = self.shape_alone(reader, file)
        columns = self.columns(reader.spec, schema, shape, shape.names)
        return PlainRelation(self.reading_sql(reader.spec, shape, columns, [file]), columns)

    def columns_as_written(self, schema: Schema, shape: Shape) -> NamesAndTypes:
        """Return text."""
        del schema
        return [(name, "VARCHAR") for name in shape.names]

    def inferring_sql(self, spec: DatasetSpec, shape: Shape, files: Sequence[File]) -> str:
        """Return a call that looks at all lines."""
        names = ", ".join(literal(name) for name in shape.names)
        how = f"sample_size = -1, files_to_sniff = -1, names = [{names}], {_options(spec, shape)}"
        return f"read_csv({list_of_files(file.path for file in files)}, {how})"

    def reading_sql(self, spec: DatasetSpec, shape: Shape, columns: NamesAndTypes, files: Sequence[File]) -> str:
        """Return a call that guesses nothing."""
        struct = ", ".join(f"{literal(name)}: {literal(type_)}" for name, type_ in columns)
        how = f"columns = {{{struct}}}, auto_detect = false, {_options(spec, shape)}"
        return f"read_csv({list_of_files(file.path for file in files)}, {how})"

    def bad_row(self, spec: DatasetSpec, path: Path, reason: str, check: Callable[[], None]) -> UnreadableRow | None:
        """Return the row of the line that the reader names."""
        del path, check
        line = _LINE.search(reason)
        row = int(line[1]) - (0 if spec.landing.csv.header else 1) if line else 0
        return UnreadableRow(row, reason) if row > 0 else None


def _has_long_line(file: File) -> bool:
    """Return whether a line has more than ``MOST_ROW_BYTES``; what is damaged before that is for the reader to say."""
    if file.path.stat().st_size * (_MOST_PACKED if file.is_packed else 1) <= MOST_ROW_BYTES:
        return False
    length = 0
    with unpacked_stream(file) as stream:
        while length <= MOST_ROW_BYTES and (piece := stream.read(_PIECE_BYTES)):
            ends = [end for end in (piece.find(b"\n"), piece.find(b"\r")) if end >= 0]
            if ends and length + min(ends) <= MOST_ROW_BYTES:
                length = len(piece) - max(piece.rfind(b"\n"), piece.rfind(b"\r")) - 1
            else:
                length += min(ends, default=len(piece))
    return length > MOST_ROW_BYTES


def _header(reader: Reader, file: File) -> tuple[str, ...]:
    """Return the names of a file's columns.

    Raises:
        UnreadableFile: it has no header line, one that cannot be read, or too many columns.
    """
    options = reader.spec.landing.csv
    if options.header:
        return options.header
    with file.path.open("rb") as stream:
        start = unpacked_start(stream, _MAX_HEADER_BYTES) if file.is_packed else stream.read(_MAX_HEADER_BYTES)
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
    reader.bounds.check_columns(len(header))
    return tuple(header)


def _options(spec: DatasetSpec, shape: Shape) -> str:
    options = spec.landing.csv
    nulls = "[" + ", ".join(literal(text) for text in options.null) + "]"
    return (
        f"header = {'false' if options.header else 'true'}, delim = {literal(options.delimiter)}, "
        f"quote = {literal(options.quote)}, escape = {literal(options.escape)}, nullstr = {nulls}, "
        f"compression = {compression(shape)}"
    )

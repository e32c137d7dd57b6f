"""What the formats have in common that write values as text: no types, and packing as a whole."""

from __future__ import annotations

import gzip
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from typing import Any, ClassVar

import duckdb

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import quote
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.formats.format import (
    Brought,
    File,
    Format,
    NamesAndTypes,
    Reader,
    Relation,
    Shape,
    describe,
)
from timestore_pipeline.rows.reasons import NoRowsToInferFrom, UnreadableFile, readable_reason


class TextFormat(Format):
    """A format of which the values tell the types of columns."""

    body_schema: ClassVar = {"type": "string", "minLength": 1}

    @abstractmethod
    def shape_alone(self, reader: Reader, file: File) -> Shape:
        """Return the shape of a file for which no column is known yet.

        Raises:
            UnreadableFile, duckdb.Error, OSError: it cannot be read.
        """

    @abstractmethod
    def inferring_sql(self, spec: DatasetSpec, shape: Shape, files: Sequence[File]) -> str:
        """Return the call that reads files and infers the types of their columns from all values."""

    @abstractmethod
    def reading_sql(self, spec: DatasetSpec, shape: Shape, columns: NamesAndTypes, files: Sequence[File]) -> str:
        """Return what follows FROM to read these columns, and ``file_index``."""

    def describe(self, reader: Reader, content: Any) -> NamesAndTypes:
        """Return the columns by the values of a file."""
        shape = self.shape_alone(reader, content)
        refuse_nameless(shape.names)
        relation = self.inferring_sql(reader.spec, shape, [content])
        if reader.connection.execute(f"SELECT 1 FROM {relation} LIMIT 1").fetchone() is None:
            raise NoRowsToInferFrom
        return describe(reader.connection, relation)

    def brought(self, reader: Reader, schema: Schema, shape: Shape, contents: Sequence[Any]) -> Brought:
        """Return the names that are not known, by the values of all the files; a column without any is ``NULL``."""
        known = {column.name for column in schema.columns}.union(reader.spec.landing.ignore_columns)
        unknown = [name for name in shape.names if name not in known]
        if not unknown:
            return Brought([*shape.names] or [*schema.required])
        refuse_nameless(unknown)
        found = self._by_values(reader, shape, contents)
        # DuckDB gives one of two names that differ in case another one, which no file has.
        names = [name for name, _ in found if name in known]
        return Brought([*names, *unknown], [(name, type_) for name, type_ in found if name in unknown])

    def relation(
        self, spec: DatasetSpec, shape: Shape, columns: NamesAndTypes, contents: Sequence[Any], first: int
    ) -> Relation:
        """Return the call of DuckDB's reader."""
        return Relation(self.reading_sql(spec, shape, columns, contents), f"{first} + file_index")

    def _by_values(self, reader: Reader, shape: Shape, files: Sequence[File]) -> list[tuple[str, str]]:
        relation = self.inferring_sql(reader.spec, shape, files)
        try:
            found = describe(reader.connection, relation)
            texts = [name for name, type_ in found if type_ == "VARCHAR"]
            if texts:
                counts = ", ".join(f"count({quote(name)})" for name in texts)
                values = reader.connection.execute(f"SELECT {counts} FROM {relation}").fetchall()[0]
                empty = {name for name, count in zip(texts, values, strict=True) if not count}
                found = [(name, "NULL" if name in empty else type_) for name, type_ in found]
        except duckdb.Error as error:
            raise UnreadableFile(readable_reason(error)) from error
        return found


def refuse_nameless(names: Iterable[str]) -> None:
    """Raise UnreadableFile where a name is empty: DuckDB cannot ask for it, or takes the rows for something else."""
    for name in names:
        if not name.strip():
            raise UnreadableFile(f"column {name!r}: its name is empty; give it one")


def compression(shape: Shape) -> str:
    """Said outright, because DuckDB's own look at the name is led astray by a question mark in it."""
    return "'gzip'" if shape.is_packed else "'none'"


@contextmanager
def unpacked_stream(file: File) -> Iterator[BufferedIOBase]:
    """Give a file's text, to find something in it; where it is damaged the block ends, for the reader says so.

    It is not unpacked as a body is: a large file may have more members, as tools that pack in blocks make one for each.
    """
    with (
        suppress(EOFError, gzip.BadGzipFile, zlib.error),
        (gzip.open if file.is_packed else open)(file.path, "rb") as stream,
    ):
        yield stream

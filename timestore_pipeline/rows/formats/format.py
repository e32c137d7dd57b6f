"""What a file format is to the rest of the project: how it is called, and how rows in it are identified and read.

To add one, write a class like those beside this file and list it in ``known.py``. DuckDB reads files of one shape in
one statement; so a format first says of each file which shape it has, and then how all files of a shape are read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, TypeVar

import duckdb

from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.reasons import UnreadableFile, UnreadableRow, unreadable

if TYPE_CHECKING:
    import pyarrow as pa

Result = TypeVar("Result")

NamesAndTypes = Sequence[tuple[str, str]]
"""The names of columns and their DuckDB types."""


@dataclass(frozen=True)
class Reader:
    """Who reads: a connection, for a dataset, within bounds."""

    connection: duckdb.DuckDBPyConnection
    spec: DatasetSpec
    bounds: Bounds


@dataclass(frozen=True)
class File:
    """A file, and what it is read as."""

    path: Path
    format: Format

    @property
    def is_packed(self) -> bool:
        """Whether its name says that it is in gzip."""
        return self.path.name.lower().endswith(".gz")


@dataclass(frozen=True)
class Shape:
    """What rows must have in common to be read together: format, column names in order, and types if it has types.

    Of JSON lines the names are those keys that are no columns of the dataset; ``is_marked`` are those that begin with a
    byte order mark. Arrow tables must have the very same schema, which says more than DuckDB's names of its types do.
    """

    format: Format
    names: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    is_packed: bool = False
    is_marked: bool = False
    schema: pa.Schema | None = None

    @property
    def typed(self) -> NamesAndTypes:
        """The columns of a format that has types."""
        return list(zip(self.names, self.types, strict=True))


@dataclass(frozen=True)
class Identified:
    """The shape of a batch, and its content as it is to be read: a file, or a table in memory."""

    shape: Shape
    content: File | pa.Table


@dataclass(frozen=True)
class Brought:
    """The names of all columns of some batches, and those columns by which the dataset may grow."""

    names: Sequence[str]
    columns: NamesAndTypes = ()


@dataclass(frozen=True)
class Relation:
    """What follows FROM, and the SQL of the ordinal of a row's batch; ``tables`` are to be registered first."""

    sql: str
    ordinal: str
    tables: Mapping[str, pa.Table] = field(default_factory=dict)


@dataclass(frozen=True)
class PlainRelation:
    """What follows FROM to read a file that is as most are, its columns, and the SQL of whether a row is."""

    sql: str
    columns: NamesAndTypes
    condition: str = "true"


class Format(ABC):
    """A format of files and bodies."""

    name: ClassVar[FileFormat | None] = None
    """How ``landing.format`` calls it. Without a name no file lands in it."""

    media_types: ClassVar[tuple[str, ...]] = ()
    """The Content-Types of bodies in it."""

    body_schema: ClassVar[Mapping[str, Any]] = {"type": "string", "format": "binary", "minLength": 1}
    """What the OpenAPI document says of such a body."""

    is_read_in_memory: ClassVar[bool] = False
    """Whether it is read as a whole, into a table, and not by DuckDB from a file."""

    is_rewritten: ClassVar[bool] = False
    """Whether a body in it is written in another way before it is read."""

    may_repeat_values: ClassVar[bool] = False
    """Whether few bytes may stand for many values."""

    @abstractmethod
    def identify(
        self, reader: Reader, known: Collection[str], contents: Mapping[int, File | pa.Table]
    ) -> Mapping[int, Identified | str]:
        """Return what each of ``contents`` is, or why it cannot be read; ``known`` are the names that are no news."""

    @abstractmethod
    def describe(self, reader: Reader, content: File | pa.Table) -> NamesAndTypes:
        """Return the columns that a batch has by itself, of text by all its values.

        Raises:
            NoRowsToInferFrom: it is text and has no rows.
            UnreadableFile, duckdb.Error, OSError: it cannot be read.
        """

    def brought(self, reader: Reader, schema: Schema, shape: Shape, contents: Sequence[File | pa.Table]) -> Brought:
        """Return what batches of a shape bring to a dataset that evolves.

        Raises:
            UnreadableFile: they cannot be read.
        """
        del reader, schema, contents
        return Brought(shape.names, shape.typed)

    def columns(self, spec: DatasetSpec, schema: Schema, shape: Shape, names: Sequence[str]) -> NamesAndTypes:
        """Return the columns as which batches of a shape are read to be cast to those of ``schema``.

        ``names`` are those of all their columns, as far as they are known.
        """
        del spec, schema, names
        return shape.typed

    def columns_as_written(self, schema: Schema, shape: Shape) -> NamesAndTypes:
        """Return the columns as which batches of a shape are read where no value may fail."""
        del schema
        return shape.typed

    @abstractmethod
    def relation(
        self, spec: DatasetSpec, shape: Shape, columns: NamesAndTypes, contents: Sequence[File | pa.Table], first: int
    ) -> Relation:
        """Return how batches of a shape are read as these columns; the first of them has the ordinal ``first``."""

    def plain_relation(self, reader: Reader, schema: Schema, file: File) -> PlainRelation | None:
        """Return how a small file is read before anything is found out by statements; None where that gains nothing.

        A row that meets the condition is read as :meth:`relation` reads it, and its file has nothing that is refused.

        Raises:
            UnreadableFile, OSError: it cannot be read.
        """
        del reader, schema, file
        return None

    def rewrite(self, body: IO[bytes], file: IO[bytes], bounds: Bounds, check: Callable[[int], None]) -> None:
        """Write a body as what is read of it, where ``is_rewritten``; no more of it is held than a row.

        ``check`` is told how many rows it has so far, and raises where they are too many or take too long.

        Raises:
            UnreadableFile: it cannot be read; UnreadableRow tells the row.
        """
        raise NotImplementedError

    def bad_row(self, spec: DatasetSpec, path: Path, reason: str, check: Callable[[], None]) -> UnreadableRow | None:
        """Return the row that a reader stumbled over, by the ``reason`` that it gives or by another look.

        ``check`` raises where looking takes too long.
        """
        del spec, path, reason, check
        return None


def each_alone(contents: Mapping[int, Any], act: Callable[[Any], Result]) -> dict[int, Result | str]:
    """Return what ``act`` returns for each of ``contents``, or why it cannot be read."""
    found: dict[int, Result | str] = {}
    for number, content in contents.items():
        try:
            found[number] = act(content)
        except (UnreadableFile, OSError) as error:
            found[number] = unreadable(error)
    return found


def describe(connection: duckdb.DuckDBPyConnection, relation: str) -> list[tuple[str, str]]:
    """Return (name, DuckDB type) of the columns of a relation."""
    rows = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    return [(row[0], row[1]) for row in rows]

"""Arrow streams and files, of which no more is held than is allowed: sizes are added up before anything is unpacked.

A compressed buffer says how large it will be, and Arrow allocates just that; a dictionary says how long each of its
words is. So both are asked first.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.model.columns import BATCH_COLUMN
from timestore_pipeline.rows.bounds import Bounds, inner_types
from timestore_pipeline.rows.formats.format import (
    File,
    Format,
    Identified,
    NamesAndTypes,
    Reader,
    Relation,
    Shape,
    describe,
    each_alone,
)
from timestore_pipeline.rows.reasons import TooLarge, UnreadableFile, readable_reason

_FILE_MAGIC = b"ARROW1\0\0"

# What a schema is to DuckDB costs more to ask than a small batch takes to write; a process sees few schemas.
_MOST_DESCRIBED = 256
_MOST_REMEMBERED_BYTES = 1 << 16
_described_schemas: dict[bytes, NamesAndTypes] = {}
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


class Arrow(Format):
    """Arrow's own format, which a table in memory has as well: each batch is a table before it is read."""

    name = FileFormat.ARROW
    media_types = ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file")
    is_read_in_memory = True

    def identify(
        self, reader: Reader, known: Collection[str], contents: Mapping[int, Any]
    ) -> Mapping[int, Identified | str]:
        """Read files into memory, and describe each schema once."""
        del known
        shapes: dict[pa.Schema, Shape | UnreadableFile] = {}

        def identified(content: File | pa.Table) -> Identified:
            table = read_arrow(content.path, reader.bounds) if isinstance(content, File) else content
            shape = shapes.get(table.schema)
            if shape is None:
                shape = shapes[table.schema] = self._shape(reader, table.schema)
            if isinstance(shape, UnreadableFile):
                raise shape
            return Identified(shape, table)

        return each_alone(contents, identified)

    def describe(self, reader: Reader, content: Any) -> NamesAndTypes:
        """Read the schema."""
        schema = read_arrow_schema(content.path, reader.bounds) if isinstance(content, File) else content.schema
        return describe_arrow(reader.connection, schema)

    def relation(
        self, spec: DatasetSpec, shape: Shape, columns: NamesAndTypes, contents: Sequence[Any], first: int
    ) -> Relation:
        """Return all tables as one, with the ordinals in a column of their own; one table as it is."""
        del spec, shape, columns
        name = f"arrow_{first}"
        if len(contents) == 1:
            return Relation(name, str(first), {name: contents[0]})
        return Relation(name, BATCH_COLUMN, {name: _with_ordinals(contents, first)})

    def _shape(self, reader: Reader, schema: pa.Schema) -> Shape | UnreadableFile:
        try:
            columns = describe_arrow(reader.connection, schema)
        except UnreadableFile as error:
            return error
        names, types = tuple(name for name, _ in columns), tuple(type_ for _, type_ in columns)
        return Shape(self, names, types, schema=schema.remove_metadata())


def describe_arrow(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> NamesAndTypes:
    """Return (name, DuckDB type) of the columns of an Arrow schema.

    They are remembered by all that the schema says; metadata may say what a type means.

    Raises:
        UnreadableFile: it has no columns, or one of a type that DuckDB does not know.
    """
    key = schema.serialize().to_pybytes()
    found = _described_schemas.get(key)
    if found is None:
        found = _described(connection, schema)
        if len(key) > _MOST_REMEMBERED_BYTES:
            return found
        if len(_described_schemas) >= _MOST_DESCRIBED:
            _described_schemas.clear()
        _described_schemas[key] = found
    return found


def _described(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> NamesAndTypes:
    names = schema.names
    if not names:
        raise UnreadableFile("it has no columns")
    lower = Counter(name.lower() for name in names)  # DuckDB would give one of two that differ in case another name
    twice = sorted({name for name in names if lower[name.lower()] > 1})
    if twice:
        raise UnreadableFile(f"wrong columns; repeated columns: {', '.join(map(repr, twice))}")
    try:
        connection.register("described", schema.empty_table())
        return describe(connection, "described")
    except (duckdb.Error, NotImplementedError) as error:
        raise UnreadableFile(readable_reason(error)) from error
    finally:
        connection.unregister("described")


def _with_ordinals(tables: Sequence[pa.Table], first: int) -> pa.Table:
    """Return tables of one schema as one, with the column ``_batch``: the ordinal of each row's table."""
    import numpy as np

    ordinals = np.repeat(np.arange(first, first + len(tables), dtype=np.int32), [table.num_rows for table in tables])
    return pa.concat_tables(tables).append_column(BATCH_COLUMN, pa.array(ordinals))


def read_arrow(path: Path, bounds: Bounds) -> pa.Table:
    """Return the table in an Arrow file or stream on the disk.

    Raises:
        UnreadableFile, OSError: as :func:`arrow_table`.
    """
    size = path.stat().st_size
    if size > bounds.bytes:
        raise _too_many_bytes(bounds)
    # Not mapped: a producer that cuts the file short would end this process, and one that writes to it could
    # change what has been validated.
    with path.open("rb") as file:
        return arrow_table(file.read(size), bounds)


def read_arrow_schema(path: Path, bounds: Bounds) -> pa.Schema:
    """Return the schema of an Arrow file or stream on the disk.

    Raises:
        UnreadableFile, OSError: as :func:`arrow_table`.
    """
    with path.open("rb") as file:
        start = file.read(len(_FILE_MAGIC) + 16 + bounds.metadata_bytes)
    try:
        schema = pa.ipc.read_schema(_stream(start))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnreadableFile(f"it is no whole Arrow stream or file: {readable_reason(error)}") from error
    bounds.check_schema(schema)
    return schema


def arrow_table(content: bytes, bounds: Bounds) -> pa.Table:
    """Return the table in an Arrow stream or file, with every value checked.

    Raises:
        UnreadableFile: it is damaged, or (TooLarge) would become too large.
    """
    stream = _stream(content)
    try:
        _check_sizes(stream, bounds)
        reader = pa.ipc.open_stream(stream)
        bounds.check_schema(reader.schema)
        table = reader.read_all()
        # To check that a view is text is to read it, and a thousand of them may be of one text.
        if sum(_viewed_bytes(column) for column in table.columns) > bounds.bytes:
            raise _too_many_bytes(bounds)
        # Offsets in a damaged body may point anywhere; DuckDB would follow them.
        table.validate(full=True)
        unpacked = sum(_unpacked_bytes(column) for column in table.columns)
    except (pa.ArrowException, OSError, ValueError, OverflowError, struct.error) as error:
        raise UnreadableFile(f"it is no whole Arrow stream or file: {readable_reason(error)}") from error
    if unpacked > bounds.bytes:
        raise _too_many_bytes(bounds)
    return table


def _stream(content: bytes) -> pa.Buffer:
    """Return the stream in a file: that is one between a header and an index, and a stream is itself.

    The index is not read: it could name one batch a million times.
    """
    stream = pa.py_buffer(content)
    return stream.slice(len(_FILE_MAGIC)) if content.startswith(_FILE_MAGIC) else stream


def _check_sizes(stream: pa.Buffer, bounds: Bounds) -> None:
    """Add up what the messages say of themselves."""
    size = rows = 0
    for message in pa.ipc.MessageReader.open_stream(stream):
        bounds.check_metadata(message.metadata.size, "description of a batch")
        metadata = message.metadata.to_pybytes()
        root = _Table(metadata, struct.unpack_from("<I", metadata)[0])
        kind = root.number(1, "<B")
        batch = root.table(2)
        if kind == _DICTIONARY_BATCH and batch is not None:
            batch = batch.table(1)
        if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH) or batch is None:
            continue
        if kind == _RECORD_BATCH:
            rows += batch.number(0, "<q")
        size += _buffers_bytes(batch, message.body)
        # A row without a value takes no byte here, and time later.
        most = bounds.bytes if bounds.rows is None else bounds.rows
        if rows > most:
            raise TooLarge(f"it has more than {most:,} rows; send fewer at a time")
        if size > bounds.bytes:
            raise _too_many_bytes(bounds)


def _buffers_bytes(batch: _Table, body: pa.Buffer | None) -> int:
    compressed = batch.table(3) is not None
    size = 0
    for offset, length in batch.pairs(2):
        if offset < 0 or length < 0:
            raise pa.ArrowInvalid("a buffer lies before its beginning")
        if not compressed or not length or body is None:
            size += length
            continue
        (declared,) = struct.unpack_from("<q", body.slice(offset, 8).to_pybytes())
        size += length - 8 if declared < 0 else declared
    return size


class _Table:
    """A table of a flatbuffer: its fields by number."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def _field(self, number: int) -> int:
        """Return where a field is, 0 where it is left out."""
        (back,) = struct.unpack_from("<i", self._data, self._at)
        fields = self._at - back
        (size,) = struct.unpack_from("<H", self._data, fields)
        where = 4 + 2 * number
        if where >= size:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, fields + where)
        return self._at + offset if offset else 0

    def number(self, field: int, kind: str) -> int:
        at = self._field(field)
        return struct.unpack_from(kind, self._data, at)[0] if at else 0

    def table(self, field: int) -> _Table | None:
        at = self._field(field)
        return _Table(self._data, at + struct.unpack_from("<I", self._data, at)[0]) if at else None

    def pairs(self, field: int) -> list[tuple[int, int]]:
        at = self._field(field)
        if not at:
            return []
        start = at + struct.unpack_from("<I", self._data, at)[0]
        (count,) = struct.unpack_from("<I", self._data, start)
        numbers = struct.unpack_from(f"<{2 * count}q", self._data, start + 4)
        return list(zip(numbers[::2], numbers[1::2], strict=True))


def _unpacked_bytes(column: pa.ChunkedArray) -> int:
    """Return about how many bytes a column has once no value is shared by several rows."""
    if pa.types.is_dictionary(column.type):
        return sum(_dictionary_bytes(chunk) for chunk in column.chunks)
    if _is_view(column.type):
        return _viewed_bytes(column)
    if _shares_values(column.type):
        raise pa.ArrowInvalid(f"a column of type {column.type} cannot be staged")
    return column.nbytes


def _shares_values(kind: pa.DataType) -> bool:
    """Whether few bytes may mean many values, in a way that is not looked through."""
    level = [kind]
    while level:
        if any(
            pa.types.is_run_end_encoded(each)
            or pa.types.is_list_view(each)
            or pa.types.is_large_list_view(each)
            or (each is not kind and (pa.types.is_dictionary(each) or _is_view(each)))
            for each in level
        ):
            return True
        level = [inner for each in level for inner in inner_types(each)]
    return False


def _is_view(kind: pa.DataType) -> bool:
    return pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)


def _dictionary_bytes(chunk: pa.DictionaryArray) -> int:
    words = chunk.dictionary
    if pa.types.is_nested(words.type) or pa.types.is_dictionary(words.type):
        raise pa.ArrowInvalid(f"a column of type {chunk.type} cannot be staged")
    if not _is_text(words.type):
        return len(chunk) * 16
    lengths = pc.call_function("binary_length", [words]).cast(pa.int64())
    return pc.call_function("sum", [lengths.take(chunk.indices)]).as_py() or 0


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _viewed_bytes(column: pa.ChunkedArray) -> int:
    """Return how many bytes a column of views has once each row has its own; of another column 0."""
    import numpy as np

    if not _is_view(column.type):
        return 0
    size = 0
    for chunk in column.chunks:
        views = chunk.buffers()[1]
        if views is None or not len(chunk):
            continue
        # Each view is 16 bytes, and begins with its length.
        lengths = np.frombuffer(views, dtype="<i4")[::4][chunk.offset : chunk.offset + len(chunk)].astype(np.int64)
        size += int(np.maximum(lengths, 0).sum(where=chunk.is_valid().to_numpy(zero_copy_only=False)))
    return size


def _too_many_bytes(bounds: Bounds) -> TooLarge:
    return TooLarge(f"unpacked it has more than {bounds.bytes:,} bytes; send fewer rows at a time")

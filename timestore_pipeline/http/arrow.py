"""Arrow bodies, read without ever holding more than is allowed: sizes are added up before anything is unpacked.

A compressed buffer says how large it will be, and Arrow allocates just that; a dictionary says how long each of its
words is. So both are asked first.
"""

from __future__ import annotations

import struct
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from timestore_pipeline.http.problems import rejected, too_large
from timestore_pipeline.landing.shapes import readable_reason

_FILE_MAGIC = b"ARROW1\0\0"
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def read_arrow_body(body: bytes, max_bytes: int, max_rows: int) -> pa.Table:
    """Return the table in an Arrow stream or file.

    Raises:
        Problem: it is damaged (422), or would become too large (413).
    """
    # A file is a stream between a header and an index. The index is not read: it could name one batch a million times.
    stream = pa.py_buffer(body)
    if body.startswith(_FILE_MAGIC):
        stream = stream.slice(len(_FILE_MAGIC))
    try:
        _check_sizes(stream, max_bytes, max_rows)
        table = pa.ipc.open_stream(stream).read_all()
        # Offsets in a damaged body may point anywhere; DuckDB would follow them.
        table.validate(full=True)
        unpacked = sum(_unpacked_bytes(column) for column in table.columns)
    except (pa.ArrowException, OSError, struct.error, OverflowError) as error:
        raise rejected(f"the body is no whole Arrow stream or file: {readable_reason(error)}") from error
    if unpacked > max_bytes:
        _too_large(max_bytes)
    return table


def _check_sizes(stream: pa.Buffer, max_bytes: int, max_rows: int) -> None:
    """Add up what the messages say of themselves."""
    size = rows = 0
    for message in pa.ipc.MessageReader.open_stream(stream):
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
        if rows > max_rows:
            raise too_large(f"the body has more than {max_rows:,} rows; send fewer in each request")
        if size > max_bytes:
            _too_large(max_bytes)


def _buffers_bytes(batch: _Table, body: pa.Buffer | None) -> int:
    compressed = batch.table(3) is not None
    size = 0
    for offset, length in batch.pairs(2):
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
    if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
        return _text_bytes(column)
    if pa.types.is_run_end_encoded(column.type) or pa.types.is_nested(column.type):
        raise pa.ArrowInvalid(f"a column of type {column.type} cannot be staged")
    return column.nbytes


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


def _text_bytes(column: pa.ChunkedArray) -> int:
    return sum(len(value) for value in column.to_pylist() if value is not None)


def _too_large(max_bytes: int) -> NoReturn:
    raise too_large(f"unpacked, the body has more than {max_bytes:,} bytes; send fewer rows in each request")

"""What a caller may hand over as rows: anything that speaks Arrow, as one table; and the hash of its content.

pandas and Polars are never imported here: their frames speak for themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
from blake3 import blake3

from timestore_pipeline.errors import BatchRejected, NoFrame
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.reasons import UnreadableFile, readable_reason

# A fixed chunking makes the hash independent of how the caller happened to chunk the same rows.
_ROWS_PER_HASHED_CHUNK = 1 << 16
_HASHED_BYTES = 1 << 18

# What pandas calls an index without a name, which numbers rows and is no column of anyone's.
_NAMELESS_INDEX = re.compile(r"^__index_level_\d+__$")


@runtime_checkable
class ArrowStream(Protocol):
    """Anything with the Arrow PyCapsule interface: pyarrow, pandas, Polars, DuckDB relations and others."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return a stream of record batches, as the interface says."""
        ...


Frame = pa.Table | pa.RecordBatch | pa.RecordBatchReader | ArrowStream
"""What can be staged."""


def as_table(dataset: str, data: Any, source: str, bounds: Bounds) -> pa.Table:
    """Return ``data`` as one Arrow table; a stream is read to its end.

    An index of pandas is a column where it has a name, and left out where it has none.

    Raises:
        NoFrame: it does not speak Arrow.
        BatchRejected: it does, and cannot give its rows, or they have more columns than a batch may.
    """
    try:
        table = _table(data, bounds)
    except (UnreadableFile, pa.ArrowException, TypeError, ValueError) as error:
        raise BatchRejected(dataset, source, f"its rows cannot be read as Arrow: {readable_reason(error)}") from error
    if table is None:
        raise NoFrame(dataset, type(data))
    nameless = [name for name in table.column_names if _NAMELESS_INDEX.match(name)]
    return table.drop_columns(nameless) if nameless and not isinstance(data, pa.Table | pa.RecordBatch) else table


def _table(data: Any, bounds: Bounds) -> pa.Table | None:
    """Return a table, whose columns are looked at before its rows are; None where it is none."""
    if isinstance(data, pa.Table | pa.RecordBatch):
        bounds.check_schema(data.schema)
        return data if isinstance(data, pa.Table) else pa.Table.from_batches([data])
    if not isinstance(data, ArrowStream):
        return None
    reader = pa.RecordBatchReader.from_stream(data)
    bounds.check_schema(reader.schema)
    return reader.read_all()


def table_fingerprint(table: pa.Table) -> str:
    """Return the BLAKE3 hash of a table's schema and values, in hex, however they lie in memory.

    Chunks, dictionaries, metadata and what stands under nulls are no part of the content.
    """
    digest = blake3(table.schema.to_string(show_field_metadata=False, show_schema_metadata=False).encode())
    for part in _content(table):
        # Through a buffer: each write to the sink takes the interpreter's lock, and a stream has dozens of small ones.
        with (
            pa.BufferedOutputStream(pa.PythonFile(_HashSink(digest), mode="w"), _HASHED_BYTES) as stream,
            pa.ipc.new_stream(stream, part.schema) as writer,
        ):
            writer.write_table(part.combine_chunks(), max_chunksize=_ROWS_PER_HASHED_CHUNK)
    return digest.hexdigest()


def _content(table: pa.Table) -> Iterator[pa.Table]:
    """Yield tables that are equal, byte for byte, if and only if the values of ``table`` are."""
    columns = [_plain(column) for column in table.columns]
    whole = [column for column in columns if not column.null_count]
    yield pa.table(whole, [str(number) for number in range(len(whole))])
    for column in columns:
        if column.null_count:
            yield pa.table([column.is_valid()], ["valid"])
            yield pa.table([column.drop_null()], ["values"])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without what the same values may lie in differently: dictionaries, and views into buffers."""
    if pa.types.is_dictionary(column.type):
        # Arrow's own cast has none for dictionaries of views, which Polars makes of its categories.
        words = [_plain(pa.chunked_array([chunk.dictionary])) for chunk in column.chunks]
        taken = [word.take(chunk.indices) for word, chunk in zip(words, column.chunks, strict=True)]
        return pa.chunked_array(
            [piece for part in taken for piece in part.chunks], _without_views(column.type.value_type)
        )
    return column.cast(plain) if (plain := _without_views(column.type)) != column.type else column


def _without_views(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(type_):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(type_) else type_


class _HashSink:
    """A writable file that only hashes."""

    closed = False

    def __init__(self, digest: Any) -> None:
        self._digest = digest

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is held open."""

"""What a batch may ask of whoever reads it, however it comes: looked at before any memory or time is spent on it.

Formats describe themselves, and libraries believe what they read there: a footer of 84 bytes can ask for gigabytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Self

from timestore_pipeline.rows.reasons import TooLarge, UnreadableFile
from timestore_pipeline.settings import Settings, variable_name

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROW_BYTES = 16 << 20
"""Most bytes of one row of JSON, as DuckDB has it, and of one line of CSV."""

LONG_ROW = f"it is longer than {MOST_ROW_BYTES >> 20} MiB"
"""What is wrong with a row that has more."""

MOST_NESTED = 100
"""How deep the type of a column may be nested; Parquet's and Arrow's own readers have about the same."""

_GZIP = 31
"""What zlib calls the format gzip."""

_READ_AT_ONCE = 1 << 14
_UNPACKED_AT_ONCE = 1 << 18

MOST_MEMBERS = 10_000
"""So many members of gzip may follow one another: each costs, and may hold nothing."""


@dataclass(frozen=True)
class Bounds:
    """How large the parts of a batch may be.

    ``columns`` and ``metadata_bytes`` (what is said in a Parquet footer or an Arrow message) hold for all
    formats. ``bytes`` and ``rows`` are for what is read into memory as a whole; no number of rows is no limit.
    """

    columns: int
    metadata_bytes: int
    bytes: int
    rows: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the bounds that hold for every batch."""
        return cls(settings.batch_max_columns, settings.batch_max_metadata_bytes, settings.landing_max_arrow_bytes)

    def check_columns(self, columns: int) -> None:
        """Take so many columns.

        Raises:
            TooLarge: there are too many.
        """
        if columns > self.columns:
            raise TooLarge(
                f"it has {columns:,} columns, and a batch may have {self.columns:,} "
                f"({variable_name('batch_max_columns')}); put names that are data into a column of their own"
            )

    def check_metadata(self, size: int, what: str) -> None:
        """Take metadata of so many bytes; ``what`` says of what.

        Raises:
            TooLarge: they are too many.
        """
        if size > self.metadata_bytes:
            raise TooLarge(
                f"its {what} has {size:,} bytes, and may have {self.metadata_bytes:,} "
                f"({variable_name('batch_max_metadata_bytes')}); write fewer columns, or fewer and larger row groups"
            )

    def check_schema(self, schema: pa.Schema) -> None:
        """Take the columns of an Arrow schema.

        Raises:
            UnreadableFile: they are too many, nested too deeply, or have names that are no text.
        """
        self.check_columns(len(schema))
        try:
            self._check_types([field.type for field in schema])
            text = schema.to_string(show_field_metadata=False, show_schema_metadata=False)
        except UnicodeDecodeError as error:
            raise UnreadableFile("the name of a column, or of a time zone, is no UTF-8") from error
        described = [schema.metadata, *(field.metadata for field in schema)]
        said = sum(len(key) + len(value) for each in described if each for key, value in each.items())
        self.check_metadata(said + len(text), "schema")

    def _check_types(self, types: Sequence[pa.DataType]) -> None:
        level, looked_at = list(types), 0
        for _ in range(MOST_NESTED):
            for each in level:
                getattr(each, "tz", None)  # which is read as text only now
            inner = [kind for each in level for kind in inner_types(each)]
            looked_at += len(inner)
            self.check_columns(looked_at)
            if not inner:
                return
            level = inner
        raise TooLarge(f"a column is nested more than {MOST_NESTED} levels deep")


def inner_types(kind: pa.DataType) -> list[pa.DataType]:
    """Return the types that a type is made of."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return [kind.storage_type]
    if pa.types.is_dictionary(kind):
        return [kind.value_type]
    return [kind.field(number).type for number in range(kind.num_fields)]


def unpacked(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield what is in gzip, of which ``read`` gives the next bytes, none at the end.

    Whatever they say, it takes a time that grows with their number.

    Raises:
        UnreadableFile: it is damaged, not whole, or has too many members.
    """
    rest, members = read(_READ_AT_ONCE), 0
    if not rest:
        raise UnreadableFile("it is no whole gzip: it is empty")
    try:
        while rest:
            members += 1
            if members > MOST_MEMBERS:
                raise TooLarge(f"it has more than {MOST_MEMBERS:,} gzip members; pack it as one")
            member = zlib.decompressobj(_GZIP)
            while not member.eof:
                some = member.decompress(rest, _UNPACKED_AT_ONCE)
                if some:
                    yield some
                rest = member.unconsumed_tail or (b"" if member.eof else read(_READ_AT_ONCE))
                if not (rest or some or member.eof):
                    raise UnreadableFile("it is no whole gzip: its end is missing")
            rest = member.unused_data or read(_READ_AT_ONCE)
    except zlib.error as error:
        raise UnreadableFile(f"it is no gzip, or damaged: {error}") from error


def unpacked_start(stream: IO[bytes], size: int) -> bytes:
    """Return the first bytes of what is in a gzip file, ``size`` of them where there are as many.

    Raises:
        UnreadableFile: as :func:`unpacked`, as far as it was looked at.
    """
    start = bytearray()
    for some in unpacked(stream.read):
        start += some
        if len(start) >= size:
            break
    return bytes(start[:size])

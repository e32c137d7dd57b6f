"""Columns of a dataset: their names, and the one table of the types that they may have.

It says what a type is called in DuckDB, in Delta tables and in a datasets file, and what it holds exactly. The types
are what DuckDB, Parquet and Delta all store without loss; anything else is refused when staging, never when building.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

BATCH_COLUMN = "_batch"
"""Column of a segment that says which of its batches a row came from (its ordinal)."""

WINDOW_COLUMN = "window_key"
"""Partition column of a published table; holds the window's key."""

ROW_COLUMN = "_row"
"""Column of a segment of a dataset with a key: the row's number within the segment, in the order of arrival."""

POSITION_COLUMN = "_position"
"""Column of a table with a key: where the row stood among all that the dataset ever acknowledged."""

RESERVED_NAMES = frozenset({BATCH_COLUMN, WINDOW_COLUMN, ROW_COLUMN, POSITION_COLUMN, "file_index"})
"""Names that no column may have; ``file_index`` is what DuckDB calls the number of the file that a row is from."""


class Kind(StrEnum):
    """What the values of a type are. A wider type has every value of a narrower one of its kind."""

    TRUTH = "truth"
    WHOLE = "whole number"
    FLOATING = "floating number"
    DECIMAL = "decimal number"
    TEXT = "text"
    BYTES = "bytes"
    TIME = "time without a zone"
    INSTANT = "time of UTC"
    OTHER = "other"


@dataclass(frozen=True)
class _Type:
    """A row of the table of types.

    Attributes:
        kind: what its values are.
        delta: its name in Delta tables; None where no table can hold it.
        bits: it has every whole number below two to the power of these.
        names: what it is called in a datasets file, besides its name in DuckDB.
        kept_as: what no table can hold is kept as the next wider type that loses nothing.
    """

    kind: Kind
    delta: str | None = None
    bits: int = 0
    names: tuple[str, ...] = ()
    kept_as: str | None = None


# By their names in DuckDB; of one kind the narrower ones first. DECIMAL(p,s) stands beside the table, as it has digits.
_TYPES = {
    "BOOLEAN": _Type(Kind.TRUTH, "boolean", bits=1, names=("BOOL",)),
    "TINYINT": _Type(Kind.WHOLE, "byte", bits=7),
    "SMALLINT": _Type(Kind.WHOLE, "short", bits=15),
    "INTEGER": _Type(Kind.WHOLE, "integer", bits=31, names=("INT",)),
    "BIGINT": _Type(Kind.WHOLE, "long", bits=63, names=("LONG",)),
    "FLOAT": _Type(Kind.FLOATING, "float", bits=24, names=("REAL",)),
    "DOUBLE": _Type(Kind.FLOATING, "double", bits=53),
    "VARCHAR": _Type(Kind.TEXT, "string", names=("STRING", "TEXT")),
    "BLOB": _Type(Kind.BYTES, "binary", names=("BINARY",)),
    "DATE": _Type(Kind.TIME, "date"),
    "TIMESTAMP": _Type(Kind.TIME, "timestamp_ntz"),
    "TIMESTAMP WITH TIME ZONE": _Type(Kind.INSTANT, "timestamp", names=("TIMESTAMPTZ",)),
    # What inference finds but no table can hold. Of nanoseconds the microseconds are kept: Delta has no finer ones.
    "UTINYINT": _Type(Kind.WHOLE, bits=8, kept_as="SMALLINT"),
    "USMALLINT": _Type(Kind.WHOLE, bits=16, kept_as="INTEGER"),
    "UINTEGER": _Type(Kind.WHOLE, bits=32, kept_as="BIGINT"),
    "UBIGINT": _Type(Kind.WHOLE, bits=64, kept_as="DECIMAL(20,0)"),
    "HUGEINT": _Type(Kind.WHOLE, bits=127, kept_as="DECIMAL(38,0)"),
    "TIMESTAMP_S": _Type(Kind.TIME, kept_as="TIMESTAMP"),
    "TIMESTAMP_MS": _Type(Kind.TIME, kept_as="TIMESTAMP"),
    "TIMESTAMP_NS": _Type(Kind.TIME, kept_as="TIMESTAMP"),
    "TIME": _Type(Kind.OTHER, kept_as="VARCHAR"),
    "UUID": _Type(Kind.OTHER, kept_as="VARCHAR"),
    "JSON": _Type(Kind.OTHER, kept_as="VARCHAR"),
    '"NULL"': _Type(Kind.OTHER, kept_as="VARCHAR"),
    "NULL": _Type(Kind.OTHER, kept_as="VARCHAR"),
}
_BY_DECLARED_NAME = {
    declared: name for name, type_ in _TYPES.items() if type_.delta is not None for declared in (name, *type_.names)
}
_BY_DELTA_NAME = {type_.delta: name for name, type_ in _TYPES.items() if type_.delta is not None}

TYPE_NAMES = tuple(sorted({declared.lower() for declared in _BY_DECLARED_NAME} | {"decimal(p,s)"}))
"""The types as a datasets file may name them."""

TIME_TYPES = frozenset(
    name for name, type_ in _TYPES.items() if type_.delta is not None and type_.kind in (Kind.TIME, Kind.INSTANT)
)

_DECIMAL = re.compile(r"^(?:DECIMAL|NUMERIC)\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)$")
_MAX_DECIMAL_DIGITS = 38
# Delta refuses these in column names unless column mapping is on, which few readers support.
_FORBIDDEN_IN_NAMES = re.compile(r'[ ,;{}()\n\t=\x00-\x1f"]')
_MAX_NAME_LENGTH = 255


@dataclass(frozen=True)
class Column:
    """A column: its name and its DuckDB type (canonical, see :func:`canonical_type`)."""

    name: str
    type: str


def canonical_type(declared: str) -> str:
    """Return the canonical DuckDB name of a declared type, ``'timestamptz'`` → ``'TIMESTAMP WITH TIME ZONE'``.

    Raises:
        ValueError: no dataset can hold that type; says which types there are.
    """
    text = " ".join(declared.upper().split())
    if text in _BY_DECLARED_NAME:
        return _BY_DECLARED_NAME[text]
    digits = decimal_digits(text)
    if digits is not None and 1 <= digits[0] <= _MAX_DECIMAL_DIGITS and digits[1] <= digits[0]:
        return _decimal(*digits)
    raise ValueError(f"{declared!r} is no type that a dataset can hold; types are {', '.join(TYPE_NAMES)}")


def inferred_type(found: str) -> str:
    """Return the type under which a column of DuckDB type ``found`` is kept.

    Raises:
        ValueError: the type is nested or otherwise cannot be kept.
    """
    text = found.upper()
    kept_as = _TYPES[text].kept_as if text in _TYPES else None
    if kept_as is not None:
        return kept_as
    if text.startswith("ENUM("):
        return "VARCHAR"
    try:
        return canonical_type(text)
    except ValueError:
        raise ValueError(f"type {found} cannot be kept; declare the column as varchar to keep it as text") from None


def kind_of(type_: str) -> Kind:
    """Return what the values of a DuckDB type are."""
    if type_ in _TYPES:
        return _TYPES[type_].kind
    return Kind.DECIMAL if decimal_digits(type_) else Kind.OTHER


def decimal_digits(type_: str) -> tuple[int, int] | None:
    """Return the digits of a decimal type: all of them, and those after the point; None for other types."""
    found = _DECIMAL.match(type_)
    return (int(found[1]), int(found[2])) if found else None


def whole_numbers_below(type_: str) -> int:
    """Return below which number a DuckDB type has every whole one, whatever its sign; 0 where it has other values."""
    bits = _TYPES[type_].bits if type_ in _TYPES else 0
    return 1 << bits if bits else 0


def wider_type(one: str, other: str) -> str | None:
    """Return the narrowest type that holds every value of two canonical types as it is; None where there is none.

    Example:
        >>> wider_type("DECIMAL(6,2)", "DECIMAL(5,4)")
        'DECIMAL(8,4)'
    """
    if one == other:
        return one
    digits = decimal_digits(one), decimal_digits(other)
    if digits[0] and digits[1]:
        scale = max(digits[0][1], digits[1][1])
        precision = scale + max(digits[0][0] - digits[0][1], digits[1][0] - digits[1][1])
        return _decimal(precision, scale) if precision <= _MAX_DECIMAL_DIGITS else None
    return max(one, other, key=list(_TYPES).index) if kind_of(one) is kind_of(other) else None


def delta_type(type_: str) -> str:
    """Return the name that a canonical type has in Delta tables."""
    return (_TYPES[type_].delta if type_ in _TYPES else None) or type_.lower()


def type_in_delta(name: str) -> str | None:
    """Return the canonical type of a column of a Delta table; None where no dataset can hold it."""
    digits = decimal_digits(name.upper())
    return _decimal(*digits) if digits is not None else _BY_DELTA_NAME.get(name)


def _decimal(precision: int, scale: int) -> str:
    return f"DECIMAL({precision},{scale})"


def check_name(name: str) -> str:
    """Return ``name`` if a column may be called that.

    Raises:
        ValueError: it is reserved, empty, too long or has a character that Delta tables do not allow.
    """
    if name.lower() in RESERVED_NAMES:
        raise ValueError(f"column name {name!r} is reserved; rename the column")
    if not name or len(name) > _MAX_NAME_LENGTH or _FORBIDDEN_IN_NAMES.search(name):
        raise ValueError(
            f"column name {name!r} is not allowed: 1 to {_MAX_NAME_LENGTH} characters, "
            'without spaces, control characters or any of , ; { } ( ) = "'
        )
    return name


def columns_from_mapping(types: Mapping[str, str]) -> tuple[Column, ...]:
    """Return the columns of a ``{name: type}`` mapping, checked and canonical.

    Raises:
        ValueError: a name or type is not allowed, or two names differ only in case.
    """
    columns = tuple(Column(check_name(name), canonical_type(type_)) for name, type_ in types.items())
    seen: dict[str, str] = {}
    for column in columns:
        twin = seen.setdefault(column.name.lower(), column.name)
        if twin != column.name:
            raise ValueError(f"columns {twin!r} and {column.name!r} differ only in case; rename one")
    return columns

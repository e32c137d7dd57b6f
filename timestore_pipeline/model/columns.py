"""Columns of a dataset: the types that a dataset may hold, and what they are called in DuckDB and Delta.

The list is what DuckDB, Parquet and Delta all store without loss; anything else is refused when staging,
never when building.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

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

TIME_TYPES = frozenset({"TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "DATE"})

_ALIASES = {
    "BOOL": "BOOLEAN",
    "BOOLEAN": "BOOLEAN",
    "TINYINT": "TINYINT",
    "SMALLINT": "SMALLINT",
    "INT": "INTEGER",
    "INTEGER": "INTEGER",
    "BIGINT": "BIGINT",
    "LONG": "BIGINT",
    "REAL": "FLOAT",
    "FLOAT": "FLOAT",
    "DOUBLE": "DOUBLE",
    "STRING": "VARCHAR",
    "TEXT": "VARCHAR",
    "VARCHAR": "VARCHAR",
    "BLOB": "BLOB",
    "BINARY": "BLOB",
    "DATE": "DATE",
    "TIMESTAMP": "TIMESTAMP",
    "TIMESTAMPTZ": "TIMESTAMP WITH TIME ZONE",
    "TIMESTAMP WITH TIME ZONE": "TIMESTAMP WITH TIME ZONE",
}
TYPE_NAMES = tuple(sorted({alias.lower() for alias in _ALIASES} | {"decimal(p,s)"}))
"""The types as a datasets file may name them."""

# What inference finds but no table can hold, each with the next wider type that loses nothing
# (a nanosecond timestamp keeps its microseconds: Delta has no finer ones).
_WIDENED = {
    "UTINYINT": "SMALLINT",
    "USMALLINT": "INTEGER",
    "UINTEGER": "BIGINT",
    "UBIGINT": "DECIMAL(20,0)",
    "HUGEINT": "DECIMAL(38,0)",
    "TIMESTAMP_S": "TIMESTAMP",
    "TIMESTAMP_MS": "TIMESTAMP",
    "TIMESTAMP_NS": "TIMESTAMP",
    "TIME": "VARCHAR",
    "UUID": "VARCHAR",
    "JSON": "VARCHAR",
    '"NULL"': "VARCHAR",
    "NULL": "VARCHAR",
}
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
    if text in _ALIASES:
        return _ALIASES[text]
    decimal = _DECIMAL.match(text)
    if decimal:
        precision, scale = int(decimal[1]), int(decimal[2])
        if 1 <= precision <= _MAX_DECIMAL_DIGITS and scale <= precision:
            return f"DECIMAL({precision},{scale})"
    raise ValueError(f"{declared!r} is no type that a dataset can hold; types are {', '.join(TYPE_NAMES)}")


def inferred_type(found: str) -> str:
    """Return the type under which a column of DuckDB type ``found`` is kept.

    Raises:
        ValueError: the type is nested or otherwise cannot be kept.
    """
    text = found.upper()
    if text in _WIDENED:
        return _WIDENED[text]
    if text.startswith("ENUM("):
        return "VARCHAR"
    try:
        return canonical_type(text)
    except ValueError:
        raise ValueError(f"type {found} cannot be kept; declare the column as varchar to keep it as text") from None


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

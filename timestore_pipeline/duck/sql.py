"""Fragments of DuckDB SQL: quoted names, literals, lists of columns, ranges of time. Nobody else quotes.

All are texts to be put into a statement as they are, whatever characters a name, a value or a path has.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from timestore_pipeline.model.columns import Column

EVERY_VALUE = "bit_xor(hash(*COLUMNS(*)))"
"""SQL that needs every value of every row, so that no read and no cast is optimized away.

Rows are never given a name to hash them by: a column may have that name, and would be meant.
"""

_MICROS_PER_DAY = 86_400_000_000


def quote(identifier: str) -> str:
    """Return ``identifier`` as a quoted SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return ``text`` as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def exact_name(path: Path) -> str:
    """Return ``path`` so that DuckDB, which takes file names as glob patterns, means just this file."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in str(path))


def file_literal(path: Path) -> str:
    """Return a SQL literal for ``FROM read_…(…)`` that means just this file."""
    return literal(exact_name(path))


def list_of_files(paths: Iterable[Path]) -> str:
    """Return files as a SQL list; each name means itself and no pattern."""
    return "[" + ", ".join(map(file_literal, paths)) + "]"


def column_list(columns: Iterable[Column]) -> str:
    """Return the quoted names, separated by commas, for a SELECT list."""
    return ", ".join(quote(column.name) for column in columns)


def select_as(columns: Iterable[Column], stored: Iterable[Column]) -> str:
    """Return a SELECT list that gives ``columns`` out of rows that were stored with other, earlier ones.

    What was not there yet is null; what was narrower is cast.
    """
    types = {column.name: column.type for column in stored}
    return ", ".join(
        quote(column.name)
        if types.get(column.name) == column.type
        else f"CAST({quote(column.name) if column.name in types else 'NULL'} AS {column.type}) AS {quote(column.name)}"
        for column in columns
    )


def typed_nulls(columns: Iterable[Column]) -> str:
    """Return a SELECT list of nulls of the columns' names and types."""
    return ", ".join(f"CAST(NULL AS {column.type}) AS {quote(column.name)}" for column in columns)


def column_definitions(columns: Iterable[Column]) -> str:
    """Return ``"name" TYPE, …`` for a CREATE TABLE."""
    return ", ".join(f"{quote(column.name)} {column.type}" for column in columns)


def time_range_sql(time: Column, start_micros: int, end_micros: int) -> str:
    """Return a condition for ``start ≤ time < end``, in the column's own type so that row groups can be skipped."""
    name = quote(time.name)
    if time.type == "DATE":
        # A day's time is its midnight, so it belongs to the windows that start by then: round bounds up, not down.
        start_micros, end_micros = (
            -(-micros // _MICROS_PER_DAY) * _MICROS_PER_DAY for micros in (start_micros, end_micros)
        )
    low, high = (f"CAST(make_timestamp({micros}) AS {time.type})" for micros in (start_micros, end_micros))
    return f"({name} >= {low} AND {name} < {high})"


def utc_timestamp_sql(column: Column) -> str:
    """Return a SQL expression of type TIMESTAMP (UTC) for a time column, independent of the session's time zone."""
    name = quote(column.name)
    if column.type == "TIMESTAMP WITH TIME ZONE":
        return f"make_timestamp(epoch_us({name}))"
    return name if column.type == "TIMESTAMP" else f"CAST({name} AS TIMESTAMP)"

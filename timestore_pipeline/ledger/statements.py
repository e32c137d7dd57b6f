"""What statements of several nouns are made with: upserts, ranges of windows, conditions, and lists in parts.

An upsert inserts or updates at once, so that two writers at one moment neither collide nor lose what the other wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ColumnCollection, ColumnElement, Connection, Table, literal_column, text
from sqlalchemy.dialects.postgresql import Insert as PostgresqlInsert
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from timestore_pipeline.ledger.schema import builds
from timestore_pipeline.ledger.states import BuildState

T = TypeVar("T")

# In words that partial indexes have too: a planner cannot tell that a parameter has the value that it takes.
BUILD_IS_IN_FLIGHT = builds.c.state == literal_column(f"'{BuildState.CLAIMED}'")
"""The condition for a build that has not ended."""

WINDOW_IS_PENDING = text("corrected_windows.pending")
"""The condition for a window whose published rows are still to be corrected."""

# Below the limit of variables in one SQLite statement, however it was compiled.
_VALUES_PER_STATEMENT = 500

Changes = Callable[[ColumnCollection[str, Any]], Mapping[str, Any]]
"""Given the row that was to be inserted, returns what becomes of the one that is there."""


def in_parts(items: Iterable[T], values_each: int = 1) -> Iterator[list[T]]:
    """Divide ``items`` into lists of which one statement can hold all; each item has ``values_each`` values in it."""
    left = iter(items)
    while part := list(islice(left, _VALUES_PER_STATEMENT // values_each)):
        yield part


def of_windows(
    table: Table, dataset: str, first_window: int | None, last_window: int | None
) -> list[ColumnElement[bool]]:
    """Return the conditions for rows of a dataset in the windows from the first to the last, by their starts.

    Without a first or a last one the range has no end there.
    """
    found = [table.c.dataset == dataset]
    if first_window is not None:
        found.append(table.c.window_start >= first_window)
    if last_window is not None:
        found.append(table.c.window_start <= last_window)
    return found


def upsert(tx: Connection, table: Table, row: Mapping[str, Any], changes: Changes | None = None) -> None:
    """Do what :func:`upsert_all` does with one row."""
    upsert_all(tx, table, [row], changes)


def upsert_all(tx: Connection, table: Table, rows: Sequence[Mapping[str, Any]], changes: Changes | None = None) -> None:
    """Insert ``rows``; where the primary key of one is there already, change the row that has it.

    Args:
        tx: a transaction of the ledger.
        table: one of its tables.
        rows: column → value, the primary key among them, all with the same columns; no key twice.
        changes: by default the row that is there becomes the new one. A function of a module: its statement is kept.
    """
    tx.execute(_upsert(tx.dialect.name, table, tuple(rows[0]), changes), [dict(row) for row in rows])


# Making a statement takes several times as long as executing it, and there are few.
@lru_cache(maxsize=64)
def _upsert(
    dialect: str, table: Table, names: tuple[str, ...], changes: Changes | None
) -> SqliteInsert | PostgresqlInsert:
    statement = sqlite_insert(table) if dialect == "sqlite" else postgresql_insert(table)
    key = [column.name for column in table.primary_key]
    new = statement.excluded
    values = changes(new) if changes else {name: new[name] for name in names if name not in key}
    return statement.on_conflict_do_update(index_elements=key, set_=values)


def insert_unless_there(tx: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert ``row``; False where one with its primary key, or that a unique index forbids beside it, is there."""
    insert = sqlite_insert if tx.dialect.name == "sqlite" else postgresql_insert
    return tx.execute(insert(table).values(row).on_conflict_do_nothing()).rowcount == 1

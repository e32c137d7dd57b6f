"""Which datasets have a table: an empty file for each, beside the tables.

The ledger knows it too. But where that is made again from files, only these tell a table whose folder is away from one
that never was.
"""

from __future__ import annotations

from contextlib import suppress

from timestore_pipeline.storage.contract import Storage

_PREFIX = ".timestore-table-"


def mark_table(tables: Storage, dataset: str) -> None:
    """Say that a dataset has a table, unless that is said already.

    Raises:
        StorageError, OSError: it cannot be looked at or written.
    """
    if tables.size(_key(dataset)) is None:
        with suppress(FileExistsError):
            tables.create(_key(dataset), b"")


def unmark_table(tables: Storage, dataset: str) -> None:
    """Say that a dataset has none any more: it was removed, or given up.

    Raises:
        StorageError, OSError: it cannot be removed.
    """
    tables.delete(_key(dataset))


def marked_tables(tables: Storage) -> set[str]:
    """Return the names of the datasets that have a table, wherever it is now.

    Raises:
        StorageError, OSError: nobody can look.
    """
    return {name.removeprefix(_PREFIX) for name in tables.names() if name.startswith(_PREFIX)}


def _key(dataset: str) -> str:
    return f"{_PREFIX}{dataset}"

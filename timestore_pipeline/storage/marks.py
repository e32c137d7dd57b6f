"""Marks: small files by which what was there once is known again, on a disk or in a bucket.

Whether a folder is there says nothing: a mount point is there without its disk, and a folder is quickly made anew. So a
place has a mark with the identity of its installation. Two more are empty: beside the tables, one for each dataset that
has a table, so that one whose folder is away is told from one that never was; and in the folder of a dataset's
segments (:func:`~timestore_pipeline.storage.layout.segments_mark`), so that another folder is told from one of which
files are missing. The ledger knows all that too, but may be one that was made again from files.
"""

from __future__ import annotations

import re
from contextlib import suppress

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import StorageRefused
from timestore_pipeline.storage.contract import Storage

_IDENTITY = re.compile(r"[0-9a-f]{32}")
# Of somebody else's file under the name no more than that is looked at.
_MOST_BYTES = 64

UNREADABLE = "unknown"
"""Stands for the owner where there is a mark that nobody can read."""

_TABLE = ".timestore-table-"


def mark_key(name: str) -> str:
    """Return the key of the mark of a place; two places may be the same folder."""
    return f".timestore-{name}"


def read_mark(place: Storage, name: str) -> str | None:
    """Return the identity of the installation whose place it is; None where it has no mark.

    Raises:
        StorageError, OSError: it cannot be looked at.
    """
    try:
        found = place.read(mark_key(name), 0, _MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    text = found.decode("ascii", "replace").strip()
    return text if _IDENTITY.fullmatch(text) else UNREADABLE


def put_mark(place: Storage, name: str, identity: str) -> None:
    """Mark a place that has no mark; one that another process puts at the same time stays.

    In an object store it is put twice, to see that the store refuses to create a key that is there: on that rests who
    decides on a build.

    Raises:
        StorageRefused: the store creates a key twice.
        StorageError, OSError: it cannot be written.
    """
    key, content = mark_key(name), f"{identity}\n".encode()
    try:
        place.create(key, content)
    except FileExistsError:
        return
    if place.local is None:
        try:
            refuse_second_creation(place, name, identity)
        except StorageRefused:
            place.delete(key)
            raise


def refuse_second_creation(place: Storage, name: str, identity: str) -> None:
    """Create the mark of an object store once more, which must fail.

    Raises:
        StorageRefused: it did not.
    """
    try:
        place.create(mark_key(name), f"{identity}\n".encode())
    except FileExistsError:
        return
    raise StorageRefused(
        f"creating {place.shown(mark_key(name))} a second time",
        "the store took it, so it does not heed 'If-None-Match: *', and two builds could take each other's place in "
        "the log of a table; use a store that does (Amazon S3, Google Cloud Storage, Azure, MinIO, R2), or a folder",
    )


def replace_mark(place: Storage, name: str, identity: str) -> None:
    """Give a place another mark than the one that it has, or its first one.

    Raises:
        StorageError, OSError: it cannot be written; it may be without a mark then.
    """
    place.delete(mark_key(name))
    reach(CrashPoint.MARK_REMOVED)
    put_mark(place, name, identity)
    reach(CrashPoint.MARK_REPLACED)


def table_mark(dataset: str) -> str:
    """Return the key, beside the tables, of the mark that a dataset has one."""
    return f"{_TABLE}{dataset}"


def datasets_with_table_marks(tables: Storage) -> set[str]:
    """Return the names of the datasets that have a table, wherever it is now.

    Raises:
        StorageError, OSError: nobody can look.
    """
    return {name.removeprefix(_TABLE) for name in tables.names() if name.startswith(_TABLE)}


def put_empty_mark(place: Storage, key: str) -> None:
    """Say that something is there from now on, unless that is said already.

    Raises:
        StorageError, OSError: it cannot be looked at or written.
    """
    if place.size(key) is None:
        with suppress(FileExistsError):
            place.create(key, b"")

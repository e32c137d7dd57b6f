"""How DuckDB reads the files of a place: under their own names locally, by ranges from an object store.

A query over a few columns or an hour of a large file fetches some ranges of it and not the whole. There is no copy on
the disk that could be of another time or be evicted under a query that runs. What is registered in a connection
reaches the places that it was opened for, and reads only.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
from fsspec import AbstractFileSystem

from timestore_pipeline.duck.sql import exact_name
from timestore_pipeline.storage.contract import Storage
from timestore_pipeline.storage.ranges import RangeFile, SmallFiles

SCHEME = "timestore"
"""Of the names that DuckDB is given; nobody else's."""

_URL = f"{SCHEME}://"

# Files never change, and a name is given once; so what DuckDB has read of one stays right.
_NEVER = datetime(2000, 1, 1, tzinfo=UTC)


def duckdb_path(place: Storage, key: str = "") -> str:
    """Return the name that DuckDB has for a file; without a key, for the folder of all of them."""
    _, is_url, name = place.shown(key).partition("://")
    return f"{_URL}{name}" if is_url else place.shown(key)


def duckdb_name(place: Storage, key: str) -> str:
    """Return the name to give DuckDB for just this file."""
    path = duckdb_path(place, key)
    return path if path.startswith(_URL) else exact_name(Path(path))


def register_places(connection: duckdb.DuckDBPyConnection, places: Iterable[Storage]) -> None:
    """Let a connection read the files of places in object stores."""
    remote = [place for place in places if duckdb_path(place).startswith(_URL)]
    if remote:
        connection.register_filesystem(_Files(remote))


def reason_of(error: Exception) -> str:
    """Return what DuckDB says; where reading an object failed below it, what that was, without Python's stack."""
    raised = _raised_below(error)
    return raised[-1][1] if raised else str(error)


def of_the_store(error: Exception) -> bool:
    """Whether an object store refused or gave no answer below an error of DuckDB; a missing object is an answer."""
    return any(name != "ObjectMissing" for name, _ in _raised_below(error))


def _raised_below(error: Exception) -> list[tuple[str, str]]:
    return re.findall(r"^(?:[\w.]+\.)?(Storage\w+|ObjectMissing): (.*)$", str(error), re.MULTILINE)


class _Files(AbstractFileSystem):
    """What DuckDB asks of a file system, as far as reading named files goes."""

    protocol = SCHEME
    cachable = False

    def __init__(self, places: Iterable[Storage]) -> None:
        super().__init__()
        # Longest first: one place may lie in another.
        self._places = sorted(((duckdb_path(place), place) for place in places), key=lambda each: -len(each[0]))
        self._sizes: dict[str, int] = {}
        self._kept = SmallFiles()

    def glob(self, path: str, maxdepth: int | None = None, **_: Any) -> list[str]:
        """Return the name itself: DuckDB is given no patterns, and asks the file when it opens it."""
        return [path] if self._find(path) else []

    def size(self, path: str) -> int:
        """Return the bytes of a file; it is asked for once.

        Raises:
            FileNotFoundError: there is none, or it is of no place that this was made for.
        """
        if path not in self._sizes:
            found = self._find(path)
            size = found[0].size(found[1]) if found else None
            if size is None:
                raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
            self._sizes[path] = size
        return self._sizes[path]

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is such a file."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def modified(self, path: str) -> datetime:
        """Return the same for all: no file ever changes."""
        return _NEVER

    def open(self, path: str, mode: str = "rb", *_: Any, **__: Any) -> Any:
        """Open a file for reading.

        Raises:
            PermissionError: for anything else.
            FileNotFoundError: there is none, or it is of no place that this was made for.
        """
        if mode != "rb":
            raise PermissionError(f"{path}: the files of tables are only read here")
        size = self.size(path)
        found = self._find(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
        return RangeFile(*found, size, self._kept)

    def _find(self, path: str) -> tuple[Storage, str] | None:
        path = _URL + path.removeprefix(_URL)
        for name, place in self._places:
            key = path.removeprefix(f"{name}/")
            if key != path and key and ".." not in key.split("/"):
                return place, key
        return None

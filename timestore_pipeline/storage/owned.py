"""A place of an installation, asked for its mark before anything there is changed, or is said to be missing.

So a disk that is not mounted never looks like one on which files are missing, and nothing is made anew in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from timestore_pipeline.storage.contract import Entry, Storage


class Ownership(Protocol):
    """Says whether a place belongs to the installation that opened it."""

    def require(self) -> None:
        """Make sure that it does, or that nothing was ever there.

        Raises:
            PlaceError: it is missing, empty, or another one; asked anew each time.
        """
        ...

    def claim(self) -> None:
        """Make sure of the same before something is written; a place in which nothing was ever is marked.

        Raises:
            PlaceError: as :meth:`require`.
        """
        ...


class OwnedStorage:
    """``place``, as far as it belongs to the installation; implements :class:`~timestore_pipeline.storage.Storage`.

    Whatever it is asked for may raise PlaceError besides.
    """

    def __init__(self, place: Storage, ownership: Ownership) -> None:
        self._place = place
        self._ownership = ownership

    @property
    def location(self) -> str:
        """The place's."""
        return self._place.location

    @property
    def local(self) -> Path | None:
        """The place's."""
        return self._place.local

    @property
    def root(self) -> Path:
        """The place's."""
        return self._place.root

    @property
    def options(self) -> Mapping[str, str]:
        """The place's."""
        return self._place.options

    def shown(self, key: str) -> str:
        """Return where a file is."""
        return self._place.shown(key)

    def require(self) -> None:
        """Ask for the mark."""
        self._ownership.require()

    def scratch(self, key: str) -> Path:
        """Ask, then give a name."""
        self._ownership.claim()
        return self._place.scratch(key)

    def put(self, scratch: Path, key: str, *, keep: bool = True) -> None:
        """Put it, then look again: what was put beside the place is not acknowledged."""
        self._place.put(scratch, key, keep=keep)
        self._ownership.claim()

    def fetch(self, key: str) -> Path:
        """Fetch it; ask before it is said to be missing."""
        try:
            path = self._place.fetch(key)
        except FileNotFoundError:
            self.require()
            raise
        if not path.exists():
            self.require()
        return path

    def read(self, key: str, start: int, length: int) -> bytes:
        """Read it; ask before it is said to be missing."""
        try:
            return self._place.read(key, start, length)
        except FileNotFoundError:
            self.require()
            raise

    def create(self, key: str, content: bytes) -> None:
        """Ask, then create it."""
        self._ownership.claim()
        self._place.create(key, content)

    def forget(self, key: str) -> None:
        """Drop a local copy."""
        self._place.forget(key)

    def size(self, key: str) -> int | None:
        """Return its size; ask before it is said to be missing."""
        size = self._place.size(key)
        if size is None:
            self.require()
        return size

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Ask, then list: what a listing lacks may be taken for gone."""
        self.require()
        yield from self._place.entries(prefix)

    def delete(self, *keys: str) -> None:
        """Ask, then remove them."""
        self.require()
        self._place.delete(*keys)

    def adopt(self, source: Path, key: str) -> None:
        """Ask, then move it there."""
        self._ownership.claim()
        self._place.adopt(source, key)

    def link(self, key: str, target: str) -> None:
        """Ask, then give it a second key."""
        self._ownership.claim()
        self._place.link(key, target)

    def move(self, key: str, target: str) -> None:
        """Ask, then give it another key."""
        self._ownership.claim()
        self._place.move(key, target)

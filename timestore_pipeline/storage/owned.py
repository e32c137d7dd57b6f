"""A place of an installation, asked for its mark before anything there is changed, or is said to be missing.

So a disk that is not mounted never looks like one on which files are missing, and nothing is made anew in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from timestore_pipeline.storage.contract import Entry, Storage, Traits

T = TypeVar("T")


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


class OwnedStorage(Storage):
    """``place``, as far as it belongs to the installation.

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
    def traits(self) -> Traits:
        """The place's."""
        return self._place.traits

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

    def content(self, key: str) -> bytes:
        """Read it; ask before it is said to be missing."""
        try:
            return self._place.content(key)
        except FileNotFoundError:
            self.require()
            raise

    def bring(self, keys: Collection[str]) -> None:
        """Fetch them."""
        self._place.bring(keys)

    def create(self, key: str, content: bytes) -> None:
        """Ask, then create it."""
        self._ownership.claim()
        self._place.create(key, content)

    def forget(self, key: str) -> bool:
        """Drop a local copy."""
        return self._place.forget(key)

    def size(self, key: str) -> int | None:
        """Return its size; ask before it is said to be missing."""
        return self._unless_missing(self._place.size(key))

    def sizes(self) -> Callable[[str], int | None]:
        """Ask, then list; ask again before one is said to be missing."""
        self.require()
        sizes = self._place.sizes()
        return lambda key: self._unless_missing(sizes(key))

    def entry(self, key: str) -> Entry | None:
        """Return what it is; ask before it is said to be missing."""
        return self._unless_missing(self._place.entry(key))

    def stamp(self, key: str) -> tuple[int, ...] | None:
        """Return the place's."""
        return self._place.stamp(key)

    def names(self, folder: str = "") -> list[str]:
        """Ask, then list."""
        self.require()
        return self._place.names(folder)

    def _unless_missing(self, found: T | None) -> T | None:
        if found is None:
            self.require()
        return found

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Ask, then list: what a listing lacks may be taken for gone."""
        self.require()
        yield from self._place.entries(prefix)

    def delete(self, *keys: str) -> None:
        """Ask, then remove them."""
        self.require()
        self._place.delete(*keys)

    def leftovers(self, pattern: str) -> Iterator[Entry]:
        """Ask, then look for them."""
        self.require()
        yield from self._place.leftovers(pattern)

    def remove_folder(self, key: str) -> None:
        """Ask, then remove it."""
        self.require()
        self._place.remove_folder(key)

    def prune(self, folder: str = "") -> None:
        """Ask, then remove what is empty."""
        self.require()
        self._place.prune(folder)

    def has_folder(self, folder: str = "") -> bool:
        """Whether it is there."""
        return self._place.has_folder(folder)

    def make_root(self) -> None:
        """Ask, then make it."""
        self._ownership.claim()
        self._place.make_root()

    def holds(self, path: Path) -> bool:
        """Whether a path lies in the place."""
        return self._place.holds(path)

    def adopt(self, source: Path, key: str) -> None:
        """Ask, then move it there."""
        self._ownership.claim()
        self._place.adopt(source, key)

    def link(self, key: str, target: str) -> None:
        """Ask, then give it a second key."""
        self._ownership.claim()
        self._place.link(key, target)

    def rename(self, key: str, target: str) -> None:
        """Ask, then give it another key."""
        self._ownership.claim()
        self._place.rename(key, target)

    def sync(self, folder: str = "", *patterns: str) -> list[str]:
        """Make it durable."""
        return self._place.sync(folder, *patterns)

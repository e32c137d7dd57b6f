"""What the parts may ask of a place for files, wherever it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """A file: its key, its size, when it was written (microseconds since the epoch), and its version where it has one.

    ``version`` is another one as soon as the content is (an object's ETag); None for local files.
    """

    key: str
    bytes: int
    modified_at: int
    version: str | None = None


@dataclass(frozen=True)
class Traits:
    """What it costs to ask a kind of place, and so how it is asked.

    Attributes:
        deleted_at_once: so many files go in one step.
        believed_seconds: for so long an answer is taken for true.
        unswept_seconds: what is younger is not swept as an orphan, so that nobody has to ask whether it is there.
    """

    deleted_at_once: int
    believed_seconds: float
    unswept_seconds: float


class Storage(Protocol):
    """Immutable files under one place: a local directory, or a prefix of an object store.

    What does something here is right for each kind of place that does not do it in its own way.

    Keys are relative and '/'-separated. A name is given once, so whoever finds it may keep what it found. Errors of the
    place are :class:`~timestore_pipeline.errors.StorageError`, which are OSErrors too, as those of local files are.
    """

    @property
    def location(self) -> str:
        """The path or URL, as shown to people; never with credentials."""
        ...

    @property
    def local(self) -> Path | None:
        """The directory, where it is one. Only this folder asks: for the others there is no difference."""
        ...

    @property
    def traits(self) -> Traits:
        """How it is asked."""
        ...

    @property
    def root(self) -> Path:
        """The local folder in which :meth:`scratch` and :meth:`fetch` give files, at the same keys."""
        ...

    @property
    def options(self) -> Mapping[str, str]:
        """How delta-rs is to ask the place, besides what the environment says; nothing secret."""
        ...

    def shown(self, key: str) -> str:
        """Return where a file is, for messages."""
        ...

    def require(self) -> None:
        """Make sure that the place is there and belongs to this installation, as far as it was opened as one that does.

        What others do here (put, list, delete, find that a file is missing) asks so by itself; who goes to the files
        past this interface asks first.

        Raises:
            PlaceError: it is missing, empty, or another one.
        """

    def scratch(self, key: str) -> Path:
        """Return where to write what :meth:`put` shall publish as ``key``; its folder is there."""
        ...

    def put(self, scratch: Path, key: str, *, keep: bool = True) -> None:
        """Publish a complete local file as ``key``, durably; afterwards ``scratch`` is gone.

        Nobody ever sees a part of it. A key is created and never replaced; doing it again after an answer was lost is
        the same as doing it once. With ``keep`` the file stays in the cache as a copy.

        Raises:
            FileExistsError: the key has other content, which stays.
            StorageError, OSError: it cannot be written; whatever is there is whole.
        """
        ...

    def fetch(self, key: str) -> Path:
        """Return a local file with the content of ``key``, for reading only.

        A fetched copy may be evicted a minute later at the earliest; what is open by then stays readable.

        Raises:
            FileNotFoundError: there is no such key (of object stores; a local path is returned unseen).
            StorageError: it cannot be fetched.
        """
        ...

    def read(self, key: str, start: int, length: int) -> bytes:
        """Return ``length`` bytes of a file from ``start`` on, past the cache; fewer where it ends before.

        Raises:
            FileNotFoundError: there is no such key.
            StorageError, OSError: it cannot be read.
        """
        ...

    def content(self, key: str) -> bytes:
        """Return all bytes of a small file, past the cache.

        Raises:
            FileNotFoundError: there is no such key.
            StorageError, OSError: it cannot be read.
        """
        ...

    def bring(self, keys: Collection[str]) -> None:
        """Fetch files that are going to be asked for, several at a time; what fails says so when it is."""

    def create(self, key: str, content: bytes) -> None:
        """Write a small file that must not be there yet, durably.

        Raises:
            FileExistsError: it is there, whatever its content.
            StorageError, OSError: it cannot be written.
        """
        ...

    def forget(self, key: str) -> bool:
        """Drop a local copy, which may be damaged, but never the file itself.

        Return whether :meth:`fetch` brings another one, as it gives copies.
        """
        ...

    def size(self, key: str) -> int | None:
        """Return the bytes of a file; None where there is none."""
        ...

    def sizes(self) -> Callable[[str], int | None]:
        """Return a function that says the same as :meth:`size`, for whoever asks of many: one listing tells all."""
        ...

    def entry(self, key: str) -> Entry | None:
        """Return what a file is now; None where there is none."""
        ...

    def stamp(self, key: str) -> tuple[int, ...] | None:
        """Return what tells a file from another one in its place, where that costs much less than to read it."""
        return None

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files and folders in a folder, sorted; none where there is no such folder."""
        ...

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Go through all files whose keys begin with ``prefix`` (a folder that ends in '/', or everything)."""
        ...

    def delete(self, *keys: str) -> None:
        """Remove files; missing ones are fine.

        Removing many files is not one step: after an error some may be gone.
        """
        ...

    def leftovers(self, pattern: str) -> Iterator[Entry]:
        """Go through what writers that died left under a temporary name; a folder counts as empty.

        Where files are put whole there is nothing like that.
        """
        return iter(())

    def remove_folder(self, key: str) -> None:
        """Remove a folder with all that is in it, even while somebody writes to it."""

    def prune(self, folder: str = "") -> None:
        """Remove the folders below, and this one, that nothing is in any more."""

    def has_folder(self, folder: str = "") -> bool:
        """Whether a folder is there; in an object store all are."""
        return True

    def make_root(self) -> None:
        """Make the folder of the place, durably, where it has to be made."""

    def holds(self, path: Path) -> bool:
        """Whether a local path lies in the place."""
        return False

    def adopt(self, source: Path, key: str) -> None:
        """Move a local file, from anywhere on this host, to ``key``; ``source`` goes last.

        Raises:
            FileExistsError, StorageError, OSError: as :meth:`put`; then ``source`` is where it was.
        """
        ...

    def link(self, key: str, target: str) -> None:
        """Give a file a second key, durably and in place of what has it; the two are removed one by one.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def rename(self, key: str, target: str) -> None:
        """Give a file another key; doing it again after it has been done is fine.

        It is durable once :meth:`sync` of the folder has returned.

        Raises:
            FileNotFoundError: there is neither.
        """
        ...

    def sync(self, folder: str = "", *patterns: str) -> list[str]:
        """Make durable what a library wrote: files in a folder, then the folder; return the files' names.

        What was put is durable already, and so is all that an object store has.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        return []

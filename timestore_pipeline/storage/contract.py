"""What the parts may ask of a place for files, wherever it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


class Storage(Protocol):
    """Immutable files under one place: a local directory, or a prefix of an object store.

    Keys are relative and '/'-separated. A name is given once, so whoever finds it may keep what it found. Errors of the
    place are :class:`~timestore_pipeline.errors.StorageError`, which are OSErrors too, as those of local files are.
    """

    @property
    def location(self) -> str:
        """The path or URL, as shown to people; never with credentials."""
        ...

    @property
    def local(self) -> Path | None:
        """The directory, where it is one."""
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
        ...

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

    def create(self, key: str, content: bytes) -> None:
        """Write a small file that must not be there yet, durably.

        Raises:
            FileExistsError: it is there, whatever its content.
            StorageError, OSError: it cannot be written.
        """
        ...

    def forget(self, key: str) -> None:
        """Drop a local copy, which may be damaged, but never the file itself; :meth:`fetch` brings another."""
        ...

    def size(self, key: str) -> int | None:
        """Return the bytes of a file; None where there is none."""
        ...

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Go through all files whose keys begin with ``prefix`` (a folder that ends in '/', or everything)."""
        ...

    def delete(self, *keys: str) -> None:
        """Remove files; missing ones are fine.

        Removing many files is not one step: after an error some may be gone.
        """
        ...

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

    def move(self, key: str, target: str) -> None:
        """Give a file another key, durably; doing it again after it has been done is fine.

        Raises:
            FileNotFoundError: there is neither.
        """
        ...

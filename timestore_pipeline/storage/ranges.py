"""Files of a place for reading parts of them: of an object store ranges, and never the whole of a large file."""

from __future__ import annotations

import io
import threading
from typing import BinaryIO, cast

from timestore_pipeline.storage.contract import Storage

WHOLE_BYTES = 1 << 20
"""A file of up to so many bytes is fetched in one request: its footer and columns would be one each."""

KEPT_BYTES = 16 << 20
"""So much of small files a connection keeps in memory."""


def open_file(place: Storage, key: str, size: int) -> BinaryIO:
    """Open a file of ``size`` bytes for reading.

    Raises:
        OSError: it is not there, or cannot be read; of an object store that is said when it is read.
    """
    return (place.local / key).open("rb") if place.local is not None else cast("BinaryIO", RangeFile(place, key, size))


class SmallFiles:
    """The contents of the small files that were read last: DuckDB opens each several times in one query."""

    def __init__(self) -> None:
        self._contents: dict[tuple[str, str], bytes] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def content(self, place: Storage, key: str, size: int) -> bytes:
        """Return the whole content of a file of ``size`` bytes."""
        name = (place.location, key)
        content = self._contents.get(name)
        if content is None:
            content = place.read(key, 0, size)
            with self._lock:
                if self._bytes + size > KEPT_BYTES:
                    self._contents.clear()
                    self._bytes = 0
                self._contents[name] = content
                self._bytes += size
        return content


class RangeFile(io.RawIOBase):
    """An object as a file for reading, which asks for what is read and no more."""

    def __init__(self, place: Storage, key: str, size: int, kept: SmallFiles | None = None) -> None:
        super().__init__()
        self.size = size
        self._kept = SmallFiles() if kept is None else kept
        self._place = place
        self._key = key
        self._position = 0

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def seekable(self) -> bool:
        """Return that it is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in it, which costs nothing."""
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence] + offset
        return self._position

    def tell(self) -> int:
        """Return where it is."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read to the end, or ``size`` bytes: all of them, unless it ends before."""
        left = max(0, self.size - self._position)
        length = left if size is None or size < 0 else min(size, left)
        if not length:
            return b""
        start = self._position
        self._position += length
        if self.size <= WHOLE_BYTES:
            return self._kept.content(self._place, self._key, self.size)[start : start + length]
        return self._place.read(self._key, start, length)

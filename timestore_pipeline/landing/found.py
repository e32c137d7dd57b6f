"""What a look at the landing folders finds, on a disk or in an object store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

NOT_READY_PREFIXES = (".", "_")
NOT_READY_SUFFIXES = (".tmp", ".partial")

# In which st_blocks counts, whatever the file system's own blocks are.
_BLOCK_OF_STATUS = 512


@dataclass(frozen=True)
class LandingFile:
    """A file that is ready; ``modified_at`` in seconds since the epoch.

    ``disk_bytes`` are those that it takes on the disk, where that is known. In an object store ``path`` is its key
    below the landing prefix, and ``version`` tells its content (its ETag).
    """

    dataset: str
    path: Path
    bytes: int
    modified_at: float
    version: str = ""
    disk_bytes: int = 0

    def is_larger_than(self, limit_bytes: int) -> bool:
        """Whether it has more bytes, to be read or on the disk."""
        return max(self.bytes, self.disk_bytes) > limit_bytes


@dataclass(frozen=True)
class LandingScan:
    """What lies in the landing folders: ready files, oldest first, and sentences about what is wrong there.

    Where an object store has not ``answered`` nobody knows what lies there.
    """

    files: tuple[LandingFile, ...]
    problems: tuple[str, ...]
    answered: bool = True

    def of(self, dataset: str) -> tuple[LandingFile, ...]:
        """The ready files of one dataset."""
        return tuple(file for file in self.files if file.dataset == dataset)


def bytes_on_disk(status: os.stat_result) -> int:
    """Return how many bytes a file takes on the disk: a sparse one takes fewer than it has, a preallocated one more."""
    return status.st_blocks * _BLOCK_OF_STATUS


def is_ready_name(name: str) -> bool:
    """Whether a file of that name is finished by its producer, as far as names tell."""
    return not name.startswith(NOT_READY_PREFIXES) and not name.endswith(NOT_READY_SUFFIXES)

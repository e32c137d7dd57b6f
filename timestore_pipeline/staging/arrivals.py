"""The landing files of one ingest: what they are, whether they are still the same, and where they go afterwards.

:mod:`timestore_pipeline.staging.folder_arrivals` has those of a folder, :mod:`timestore_pipeline.staging.fetched` those
of an object store. A file leaves the landing folder only after the ledger has its batch, or knows that it is bad.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from blake3 import blake3

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.inert import log_named
from timestore_pipeline.landing.found import LandingFile
from timestore_pipeline.ledger.landing import SettledFile, remember_settled
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.staging.deadline import Deadline
from timestore_pipeline.store import Store

log = log_named(__name__)

HASHED_BYTES = 1 << 20
"""So many bytes of a file are read and hashed at a time."""

# What file systems allow.
MAX_NAME_BYTES = 255


class Arrivals(Protocol):
    """Landing files of one dataset, as local files under which name they are known here."""

    def take_in(self, files: Sequence[LandingFile], deadline: Deadline) -> tuple[dict[Path, IncomingBatch], list[str]]:
        """Return the batches that the files are, and a sentence for each file that cannot be had.

        A file that another ingest has taken is left out.

        Raises:
            ReadingTooLong: it has taken too long to find out.
        """
        ...

    def is_unchanged(self, path: Path) -> bool:
        """Whether what lies at ``path`` is still what was taken in."""
        ...

    def clear_away(self, batches: Mapping[Path, IncomingBatch]) -> None:
        """Archive, delete or keep the files of acknowledged batches, as the settings say.

        A file that stays, by setting or because it cannot be moved, is remembered, so that it is not taken again.
        """
        ...

    def set_aside(self, path: Path, batch: IncomingBatch, relative: str) -> None:
        """Move a bad file, which the ledger knows as such, to ``relative`` in the staging directory."""
        ...

    def set_unread_aside(self, file: LandingFile, relative: str) -> None:
        """Do so with a file that was not taken in, if that takes no reading; else it stays, and is remembered."""
        ...


@dataclass(frozen=True)
class Stamp:
    """What changes when a file is written to, or another is put in its place for a while."""

    inode: int
    bytes: int
    modified_at: int
    changed_at: int

    @classmethod
    def of(cls, path: Path, *, through_links: bool = False) -> Stamp:
        """Return that of the file that is there now."""
        return cls.of_status(path.stat(follow_symlinks=through_links))

    @classmethod
    def of_status(cls, status: os.stat_result) -> Stamp:
        """Return that of a status."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def remember(store: Store, files: Collection[SettledFile]) -> None:
    """Record files that stay although they are dealt with."""
    if files:
        store.ledger.transact(lambda tx: remember_settled(tx, files))
        reach(CrashPoint.LANDING_REMEMBERED)


def archive_day() -> str:
    """Return the folder of today in the archive."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def file_fingerprint(path: Path) -> str:
    """Return the BLAKE3 hash of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hash_of(stream)


def hash_of(stream: BinaryIO, size: int | None = None, deadline: Deadline | None = None) -> str:
    """Return the hash of a stream, or of its first ``size`` bytes: one that grows has no end."""
    digest = blake3()
    left = size
    while block := stream.read(HASHED_BYTES if left is None else min(HASHED_BYTES, left)):
        digest.update(block)
        left = None if left is None else left - len(block)
        if deadline is not None:
            deadline.check()
    return digest.hexdigest()


def too_large_in_words(size: int, disk_bytes: int, limit: int) -> str:
    """Return why a file is not read that is too large."""
    on_disk = f" and takes {disk_bytes:,} on the disk" if disk_bytes > limit >= size else ""
    return f"it has {size:,} bytes{on_disk}, and a file may have {limit:,} (TIMESTORE_LANDING_MAX_FILE_BYTES)"


def unique_name(fingerprint: str, name: str) -> str:
    """Return a file name of the batch's own; of a very long name the beginning gives way."""
    prefix = f"{fingerprint[:16]}-"
    return prefix + os.fsencode(name)[-(MAX_NAME_BYTES - len(prefix)) :].decode(errors="ignore")

"""What a look at the landing folders finds, on a disk or in an object store, and the backlog that it makes.

Files for which there is no room yet are the backlog of their dataset.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from timestore_pipeline.ledger.counters import LANDING_FAILED_LOOKS, count
from timestore_pipeline.ledger.landing import Backlog, landing_backlogs, put_backlogs
from timestore_pipeline.store import Store

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


def record_backlog(store: Store, scan: LandingScan, datasets: Iterable[str] | None = None) -> bool:
    """Put into the ledger what a look at ``datasets`` (by default all) found; False where nothing has changed.

    A look that an object store did not answer is counted, and what the last one found stays. Writes only what has
    changed, so a look that finds what the last one found costs no more than one query.
    """
    if not scan.answered:
        store.ledger.transact(lambda tx: count(tx, LANDING_FAILED_LOOKS, "", ""), repeatable=False)
        return False
    looked_at = set(store.datasets if datasets is None else datasets)
    found = backlog_of(scan)
    with store.ledger.read() as tx:
        before = landing_backlogs(tx)
    # A dataset that is not declared any more has no folder that is looked at.
    looked_at |= before.keys() - set(store.datasets.declared)
    changed = [name for name in sorted(looked_at) if before.get(name) != found.get(name)]
    if changed:
        store.ledger.transact(lambda tx: put_backlogs(tx, changed, found))
    return bool(changed)


def backlog_of(scan: LandingScan) -> dict[str, Backlog]:
    """Return what a look found, for every dataset with files."""
    found: dict[str, Backlog] = {}
    for file in scan.files:
        had = found.get(file.dataset, Backlog(0, 0, int(file.modified_at * 1e6)))
        oldest = min(had.oldest_modified_at, int(file.modified_at * 1e6))
        found[file.dataset] = Backlog(had.files + 1, had.bytes + file.bytes, oldest)
    return found

"""Files that may end the process which reads them: told apart from the files beside them, and not read for ever.

A file made to exhaust memory, or one that a library crashes on, leaves no error behind. So a reading is recorded
before it begins and forgotten when it ends, however it ends. What is left over is a suspicion, and those under one are
read later and in smaller groups, in the end alone; then what is left over is a proof.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from timestore_pipeline.clock import now_micros
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import LedgerError, SegmentNotWritten
from timestore_pipeline.ledger.readings import (
    Readings,
    begin_readings,
    end_readings,
    take_back_reading,
    unended_readings,
)
from timestore_pipeline.store import Store

log = logging.getLogger(__name__)

MOST_ONCE_SUSPECTED = 100
"""How many files of which a process ended once are read together: not all, should it have been one of them."""

LAST_READER_SECONDS = 60
"""So old is the last reading of a file that is given up: two processes may read one file at the same time."""


@dataclass(frozen=True)
class ReadingGroup:
    """Batches that are read together; ``begun`` is how often a reading of theirs did not end."""

    batch_ids: tuple[str, ...]
    begun: int

    @property
    def alone(self) -> bool:
        """Whether the batch is read alone because it is under suspicion."""
        return self.begun > 0 and len(self.batch_ids) == 1


def reading_groups(batch_ids: Sequence[str], before: Mapping[str, Readings], most_attempts: int) -> list[ReadingGroup]:
    """Return in which groups to read, the unsuspected first, so that a bad file ends the process last.

    The last attempt of all is made alone.
    """
    by_begun: dict[int, list[str]] = {}
    for batch_id in batch_ids:
        by_begun.setdefault(before[batch_id].begun if batch_id in before else 0, []).append(batch_id)
    groups = []
    for begun, members in sorted(by_begun.items()):
        alone = begun >= min(2, most_attempts - 1)
        size = len(members) if begun == 0 else 1 if alone else MOST_ONCE_SUSPECTED
        groups += [ReadingGroup(tuple(members[start : start + size]), begun) for start in range(0, len(members), size)]
    return groups


def suspicions(store: Store, dataset: str, batch_ids: Sequence[str]) -> dict[str, Readings]:
    """Return the readings of ``batch_ids`` that have not ended, by id."""
    with store.ledger.read() as tx:
        return unended_readings(tx, dataset, batch_ids)


def verdict(readings: Readings) -> str:
    """Return why a file is not read any more."""
    return (
        f"reading it has ended the process {readings.begun} times, the last time alone: out of memory, or a crash of a "
        "library. Look at the file; retry it where there is more memory"
    )


def may_be_read_elsewhere(readings: Readings, now: int) -> bool:
    """Whether the last reading is so young that it may not have ended yet."""
    return now - readings.last_at < LAST_READER_SECONDS * 1_000_000


@contextmanager
def recorded_reading(store: Store, dataset: str, group: ReadingGroup) -> Iterator[None]:
    """Record the reading of a group for the time of the block, which stages what is good of it.

    A block that raises has ended as well. Only where it could not write the segment the record stays, so that the next
    attempt is made in a smaller group; a disk that is too full for a file alone leads to no verdict.
    """
    store.ledger.transact(lambda tx: begin_readings(tx, dataset, group.batch_ids, now_micros()), repeatable=False)
    reach(CrashPoint.READINGS_BEGUN)
    try:
        yield
    except SegmentNotWritten as error:
        if group.alone and not error.out_of_memory:
            _record(store, dataset, lambda tx: take_back_reading(tx, dataset, group.batch_ids[0]))
        raise
    except BaseException:
        _record(store, dataset, lambda tx: end_readings(tx, dataset, group.batch_ids))
        raise
    # What was acknowledged is forgotten in that transaction.
    if suspicions(store, dataset, group.batch_ids):
        _record(store, dataset, lambda tx: end_readings(tx, dataset, group.batch_ids))


def _record(store: Store, dataset: str, change: Callable[[Connection], None]) -> None:
    try:
        store.ledger.transact(change, repeatable=False)
    except LedgerError as error:
        log.warning("dataset %r: the end of a reading was not recorded: %s", dataset, error)

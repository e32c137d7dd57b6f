"""Files that may end the process which reads them: told apart from the files beside them, and not read for ever.

A file made to exhaust memory, or one that a library crashes on, leaves no error behind. So a reading, hashing
included, is recorded before it begins and forgotten when it ends, however it ends. What is left over is a suspicion,
and those under one are read later and in smaller groups, in the end alone. Only what ends a process while a file is
read alone speaks against that file: a process may end for other reasons than what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import LedgerError, SegmentNotWritten
from timestore_pipeline.inert import log_named
from timestore_pipeline.landing.found import LandingFile
from timestore_pipeline.ledger.landing import (
    Readings,
    begin_alone,
    begin_readings,
    datasets_being_read,
    end_alone,
    end_readings,
    unended_readings,
)
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.segments.identity import unread_file_id
from timestore_pipeline.store import Store

log = log_named(__name__)

MOST_ONCE_SUSPECTED = 100
"""How many files of which a process ended once are read together: not all, should it have been one of them."""

LAST_READER_SECONDS = 60
"""So old is the last reading of a file that is given up: two processes may read one file at the same time."""

_READ_ALONE_FROM = 2
_UNSUSPECTED = Readings(0, 0)


@dataclass(frozen=True)
class ReadingGroup:
    """Files that are read together, by their ids; ``begun`` is how often a reading of theirs did not end."""

    file_ids: tuple[str, ...]
    begun: int

    @property
    def alone(self) -> bool:
        """Whether the file is read alone because it is under suspicion."""
        return self.begun > 0 and len(self.file_ids) == 1


def reading_groups(file_ids: Sequence[str], before: Mapping[str, Readings]) -> list[ReadingGroup]:
    """Return in which groups to read, the less suspected first, so that a bad file ends the process last."""
    by_suspicion: dict[tuple[int, int], list[str]] = {}
    for file_id in file_ids:
        found = before.get(file_id, _UNSUSPECTED)
        by_suspicion.setdefault((min(found.begun, _READ_ALONE_FROM), found.alone), []).append(file_id)
    groups = []
    for (begun, _), members in sorted(by_suspicion.items()):
        size = {0: len(members), 1: MOST_ONCE_SUSPECTED}.get(begun, 1)
        groups += [ReadingGroup(tuple(members[start : start + size]), begun) for start in range(0, len(members), size)]
    return groups


def reading_id(file: LandingFile) -> str:
    """Return what a landing file is called before it is read."""
    return unread_file_id(file.path.name, file.bytes, file.modified_at, file.version)


def suspected_datasets(store: Store, files: Mapping[str, Sequence[LandingFile]]) -> list[str]:
    """Return which of these datasets have files under suspicion; first whose last reading is the longest ago.

    They are to be read last, and each where its end does not keep the others waiting.
    """
    last: dict[str, int] = {}
    with store.ledger.read() as tx:
        for name in sorted(datasets_being_read(tx) & files.keys()):
            found = unended_readings(tx, name, map(reading_id, files[name]))
            if found:
                last[name] = max(each.last_at for each in found.values())
    return sorted(last, key=lambda name: last[name])


def suspicions(store: Store, dataset: str, file_ids: Sequence[str]) -> dict[str, Readings]:
    """Return the readings of ``file_ids`` that have not ended, by id."""
    with store.ledger.read() as tx:
        return unended_readings(tx, dataset, file_ids)


def verdict(readings: Readings) -> str:
    """Return why a file is not read any more."""
    return (
        f"{readings.alone} processes have ended while they read it alone: out of memory, or a crash of a library. "
        "Maintenance tries it again by itself, a few times; look at the file, or retry it where there is more memory"
    )


def may_be_read_elsewhere(readings: Readings, now: int) -> bool:
    """Whether the last reading is so young that it may not have ended yet."""
    return now - readings.last_at < LAST_READER_SECONDS * 1_000_000


@contextmanager
def recorded_reading(store: Store, dataset: str, group: ReadingGroup) -> Iterator[None]:
    """Record the reading of a group for the time of the block, which stages what is good of it.

    A block that raises has ended as well. Only where it could not write the segment the record stays, so that the next
    attempt is made in a smaller group. A file that is read alone has its record from before.
    """
    if not group.alone:
        store.ledger.transact(lambda tx: begin_readings(tx, dataset, group.file_ids, now_micros()), repeatable=False)
    reach(CrashPoint.READINGS_BEGUN)
    try:
        yield
    except SegmentNotWritten:
        raise
    except BaseException:
        _record(store, dataset, lambda tx: end_readings(tx, dataset, group.file_ids))
        raise
    # What was acknowledged is forgotten in that transaction.
    if suspicions(store, dataset, group.file_ids):
        _record(store, dataset, lambda tx: end_readings(tx, dataset, group.file_ids))


@contextmanager
def blamed_alone(store: Store, dataset: str, group: ReadingGroup) -> Iterator[None]:
    """Let an end of the process within the block speak against the file of a group, if it is read alone.

    For the time in which it is read and nothing else is done: not while a turn, the ledger or the disk is waited for.
    """
    if not group.alone:
        yield
        return
    (file_id,) = group.file_ids
    store.ledger.transact(lambda tx: begin_alone(tx, dataset, file_id, now_micros()), repeatable=False)
    try:
        yield
    finally:
        _record(store, dataset, lambda tx: end_alone(tx, dataset, file_id, now_micros()))


def _record(store: Store, dataset: str, change: Callable[[Connection], None]) -> None:
    try:
        store.ledger.transact(change, repeatable=False)
    except LedgerError as error:
        log.warning("dataset %r: the end of a reading was not recorded: %s", dataset, error)

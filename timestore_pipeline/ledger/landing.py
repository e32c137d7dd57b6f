"""The landing folders: what waits in them, which files are being read, and which stay although they are dealt with.

A reading that has begun and not ended when its process is gone may be of a file that killed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnCollection, ColumnElement, Connection, delete, select

from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.ledger.schema import landing_backlog, readings, settled_files
from timestore_pipeline.ledger.statements import in_parts, upsert, upsert_all


@dataclass(frozen=True)
class Backlog:
    """Files of one dataset that are ready and not staged; ``oldest_modified_at`` in microseconds since the epoch."""

    files: int
    bytes: int
    oldest_modified_at: int


def landing_backlogs(tx: Connection) -> dict[str, Backlog]:
    """Return the backlog of every dataset that has any."""
    return {
        row.dataset: Backlog(row.files, row.bytes, row.oldest_modified_at)
        for row in tx.execute(select(landing_backlog))
    }


def put_backlogs(tx: Connection, datasets: Iterable[str], found: Mapping[str, Backlog]) -> None:
    """Record what was found for ``datasets``; those that are not in ``found`` have nothing waiting."""
    # Two looks may end at the same moment; the later one counts. In one order, lest they wait for each other.
    for some in in_parts(sorted(datasets), values_each=4):
        rows = [{"dataset": name, **asdict(found[name])} for name in some if name in found]
        if rows:
            upsert_all(tx, landing_backlog, rows)
        if empty := [name for name in some if name not in found]:
            tx.execute(delete(landing_backlog).where(landing_backlog.c.dataset.in_(empty)))


# Files that were taken out of landing by hand leave theirs behind.
_KEPT_MICROS = 30 * 86_400_000_000


@dataclass(frozen=True)
class Readings:
    """Readings of a file that began and did not end.

    ``begun`` counts those together with other files, ``alone`` those of this file and nothing else; ``last_at`` is when
    the last one began, in microseconds since the epoch.
    """

    begun: int
    last_at: int
    alone: int = 0


def datasets_being_read(tx: Connection) -> set[str]:
    """Return the datasets that have files whose reading has begun and not ended."""
    return set(tx.execute(select(readings.c.dataset).distinct()).scalars())


def unended_readings(tx: Connection, dataset: str, file_ids: Iterable[str]) -> dict[str, Readings]:
    """Return those of ``file_ids`` whose reading has begun and not ended, by id."""
    rows = tx.execute(select(readings).where(readings.c.dataset == dataset))
    found = {row.batch_id: Readings(row.begun, row.last_at, row.alone) for row in rows}
    return {file_id: found[file_id] for file_id in file_ids if file_id in found}


def begin_readings(tx: Connection, dataset: str, file_ids: Iterable[str], now: int) -> None:
    """Record, before a byte of them is read, that these files are read now, together."""
    # Two ingests may read the same files in different orders; without the lock they could wait for each other.
    lock_dataset(tx, dataset)
    tx.execute(delete(readings).where(readings.c.dataset == dataset, readings.c.last_at < now - _KEPT_MICROS))
    rows = ({"dataset": dataset, "batch_id": file_id, "begun": 1, "last_at": now, "alone": 0} for file_id in file_ids)
    for some in in_parts(rows, values_each=5):
        upsert_all(tx, readings, some, _begun_again)


def _begun_again(new: ColumnCollection[str, Any]) -> Mapping[str, Any]:
    return {"begun": readings.c.begun + 1, "last_at": new.last_at}


def end_readings(tx: Connection, dataset: str, file_ids: Iterable[str]) -> None:
    """Forget the readings of files: they came to an end, good or bad."""
    lock_dataset(tx, dataset)
    for some in in_parts(file_ids):
        tx.execute(delete(readings).where(readings.c.dataset == dataset, readings.c.batch_id.in_(some)))


def begin_alone(tx: Connection, dataset: str, file_id: str, now: int) -> None:
    """Record that a file under suspicion is read now, and nothing else: if the process ends, it was this file."""
    _count_alone(tx, dataset, file_id, readings.c.alone + 1, now)


def end_alone(tx: Connection, dataset: str, file_id: str, now: int) -> None:
    """Let the last :func:`begin_alone` not count: the process lives, and what it does now is not reading."""
    _count_alone(tx, dataset, file_id, readings.c.alone - 1, now)


def _count_alone(tx: Connection, dataset: str, file_id: str, alone: ColumnElement[int], now: int) -> None:
    here = (readings.c.dataset == dataset, readings.c.batch_id == file_id)
    tx.execute(readings.update().where(*here).values(alone=alone, last_at=now))


@dataclass(frozen=True)
class SettledFile:
    """A file by name, size and modification time (nanoseconds since the epoch); any change makes it another one.

    An object is known by its ``version`` instead of the time.
    """

    dataset: str
    name: str
    bytes: int
    modified_at: int
    version: str = ""


def remember_settled(tx: Connection, files: Iterable[SettledFile]) -> None:
    """Record files that the landing scan is to pass over from now on."""
    # In one order, lest two that settle the same files wait for each other.
    for file in sorted(files, key=lambda each: (each.dataset, each.name)):
        upsert(tx, settled_files, asdict(file))


def all_settled(tx: Connection) -> set[SettledFile]:
    """Return all files that the landing scan passes over."""
    return {SettledFile(**row) for row in tx.execute(select(settled_files)).mappings()}

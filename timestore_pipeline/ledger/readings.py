"""Readings of landing files that have begun: what is still here when its process is gone, the file may have killed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnCollection, Connection, delete, select

from timestore_pipeline.ledger.registry import lock_dataset
from timestore_pipeline.ledger.schema import readings
from timestore_pipeline.ledger.upserts import upsert_all

# Below the limit of variables in one SQLite statement, however it was compiled.
_IDS_PER_STATEMENT = 100

# Files that were taken out of landing by hand leave theirs behind.
_KEPT_MICROS = 30 * 86_400_000_000


@dataclass(frozen=True)
class Readings:
    """How often a batch was begun to be read without an end, and when last (microseconds since the epoch)."""

    begun: int
    last_at: int


def unended_readings(tx: Connection, dataset: str, batch_ids: Iterable[str]) -> dict[str, Readings]:
    """Return those of ``batch_ids`` whose reading has begun and not ended, by id."""
    rows = tx.execute(select(readings).where(readings.c.dataset == dataset))
    found = {row.batch_id: Readings(row.begun, row.last_at) for row in rows}
    return {batch_id: found[batch_id] for batch_id in batch_ids if batch_id in found}


def begin_readings(tx: Connection, dataset: str, batch_ids: Iterable[str], now: int) -> None:
    """Record, before anything is parsed, that these batches are read now."""
    # Two ingests may read the same batches in different orders; without the lock they could wait for each other.
    lock_dataset(tx, dataset)
    tx.execute(delete(readings).where(readings.c.dataset == dataset, readings.c.last_at < now - _KEPT_MICROS))
    wanted = list(batch_ids)
    for start in range(0, len(wanted), _IDS_PER_STATEMENT):
        part = wanted[start : start + _IDS_PER_STATEMENT]
        upsert_all(
            tx,
            readings,
            [{"dataset": dataset, "batch_id": batch_id, "begun": 1, "last_at": now} for batch_id in part],
            _begun_again,
        )


def _begun_again(new: ColumnCollection[str, Any]) -> Mapping[str, Any]:
    return {"begun": readings.c.begun + 1, "last_at": new.last_at}


def end_readings(tx: Connection, dataset: str, batch_ids: Iterable[str]) -> None:
    """Forget the readings of batches: they came to an end, good or bad."""
    lock_dataset(tx, dataset)
    wanted = list(batch_ids)
    for start in range(0, len(wanted), _IDS_PER_STATEMENT):
        part = wanted[start : start + _IDS_PER_STATEMENT]
        tx.execute(delete(readings).where(readings.c.dataset == dataset, readings.c.batch_id.in_(part)))


def take_back_reading(tx: Connection, dataset: str, batch_id: str) -> None:
    """Let the last reading of a batch not count."""
    tx.execute(
        readings.update()
        .where(readings.c.dataset == dataset, readings.c.batch_id == batch_id)
        .values(begun=readings.c.begun - 1)
    )

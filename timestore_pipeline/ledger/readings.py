"""Readings of landing files that have begun: what is still here when its process is gone, the file may have killed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from timestore_pipeline.ledger.schema import readings

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
    tx.execute(delete(readings).where(readings.c.dataset == dataset, readings.c.last_at < now - _KEPT_MICROS))
    wanted = list(batch_ids)
    for start in range(0, len(wanted), _IDS_PER_STATEMENT):
        part = wanted[start : start + _IDS_PER_STATEMENT]
        upsert = (sqlite_insert if tx.dialect.name == "sqlite" else postgresql_insert)(readings).values(
            [{"dataset": dataset, "batch_id": batch_id, "begun": 1, "last_at": now} for batch_id in part]
        )
        tx.execute(
            upsert.on_conflict_do_update(
                index_elements=["dataset", "batch_id"], set_={"begun": readings.c.begun + 1, "last_at": now}
            )
        )


def end_readings(tx: Connection, dataset: str, batch_ids: Iterable[str]) -> None:
    """Forget the readings of batches: they came to an end, good or bad."""
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

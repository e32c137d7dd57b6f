"""When a batch or a segment is done with: after each change of its slices, in the same transaction."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, exists, select, update

from timestore_pipeline.ledger.queue import slice_is_queued
from timestore_pipeline.ledger.schema import (
    QuarantineState,
    batch_slices,
    batches,
    quarantine,
    segments,
    slices,
)

# Below the limit of variables in one SQLite statement, however it was compiled.
_IDS_PER_QUERY = 500


def complete(tx: Connection, segment_ids: Iterable[str], now: int) -> None:
    """Bring the states of segments and of their batches in line with their slices; ``now`` in microseconds.

    A batch is published when all of its slices are, and in quarantine when none is queued and not all are published.
    A segment is done with, and left to retention, when no slice of it is queued or in an open quarantine entry.
    """
    wanted = list(segment_ids)
    for start in range(0, len(wanted), _IDS_PER_QUERY):
        _complete(tx, wanted[start : start + _IDS_PER_QUERY], now)


def _complete(tx: Connection, segment_ids: list[str], now: int) -> None:
    piece = slices.alias("piece")
    here = batches.c.segment_id.in_(segment_ids)
    unpublished = piece.c.published_at.is_(None)
    tx.execute(
        update(batches)
        .where(here, batches.c.published_at.is_(None), ~_batch_has(piece, unpublished))
        .values(published_at=now, quarantined_at=None)
    )
    queued = _batch_has(piece, slice_is_queued(piece))
    open_batch = (here, batches.c.published_at.is_(None))
    tx.execute(
        update(batches).where(*open_batch, batches.c.quarantined_at.is_(None), ~queued).values(quarantined_at=now)
    )
    tx.execute(
        update(batches).where(*open_batch, batches.c.quarantined_at.is_not(None), queued).values(quarantined_at=None)
    )
    open_entries = select(quarantine.c.id).where(quarantine.c.state == QuarantineState.OPEN.value)
    needed = unpublished & (piece.c.quarantine_id.is_(None) | piece.c.quarantine_id.in_(open_entries))
    tx.execute(
        update(segments)
        .where(
            segments.c.id.in_(segment_ids),
            segments.c.published_at.is_(None),
            ~exists().where(piece.c.segment_id == segments.c.id, needed).correlate(segments),
        )
        .values(published_at=now)
    )


def _batch_has(piece, condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return (
        exists()
        .where(
            batch_slices.c.segment_id == batches.c.segment_id,
            batch_slices.c.ordinal == batches.c.ordinal,
            piece.c.segment_id == batch_slices.c.segment_id,
            piece.c.window_start == batch_slices.c.window_start,
            condition,
        )
        .correlate(batches)
    )

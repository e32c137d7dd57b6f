"""What became of one batch: where its rows are, window by window."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, and_, select

from timestore_pipeline.ledger.quarantine import QuarantineEntry, entries_of_batch
from timestore_pipeline.ledger.schema import batch_slices, batches, slices


@dataclass(frozen=True)
class BatchRecord:
    """A batch as the ledger has it; times in microseconds since the epoch."""

    batch_id: str
    source: str
    rows: int
    quarantined_rows: int
    dropped_rows: int
    segment_id: str | None
    staged_at: int
    published_at: int | None
    quarantined_at: int | None


@dataclass(frozen=True)
class BatchPart:
    """The rows of a batch in one window; neither published nor under a quarantine entry they are staged."""

    window_start: int
    rows: int
    published_at: int | None
    build_id: int | None
    quarantine_id: int | None


@dataclass(frozen=True)
class BatchState:
    """A batch, its windows in time order, and what of it is in quarantine; no ``record`` where all of it is."""

    record: BatchRecord | None
    parts: tuple[BatchPart, ...]
    quarantined: tuple[QuarantineEntry, ...]


def batch_state(tx: Connection, dataset: str, batch_id: str) -> BatchState | None:
    """Return what became of a batch; None where the ledger knows nothing of it (any more)."""
    query = select(
        batches.c.batch_id,
        batches.c.source,
        batches.c.rows,
        batches.c.quarantined_rows,
        batches.c.dropped_rows,
        batches.c.segment_id,
        batches.c.staged_at,
        batches.c.published_at,
        batches.c.quarantined_at,
    ).where(batches.c.dataset == dataset, batches.c.batch_id == batch_id)
    row = tx.execute(query).mappings().first()
    entries = tuple(entries_of_batch(tx, dataset, batch_id))
    if row is None:
        return BatchState(None, (), entries) if entries else None
    return BatchState(BatchRecord(**row), tuple(_parts(tx, dataset, batch_id)), entries)


def _parts(tx: Connection, dataset: str, batch_id: str) -> list[BatchPart]:
    query = (
        select(
            batch_slices.c.window_start,
            batch_slices.c.rows,
            slices.c.published_at,
            slices.c.build_id,
            slices.c.quarantine_id,
        )
        .join(
            batches,
            and_(batches.c.segment_id == batch_slices.c.segment_id, batches.c.ordinal == batch_slices.c.ordinal),
        )
        .join(
            slices,
            and_(
                slices.c.segment_id == batch_slices.c.segment_id,
                slices.c.window_start == batch_slices.c.window_start,
            ),
        )
        .where(batches.c.dataset == dataset, batches.c.batch_id == batch_id)
        .order_by(batch_slices.c.window_start)
    )
    return [BatchPart(**row) for row in tx.execute(query).mappings()]

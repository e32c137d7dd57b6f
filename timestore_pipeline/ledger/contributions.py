"""What a build publishes, batch by batch: what its manifest holds, so that it outlives the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select

from timestore_pipeline.ledger.schema import batch_slices, batches, slices


@dataclass(frozen=True)
class Contribution:
    """Rows of one batch in one window that a build publishes, with all that the ledger knows of batch and slice.

    ``rows`` are the batch's in this window, ``batch_rows`` all of its staged rows; times in microseconds since the
    epoch.
    """

    segment_id: str
    window_start: int
    ordinal: int
    rows: int
    batch_id: str
    fingerprint: str
    source: str
    source_bytes: int
    batch_rows: int
    quarantined_rows: int
    dropped_rows: int
    staged_at: int
    slice_rows: int
    slice_bytes: int
    min_time: int
    max_time: int


def contributions_of_build(tx: Connection, build_id: int) -> list[Contribution]:
    """Return what the slices of a build consist of; nothing for a build that only rewrites published rows."""
    query = (
        select(
            slices.c.segment_id,
            slices.c.window_start,
            batches.c.ordinal,
            batch_slices.c.rows,
            batches.c.batch_id,
            batches.c.fingerprint,
            batches.c.source,
            batches.c.source_bytes,
            batches.c.rows.label("batch_rows"),
            batches.c.quarantined_rows,
            batches.c.dropped_rows,
            batches.c.staged_at,
            slices.c.rows.label("slice_rows"),
            slices.c.bytes.label("slice_bytes"),
            slices.c.min_time,
            slices.c.max_time,
        )
        .join(
            batch_slices,
            (batch_slices.c.segment_id == slices.c.segment_id) & (batch_slices.c.window_start == slices.c.window_start),
        )
        .join(
            batches,
            (batches.c.segment_id == batch_slices.c.segment_id) & (batches.c.ordinal == batch_slices.c.ordinal),
        )
        .where(slices.c.build_id == build_id)
        .order_by(slices.c.segment_id, slices.c.window_start, batches.c.ordinal)
    )
    return [Contribution(**row) for row in tx.execute(query).mappings()]

"""What came in and what was published of a dataset, as the ledger remembers it: the past that a simulation replays."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import Connection, func, select

from timestore_pipeline.ledger.schema import BuildKind, BuildState, batches, builds, slices


@dataclass(frozen=True)
class Arrival:
    """A segment that was staged, or its late rows: when (microseconds), and what it held.

    ``window_rows`` says how many of its rows fall in each window (by its start). ``published_at`` is when the last of
    them was published, None while any is not.
    """

    staged_at: int
    batches: int
    rows: int
    bytes: int
    window_rows: tuple[tuple[int, int], ...]
    published_at: int | None
    late: bool = False


@dataclass(frozen=True)
class FlushRecord:
    """A flush that was published: when (microseconds), how long it took, and what it wrote."""

    finished_at: int
    duration_micros: int
    rows: int
    bytes: int
    files: int


def arrivals(tx: Connection, dataset: str, since: int) -> list[Arrival]:
    """Return what was staged at or after ``since`` (microseconds), in the order in which it came."""
    counts = (
        select(batches.c.segment_id, func.count().label("batches"))
        .where(batches.c.dataset == dataset, batches.c.staged_at >= since, batches.c.segment_id.is_not(None))
        .group_by(batches.c.segment_id)
    )
    batches_of = {row.segment_id: row.batches for row in tx.execute(counts)}
    query = (
        select(
            slices.c.segment_id,
            slices.c.window_start,
            slices.c.staged_at,
            slices.c.rows,
            slices.c.bytes,
            slices.c.published_at,
            slices.c.late,
        )
        .where(slices.c.dataset == dataset, slices.c.staged_at >= since)
        .order_by(slices.c.staged_at, slices.c.segment_id, slices.c.late, slices.c.window_start)
    )
    found = []
    for (segment_id, late), pieces in groupby(tx.execute(query), key=lambda row: (row.segment_id, bool(row.late))):
        shares = list(pieces)
        published = [share.published_at for share in shares]
        found.append(
            Arrival(
                staged_at=shares[0].staged_at,
                # Those of a segment are counted once, with its rows that are not late if it has any.
                batches=batches_of.pop(segment_id, 0),
                rows=sum(share.rows for share in shares),
                bytes=sum(share.bytes for share in shares),
                window_rows=tuple((share.window_start, share.rows) for share in shares),
                published_at=None if None in published else max(published),
                late=late,
            )
        )
    return found


def flushes(tx: Connection, dataset: str, since: int) -> list[FlushRecord]:
    """Return the flushes that were claimed at or after ``since`` (microseconds) and published, in their order."""
    query = (
        select(builds.c.finished_at, builds.c.claimed_at, builds.c.rows, builds.c.bytes, builds.c.files)
        .where(
            builds.c.dataset == dataset,
            builds.c.kind == BuildKind.FLUSH.value,
            builds.c.state == BuildState.PUBLISHED.value,
            builds.c.claimed_at >= since,
        )
        .order_by(builds.c.id)
    )
    return [
        FlushRecord(row.finished_at, max(0, row.finished_at - row.claimed_at), row.rows, row.bytes, row.files)
        for row in tx.execute(query)
    ]

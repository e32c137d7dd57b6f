"""Slices whose segment cannot be read: set aside under a quarantine entry, and given back when it can be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, exists, func, select, update

from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.completion import complete
from timestore_pipeline.ledger.quarantine import QuarantineEntry, find_entry, resolve_entry, set_aside
from timestore_pipeline.ledger.queue import slice_is_queued
from timestore_pipeline.ledger.registry import lock_dataset
from timestore_pipeline.ledger.schema import (
    BuildKind,
    QuarantineKind,
    QuarantineState,
    batch_slices,
    batches,
    quarantine,
    segments,
    slices,
)

_NAMED_SOURCES = 3


def set_slices_aside(
    tx: Connection,
    dataset: str,
    segment_id: str,
    window_starts: Sequence[int],
    *,
    path: str,
    reason: str,
    size_bytes: int,
    now: int,
) -> QuarantineEntry | None:
    """Take slices of a segment out of the queue under one entry; ``path`` is where the segment's file is from now on.

    Returns:
        The entry, or None where nothing was set aside: another process did it, or a build that reads the segment is in
        flight.
    """
    lock_dataset(tx, dataset)
    in_flight = builds_in_flight(tx, dataset)
    reading = slices.c.segment_id == segment_id, slices.c.build_id.in_([build.id for build in in_flight])
    # A rebuild reads segments of which it has claimed nothing.
    if (
        any(build.kind is BuildKind.REBUILD for build in in_flight)
        or tx.execute(select(exists().where(*reading))).scalar()
    ):
        return None
    damaged = (
        slices.c.segment_id == segment_id,
        slices.c.window_start.in_(window_starts),
        slices.c.build_id.is_(None),
        slice_is_queued(),
    )
    rows = tx.execute(select(func.sum(slices.c.rows)).where(*damaged)).scalar()
    if rows is None:
        return None
    entry = set_aside(
        tx,
        dataset=dataset,
        kind=QuarantineKind.SEGMENT,
        batch_id=segment_id,
        source=_sources(tx, segment_id, window_starts),
        path=path,
        reason=reason,
        rows=0,
        size_bytes=size_bytes,
        now=now,
    )
    tx.execute(update(slices).where(*damaged).values(quarantine_id=entry.id))
    tx.execute(
        update(quarantine)
        .where(quarantine.c.id == entry.id)
        .values(rows=quarantine.c.rows + int(rows), path=path, reason=reason)
    )
    tx.execute(update(segments).where(segments.c.id == segment_id).values(quarantined_at=now, path=path))
    complete(tx, [segment_id], now)
    return find_entry(tx, entry.id)


def give_slices_back(
    tx: Connection, entry: QuarantineEntry, window_starts: Iterable[int], *, path: str, by: str, now: int
) -> bool:
    """Put slices that can be read again back into the queue, and resolve their entry when none is left in it.

    ``path`` is where the segment's file is once nothing of it is in quarantine. False where the entry has ended.
    """
    lock_dataset(tx, entry.dataset)
    current = find_entry(tx, entry.id)
    if current is None or current.state is not QuarantineState.OPEN:
        return False
    tx.execute(
        update(slices)
        .where(slices.c.quarantine_id == entry.id, slices.c.window_start.in_(list(window_starts)))
        .values(quarantine_id=None)
    )
    left = tx.execute(select(func.sum(slices.c.rows)).where(slices.c.quarantine_id == entry.id)).scalar()
    if left is None:
        resolve_entry(tx, entry.id, QuarantineState.RETRIED, by, now)
        tx.execute(update(segments).where(segments.c.id == entry.batch_id).values(quarantined_at=None, path=path))
    else:
        tx.execute(update(quarantine).where(quarantine.c.id == entry.id).values(rows=int(left)))
    complete(tx, [entry.batch_id], now)
    return True


def discard_slices(tx: Connection, entry: QuarantineEntry, *, by: str, now: int) -> bool:
    """Give up the slices of an entry for good; True where no other slice needs the segment's file, so it may go.

    Else the file stays until the segment's other rows are published and its retention has passed.
    """
    lock_dataset(tx, entry.dataset)
    if not resolve_entry(tx, entry.id, QuarantineState.DISCARDED, by, now):
        return False
    here = segments.c.id == entry.batch_id
    tx.execute(update(segments).where(here).values(quarantined_at=None))
    complete(tx, [entry.batch_id], now)
    done = tx.execute(select(segments.c.published_at).where(here)).scalar() is not None
    if done:
        tx.execute(update(segments).where(here).values(unlinked_at=now))
    return done


def _sources(tx: Connection, segment_id: str, window_starts: Sequence[int]) -> str:
    names = list(
        tx.execute(
            select(batches.c.source)
            .join(
                batch_slices,
                (batch_slices.c.segment_id == batches.c.segment_id) & (batch_slices.c.ordinal == batches.c.ordinal),
            )
            .where(batches.c.segment_id == segment_id, batch_slices.c.window_start.in_(window_starts))
            .distinct()
            .order_by(batches.c.source)
        ).scalars()
    )
    more = f" and {len(names) - _NAMED_SOURCES} more" if len(names) > _NAMED_SOURCES else ""
    return ", ".join(names[:_NAMED_SOURCES]) + more

"""Acknowledging batches: the transaction after which a batch is staged (invariant 1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, bindparam, exists, func, insert, select, update

from timestore_pipeline.ledger.counters import SEGMENT_BYTES, observe
from timestore_pipeline.ledger.queue import batch_is_queued, slice_is_queued
from timestore_pipeline.ledger.schema import batch_slices, batches, segments, slices, windows

# Below the limit of variables in one SQLite statement, however it was compiled.
_IDS_PER_QUERY = 500


@dataclass(frozen=True)
class BatchRow:
    """A batch as it is acknowledged. ``ordinal`` is its number within its segment."""

    batch_id: str
    fingerprint: str
    source: str
    source_bytes: int
    rows: int
    quarantined_rows: int
    ordinal: int
    dropped_rows: int = 0


@dataclass(frozen=True)
class KnownBatch:
    """A batch that the ledger has: what it was, and what became of its rows."""

    batch_id: str
    fingerprint: str
    source: str
    rows: int
    quarantined_rows: int
    segment_id: str | None
    dropped_rows: int


@dataclass(frozen=True)
class SegmentRow:
    """A segment file that is complete, fsynced and renamed into place."""

    id: str
    path: str
    bytes: int
    rows: int


@dataclass(frozen=True)
class SliceRow:
    """The rows of a new segment that fall in one window; times in microseconds since the epoch."""

    window_start: int
    rows: int
    bytes: int
    min_time: int
    max_time: int
    batch_rows: Mapping[int, int]
    """Batch ordinal → its rows in this window."""


_KNOWN_BATCH = select(
    batches.c.batch_id,
    batches.c.fingerprint,
    batches.c.source,
    batches.c.rows,
    batches.c.quarantined_rows,
    batches.c.segment_id,
    batches.c.dropped_rows,
)
_KNOWN_BATCHES = _KNOWN_BATCH.where(
    batches.c.dataset == bindparam("dataset"), batches.c.batch_id.in_(bindparam("batch_ids", expanding=True))
)


_MARK_LATE = (
    update(slices)
    .where(
        slices.c.segment_id == bindparam("in_segment"),
        slices.c.window_start < bindparam("first_open"),
        exists().where(windows.c.dataset == bindparam("of_dataset"), windows.c.window_start == slices.c.window_start),
    )
    .values(late=True)
)


def known_batches(tx: Connection, dataset: str, batch_ids: Iterable[str]) -> dict[str, KnownBatch]:
    """Return those of ``batch_ids`` that the dataset already has, by id."""
    wanted = list(batch_ids)
    found: dict[str, KnownBatch] = {}
    for start in range(0, len(wanted), _IDS_PER_QUERY):
        asked = {"dataset": dataset, "batch_ids": wanted[start : start + _IDS_PER_QUERY]}
        found.update({row["batch_id"]: KnownBatch(**row) for row in tx.execute(_KNOWN_BATCHES, asked).mappings()})
    return found


def latest_batch(tx: Connection, dataset: str, prefix: str) -> KnownBatch | None:
    """Return the batch that was staged last of those whose ids start with ``prefix``."""
    query = (
        _KNOWN_BATCH.where(batches.c.dataset == dataset, batches.c.batch_id.startswith(prefix, autoescape=True))
        .order_by(batches.c.staged_at.desc(), batches.c.batch_id.desc())
        .limit(1)
    )
    row = tx.execute(query).mappings().first()
    return None if row is None else KnownBatch(**row)


def windows_of_batches(tx: Connection, dataset: str, batch_ids: Iterable[str]) -> dict[str, list[int]]:
    """Return batch id → the starts of the windows in which it has rows, in time order."""
    wanted = list(batch_ids)
    found: dict[str, list[int]] = {}
    for start in range(0, len(wanted), _IDS_PER_QUERY):
        query = (
            select(batches.c.batch_id, batch_slices.c.window_start)
            .join(
                batch_slices,
                and_(batch_slices.c.segment_id == batches.c.segment_id, batch_slices.c.ordinal == batches.c.ordinal),
            )
            .where(batches.c.dataset == dataset, batches.c.batch_id.in_(wanted[start : start + _IDS_PER_QUERY]))
            .order_by(batch_slices.c.window_start)
        )
        for batch_id, window_start in tx.execute(query):
            found.setdefault(batch_id, []).append(window_start)
    return found


def ordinal_of_batch(tx: Connection, dataset: str, batch_id: str) -> int:
    """Return the number of a known batch within its segment, which its refused rows carry too."""
    return tx.execute(
        select(batches.c.ordinal).where(batches.c.dataset == dataset, batches.c.batch_id == batch_id)
    ).scalar_one()


def position_of_batch(tx: Connection, dataset: str, batch_id: str) -> int | None:
    """Return the position of row number 0 of a known batch's segment; None where the dataset has no key."""
    return tx.execute(
        select(batches.c.position).where(batches.c.dataset == dataset, batches.c.batch_id == batch_id)
    ).scalar_one()


def pending_batches(tx: Connection, dataset: str) -> int:
    """Return how many batches of the dataset are staged and neither published nor in quarantine."""
    return tx.execute(select(func.count()).where(batches.c.dataset == dataset, batch_is_queued())).scalar_one()


def pending_of_sources(tx: Connection, dataset: str, sources: Iterable[str]) -> dict[str, int]:
    """Return how many of the batches that :func:`pending_batches` counts came from each of ``sources``, if any did."""
    query = (
        select(batches.c.source, func.count().label("batches"))
        .where(batches.c.dataset == dataset, batch_is_queued(), batches.c.source.in_(list(sources)))
        .group_by(batches.c.source)
    )
    return {row.source: row.batches for row in tx.execute(query)}


def staged_bytes(tx: Connection, dataset: str | None = None) -> dict[str, int]:
    """Return per dataset, of all or of one, the bytes of its slices in the queue."""
    query = select(slices.c.dataset, func.sum(slices.c.bytes)).where(slice_is_queued()).group_by(slices.c.dataset)
    if dataset is not None:
        query = query.where(slices.c.dataset == dataset)
    return {dataset: int(size) for dataset, size in tx.execute(query)}


def acknowledge(
    tx: Connection,
    dataset: str,
    segment: SegmentRow | None,
    batch_rows: Sequence[BatchRow],
    slice_rows: Sequence[SliceRow],
    now: int,
    *,
    schema_version: int,
    first_open_window: int = 0,
    position: int | None = None,
) -> None:
    """Record a segment with its batches and slices; ``segment`` is None where no batch has a row to stage.

    Slices of windows before ``first_open_window`` (a start) that the table has already are late. ``position`` is that
    of the segment's row number 0, of a dataset with a key.
    """
    if segment is not None:
        tx.execute(
            insert(segments).values(
                id=segment.id,
                dataset=dataset,
                path=segment.path,
                bytes=segment.bytes,
                rows=segment.rows,
                schema_version=schema_version,
                position=position,
                staged_at=now,
            )
        )
        observe(tx, SEGMENT_BYTES, dataset, "", segment.bytes)
    listed = [
        {
            "dataset": dataset,
            "batch_id": batch.batch_id,
            "fingerprint": batch.fingerprint,
            "source": batch.source,
            "source_bytes": batch.source_bytes,
            "rows": batch.rows,
            "quarantined_rows": batch.quarantined_rows,
            "dropped_rows": batch.dropped_rows,
            "segment_id": segment.id if segment else None,
            "ordinal": batch.ordinal,
            "position": position,
            "staged_at": now,
            "published_at": None if batch.rows else now,
        }
        for batch in batch_rows
    ]
    if listed:
        tx.execute(insert(batches), listed)
    if segment is None or not slice_rows:
        return
    tx.execute(
        insert(slices),
        [
            {
                "segment_id": segment.id,
                "window_start": piece.window_start,
                "dataset": dataset,
                "rows": piece.rows,
                "bytes": piece.bytes,
                "min_time": piece.min_time,
                "max_time": piece.max_time,
                "staged_at": now,
                "late": False,
            }
            for piece in slice_rows
        ],
    )
    if any(piece.window_start < first_open_window for piece in slice_rows):
        tx.execute(_MARK_LATE, {"in_segment": segment.id, "of_dataset": dataset, "first_open": first_open_window})
    tx.execute(
        insert(batch_slices),
        [
            {"segment_id": segment.id, "window_start": piece.window_start, "ordinal": ordinal, "rows": rows}
            for piece in slice_rows
            for ordinal, rows in piece.batch_rows.items()
        ],
    )

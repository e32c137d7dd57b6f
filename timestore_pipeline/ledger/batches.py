"""Batches: acknowledging them, after which they are staged (invariant 1), and what became of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, bindparam, exists, insert, select, update

from timestore_pipeline.ledger.counters import SEGMENT_BYTES, observe
from timestore_pipeline.ledger.quarantine import QuarantineEntry, entries_of_batch
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


def batch_is_queued() -> ColumnElement[bool]:
    """Return the condition for a batch that has a slice in the queue; a partial index has just these words."""
    return and_(batches.c.published_at.is_(None), batches.c.quarantined_at.is_(None))


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

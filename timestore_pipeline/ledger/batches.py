"""Batches: acknowledging them, after which they are staged (invariant 1), and what became of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

from sqlalchemy import Connection, and_, bindparam, insert, select

from timestore_pipeline.ledger.counters import SEGMENT_BYTES, observe
from timestore_pipeline.ledger.quarantine import QuarantineEntry, entries_of_batch
from timestore_pipeline.ledger.schema import batch_slices, batches, segments, slices
from timestore_pipeline.ledger.slices import IN_SLICE, OF_BATCH, SliceRow, acknowledge_slices
from timestore_pipeline.ledger.statements import in_parts


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
    """A batch that the ledger has: what it was, and what became of its rows; times in microseconds since the epoch."""

    batch_id: str
    fingerprint: str
    source: str
    rows: int
    quarantined_rows: int
    dropped_rows: int
    segment_id: str | None
    staged_at: int
    published_at: int | None
    quarantined_at: int | None


@dataclass(frozen=True)
class SegmentRow:
    """A segment file that is complete, fsynced and renamed into place."""

    id: str
    path: str
    bytes: int
    rows: int


@dataclass(frozen=True)
class NewSegment:
    """What is acknowledged together: a segment with its batches and slices; no ``row`` where none has a row to stage.

    ``schema_version`` is that of the columns that the rows have, ``position`` that of the segment's row number 0, of a
    dataset with a key. ``after_correction`` is the number of the last correction that does not act on the rows.
    """

    row: SegmentRow | None
    batches: Sequence[BatchRow]
    slices: Sequence[SliceRow] = ()
    schema_version: int = 0
    position: int | None = None
    after_correction: int = 0


_KNOWN_BATCH = select(*(batches.c[each.name] for each in fields(KnownBatch)))
_KNOWN_BATCHES = _KNOWN_BATCH.where(
    batches.c.dataset == bindparam("dataset"), batches.c.batch_id.in_(bindparam("batch_ids", expanding=True))
)


BATCH_IS_QUEUED = and_(batches.c.published_at.is_(None), batches.c.quarantined_at.is_(None))
"""The condition for a batch that has a slice in the queue; a partial index has just these words."""


def known_batches(tx: Connection, dataset: str, batch_ids: Iterable[str]) -> dict[str, KnownBatch]:
    """Return those of ``batch_ids`` that the dataset already has, by id."""
    found: dict[str, KnownBatch] = {}
    for some in in_parts(batch_ids):
        asked = {"dataset": dataset, "batch_ids": some}
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
    found: dict[str, list[int]] = {}
    for some in in_parts(batch_ids):
        query = (
            select(batches.c.batch_id, batch_slices.c.window_start)
            .join(batch_slices, OF_BATCH)
            .where(batches.c.dataset == dataset, batches.c.batch_id.in_(some))
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


@dataclass(frozen=True)
class BatchOrder:
    """Where a batch stands among others, which its rows keep however late they come back.

    ``position`` is that of row number 0 of its segment, None where the dataset has no key, and ``after_correction`` the
    number of the last correction before it.
    """

    position: int | None
    after_correction: int


def order_of_batch(tx: Connection, dataset: str, batch_id: str) -> BatchOrder:
    """Return where a known batch stands among others."""
    query = select(batches.c.position, batches.c.after_correction)
    return BatchOrder(*tx.execute(query.where(batches.c.dataset == dataset, batches.c.batch_id == batch_id)).one())


def acknowledge(tx: Connection, dataset: str, new: NewSegment, now: int, *, first_open_window: int = 0) -> None:
    """Record a segment with its batches and slices.

    Slices of windows before ``first_open_window`` (a start) that the table has already are late.
    """
    segment = new.row
    if segment is not None:
        tx.execute(
            insert(segments).values(
                **asdict(segment),
                dataset=dataset,
                schema_version=new.schema_version,
                position=new.position,
                after_correction=new.after_correction,
                staged_at=now,
            )
        )
        observe(tx, SEGMENT_BYTES, dataset, "", segment.bytes)
    common = {
        "dataset": dataset,
        "segment_id": segment.id if segment else None,
        "position": new.position,
        "after_correction": new.after_correction,
        "staged_at": now,
    }
    rows = [{**asdict(batch), **common, "published_at": None if batch.rows else now} for batch in new.batches]
    if rows:
        tx.execute(insert(batches), rows)
    if segment is not None and new.slices:
        acknowledge_slices(tx, dataset, segment.id, new.slices, now, first_open_window=first_open_window)


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

    record: KnownBatch | None
    parts: tuple[BatchPart, ...]
    quarantined: tuple[QuarantineEntry, ...]


def batch_state(tx: Connection, dataset: str, batch_id: str) -> BatchState | None:
    """Return what became of a batch; None where the ledger knows nothing of it (any more)."""
    record = known_batches(tx, dataset, [batch_id]).get(batch_id)
    entries = tuple(entries_of_batch(tx, dataset, batch_id))
    if record is None:
        return BatchState(None, (), entries) if entries else None
    return BatchState(record, tuple(_parts(tx, dataset, batch_id)), entries)


def _parts(tx: Connection, dataset: str, batch_id: str) -> list[BatchPart]:
    query = (
        select(
            batch_slices.c.window_start,
            batch_slices.c.rows,
            slices.c.published_at,
            slices.c.build_id,
            slices.c.quarantine_id,
        )
        .join(batches, OF_BATCH)
        .join(slices, IN_SLICE)
        .where(batches.c.dataset == dataset, batches.c.batch_id == batch_id)
        .order_by(batch_slices.c.window_start)
    )
    return [BatchPart(**row) for row in tx.execute(query).mappings()]

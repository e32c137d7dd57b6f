"""Slices: which there are, and when the batches and segments that they belong to are done with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, FromClause, Select, and_, exists, select, update

from timestore_pipeline.ledger.schema import batch_slices, batches, quarantine, schemas, segments, slices
from timestore_pipeline.ledger.schemas import columns_from_text
from timestore_pipeline.ledger.states import QuarantineState
from timestore_pipeline.model.columns import Column


@dataclass(frozen=True)
class Slice:
    """The rows of one segment that fall in one window; ``path`` is relative to the staging directory.

    ``columns`` are those that its segment has: of the dataset's columns later ones may be missing, and types narrower.
    ``position`` is that of the segment's row number 0, where the dataset has a key.
    """

    dataset: str
    segment_id: str
    path: str
    window_start: int
    rows: int
    bytes: int
    min_time: int
    max_time: int
    staged_at: int
    columns: tuple[Column, ...] = field(compare=False)
    position: int | None = None


def slice_is_queued(table: FromClause = slices) -> ColumnElement[bool]:
    """Return the condition for a slice that is in the queue, claimed or not; a partial index has just these words."""
    return and_(table.c.published_at.is_(None), table.c.quarantine_id.is_(None))


_SLICE = select(
    slices.c.dataset,
    slices.c.segment_id,
    segments.c.path,
    slices.c.window_start,
    slices.c.rows,
    slices.c.bytes,
    slices.c.min_time,
    slices.c.max_time,
    slices.c.staged_at,
    schemas.c.columns,
    segments.c.position,
).select_from(
    slices.join(segments, segments.c.id == slices.c.segment_id).join(
        schemas, and_(schemas.c.dataset == segments.c.dataset, schemas.c.version == segments.c.schema_version)
    )
)


def _slices(tx: Connection, query: Select) -> list[Slice]:
    rows = tx.execute(query).mappings()
    return [Slice(**{**row, "columns": columns_from_text(row["columns"])}) for row in rows]


def unpublished_slices(tx: Connection, datasets: Iterable[str] | None = None) -> list[Slice]:
    """Return every slice in the queue, claimed or not, of some datasets or of all: the staged side of a read."""
    queued = _SLICE.where(slice_is_queued())
    queries = [queued] if datasets is None else [queued.where(slices.c.dataset == name) for name in set(datasets)]
    found = [piece for query in queries for piece in _slices(tx, query)]
    # Sorted here: asked for this order, SQLite walks through all slices that there ever were.
    return sorted(found, key=lambda piece: (piece.dataset, piece.window_start))


def unclaimed_slices(tx: Connection, dataset: str) -> list[Slice]:
    """Return the slices of a dataset that are in the queue and in no build."""
    query = _SLICE.where(slice_is_queued(), slices.c.dataset == dataset, slices.c.build_id.is_(None))
    return _slices(tx, query.order_by(slices.c.segment_id, slices.c.window_start))


def quarantined_slices(tx: Connection, entry_id: int) -> list[Slice]:
    """Return the slices that were set aside under a quarantine entry, in time order."""
    query = _SLICE.where(slices.c.quarantine_id == entry_id).order_by(slices.c.window_start)
    return _slices(tx, query)


def slices_of_build(tx: Connection, build_id: int) -> list[Slice]:
    """Return the slices that a build has claimed or published, in the order of their windows and times."""
    return slices_where(tx, slices.c.build_id == build_id)


def slices_where(tx: Connection, *conditions: ColumnElement[bool]) -> list[Slice]:
    """Return the slices that meet all of ``conditions``, in the order of their windows and times."""
    query = _SLICE.where(*conditions).order_by(slices.c.window_start, slices.c.min_time, slices.c.segment_id)
    return _slices(tx, query)


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

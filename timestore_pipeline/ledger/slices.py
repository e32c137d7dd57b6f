"""Slices, and every move of one.

A slice is the rows of one segment that fall in one window. It is in the queue while it is neither published nor in
quarantine.

======================  ========================  ==================================================================
move                    states                    what moves it
======================  ========================  ==================================================================
acknowledge_slices      (new) → staged            its segment is acknowledged
assign_slices           staged → claimed          a build claims it: ``build_id`` is set
publish_slices          claimed → published       its build is in the table: ``published_at`` is set
release_slices          claimed → staged          its build was aborted: ``build_id`` is null again
quarantine_slices       staged → quarantined      it cannot be read: ``quarantine_id`` is set
requeue_slices          quarantined → staged      it can be read after all: ``quarantine_id`` is null again
unpublish_slices        published → staged        the table is gone, and its segment is retained
forget_slices           any → (gone)              the ledger need not know it any more, or nothing is left of it
restore_slices          staged → published        a ledger is made again, and a manifest says that it was published
======================  ========================  ==================================================================

Who moves slices holds the lock of their dataset. What a move completes, the batches and segments that are done with,
is brought in line in the same transaction: by the move itself, or by :func:`complete` after the last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    tuple_,
    update,
)

from timestore_pipeline.ledger.corrections import Correction, acting_on
from timestore_pipeline.ledger.schema import (
    batch_slices,
    batches,
    datasets,
    quarantine,
    schemas,
    segments,
    slices,
    windows,
)
from timestore_pipeline.ledger.schemas import columns_from_text
from timestore_pipeline.ledger.statements import in_parts
from timestore_pipeline.ledger.states import QuarantineState
from timestore_pipeline.model.columns import Column

IN_SLICE = and_(batch_slices.c.segment_id == slices.c.segment_id, batch_slices.c.window_start == slices.c.window_start)
"""The condition for rows of a batch that are in a slice."""

OF_BATCH = and_(batches.c.segment_id == batch_slices.c.segment_id, batches.c.ordinal == batch_slices.c.ordinal)
"""The condition for a batch that has rows in a slice."""

SLICE_IS_QUEUED = and_(slices.c.published_at.is_(None), slices.c.quarantine_id.is_(None))
"""The condition for a slice that is in the queue, claimed or not; a partial index has just these words."""

SLICE_IS_FREE = and_(SLICE_IS_QUEUED, slices.c.build_id.is_(None))
"""The condition for a slice that is in the queue and in no build."""


@dataclass(frozen=True)
class Slice:
    """The rows of one segment that fall in one window; ``path`` is relative to the staging directory.

    ``columns`` are those that its segment has: of the dataset's columns later ones may be missing, and types narrower.
    ``position`` is that of the segment's row number 0, where the dataset has a key. ``corrections`` take rows of it,
    oldest first; ``rows`` counts these too.
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
    corrections: tuple[Correction, ...] = field(default=(), compare=False)

    @property
    def is_taken(self) -> bool:
        """Whether one correction takes all of its rows, so that nobody need read them."""
        return any(each.takes_all(self.min_time, self.max_time) for each in self.corrections)

    def before(self, sequence: int) -> Slice:
        """Return the slice with those corrections alone that were acknowledged before a build claimed it."""
        if not self.corrections:
            return self
        return replace(self, corrections=tuple(each for each in self.corrections if each.before_sequence <= sequence))


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
    segments.c.after_correction,
    datasets.c.corrections,
).select_from(
    slices.join(segments, segments.c.id == slices.c.segment_id)
    .join(schemas, and_(schemas.c.dataset == segments.c.dataset, schemas.c.version == segments.c.schema_version))
    .join(datasets, datasets.c.name == slices.c.dataset)
)


def _slices(tx: Connection, query: Select) -> list[Slice]:
    found: list[Slice] = []
    after: list[int] = []
    corrected: set[str] = set()
    for row in tx.execute(query).mappings():
        values = {**row, "columns": columns_from_text(row["columns"])}
        after.append(values.pop("after_correction"))
        if values.pop("corrections") > after[-1]:
            corrected.add(row["dataset"])
        found.append(Slice(**values))
    for dataset in corrected:
        here = [(number, piece) for number, piece in enumerate(found) if piece.dataset == dataset]
        first, last = min(piece.min_time for _, piece in here), max(piece.max_time for _, piece in here)
        later = acting_on(tx, dataset, min(after[number] for number, _ in here), first, last)
        for number, piece in here:
            acting = tuple(
                each for each in later if each.number > after[number] and each.may_take(piece.min_time, piece.max_time)
            )
            found[number] = replace(piece, corrections=acting)
    return found


def unpublished_slices(tx: Connection, datasets: Iterable[str] | None = None) -> list[Slice]:
    """Return every slice in the queue, claimed or not, of some datasets or of all: the staged side of a read."""
    queued = _SLICE.where(SLICE_IS_QUEUED)
    queries = [queued] if datasets is None else [queued.where(slices.c.dataset == name) for name in set(datasets)]
    found = [each for query in queries for each in _slices(tx, query)]
    # Sorted here: asked for this order, SQLite walks through all slices that there ever were.
    return sorted(found, key=lambda each: (each.dataset, each.window_start))


def unclaimed_slices(tx: Connection, dataset: str) -> list[Slice]:
    """Return the slices of a dataset that are in the queue and in no build."""
    query = _SLICE.where(SLICE_IS_FREE, slices.c.dataset == dataset)
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


def rows_in(tx: Connection, *conditions: ColumnElement[bool]) -> int:
    """Return how many rows the slices have that meet all of ``conditions``."""
    return int(tx.execute(select(func.sum(slices.c.rows)).where(*conditions)).scalar() or 0)


_MARK_LATE = (
    update(slices)
    .where(
        slices.c.segment_id == bindparam("in_segment"),
        slices.c.window_start < bindparam("first_open"),
        exists().where(windows.c.dataset == bindparam("of_dataset"), windows.c.window_start == slices.c.window_start),
    )
    .values(late=True)
)


def acknowledge_slices(
    tx: Connection,
    dataset: str,
    segment_id: str,
    slice_rows: Sequence[SliceRow],
    now: int,
    *,
    first_open_window: int,
) -> None:
    """Stage the slices of a new segment; those before ``first_open_window`` that the table has already are late."""
    tx.execute(
        insert(slices),
        [
            {
                "segment_id": segment_id,
                "window_start": each.window_start,
                "dataset": dataset,
                "rows": each.rows,
                "bytes": each.bytes,
                "min_time": each.min_time,
                "max_time": each.max_time,
                "staged_at": now,
                "late": False,
            }
            for each in slice_rows
        ],
    )
    if any(each.window_start < first_open_window for each in slice_rows):
        tx.execute(_MARK_LATE, {"in_segment": segment_id, "of_dataset": dataset, "first_open": first_open_window})
    tx.execute(
        insert(batch_slices),
        [
            {"segment_id": segment_id, "window_start": each.window_start, "ordinal": ordinal, "rows": rows}
            for each in slice_rows
            for ordinal, rows in each.batch_rows.items()
        ],
    )


def assign_slices(tx: Connection, build_id: int, *free: ColumnElement[bool]) -> int:
    """Let a build have the slices that meet all conditions ``free``; return how many they are."""
    return tx.execute(update(slices).where(*free).values(build_id=build_id)).rowcount


def publish_slices(tx: Connection, build_id: int, now: int) -> None:
    """Publish the slices of a build, with the batches and segments that this completes."""
    tx.execute(update(slices).where(slices.c.build_id == build_id).values(published_at=now))
    complete(tx, _segments_of(tx, slices.c.build_id == build_id), now)


def release_slices(tx: Connection, build_id: int) -> None:
    """Give the slices of a build that was aborted back to the queue."""
    tx.execute(update(slices).where(slices.c.build_id == build_id).values(build_id=None))


def quarantine_slices(tx: Connection, entry_id: int, *conditions: ColumnElement[bool]) -> None:
    """Set the slices that meet all of ``conditions`` aside under a quarantine entry."""
    tx.execute(update(slices).where(*conditions).values(quarantine_id=entry_id))


def requeue_slices(tx: Connection, entry_id: int, window_starts: Iterable[int]) -> None:
    """Give slices that were set aside under an entry back to the queue."""
    here = (slices.c.quarantine_id == entry_id, slices.c.window_start.in_(list(window_starts)))
    tx.execute(update(slices).where(*here).values(quarantine_id=None))


def unpublish_slices(tx: Connection, dataset: str, now: int) -> int:
    """Stage again what was published from segments of a dataset that are still on disk; return how many rows it is."""
    on_disk = select(segments.c.id).where(segments.c.dataset == dataset, segments.c.unlinked_at.is_(None))
    lost = (slices.c.segment_id.in_(on_disk), slices.c.published_at.is_not(None))
    rows, touched = rows_in(tx, *lost), _segments_of(tx, *lost)
    tx.execute(update(slices).where(*lost).values(published_at=None, build_id=None, late=False))
    tx.execute(update(segments).where(segments.c.id.in_(touched)).values(published_at=None))
    with_rows = exists().where(OF_BATCH).correlate(batches)
    tx.execute(update(batches).where(batches.c.segment_id.in_(touched), with_rows).values(published_at=None))
    complete(tx, touched, now)
    return rows


def forget_slices(tx: Connection, *conditions: ColumnElement[bool]) -> None:
    """Forget the slices that meet all of ``conditions``, and which batches had rows in them."""
    gone = select(slices.c.segment_id, slices.c.window_start).where(*conditions)
    tx.execute(delete(batch_slices).where(tuple_(batch_slices.c.segment_id, batch_slices.c.window_start).in_(gone)))
    tx.execute(delete(slices).where(*conditions))


def restore_slices(tx: Connection, segment_id: str, build_id: int | None, published: Mapping[int, int]) -> None:
    """Record that slices of a segment were published: ``published`` maps their windows to when."""
    for window_start, published_at in published.items():
        here = (slices.c.segment_id == segment_id, slices.c.window_start == window_start)
        tx.execute(update(slices).where(*here).values(build_id=build_id, published_at=published_at))


def complete(tx: Connection, segment_ids: Iterable[str], now: int) -> None:
    """Bring the states of segments and of their batches in line with their slices; ``now`` in microseconds.

    A batch is published when all of its slices are, and in quarantine when none is queued and not all are published.
    A segment is done with, and left to retention, when no slice of it is queued or in an open quarantine entry.
    """
    unpublished = slices.c.published_at.is_(None)
    queued = _batch_has(SLICE_IS_QUEUED)
    open_entries = select(quarantine.c.id).where(quarantine.c.state == QuarantineState.OPEN.value)
    needed = unpublished & (slices.c.quarantine_id.is_(None) | slices.c.quarantine_id.in_(open_entries))
    of_segment = exists().where(slices.c.segment_id == segments.c.id, needed).correlate(segments)
    for some in in_parts(segment_ids):
        open_batch = (batches.c.segment_id.in_(some), batches.c.published_at.is_(None))
        aside = batches.c.quarantined_at
        tx.execute(
            update(batches).where(*open_batch, ~_batch_has(unpublished)).values(published_at=now, quarantined_at=None)
        )
        tx.execute(update(batches).where(*open_batch, aside.is_(None), ~queued).values(quarantined_at=now))
        tx.execute(update(batches).where(*open_batch, aside.is_not(None), queued).values(quarantined_at=None))
        open_segment = (segments.c.id.in_(some), segments.c.published_at.is_(None))
        tx.execute(update(segments).where(*open_segment, ~of_segment).values(published_at=now))


def _batch_has(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(OF_BATCH, IN_SLICE, condition).correlate(batches)


def _segments_of(tx: Connection, *conditions: ColumnElement[bool]) -> Sequence[str]:
    return tx.execute(select(slices.c.segment_id).where(*conditions).distinct()).scalars().all()

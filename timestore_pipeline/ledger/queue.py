"""The staging queue: what is staged, neither published nor in quarantine, for all datasets in one query."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, FromClause, Select, and_, case, func, select

from timestore_pipeline.ledger.schema import batches, schemas, segments, slices
from timestore_pipeline.ledger.schemas import columns_from_text
from timestore_pipeline.model.columns import Column


@dataclass(frozen=True)
class LateQueue:
    """The late slices in the queue of one dataset: their windows were closed and published when they came.

    Windows are starts, all times microseconds since the epoch. Only ``oldest_pending_at`` looks at what a build in
    flight has claimed too.
    """

    rows: int = 0
    oldest_pending_at: int | None = None
    oldest_staged_at: int | None = None
    first_window: int | None = None
    last_window: int | None = None


@dataclass(frozen=True)
class QueueState:
    """The queue of one dataset. Windows are starts in microseconds since the epoch, as are all times.

    ``pending_batches`` counts everything unpublished, and so do ``pending_rows`` and ``pending_bytes``; the
    fields named ``staged_…`` leave out what a build in flight has claimed. Times and windows are those of the slices
    that are not late; those of the others are in ``late``.
    """

    dataset: str
    pending_batches: int = 0
    pending_rows: int = 0
    pending_bytes: int = 0
    oldest_pending_at: int | None = None
    staged_rows: int = 0
    staged_bytes: int = 0
    oldest_staged_at: int | None = None
    first_window: int | None = None
    last_window: int | None = None
    late: LateQueue = LateQueue()

    @property
    def oldest_at(self) -> int | None:
        """When the oldest of all that is unpublished was staged."""
        return min((at for at in (self.oldest_pending_at, self.late.oldest_pending_at) if at is not None), default=None)

    @property
    def building(self) -> bool:
        """Whether a build in flight has claimed part of the queue."""
        return self.staged_rows < self.pending_rows


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


def batch_is_queued() -> ColumnElement[bool]:
    """Return the condition for a batch that has a slice in the queue; a partial index has just these words."""
    return and_(batches.c.published_at.is_(None), batches.c.quarantined_at.is_(None))


def queue_of(tx: Connection, dataset: str) -> QueueState:
    """Return the queue of one dataset; it may be empty."""
    return queue_states(tx, dataset).get(dataset, QueueState(dataset))


def queue_states(tx: Connection, dataset: str | None = None) -> dict[str, QueueState]:
    """Return the queue of every dataset (or of one) with anything unpublished: one indexed aggregate query."""
    of_slices, of_batches = [slice_is_queued()], [batch_is_queued()]
    if dataset is not None:
        of_slices.append(slices.c.dataset == dataset)
        of_batches.append(batches.c.dataset == dataset)
    free, late = slices.c.build_id.is_(None), slices.c.late.is_(True)

    def of_free(column):
        return case((free, column))

    def of_free_late(column):
        return case((and_(free, late), column))

    def of_free_others(column):
        return case((and_(free, ~late), column))

    queue = (
        select(
            slices.c.dataset,
            func.sum(slices.c.rows).label("rows"),
            func.sum(slices.c.bytes).label("bytes"),
            func.min(case((~late, slices.c.staged_at))).label("oldest"),
            func.min(case((late, slices.c.staged_at))).label("late_oldest"),
            func.coalesce(func.sum(of_free(slices.c.rows)), 0).label("free_rows"),
            func.coalesce(func.sum(of_free(slices.c.bytes)), 0).label("free_bytes"),
            func.min(of_free_others(slices.c.staged_at)).label("free_oldest"),
            func.min(of_free_others(slices.c.window_start)).label("first_window"),
            func.max(of_free_others(slices.c.window_start)).label("last_window"),
            func.coalesce(func.sum(of_free_late(slices.c.rows)), 0).label("late_rows"),
            func.min(of_free_late(slices.c.staged_at)).label("late_free_oldest"),
            func.min(of_free_late(slices.c.window_start)).label("late_first_window"),
            func.max(of_free_late(slices.c.window_start)).label("late_last_window"),
        )
        .where(*of_slices)
        .group_by(slices.c.dataset)
        .subquery("queue")
    )
    depth = (
        select(batches.c.dataset, func.count().label("batches"))
        .where(*of_batches)
        .group_by(batches.c.dataset)
        .subquery("depth")
    )
    rows = tx.execute(select(queue, depth.c.batches).select_from(queue.join(depth, depth.c.dataset == queue.c.dataset)))
    return {
        row.dataset: QueueState(
            dataset=row.dataset,
            pending_batches=row.batches,
            pending_rows=int(row.rows),
            pending_bytes=int(row.bytes),
            oldest_pending_at=row.oldest,
            staged_rows=int(row.free_rows),
            staged_bytes=int(row.free_bytes),
            oldest_staged_at=row.free_oldest,
            first_window=row.first_window,
            last_window=row.last_window,
            late=LateQueue(
                rows=int(row.late_rows),
                oldest_pending_at=row.late_oldest,
                oldest_staged_at=row.late_free_oldest,
                first_window=row.late_first_window,
                last_window=row.late_last_window,
            ),
        )
        for row in rows
    }


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

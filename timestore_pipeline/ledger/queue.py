"""The staging queue: what is staged, neither published nor in quarantine, for all datasets in one query."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sqlalchemy import Connection, and_, case, func, select

from timestore_pipeline.ledger.batches import BATCH_IS_QUEUED
from timestore_pipeline.ledger.corrected_windows import PendingQueue, pending_queues
from timestore_pipeline.ledger.schema import batches, slices
from timestore_pipeline.ledger.slices import SLICE_IS_QUEUED


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
    corrections: PendingQueue | None = None
    """Windows whose published rows are to be corrected, if there are any."""

    @property
    def oldest_at(self) -> int | None:
        """When the oldest of all that is unpublished was staged."""
        return min((at for at in (self.oldest_pending_at, self.late.oldest_pending_at) if at is not None), default=None)

    @property
    def building(self) -> bool:
        """Whether a build in flight has claimed part of the queue."""
        return self.staged_rows < self.pending_rows


def queue_of(tx: Connection, dataset: str) -> QueueState:
    """Return the queue of one dataset; it may be empty."""
    return queue_states(tx, dataset).get(dataset, QueueState(dataset))


def queue_states(tx: Connection, dataset: str | None = None) -> dict[str, QueueState]:
    """Return the queue of every dataset (or of one) with anything unpublished, or published and to be corrected."""
    found = _queued(tx, dataset)
    for name, pending in pending_queues(tx, dataset).items():
        found[name] = replace(found.get(name, QueueState(name)), corrections=pending)
    return found


def _queued(tx: Connection, dataset: str | None) -> dict[str, QueueState]:
    """Return the queue of every dataset (or of one) with anything unpublished: one indexed aggregate query."""
    of_slices, of_batches = [SLICE_IS_QUEUED], [BATCH_IS_QUEUED]
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


def pending_batches(tx: Connection, dataset: str) -> int:
    """Return how many batches of the dataset are staged and neither published nor in quarantine."""
    return tx.execute(select(func.count()).where(batches.c.dataset == dataset, BATCH_IS_QUEUED)).scalar_one()


def pending_of_sources(tx: Connection, dataset: str, sources: Iterable[str]) -> dict[str, int]:
    """Return how many of the batches that :func:`pending_batches` counts came from each of ``sources``, if any did."""
    query = (
        select(batches.c.source, func.count().label("batches"))
        .where(batches.c.dataset == dataset, BATCH_IS_QUEUED, batches.c.source.in_(list(sources)))
        .group_by(batches.c.source)
    )
    return {row.source: row.batches for row in tx.execute(query)}


def staged_bytes(tx: Connection, dataset: str | None = None) -> dict[str, int]:
    """Return per dataset, of all or of one, the bytes of its slices in the queue."""
    query = select(slices.c.dataset, func.sum(slices.c.bytes)).where(SLICE_IS_QUEUED).group_by(slices.c.dataset)
    if dataset is not None:
        query = query.where(slices.c.dataset == dataset)
    return {dataset: int(size) for dataset, size in tx.execute(query)}

"""What the ledger forgets: batches that need not be known again, builds that nothing refers to, tables, datasets.

A batch that is forgotten is staged again when it is offered again, so the time for which batches are remembered is
the time for which retries are safe. Counters and histograms stay, and so do the rows of each window (see ``accounts``).
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select, update

from timestore_pipeline.ledger.accounts import end_losses, note_pruned
from timestore_pipeline.ledger.corrected_windows import forget_corrected
from timestore_pipeline.ledger.counters import LOST_ROWS, count
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.ledger.schema import (
    batches,
    build_corrections,
    builds,
    datasets,
    metadata,
    quarantine,
    replaced_windows,
    segments,
    slices,
    windows,
)
from timestore_pipeline.ledger.slices import forget_slices, unpublish_slices
from timestore_pipeline.ledger.statements import in_parts
from timestore_pipeline.ledger.states import BuildState, QuarantineState
from timestore_pipeline.ledger.windows import add_up_windows


@dataclass(frozen=True)
class Pruned:
    """What was forgotten."""

    segments: int = 0
    batches: int = 0
    builds: int = 0

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(self.segments + other.segments, self.batches + other.batches, self.builds + other.builds)


@dataclass(frozen=True)
class _OldBatches:
    """Segments that are forgotten with their batches, and the condition on batches that are in no segment."""

    segments: list[str]
    without_rows: ColumnElement[bool]


def find_old_batches(tx: Connection, dataset: str, published_before: int, most_segments: int) -> Pruned:
    """Return what :func:`prune_batches` would forget."""
    old = _old_batches(tx, dataset, published_before, most_segments)
    of_segments = (batches.c.segment_id.in_(some) for some in in_parts(old.segments))
    found = [
        tx.execute(select(func.count()).select_from(batches).where(each)).scalar_one()
        for each in (old.without_rows, *of_segments)
    ]
    return Pruned(segments=len(old.segments), batches=sum(found))


def prune_batches(tx: Connection, dataset: str, published_before: int, most_segments: int) -> Pruned:
    """Forget segments that are unlinked and whose batches were all published before a moment, with these batches.

    Batches whose rows were all refused are forgotten as long after they were staged. What an open quarantine entry
    refers to stays. The moment is in microseconds since the epoch.
    """
    old = _old_batches(tx, dataset, published_before, most_segments)
    forgotten = tx.execute(delete(batches).where(old.without_rows)).rowcount
    forgotten += sum(_forget_segments(tx, dataset, some) for some in in_parts(old.segments))
    return Pruned(segments=len(old.segments), batches=forgotten)


def _old_batches(tx: Connection, dataset: str, published_before: int, most_segments: int) -> _OldBatches:
    lock_dataset(tx, dataset)
    kept = select(quarantine.c.batch_id).where(
        quarantine.c.dataset == dataset, quarantine.c.state == QuarantineState.OPEN.value
    )
    # Looked up for each segment that is old enough, and not gathered over all that the dataset ever had.
    young = exists().where(
        batches.c.segment_id == segments.c.id,
        or_(batches.c.published_at.is_(None), batches.c.published_at >= published_before, batches.c.batch_id.in_(kept)),
    )
    unfinished = exists().where(slices.c.segment_id == segments.c.id, slices.c.published_at.is_(None))
    old = list(
        tx.execute(
            select(segments.c.id)
            .where(
                segments.c.dataset == dataset,
                segments.c.unlinked_at < published_before,
                ~young,
                ~unfinished,
                segments.c.id.not_in(kept),
            )
            .order_by(segments.c.unlinked_at)
            .limit(most_segments)
        ).scalars()
    )
    without_rows = and_(
        batches.c.dataset == dataset,
        batches.c.segment_id.is_(None),
        batches.c.staged_at < published_before,
        batches.c.batch_id.not_in(kept),
    )
    return _OldBatches(old, without_rows)


def find_old_builds(tx: Connection, dataset: str, finished_before: int) -> Pruned:
    """Return what :func:`prune_builds` would forget."""
    return Pruned(builds=len(_old_builds(tx, dataset, finished_before)))


def prune_builds(tx: Connection, dataset: str, finished_before: int) -> Pruned:
    """Forget builds that ended before a moment, but not the last of them that published, nor any after it."""
    old = _old_builds(tx, dataset, finished_before)
    for some in in_parts(old):
        for of_builds in (replaced_windows, build_corrections):
            tx.execute(delete(of_builds).where(of_builds.c.build_id.in_(some)))
        tx.execute(delete(builds).where(builds.c.id.in_(some)))
    return Pruned(builds=len(old))


def _old_builds(tx: Connection, dataset: str, finished_before: int) -> list[int]:
    lock_dataset(tx, dataset)
    last = (
        select(builds.c.id)
        .where(
            builds.c.dataset == dataset,
            builds.c.state == BuildState.PUBLISHED.value,
            builds.c.finished_at < finished_before,
        )
        # The one whose table version readers were given then: not always the one that was claimed last.
        .order_by(func.coalesce(builds.c.table_version, -1).desc(), builds.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    used = exists().where(slices.c.build_id == builds.c.id)
    shown = select(windows.c.build_id).where(windows.c.dataset == dataset)
    # The last flush, too: it is what is shown of the dataset.
    flushes = select(func.max(builds.c.id)).where(builds.c.dataset == dataset).group_by(builds.c.kind, builds.c.state)
    old = (
        builds.c.dataset == dataset,
        builds.c.state != BuildState.CLAIMED.value,
        builds.c.finished_at < finished_before,
        builds.c.id < last,
        ~used,
        builds.c.id.not_in(shown),
        builds.c.id.not_in(flushes),
    )
    return list(tx.execute(select(builds.c.id).where(*old)).scalars())


def _forget_segments(tx: Connection, dataset: str, segment_ids: list[str]) -> int:
    """Forget segments with their batches; return how many batches that were."""
    here = slices.c.segment_id.in_(segment_ids)
    published = tx.execute(
        select(slices.c.window_start, func.sum(slices.c.rows))
        .where(here, slices.c.published_at.is_not(None))
        .group_by(slices.c.window_start)
    ).all()
    for window_start, rows in published:
        note_pruned(tx, dataset, window_start, int(rows))
    forget_slices(tx, here)
    forgotten = tx.execute(delete(batches).where(batches.c.segment_id.in_(segment_ids)))
    tx.execute(delete(segments).where(segments.c.id.in_(segment_ids)))
    return forgotten.rowcount


@dataclass(frozen=True)
class LostTable:
    """What was in a table that is gone, and what of it is staged again from segments that are still retained."""

    published_rows: int
    rows_staged_again: int

    @property
    def rows_gone(self) -> int:
        """How many rows are nowhere any more."""
        return max(0, self.published_rows - self.rows_staged_again)


def forget_table(tx: Connection, dataset: str, now: int) -> LostTable | None:
    """Record that a dataset has no table; None where the ledger knows of none, as another process was first."""
    lock_dataset(tx, dataset)
    forgotten = tx.execute(
        update(datasets)
        .where(datasets.c.name == dataset, datasets.c.table_version.is_not(None))
        .values(table_version=None, table_id=None)
    )
    if forgotten.rowcount == 0:
        return None
    # Versions of the table that is gone say nothing of the one to come.
    tx.execute(update(builds).where(builds.c.dataset == dataset).values(table_version=None))
    published = tx.execute(select(func.sum(windows.c.rows)).where(windows.c.dataset == dataset)).scalar() or 0
    tx.execute(delete(windows).where(windows.c.dataset == dataset))
    add_up_windows(tx, dataset)
    again = unpublish_slices(tx, dataset, now)
    # What nothing is left of is forgotten, so that the rows of a window still add up.
    unlinked = select(segments.c.id).where(segments.c.dataset == dataset, segments.c.unlinked_at.is_not(None))
    forget_slices(
        tx, slices.c.dataset == dataset, slices.c.published_at.is_not(None), slices.c.segment_id.in_(unlinked)
    )
    # Batches that are nowhere any more are forgotten, so that their files can land again. Those with rows in quarantine
    # stay known: their entries refer to them.
    tx.execute(
        delete(batches).where(
            batches.c.segment_id.in_(unlinked),
            batches.c.published_at.is_not(None),
            batches.c.quarantined_rows == 0,
        )
    )
    end_losses(tx, dataset, by="the table was deleted", now=now)
    forget_corrected(tx, dataset)
    result = LostTable(int(published), again)
    count(tx, LOST_ROWS, dataset, "", result.rows_gone)
    return result


def forget_dataset(tx: Connection, dataset: str) -> None:
    """Delete every row of a dataset, from every table."""
    own_builds = select(builds.c.id).where(builds.c.dataset == dataset)
    forget_slices(tx, slices.c.dataset == dataset)
    for of_builds in (replaced_windows, build_corrections):
        tx.execute(delete(of_builds).where(of_builds.c.build_id.in_(own_builds)))
    # Whoever refers to a row goes before it.
    for table in reversed(metadata.sorted_tables):
        if table is not datasets and "dataset" in table.c:
            tx.execute(delete(table).where(table.c.dataset == dataset))
    tx.execute(delete(datasets).where(datasets.c.name == dataset))

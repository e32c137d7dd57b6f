"""What the ledger forgets: batches that need not be known again, and builds that nothing refers to.

A batch that is forgotten is staged again when it is offered again, so the time for which batches are remembered is
the time for which retries are safe. Counters and histograms stay, and so do the rows of each window (see ``past``).
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, exists, func, or_, select

from timestore_pipeline.ledger.past import note_pruned
from timestore_pipeline.ledger.registry import lock_dataset
from timestore_pipeline.ledger.schema import (
    BuildState,
    QuarantineState,
    batch_slices,
    batches,
    builds,
    quarantine,
    replaced_windows,
    segments,
    slices,
    windows,
)

# Below the limit of variables in one SQLite statement, however it was compiled.
_IDS_PER_QUERY = 500


@dataclass(frozen=True)
class Pruned:
    """What was forgotten."""

    segments: int = 0
    batches: int = 0
    builds: int = 0

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(self.segments + other.segments, self.batches + other.batches, self.builds + other.builds)


def prune_batches(
    tx: Connection, dataset: str, published_before: int, most_segments: int, *, dry_run: bool = False
) -> Pruned:
    """Forget segments that are unlinked and whose batches were all published before a moment, with these batches.

    Batches whose rows were all refused are forgotten as long after they were staged. What an open quarantine entry
    refers to stays. The moment is in microseconds since the epoch.
    """
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
    empty = (
        batches.c.dataset == dataset,
        batches.c.segment_id.is_(None),
        batches.c.staged_at < published_before,
        batches.c.batch_id.not_in(kept),
    )
    forgotten = tx.execute(select(func.count()).select_from(batches).where(*empty)).scalar_one()
    if not dry_run:
        tx.execute(delete(batches).where(*empty))
    for start in range(0, len(old), _IDS_PER_QUERY):
        some = old[start : start + _IDS_PER_QUERY]
        forgotten += tx.execute(
            select(func.count()).select_from(batches).where(batches.c.segment_id.in_(some))
        ).scalar_one()
        if not dry_run:
            _forget_segments(tx, dataset, some)
    return Pruned(segments=len(old), batches=int(forgotten))


def prune_builds(tx: Connection, dataset: str, finished_before: int, *, dry_run: bool = False) -> Pruned:
    """Forget builds that ended before a moment, but not the last of them that published, nor any after it."""
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
    found = list(tx.execute(select(builds.c.id).where(*old)).scalars())
    for start in range(0, 0 if dry_run else len(found), _IDS_PER_QUERY):
        some = found[start : start + _IDS_PER_QUERY]
        tx.execute(delete(replaced_windows).where(replaced_windows.c.build_id.in_(some)))
        tx.execute(delete(builds).where(builds.c.id.in_(some)))
    return Pruned(builds=len(found))


def _forget_segments(tx: Connection, dataset: str, segment_ids: list[str]) -> None:
    here = slices.c.segment_id.in_(segment_ids)
    published = tx.execute(
        select(slices.c.window_start, func.sum(slices.c.rows))
        .where(here, slices.c.published_at.is_not(None))
        .group_by(slices.c.window_start)
    ).all()
    for window_start, rows in published:
        note_pruned(tx, dataset, window_start, int(rows))
    tx.execute(delete(batch_slices).where(batch_slices.c.segment_id.in_(segment_ids)))
    tx.execute(delete(batches).where(batches.c.segment_id.in_(segment_ids)))
    tx.execute(delete(slices).where(here))
    tx.execute(delete(segments).where(segments.c.id.in_(segment_ids)))

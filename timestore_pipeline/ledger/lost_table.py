"""What the ledger does when a dataset's table was deleted: it forgets the table, and stages again what it still can."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, exists, func, select, tuple_, update

from timestore_pipeline.ledger.completion import complete
from timestore_pipeline.ledger.counters import LOST_ROWS, count
from timestore_pipeline.ledger.losses import end_losses
from timestore_pipeline.ledger.published import add_up_windows
from timestore_pipeline.ledger.registry import lock_dataset
from timestore_pipeline.ledger.schema import batch_slices, batches, builds, datasets, segments, slices, windows


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
    on_disk = select(segments.c.id).where(segments.c.dataset == dataset, segments.c.unlinked_at.is_(None))
    lost = (slices.c.segment_id.in_(on_disk), slices.c.published_at.is_not(None))
    again = tx.execute(select(func.sum(slices.c.rows)).where(*lost)).scalar() or 0
    touched = tx.execute(select(slices.c.segment_id).where(*lost).distinct()).scalars().all()
    tx.execute(update(slices).where(*lost).values(published_at=None, build_id=None, late=False))
    tx.execute(update(segments).where(segments.c.id.in_(touched)).values(published_at=None))
    tx.execute(
        update(batches)
        .where(
            batches.c.segment_id.in_(touched),
            exists()
            .where(batch_slices.c.segment_id == batches.c.segment_id, batch_slices.c.ordinal == batches.c.ordinal)
            .correlate(batches),
        )
        .values(published_at=None)
    )
    complete(tx, touched, now)
    # What nothing is left of is forgotten, so that the rows of a window still add up.
    gone = (
        slices.c.dataset == dataset,
        slices.c.published_at.is_not(None),
        slices.c.segment_id.in_(
            select(segments.c.id).where(segments.c.dataset == dataset, segments.c.unlinked_at.is_not(None))
        ),
    )
    lost_slices = select(slices.c.segment_id, slices.c.window_start).where(*gone)
    tx.execute(
        delete(batch_slices).where(tuple_(batch_slices.c.segment_id, batch_slices.c.window_start).in_(lost_slices))
    )
    tx.execute(delete(slices).where(*gone))
    # Batches that are nowhere any more are forgotten, so that their files can land again. Those with rows in quarantine
    # stay known: their entries refer to them.
    unlinked = select(segments.c.id).where(segments.c.dataset == dataset, segments.c.unlinked_at.is_not(None))
    tx.execute(
        delete(batches).where(
            batches.c.segment_id.in_(unlinked),
            batches.c.published_at.is_not(None),
            batches.c.quarantined_rows == 0,
        )
    )
    end_losses(tx, dataset, by="the table was deleted", now=now)
    result = LostTable(int(published), int(again))
    count(tx, LOST_ROWS, dataset, "", result.rows_gone)
    return result

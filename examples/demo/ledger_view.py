"""What the ledger says while the demo runs, and in the end."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from timestore_pipeline.ledger.counters import RETRIED_BATCHES, counter_values
from timestore_pipeline.ledger.quarantine import QuarantineEntry, open_entries
from timestore_pipeline.ledger.schema import batches
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.store import Store


@dataclass(frozen=True)
class Standing:
    """How far the files have come: batches and rows, over all datasets."""

    staged: int = 0
    published: int = 0
    staged_rows: int = 0
    published_rows: int = 0
    quarantined: int = 0
    duplicates: int = 0

    @property
    def queued(self) -> int:
        """Batches that are staged and not published."""
        return self.staged - self.published

    @property
    def settled(self) -> int:
        """Files that need nothing more: published, quarantined, or recognized as duplicates."""
        return self.published + self.quarantined + self.duplicates


@dataclass(frozen=True)
class BatchTimes:
    """When a file was acknowledged and when its last row was published, in seconds since the epoch."""

    dataset: str
    source: str
    staged_at: float
    published_at: float


def standing(store: Store) -> Standing:
    """Return how far the files have come, from one moment of the ledger."""
    done = batches.c.published_at.is_not(None)
    query = select(
        func.count(), func.count().filter(done), func.sum(batches.c.rows), func.sum(batches.c.rows).filter(done)
    )
    with store.ledger.read() as tx:
        staged, published, staged_rows, published_rows = tx.execute(query).one()
        files = [entry for entry in open_entries(tx) if entry.kind is QuarantineKind.BATCH]
        counters = counter_values(tx)
    duplicates = sum(
        value for (metric, _, label), value in counters.items() if (metric, label) == (RETRIED_BATCHES, "duplicate")
    )
    return Standing(
        staged=staged,
        published=published,
        staged_rows=int(staged_rows or 0),
        published_rows=int(published_rows or 0),
        quarantined=len(files),
        duplicates=int(duplicates),
    )


def quarantined(store: Store) -> list[QuarantineEntry]:
    """Return what is in quarantine."""
    with store.ledger.read() as tx:
        return open_entries(tx)


def batch_times(store: Store) -> list[BatchTimes]:
    """Return the times of all published batches."""
    query = select(batches.c.dataset, batches.c.source, batches.c.staged_at, batches.c.published_at).where(
        batches.c.published_at.is_not(None)
    )
    with store.ledger.read() as tx:
        return [
            BatchTimes(dataset, source, staged_at / 1e6, published_at / 1e6)
            for dataset, source, staged_at, published_at in tx.execute(query).tuples()
        ]

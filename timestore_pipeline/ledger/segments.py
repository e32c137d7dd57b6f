"""The life of segment files after their rows are published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, case, func, select, update

from timestore_pipeline.ledger.counters import RETENTION_BYTES, RETENTION_SEGMENTS, count
from timestore_pipeline.ledger.registry import lock_dataset
from timestore_pipeline.ledger.schema import segments


@dataclass(frozen=True)
class SegmentFile:
    """A published segment on disk; ``path`` is relative to the staging directory."""

    id: str
    dataset: str
    path: str
    bytes: int
    published_at: int


def published_before(tx: Connection, moment: int) -> list[SegmentFile]:
    """Return the segments on disk whose last slice was published at or before ``moment``."""
    query = (
        select(segments.c.id, segments.c.dataset, segments.c.path, segments.c.bytes, segments.c.published_at)
        .where(segments.c.unlinked_at.is_(None), segments.c.published_at <= moment)
        .order_by(segments.c.published_at)
    )
    return [SegmentFile(**row) for row in tx.execute(query).mappings()]


def segment_bytes(tx: Connection, segment_id: str) -> int:
    """Return the size of a segment's file as it was written."""
    return tx.execute(select(segments.c.bytes).where(segments.c.id == segment_id)).scalar_one()


def mark_unlinked(tx: Connection, segment_ids: Iterable[str], now: int) -> None:
    """Record that segment files are gone, and count them; those that are recorded as gone already stay as they are."""
    wanted = set(segment_ids)
    query = select(segments.c.id, segments.c.dataset).where(segments.c.unlinked_at.is_(None))
    dataset_of = {row.id: row.dataset for row in tx.execute(query) if row.id in wanted}
    # Two processes may count the first segment of a dataset at the same moment, and only one can make the counter.
    for dataset in sorted(set(dataset_of.values())):
        lock_dataset(tx, dataset)
    for segment_id in dataset_of:
        gone = tx.execute(
            update(segments)
            .where(segments.c.id == segment_id, segments.c.unlinked_at.is_(None))
            .values(unlinked_at=now)
            .returning(segments.c.dataset, segments.c.bytes)
        ).first()
        if gone is not None:
            count(tx, RETENTION_SEGMENTS, gone.dataset, "")
            count(tx, RETENTION_BYTES, gone.dataset, "", gone.bytes)


def paths_on_disk(tx: Connection) -> set[str]:
    """Return the relative paths of all segments that must be on disk."""
    return set(tx.execute(select(segments.c.path).where(segments.c.unlinked_at.is_(None))).scalars())


def disk_usage(tx: Connection) -> dict[tuple[str, str], int]:
    """Return (dataset, ``staged`` or ``retained``) → bytes of segment files that are not in quarantine."""
    return _on_disk(tx, func.sum(segments.c.bytes))


def segments_on_disk(tx: Connection) -> dict[tuple[str, str], int]:
    """Return (dataset, ``staged`` or ``retained``) → number of segment files that are not in quarantine."""
    return _on_disk(tx, func.count())


def _on_disk(tx: Connection, amount: ColumnElement[int]) -> dict[tuple[str, str], int]:
    component = case((segments.c.published_at.is_(None), "staged"), else_="retained").label("component")
    query = (
        select(segments.c.dataset, component, amount.label("amount"))
        .where(segments.c.unlinked_at.is_(None), segments.c.quarantined_at.is_(None))
        .group_by(segments.c.dataset, component)
    )
    return {(row.dataset, row.component): int(row.amount) for row in tx.execute(query)}

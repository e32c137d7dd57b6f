"""The life of segment files after their rows are published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update

from timestore_pipeline.ledger.counters import RETENTION_BYTES, RETENTION_SEGMENTS, count
from timestore_pipeline.ledger.datasets import lock_datasets
from timestore_pipeline.ledger.schema import segments
from timestore_pipeline.ledger.statements import in_parts


@dataclass(frozen=True)
class OnDisk:
    """How many segment files, and how large they are together."""

    segments: int
    bytes: int


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
    parts = list(in_parts(sorted(set(segment_ids))))
    found: set[str] = set()
    for some in parts:
        query = select(segments.c.dataset).where(segments.c.id.in_(some), segments.c.unlinked_at.is_(None)).distinct()
        found.update(tx.execute(query).scalars())
    # Two processes may count the first segment of a dataset at the same moment, and only one can make the counter.
    lock_datasets(tx, found)
    gone: dict[str, list[int]] = {}
    for some in parts:
        changed = tx.execute(
            update(segments)
            .where(segments.c.id.in_(some), segments.c.unlinked_at.is_(None))
            .values(unlinked_at=now)
            .returning(segments.c.dataset, segments.c.bytes)
        )
        for dataset, size in changed:
            gone.setdefault(dataset, []).append(size)
    for dataset in sorted(gone):
        count(tx, RETENTION_SEGMENTS, dataset, "", len(gone[dataset]))
        count(tx, RETENTION_BYTES, dataset, "", sum(gone[dataset]))


def segment_paths(tx: Connection, dataset: str) -> set[str]:
    """Return the relative paths that the segments of a dataset have or had."""
    return set(tx.execute(select(segments.c.path).where(segments.c.dataset == dataset)).scalars())


def paths_on_disk(tx: Connection) -> set[str]:
    """Return the relative paths of all segments that must be on disk."""
    return set(tx.execute(select(segments.c.path).where(segments.c.unlinked_at.is_(None))).scalars())


def disk_usage(tx: Connection) -> dict[tuple[str, str], OnDisk]:
    """Return (dataset, ``staged`` or ``retained``) → its segment files that are not in quarantine, where it has any."""
    staged = segments.c.published_at.is_(None)
    query = (
        select(
            segments.c.dataset,
            func.count().filter(staged).label("staged"),
            func.sum(segments.c.bytes).filter(staged).label("staged_bytes"),
            func.count().filter(~staged).label("retained"),
            func.sum(segments.c.bytes).filter(~staged).label("retained_bytes"),
        )
        .where(segments.c.unlinked_at.is_(None), segments.c.quarantined_at.is_(None))
        .group_by(segments.c.dataset)
    )
    found: dict[tuple[str, str], OnDisk] = {}
    for row in tx.execute(query):
        if row.staged:
            found[row.dataset, "staged"] = OnDisk(row.staged, int(row.staged_bytes))
        if row.retained:
            found[row.dataset, "retained"] = OnDisk(row.retained, int(row.retained_bytes))
    return found

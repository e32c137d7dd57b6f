"""What is published in each window: the totals that a build adds to, or puts its own in the place of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from timestore_pipeline.ledger.past import forget_expired, note_expired
from timestore_pipeline.ledger.schema import BuildKind, datasets, replaced_windows, slices, windows


@dataclass(frozen=True)
class PublishedWindow:
    """What files have of a window: those that a commit wrote, or those that it left in place."""

    window_start: int
    rows: int
    bytes: int
    files: int


@dataclass(frozen=True)
class Taken:
    """What a commit took out of the table, from how many windows."""

    windows: int = 0
    rows: int = 0
    bytes: int = 0
    files: int = 0


def windows_replaced_by(tx: Connection, build_id: int) -> set[int]:
    """Return the starts of the windows whose files the build's commit replaces."""
    query = select(replaced_windows.c.window_start).where(replaced_windows.c.build_id == build_id)
    return set(tx.execute(query).scalars())


def move_windows(
    tx: Connection,
    dataset: str,
    build_id: int,
    kind: BuildKind,
    written: Mapping[int, PublishedWindow],
    kept: Mapping[int, PublishedWindow],
    now: int,
) -> Taken:
    """Bring the totals of all windows of a build in line with its commit; return what it took out of the table.

    What it wrote is added to a window, or makes up the window together with what it ``kept`` there, where the build
    replaced files.
    """
    replaced = windows_replaced_by(tx, build_id)
    keyed = tx.execute(select(datasets.c.key).where(datasets.c.name == dataset)).scalar_one() is not None
    taken = Taken()
    for start in replaced | written.keys():
        here = (windows.c.dataset == dataset, windows.c.window_start == start)
        had = tx.execute(
            select(windows.c.rows, windows.c.bytes, windows.c.files, windows.c.superseded).where(*here)
        ).first()
        before = PublishedWindow(start, *had[:3]) if had else PublishedWindow(start, 0, 0, 0)
        superseded = had[3] if had else 0
        rest = kept.get(start, PublishedWindow(start, 0, 0, 0)) if start in replaced else before
        new = written.get(start, PublishedWindow(start, 0, 0, 0))
        taken = Taken(
            taken.windows + (start in replaced),
            taken.rows + before.rows - rest.rows,
            taken.bytes + before.bytes - rest.bytes,
            taken.files + before.files - rest.files,
        )
        if kind is BuildKind.EXPIRY:
            note_expired(tx, dataset, start, before.rows - rest.rows + (0 if rest.files else superseded), now)
        elif kind is BuildKind.REBUILD:
            forget_expired(tx, dataset, start)
            # All that was ever published there has just been built again.
            superseded = _rows(tx, dataset, start, slices.c.published_at.is_not(None)) - new.rows if keyed else 0
        elif kind is BuildKind.FLUSH and keyed and start in replaced:
            superseded += before.rows + _rows(tx, dataset, start, slices.c.build_id == build_id) - rest.rows - new.rows
        if not new.files + rest.files:
            tx.execute(delete(windows).where(*here))
            continue
        totals = {
            "rows": rest.rows + new.rows,
            "bytes": rest.bytes + new.bytes,
            "files": rest.files + new.files,
            "superseded": superseded,
            "build_id": build_id,
        }
        # A compaction publishes nothing: neither freshness nor "last published" may move with it.
        time = {} if kind is BuildKind.COMPACTION else {"published_at": now}
        if had:
            tx.execute(update(windows).where(*here).values(**totals, **time))
        else:
            tx.execute(insert(windows).values(dataset=dataset, window_start=start, published_at=now, **totals))
    return taken


def _rows(tx: Connection, dataset: str, window_start: int, which: ColumnElement[bool]) -> int:
    """Return how many staged rows of a window are in some of its slices."""
    here = (slices.c.dataset == dataset, slices.c.window_start == window_start)
    return int(tx.execute(select(func.sum(slices.c.rows)).where(*here, which)).scalar() or 0)

"""What is published in each window: the totals that a build adds to, or puts its own in the place of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, Row, delete, func, select, update

from timestore_pipeline.ledger.accounts import end_losses, forget_expired, note_expired
from timestore_pipeline.ledger.corrected_windows import Taken
from timestore_pipeline.ledger.schema import builds, datasets, replaced_windows, slices, windows
from timestore_pipeline.ledger.statements import in_parts, upsert_all
from timestore_pipeline.ledger.states import BuildKind


@dataclass(frozen=True)
class PublishedWindow:
    """What files have of a window: those that a commit wrote, or those that it left in place."""

    window_start: int
    rows: int
    bytes: int
    files: int


@dataclass(frozen=True)
class CommittedWindows:
    """What a commit has ``written`` in each window (by its start), and ``kept`` of those whose files it replaced.

    ``taken`` is what it left out because corrections take it.
    """

    written: Mapping[int, PublishedWindow]
    kept: Mapping[int, PublishedWindow]
    taken: Taken = field(default_factory=Counter)


@dataclass(frozen=True)
class Removed:
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
    commit: CommittedWindows,
    now: int,
) -> Removed:
    """Bring the totals of all windows of a build in line with its commit; return what it took out of the table.

    What it wrote is added to a window, or makes up the window together with what it ``kept`` there, where the build
    replaced files.
    """
    replaced = windows_replaced_by(tx, build_id)
    keyed = tx.execute(select(datasets.c.key).where(datasets.c.name == dataset)).scalar_one() is not None
    touched = sorted(replaced | commit.written.keys())
    had = _recorded(tx, dataset, touched)
    taken: Counter[int] = Counter()
    for (start, _), rows in commit.taken.items():
        taken[start] += rows
    # A compaction or a repair publishes nothing: neither freshness nor "last published" may move with it.
    publishes = kind not in (BuildKind.COMPACTION, BuildKind.REPAIR)
    removed, gone, totals = Removed(), [], []
    for start in touched:
        old = had.get(start)
        before = PublishedWindow(start, old.rows, old.bytes, old.files) if old else PublishedWindow(start, 0, 0, 0)
        superseded = old.superseded if old else 0
        rest = commit.kept.get(start, PublishedWindow(start, 0, 0, 0)) if start in replaced else before
        new = commit.written.get(start, PublishedWindow(start, 0, 0, 0))
        removed = Removed(
            removed.windows + (start in replaced),
            removed.rows + before.rows - rest.rows,
            removed.bytes + before.bytes - rest.bytes,
            removed.files + before.files - rest.files,
        )
        if kind is BuildKind.EXPIRY:
            with_them = 0 if rest.files else superseded
            note_expired(tx, dataset, start, before.rows - rest.rows + with_them, now)
            superseded -= with_them
        elif kind is BuildKind.REBUILD:
            forget_expired(tx, dataset, start)
            end_losses(tx, dataset, start, by=f"rebuild, build {build_id}", now=now)
            # All that was ever published there has just been built again.
            ever = _rows(tx, dataset, start, slices.c.published_at.is_not(None)) if keyed else 0
            superseded = ever - new.rows - taken[start] if keyed else 0
        elif kind is BuildKind.FLUSH and keyed and start in replaced:
            claimed = _rows(tx, dataset, start, slices.c.build_id == build_id)
            superseded += before.rows + claimed - rest.rows - new.rows - taken[start]
        # Rows that a later one had taken the place of are not lost with it, so what is known of them stays.
        if not new.files + rest.files and not superseded:
            gone.append(start)
            continue
        totals.append(
            {
                "dataset": dataset,
                "window_start": start,
                "rows": rest.rows + new.rows,
                "bytes": rest.bytes + new.bytes,
                "files": rest.files + new.files,
                "superseded": superseded,
                "build_id": build_id,
                "published_at": old.published_at if old and not publishes else now,
            }
        )
    for some in in_parts(gone):
        tx.execute(delete(windows).where(windows.c.dataset == dataset, windows.c.window_start.in_(some)))
    for some in in_parts(totals, values_each=8):
        upsert_all(tx, windows, some)
    _move_totals(tx, dataset, had.values(), totals, now if publishes else None)
    return removed


def put_windows(tx: Connection, dataset: str, found: Mapping[int, PublishedWindow], now: int) -> None:
    """Make the totals of windows those that another program left in the table; the caller holds the dataset's lock.

    What was published stays what it was, so the row audit says what is missing or too much.
    """
    had = _recorded(tx, dataset, sorted(found))
    # Of windows in which no build ever was, the latest build is as good as any.
    latest = tx.execute(select(func.max(builds.c.id)).where(builds.c.dataset == dataset)).scalar()
    totals, gone = [], []
    for start, window in found.items():
        old = had.get(start)
        superseded = old.superseded if old else 0
        if not window.files and not superseded:
            gone.append(start)
        elif old or latest is not None:
            totals.append(
                {
                    "dataset": dataset,
                    "window_start": start,
                    "rows": window.rows,
                    "bytes": window.bytes,
                    "files": window.files,
                    "superseded": superseded,
                    "build_id": old.build_id if old else latest,
                    "published_at": old.published_at if old else now,
                }
            )
    for some in in_parts(gone):
        tx.execute(delete(windows).where(windows.c.dataset == dataset, windows.c.window_start.in_(some)))
    for some in in_parts(totals, values_each=8):
        upsert_all(tx, windows, some)
    _move_totals(tx, dataset, had.values(), totals, None)


def add_up_windows(tx: Connection, dataset: str) -> None:
    """Make a dataset's totals anew from its windows, where those were changed other than by a build."""
    query = select(
        func.count().label("published_windows"),
        func.coalesce(func.sum(windows.c.rows), 0).label("published_rows"),
        func.coalesce(func.sum(windows.c.bytes), 0).label("published_bytes"),
        func.coalesce(func.sum(windows.c.files), 0).label("published_files"),
        func.max(windows.c.published_at).label("published_at"),
    ).where(windows.c.dataset == dataset)
    found = tx.execute(query).mappings().one()
    whole = {name: value if name == "published_at" else int(value) for name, value in found.items()}
    tx.execute(update(datasets).where(datasets.c.name == dataset).values(**whole))


def _recorded(tx: Connection, dataset: str, starts: list[int]) -> dict[int, Row]:
    found: dict[int, Row] = {}
    for some in in_parts(starts):
        query = select(windows).where(windows.c.dataset == dataset, windows.c.window_start.in_(some))
        found.update({row.window_start: row for row in tx.execute(query)})
    return found


def _move_totals(
    tx: Connection, dataset: str, before: Iterable[Row], after: list[dict[str, int]], published_at: int | None
) -> None:
    old = list(before)
    time = {} if published_at is None else {"published_at": published_at}
    tx.execute(
        update(datasets)
        .where(datasets.c.name == dataset)
        .values(
            published_windows=datasets.c.published_windows + len(after) - len(old),
            published_rows=datasets.c.published_rows + sum(row["rows"] for row in after) - sum(row.rows for row in old),
            published_bytes=datasets.c.published_bytes
            + sum(row["bytes"] for row in after)
            - sum(row.bytes for row in old),
            published_files=datasets.c.published_files
            + sum(row["files"] for row in after)
            - sum(row.files for row in old),
            **time,
        )
    )


def _rows(tx: Connection, dataset: str, window_start: int, which: ColumnElement[bool]) -> int:
    """Return how many staged rows of a window are in some of its slices."""
    here = (slices.c.dataset == dataset, slices.c.window_start == window_start)
    return int(tx.execute(select(func.sum(slices.c.rows)).where(*here, which)).scalar() or 0)


@dataclass(frozen=True)
class WindowTotals:
    """What is published in a window, since the beginning."""

    window_start: int
    rows: int
    bytes: int
    files: int
    published_at: int


def window_totals(tx: Connection, dataset: str) -> list[WindowTotals]:
    """Return what is published, window by window in time order."""
    query = (
        select(windows.c.window_start, windows.c.rows, windows.c.bytes, windows.c.files, windows.c.published_at)
        .where(windows.c.dataset == dataset)
        .order_by(windows.c.window_start)
    )
    return [WindowTotals(**row) for row in tx.execute(query).mappings()]


def published_totals(tx: Connection) -> dict[str, tuple[int, int, int, int]]:
    """Return per dataset (windows, rows, bytes, files) published, of those with any."""
    query = select(
        datasets.c.name,
        datasets.c.published_windows,
        datasets.c.published_rows,
        datasets.c.published_bytes,
        datasets.c.published_files,
    ).where(datasets.c.published_windows > 0)
    return {name: (number, rows, size, files) for name, number, rows, size, files in tx.execute(query)}


def last_published(tx: Connection) -> dict[str, int]:
    """Return when rows of each dataset were published last, microseconds since the epoch; those that never were not."""
    query = select(datasets.c.name, datasets.c.published_at).where(datasets.c.published_at.is_not(None))
    return dict(tx.execute(query).all())

"""What is published in each window: the totals that a build adds to, or puts its own in the place of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from timestore_pipeline.ledger.schema import replaced_windows, windows


@dataclass(frozen=True)
class PublishedWindow:
    """What one commit added to a window; of a window that it replaced, all that is in it."""

    window_start: int
    rows: int
    bytes: int
    files: int


def windows_replaced_by(tx: Connection, build_id: int) -> set[int]:
    """Return the starts of the windows whose files the build's commit replaces."""
    query = select(replaced_windows.c.window_start).where(replaced_windows.c.build_id == build_id)
    return set(tx.execute(query).scalars())


def move_windows(
    tx: Connection,
    dataset: str,
    build_id: int,
    published: Mapping[int, PublishedWindow],
    now: int,
    *,
    keep_time: bool,
) -> None:
    """Bring the totals of all windows of a build in line with its commit, which wrote ``published``.

    ``keep_time``: when a window was last published stays as it is.
    """
    replaced = windows_replaced_by(tx, build_id)
    for start in replaced | published.keys():
        window = published.get(start, PublishedWindow(start, 0, 0, 0))
        here = (windows.c.dataset == dataset, windows.c.window_start == start)
        if start in replaced:
            if window.files == 0:
                tx.execute(delete(windows).where(*here))
                continue
            totals = {"rows": window.rows, "bytes": window.bytes, "files": window.files}
        else:
            totals = {
                "rows": windows.c.rows + window.rows,
                "bytes": windows.c.bytes + window.bytes,
                "files": windows.c.files + window.files,
            }
        time = {} if keep_time else {"published_at": now}
        if tx.execute(update(windows).where(*here).values(**totals, **time, build_id=build_id)).rowcount == 0:
            tx.execute(
                insert(windows).values(
                    dataset=dataset,
                    window_start=start,
                    rows=window.rows,
                    bytes=window.bytes,
                    files=window.files,
                    published_at=now,
                    build_id=build_id,
                )
            )

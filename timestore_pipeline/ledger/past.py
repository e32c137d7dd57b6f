"""Rows that can no longer be counted: dropped from the table by age, or forgotten by the ledger.

So that for every window still holds: rows published = rows in the table + rows expired, where the rows published are
those of the slices that the ledger knows and those that it has pruned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from timestore_pipeline.ledger.schema import past_rows


@dataclass(frozen=True)
class PastRows:
    """The past of one window: rows that the ledger has forgotten after they were published, and rows that expired.

    A row may be both. ``expired_at`` is in microseconds since the epoch.
    """

    pruned: int = 0
    expired: int = 0
    expired_at: int | None = None


def past_of_windows(tx: Connection, dataset: str, window_starts: Iterable[int] | None = None) -> dict[int, PastRows]:
    """Return the past of those windows of a dataset that have one, by their start; by default of all."""
    query = select(past_rows).where(past_rows.c.dataset == dataset)
    wanted = None if window_starts is None else set(window_starts)
    return {
        row.window_start: PastRows(int(row.pruned_rows), int(row.expired_rows), row.expired_at)
        for row in tx.execute(query)
        if wanted is None or row.window_start in wanted
    }


def note_pruned(tx: Connection, dataset: str, window_start: int, rows: int) -> None:
    """Remember published rows of a window whose slices the ledger forgets."""
    here = (past_rows.c.dataset == dataset, past_rows.c.window_start == window_start)
    if tx.execute(update(past_rows).where(*here).values(pruned_rows=past_rows.c.pruned_rows + rows)).rowcount == 0:
        tx.execute(insert(past_rows).values(dataset=dataset, window_start=window_start, pruned_rows=rows))


def note_expired(tx: Connection, dataset: str, window_start: int, rows: int, now: int) -> None:
    """Remember rows of a window that were dropped from the table."""
    here = (past_rows.c.dataset == dataset, past_rows.c.window_start == window_start)
    expired = {"expired_rows": past_rows.c.expired_rows + rows, "expired_at": now}
    if tx.execute(update(past_rows).where(*here).values(**expired)).rowcount == 0:
        tx.execute(
            insert(past_rows).values(dataset=dataset, window_start=window_start, expired_rows=rows, expired_at=now)
        )


def forget_expired(tx: Connection, dataset: str, window_start: int) -> None:
    """All rows of a window are in the table again."""
    here = (past_rows.c.dataset == dataset, past_rows.c.window_start == window_start)
    tx.execute(update(past_rows).where(*here).values(expired_rows=0, expired_at=None))

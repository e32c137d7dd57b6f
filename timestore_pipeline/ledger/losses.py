"""Rows that were published, are gone, and that an operator has given up: so that a row audit adds up again.

A loss is never deleted: it is *withdrawn* by an operator, after which the audit reports it again, or it ends when its
rows are there again (a rebuild) or nobody can tell any more (the table was deleted).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, update

from timestore_pipeline.ledger.counters import LOST_ROWS, count
from timestore_pipeline.ledger.registry import lock_dataset
from timestore_pipeline.ledger.schema import losses


@dataclass(frozen=True)
class Loss:
    """What was given up of one window, by whom, when (microseconds since the epoch) and why.

    ``rows`` below zero are rows of unknown origin that were taken for good. It holds until ``ended_at``.
    """

    id: int
    dataset: str
    window_start: int
    rows: int
    reason: str
    accepted_by: str
    accepted_at: int
    ended_at: int | None = None
    ended_by: str | None = None


def accept_loss(
    tx: Connection, dataset: str, window_start: int, rows: int, *, reason: str, by: str, now: int
) -> Loss | None:
    """Give up rows of a window; None where the same was entered at the same ``now``, as a transaction is done again."""
    lock_dataset(tx, dataset)
    row = {
        "dataset": dataset,
        "window_start": window_start,
        "rows": rows,
        "reason": reason,
        "accepted_by": by,
        "accepted_at": now,
    }
    entered = tx.execute(select(losses.c.id).where(*(losses.c[name] == value for name, value in row.items()))).first()
    if entered is not None:
        return None
    loss_id = tx.execute(insert(losses).values(row).returning(losses.c.id)).scalar_one()
    count(tx, LOST_ROWS, dataset, "", max(0, rows))
    return Loss(loss_id, **row)


def withdraw_loss(tx: Connection, loss_id: int, *, by: str, now: int) -> bool:
    """Take back what was given up; False where no such loss holds."""
    ended = update(losses).where(losses.c.id == loss_id, losses.c.ended_at.is_(None))
    return tx.execute(ended.values(ended_at=now, ended_by=by)).rowcount == 1


def end_losses(tx: Connection, dataset: str, window_start: int | None = None, *, by: str, now: int) -> None:
    """End the losses of a window (by default of all), because what they were about is no more."""
    here = [losses.c.dataset == dataset, losses.c.ended_at.is_(None)]
    if window_start is not None:
        here.append(losses.c.window_start == window_start)
    tx.execute(update(losses).where(*here).values(ended_at=now, ended_by=by))


def lost_rows(tx: Connection, dataset: str, window_starts: Iterable[int] | None = None) -> dict[int, int]:
    """Return window start → rows that are given up and still are, for those of these windows with any."""
    query = (
        select(losses.c.window_start, func.sum(losses.c.rows))
        .where(losses.c.dataset == dataset, losses.c.ended_at.is_(None))
        .group_by(losses.c.window_start)
    )
    wanted = None if window_starts is None else set(window_starts)
    return {start: int(rows) for start, rows in tx.execute(query) if wanted is None or start in wanted}


def recorded_losses(tx: Connection, dataset: str | None = None, window_start: int | None = None) -> list[Loss]:
    """Return all losses that were ever accepted, those that have ended too, in their order."""
    query = select(losses).order_by(losses.c.id)
    if dataset is not None:
        query = query.where(losses.c.dataset == dataset)
    if window_start is not None:
        query = query.where(losses.c.window_start == window_start)
    return [Loss(**row) for row in tx.execute(query).mappings()]

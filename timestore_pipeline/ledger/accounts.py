"""Where the ledger says that the rows of each window are: its half of a row audit.

Rows that can no longer be counted, because they were dropped from the table by age or forgotten by the ledger, are kept
as numbers. So for every window holds: rows published = rows in the table + rows expired, where the rows published are
those of the slices that the ledger knows and those that it has pruned.

Rows that are gone otherwise can be given up: a *loss* is never deleted. It is *withdrawn* by an operator, after which
the audit reports it again, or it ends when its rows are there again (a rebuild) or nobody can tell any more (the table
was deleted).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, func, insert, select, update

from timestore_pipeline.ledger.corrected_windows import corrected_rows
from timestore_pipeline.ledger.counters import LOST_ROWS, count
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.ledger.schema import batch_slices, losses, past_rows, slices, windows
from timestore_pipeline.ledger.slices import IN_SLICE
from timestore_pipeline.ledger.statements import in_parts


@dataclass(frozen=True)
class WindowAccount:
    """The rows of one window in the ledger; ``window_start`` in microseconds since the epoch.

    ``staged`` is what batches brought when they were acknowledged. It is ``published``, ``quarantined`` with a segment
    that cannot be read, or still ``queued``. ``recorded`` is what builds have put into the window in the table, and
    ``superseded`` how many rows a later one of the same key has taken the place of. ``pruned`` rows were published too,
    and the ledger has forgotten their batches. ``expired`` rows were published and are dropped from the table by age,
    ``lost`` ones are gone from it, and an operator has given them up. ``corrected`` ones were taken back by corrections
    and left out by builds, published before or not.
    """

    window_start: int
    staged: int = 0
    published: int = 0
    quarantined: int = 0
    queued: int = 0
    recorded: int = 0
    pruned: int = 0
    expired: int = 0
    superseded: int = 0
    lost: int = 0
    corrected: int = 0

    @property
    def explained(self) -> int:
        """How many of the staged rows are somewhere."""
        return self.published + self.quarantined + self.queued

    def unaccounted(self, rows_in_table: int) -> int:
        """Return how many published rows are nowhere if the table has ``rows_in_table``; below zero it has too many."""
        gone = self.superseded + self.expired + self.lost + self.corrected
        return self.published + self.pruned - rows_in_table - gone


def recorded_rows(tx: Connection, dataset: str) -> dict[int, int]:
    """Return window start → rows that builds have added to the window, for all windows with any."""
    query = select(windows.c.window_start, windows.c.rows).where(windows.c.dataset == dataset)
    return {start: int(rows) for start, rows in tx.execute(query)}


def window_accounts(
    tx: Connection, dataset: str, window_starts: Iterable[int] | None = None
) -> dict[int, WindowAccount]:
    """Return the accounts of some windows by their start, by default of all that ever had a row."""
    recorded = recorded_rows(tx, dataset)
    superseded = _superseded_rows(tx, dataset)
    if window_starts is None:
        return _accounts(tx, dataset, None, recorded, superseded)
    found: dict[int, WindowAccount] = {}
    for some in in_parts(sorted(set(window_starts))):
        found.update(
            _accounts(tx, dataset, some, {start: recorded[start] for start in some if start in recorded}, superseded)
        )
    return found


def _superseded_rows(tx: Connection, dataset: str) -> dict[int, int]:
    query = select(windows.c.window_start, windows.c.superseded).where(
        windows.c.dataset == dataset, windows.c.superseded != 0
    )
    return {start: int(rows) for start, rows in tx.execute(query)}


def _accounts(
    tx: Connection,
    dataset: str,
    window_starts: list[int] | None,
    recorded: dict[int, int],
    superseded: dict[int, int],
) -> dict[int, WindowAccount]:
    here = [slices.c.dataset == dataset]
    if window_starts is not None:
        here.append(slices.c.window_start.in_(window_starts))
    published, quarantined = slices.c.published_at.is_not(None), slices.c.quarantine_id.is_not(None)
    by_state = tx.execute(
        select(
            slices.c.window_start,
            func.coalesce(func.sum(slices.c.rows).filter(published), 0).label("published"),
            func.coalesce(func.sum(slices.c.rows).filter(~published, quarantined), 0).label("quarantined"),
            func.coalesce(func.sum(slices.c.rows).filter(~published, ~quarantined), 0).label("queued"),
        )
        .where(*here)
        .group_by(slices.c.window_start)
    )
    states = {row.window_start: row for row in by_state}
    past = past_of_windows(tx, dataset, window_starts)
    lost = lost_rows(tx, dataset, window_starts)
    corrected = corrected_rows(tx, dataset, window_starts)
    acknowledged = tx.execute(
        select(batch_slices.c.window_start, func.sum(batch_slices.c.rows))
        .join(slices, IN_SLICE)
        .where(*here)
        .group_by(batch_slices.c.window_start)
    )
    staged = {start: int(rows) for start, rows in acknowledged}
    return {
        start: WindowAccount(
            window_start=start,
            staged=staged.get(start, 0),
            published=int(states[start].published) if start in states else 0,
            quarantined=int(states[start].quarantined) if start in states else 0,
            queued=int(states[start].queued) if start in states else 0,
            recorded=recorded.get(start, 0),
            pruned=past[start].pruned if start in past else 0,
            expired=past[start].expired if start in past else 0,
            superseded=superseded.get(start, 0),
            lost=lost.get(start, 0),
            corrected=corrected.get(start, 0),
        )
        for start in sorted({*states, *staged, *recorded, *past, *lost, *corrected})
    }


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


@dataclass(frozen=True, kw_only=True)
class NewLoss:
    """What is given up of one window, by whom, when (microseconds since the epoch) and why.

    ``rows`` below zero are rows of unknown origin that are taken for good.
    """

    dataset: str
    window_start: int
    rows: int
    reason: str
    accepted_by: str
    accepted_at: int


@dataclass(frozen=True, kw_only=True)
class Loss(NewLoss):
    """What was given up; it holds until ``ended_at``."""

    id: int
    ended_at: int | None = None
    ended_by: str | None = None


def accept_loss(tx: Connection, loss: NewLoss) -> Loss | None:
    """Give up rows of a window; None where the very same was entered before, as a transaction is done again."""
    lock_dataset(tx, loss.dataset)
    row = asdict(loss)
    entered = tx.execute(select(losses.c.id).where(*(losses.c[name] == value for name, value in row.items()))).first()
    if entered is not None:
        return None
    loss_id = tx.execute(insert(losses).values(row).returning(losses.c.id)).scalar_one()
    count(tx, LOST_ROWS, loss.dataset, "", max(0, loss.rows))
    return Loss(id=loss_id, **row)


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

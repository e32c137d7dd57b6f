"""Where the ledger says that the rows of each window are: the ledger's half of a row audit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from timestore_pipeline.ledger.builds import Build, build_in_flight
from timestore_pipeline.ledger.losses import lost_rows
from timestore_pipeline.ledger.past import past_of_windows
from timestore_pipeline.ledger.registry import last_claimed_sequence, table_versions
from timestore_pipeline.ledger.schema import batch_slices, slices, windows

# Below the limit of variables in one SQLite statement, however it was compiled.
_WINDOWS_PER_QUERY = 500


@dataclass(frozen=True)
class WindowAccount:
    """The rows of one window in the ledger; ``window_start`` in microseconds since the epoch.

    ``staged`` is what batches brought when they were acknowledged. It is ``published``, ``quarantined`` with a segment
    that cannot be read, or still ``queued``. ``recorded`` is what builds have put into the window in the table, and
    ``superseded`` how many rows a later one of the same key has taken the place of. ``pruned`` rows were published too,
    and the ledger has forgotten their batches. ``expired`` rows were published and are dropped from the table by age,
    ``lost`` ones are gone from it, and an operator has given them up.
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

    @property
    def explained(self) -> int:
        """How many of the staged rows are somewhere."""
        return self.published + self.quarantined + self.queued

    def unaccounted(self, rows_in_table: int) -> int:
        """Return how many published rows are nowhere if the table has ``rows_in_table``; below zero it has too many."""
        return self.published + self.pruned - rows_in_table - self.superseded - self.expired - self.lost


@dataclass(frozen=True)
class TableState:
    """Which version of the table readers are given, the last sequence claimed, and the build that has not ended."""

    version: int | None
    last_sequence: int
    in_flight: Build | None


def table_state(tx: Connection, dataset: str) -> TableState:
    """Return how far the table of a dataset is; equal before and after means that no build did anything between."""
    return TableState(
        table_versions(tx, [dataset]).get(dataset), last_claimed_sequence(tx, dataset), build_in_flight(tx, dataset)
    )


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
    wanted = sorted(set(window_starts))
    found: dict[int, WindowAccount] = {}
    for number in range(0, len(wanted), _WINDOWS_PER_QUERY):
        some = wanted[number : number + _WINDOWS_PER_QUERY]
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
    acknowledged = tx.execute(
        select(batch_slices.c.window_start, func.sum(batch_slices.c.rows))
        .join(
            slices,
            (slices.c.segment_id == batch_slices.c.segment_id) & (slices.c.window_start == batch_slices.c.window_start),
        )
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
        )
        for start in sorted({*states, *staged, *recorded, *past, *lost})
    }

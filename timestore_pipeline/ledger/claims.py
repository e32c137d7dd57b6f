"""Claims: a new build gets its slices and windows, which are its own until it ends (invariant 5)."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Select, func, insert, select, update

from timestore_pipeline.errors import BuildInFlight, LedgerError
from timestore_pipeline.ledger.builds import Build, NewBuild, build_of_row
from timestore_pipeline.ledger.lanes import (
    Lane,
    claimed_already,
    find_lane,
    free_slices,
    ids_of,
    share,
    staged_slices,
    staged_windows,
)
from timestore_pipeline.ledger.schema import batch_slices, builds, datasets, replaced_windows, schemas, slices
from timestore_pipeline.ledger.slices import IN_SLICE, Slice, assign_slices, slices_of_build
from timestore_pipeline.ledger.states import BuildKind, BuildState
from timestore_pipeline.ledger.windows import windows_replaced_by

MOST_APART = 2**31
"""How far the sequences of two builds may lie apart: the next one is drawn at random.

Two copies of one ledger so give their builds different sequences. Whoever finds a sequence in a table, or in the name
of a file, knows whose it is: no other build has it. 2**63 are enough for some 2**32 builds.
"""


@dataclass(frozen=True)
class Claim:
    """A build in flight with the slices that are its own until it ends.

    ``left_some``: windows behind its own were left to other builds.
    """

    build: Build
    slices: tuple[Slice, ...]
    left_some: bool = False

    def by_window(self) -> dict[int, list[Slice]]:
        """Return the slices by the starts of their windows, in the order of the claim."""
        found: dict[int, list[Slice]] = defaultdict(list)
        for each in self.slices:
            found[each.window_start].append(each)
        return found


def claim_slices(
    tx: Connection,
    new: NewBuild,
    first_window: int | None = None,
    last_window: int | None = None,
    *,
    least_rows: int | None = None,
) -> Claim | None:
    """Claim the dataset's staged slices in the windows ``first_window … last_window`` (starts; None is unbounded).

    Windows that another build has are left to it. Done again with the same owner and moment, it returns the claim that
    it made the first time. With ``least_rows``, windows are left to builds in the lanes that are still free, if each
    then gets so many rows.

    Returns:
        The claim, or None where nothing is staged there.

    Raises:
        BuildInFlight: no lane is free, others have all windows in which anything is staged, or the columns have
            changed and one of the builds has to be alone.
    """
    mine, in_flight = claimed_already(tx, new)
    if mine is not None:
        return Claim(mine, tuple(slices_of_build(tx, mine.id)))
    lane = find_lane(tx, new, in_flight)
    share_ends = None
    if least_rows is not None and lane.free > 1:
        share_ends = _last_of_share(tx, new.dataset, lane, first_window, last_window, least_rows)
        last_window = last_window if share_ends is None else share_ends
    claimed = staged_slices(tx, new.dataset, first_window, last_window, lane.others)
    if not claimed:
        if lane.others and staged_windows(tx, new.dataset, first_window, last_window):
            raise BuildInFlight(new.dataset, lane.others[0].id, lane.others[0].owner)
        return None
    build = claim_build(tx, new, lane, {each.window_start for each in claimed}, claimed)
    return Claim(build, claimed, left_some=share_ends is not None)


def claim_windows(tx: Connection, new: NewBuild, window_starts: Iterable[int], rows: int) -> Build:
    """Claim windows whose ``rows`` published rows a build writes anew (or drops); their staged slices stay staged.

    Done again with the same owner and moment, it returns the build that it claimed the first time.

    Raises:
        BuildInFlight: as many builds of the dataset as may be have not ended, or one that has to be alone or has such a
            window.
    """
    mine, in_flight = claimed_already(tx, new)
    if mine is not None:
        return mine
    starts = set(window_starts)
    return claim_build(tx, new, find_lane(tx, new, in_flight, starts), starts, rows=rows)


def claim_build(
    tx: Connection,
    new: NewBuild,
    lane: Lane,
    window_starts: Iterable[int],
    claimed: Sequence[Slice] = (),
    *,
    rows: int = 0,
) -> Build:
    """Put a build in flight with a higher sequence than all before it, after :func:`find_lane` in the transaction.

    ``claimed`` are all that :func:`staged_slices` found in windows of its own: they are the build's from now on, and
    their rows are added to ``rows``.
    """
    starts, dataset = set(window_starts), new.dataset
    free: list[ColumnElement[bool]] = []
    if claimed:
        free = free_slices(dataset, claimed[0].window_start, claimed[-1].window_start, ids_of(lane.others))
    sequence = tx.execute(
        update(datasets)
        .where(datasets.c.name == dataset)
        .values(next_sequence=datasets.c.next_sequence + 1 + secrets.randbelow(MOST_APART))
        .returning(datasets.c.next_sequence - 1)
    ).scalar_one()
    build = build_of_row(
        tx.execute(
            insert(builds)
            .values(
                dataset=dataset,
                sequence=sequence,
                lane=lane.number,
                schema_version=select(func.coalesce(func.max(schemas.c.version), 0))
                .where(schemas.c.dataset == dataset)
                .scalar_subquery(),
                owner=new.owner,
                kind=new.kind.value,
                trigger=new.trigger,
                state=BuildState.CLAIMED.value,
                claimed_at=new.now,
                lease_expires_at=new.now + new.lease_micros,
                first_window=min(starts),
                last_window=max(starts),
                batches=_batch_count(free).scalar_subquery() if free else 0,
                rows=rows + sum(each.rows for each in claimed),
            )
            .returning(builds)
        ).one()
    )
    if free:
        assigned = assign_slices(tx, build.id, *free)
        if assigned != len(claimed):
            raise LedgerError(
                f"dataset {dataset!r}: {assigned:,} slices were there to claim just after {len(claimed):,} were; "
                "something writes to the ledger without the dataset's lock. Nothing was claimed"
            )
    if new.replaces or new.kind is not BuildKind.FLUSH:
        _replace(tx, build, starts)
    return build


def replace_also(tx: Connection, build: Build, window_starts: Iterable[int]) -> None:
    """Let a build in flight replace the files of more windows, before it commits."""
    _replace(tx, build, set(window_starts) - windows_replaced_by(tx, build.id))


def _replace(tx: Connection, build: Build, window_starts: Iterable[int]) -> None:
    listed = [{"build_id": build.id, "window_start": start} for start in sorted(window_starts)]
    if listed:
        tx.execute(insert(replaced_windows), listed)


def _last_of_share(
    tx: Connection, dataset: str, lane: Lane, first_window: int | None, last_window: int | None, least_rows: int
) -> int | None:
    """Return the last window of a new build's share; None where that is all that it could have."""
    free = free_slices(dataset, first_window, last_window, ids_of(lane.others))
    rows = tx.execute(
        select(slices.c.window_start, func.sum(slices.c.rows))
        .where(*free)
        .group_by(slices.c.window_start)
        .order_by(slices.c.window_start)
    ).all()
    chosen = share([(start, int(count)) for start, count in rows], lane.free, least_rows)
    return chosen[-1] if len(chosen) < len(rows) else None


def _batch_count(of_slices: Iterable[ColumnElement[bool]]) -> Select[int]:
    pairs = (
        select(batch_slices.c.segment_id, batch_slices.c.ordinal)
        .distinct()
        .join(slices, IN_SLICE)
        .where(*of_slices)
        .subquery()
    )
    return select(func.count()).select_from(pairs)

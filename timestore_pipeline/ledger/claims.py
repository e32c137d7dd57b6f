"""Claims: a new build gets its slices and windows, which are its own until it ends (invariant 5)."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Select, func, insert, select, update

from timestore_pipeline.errors import BuildInFlight, LedgerError
from timestore_pipeline.ledger.builds import Build, build_of_row
from timestore_pipeline.ledger.lanes import (
    Entry,
    claimed_already,
    enter,
    free_slices,
    ids_of,
    share,
    staged_slices,
    staged_windows,
)
from timestore_pipeline.ledger.schema import batch_slices, builds, datasets, replaced_windows, schemas, slices
from timestore_pipeline.ledger.slices import IN_SLICE, Slice, assign_slices, slices_of_build
from timestore_pipeline.ledger.states import BuildKind, BuildState

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
        for piece in self.slices:
            found[piece.window_start].append(piece)
        return found


def claim_slices(
    tx: Connection,
    dataset: str,
    *,
    owner: str,
    trigger: str,
    first_window: int | None,
    last_window: int | None,
    lease_micros: int,
    now: int,
    replaces: bool = False,
    lanes: int = 1,
    least_rows: int | None = None,
) -> Claim | None:
    """Claim the dataset's staged slices in the windows ``first_window … last_window`` (starts; None is unbounded).

    ``replaces`` says that the build will commit the whole content of these windows, not what it adds to them.
    Windows that another build has are left to it. Done again with the same ``owner`` and ``now``, it returns the claim
    that it made the first time.

    Args:
        tx: an open transaction.
        dataset: a known dataset.
        owner: who builds.
        trigger: why.
        first_window: the first window, inclusive.
        last_window: the last window, inclusive.
        lease_micros: for how long the build is left alone without a heartbeat.
        now: microseconds since the epoch.
        replaces: see above.
        lanes: how many builds of the dataset may be in flight at once.
        least_rows: leave windows to builds in the lanes that are still free, if each then gets so many rows; None
            takes all.

    Returns:
        The claim, or None where nothing is staged there.

    Raises:
        BuildInFlight: no lane is free, others have all windows in which anything is staged, or the columns have
            changed and one of the builds has to be alone.
    """
    mine, in_flight = claimed_already(tx, dataset, owner, now)
    if mine is not None:
        return Claim(mine, tuple(slices_of_build(tx, mine.id)))
    entry = enter(tx, dataset, BuildKind.FLUSH, lanes, in_flight)
    share_ends = None
    if least_rows is not None and entry.lanes_left > 1:
        share_ends = _last_of_share(tx, entry, first_window, last_window, least_rows)
        last_window = last_window if share_ends is None else share_ends
    pieces = staged_slices(tx, dataset, first_window, last_window, entry.others)
    starts = {piece.window_start for piece in pieces}
    if not starts:
        if entry.others and staged_windows(tx, dataset, first_window, last_window):
            raise BuildInFlight(dataset, entry.others[0].id, entry.others[0].owner)
        return None
    replaced = starts if replaces else ()
    build = new_build(
        tx,
        entry,
        BuildKind.FLUSH,
        starts,
        replaced,
        owner=owner,
        trigger=trigger,
        lease_micros=lease_micros,
        now=now,
        pieces=pieces,
    )
    return Claim(build, pieces, left_some=share_ends is not None)


def claim_windows(
    tx: Connection,
    dataset: str,
    kind: BuildKind,
    window_starts: Iterable[int],
    *,
    owner: str,
    trigger: str,
    rows: int,
    lease_micros: int,
    now: int,
    lanes: int = 1,
) -> Build:
    """Claim windows whose ``rows`` published rows a build writes anew (or drops); their staged slices stay staged.

    Done again with the same ``owner`` and ``now``, it returns the build that it entered the first time.

    Raises:
        BuildInFlight: ``lanes`` builds of the dataset have not ended, or one that has to be alone or has such a window.
    """
    mine, in_flight = claimed_already(tx, dataset, owner, now)
    if mine is not None:
        return mine
    starts = set(window_starts)
    entry = enter(tx, dataset, kind, lanes, in_flight, starts)
    return new_build(
        tx, entry, kind, starts, starts, owner=owner, trigger=trigger, rows=rows, lease_micros=lease_micros, now=now
    )


def new_build(
    tx: Connection,
    entry: Entry,
    kind: BuildKind,
    window_starts: Iterable[int],
    replaced: Iterable[int],
    *,
    owner: str,
    trigger: str,
    lease_micros: int,
    now: int,
    rows: int = 0,
    pieces: Sequence[Slice] = (),
) -> Build:
    """Enter a build in flight with a higher sequence than all before it, after :func:`enter` in the same transaction.

    ``replaced`` are those of its windows whose files its commit replaces. ``pieces`` are all that :func:`staged_slices`
    found in windows of its own: they are the build's from now on, and their rows are added to ``rows``.
    """
    starts, dataset = set(window_starts), entry.dataset
    free: list[ColumnElement[bool]] = []
    if pieces:
        free = free_slices(dataset, pieces[0].window_start, pieces[-1].window_start, ids_of(entry.others))
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
                lane=entry.lane,
                schema_version=select(func.coalesce(func.max(schemas.c.version), 0))
                .where(schemas.c.dataset == dataset)
                .scalar_subquery(),
                owner=owner,
                kind=kind.value,
                trigger=trigger,
                state=BuildState.CLAIMED.value,
                claimed_at=now,
                lease_expires_at=now + lease_micros,
                first_window=min(starts),
                last_window=max(starts),
                batches=_batch_count(free).scalar_subquery() if free else 0,
                rows=rows + sum(piece.rows for piece in pieces),
            )
            .returning(builds)
        ).one()
    )
    if free:
        assigned = assign_slices(tx, build.id, *free)
        if assigned != len(pieces):
            raise LedgerError(
                f"dataset {dataset!r}: {assigned:,} slices were there to claim just after {len(pieces):,} were; "
                "something writes to the ledger without the dataset's lock. Nothing was claimed"
            )
    listed = [{"build_id": build.id, "window_start": start} for start in sorted(set(replaced))]
    if listed:
        tx.execute(insert(replaced_windows), listed)
    return build


def replace_also(tx: Connection, build: Build, window_starts: Iterable[int]) -> None:
    """Let a build in flight replace the files of more windows, before it commits."""
    known = set(
        tx.execute(select(replaced_windows.c.window_start).where(replaced_windows.c.build_id == build.id)).scalars()
    )
    more = [{"build_id": build.id, "window_start": start} for start in sorted(set(window_starts) - known)]
    if more:
        tx.execute(insert(replaced_windows), more)


def _last_of_share(
    tx: Connection, entry: Entry, first_window: int | None, last_window: int | None, least_rows: int
) -> int | None:
    """Return the last window of a new build's share; None where that is all that it could have."""
    free = free_slices(entry.dataset, first_window, last_window, ids_of(entry.others))
    rows = tx.execute(
        select(slices.c.window_start, func.sum(slices.c.rows))
        .where(*free)
        .group_by(slices.c.window_start)
        .order_by(slices.c.window_start)
    ).all()
    chosen = share([(start, int(count)) for start, count in rows], entry.lanes_left, least_rows)
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

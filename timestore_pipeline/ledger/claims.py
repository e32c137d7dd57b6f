"""Claims: a new build gets its slices and windows, which are its own until it ends (invariant 5)."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Select, func, insert, select, update

from timestore_pipeline.errors import CorrectionPending, LedgerError
from timestore_pipeline.ledger.builds import Build, NewBuild, build_of_row
from timestore_pipeline.ledger.corrected_windows import pending_corrections
from timestore_pipeline.ledger.lanes import (
    claimed_already,
    find_lane,
    free_slices,
    ids_of,
    queued_windows,
    refuse_windows_of,
    share,
    staged_slices,
    windows_in_flight,
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
class Wanted:
    """What a build claims of its dataset; windows by their starts, in microseconds since the epoch.

    All that is staged from the first to the last window of ``staged`` becomes its own, and so do windows there whose
    published rows are to be corrected; None there is unbounded, and without a range nothing does. ``windows`` are those
    whose ``rows`` published rows it writes anew, or drops. With ``least_rows`` it leaves windows to builds in the lanes
    that are still free, if each of them then gets so many rows.
    """

    staged: tuple[int | None, int | None] | None = None
    windows: frozenset[int] = frozenset()
    rows: int = 0
    least_rows: int | None = None


@dataclass(frozen=True)
class Claim:
    """A build in flight with the slices that are its own until it ends, and the windows whose files it replaces.

    ``left_some``: windows behind its own were left to other builds.
    """

    build: Build
    slices: tuple[Slice, ...]
    replaced: frozenset[int]
    left_some: bool = False

    def by_window(self) -> dict[int, list[Slice]]:
        """Return the slices by the starts of their windows, in the order of the claim."""
        found: dict[int, list[Slice]] = defaultdict(list)
        for piece in self.slices:
            found[piece.window_start].append(piece)
        return found


def claim_build(tx: Connection, new: NewBuild, wanted: Wanted) -> Claim | None:
    """Claim what a build wants; None where there is nothing of it.

    A flush leaves windows that another build has to it. Every other build gets all of its windows, or none. Done again
    with the same owner and ``now``, this returns the claim that it made the first time.

    Raises:
        BuildInFlight: no lane is free, others have the windows, or the columns have changed and one of the builds has
            to be alone.
        CorrectionPending: a compaction wants windows whose rows are to be corrected.
    """
    dataset, is_flush = new.dataset, new.kind is BuildKind.FLUSH
    found = claimed_already(tx, new)
    mine, others = found.mine, found.others
    if mine is not None:
        pieces = tuple(piece.before(mine.sequence) for piece in slices_of_build(tx, mine.id))
        return Claim(mine, pieces, frozenset(windows_replaced_by(tx, mine.id)))
    lane = find_lane(tx, new, others)
    left_alone = others if is_flush else ()
    pieces: tuple[Slice, ...] = ()
    share_ends = None
    to_correct: set[int] = set()
    if wanted.staged is not None:
        first, last = wanted.staged
        if wanted.least_rows is not None and lane.free > 1:
            free = free_slices(dataset, first, last, ids_of(left_alone))
            share_ends = _last_of_share(tx, free, lane.free, wanted.least_rows)
        if share_ends is not None:
            last = share_ends
        pieces = staged_slices(tx, dataset, first, last, left_alone)
        if is_flush and found.has_corrections:
            to_correct = pending_corrections(tx, dataset, first, last).keys() - windows_in_flight(tx, dataset)
        if not pieces and not to_correct and left_alone:
            refuse_windows_of(tx, left_alone, queued_windows(tx, dataset, *wanted.staged))
    starts = wanted.windows | to_correct | {piece.window_start for piece in pieces}
    if new.kind is BuildKind.COMPACTION and found.has_corrections:
        _refuse_pending(tx, new, starts)
    if not is_flush:
        refuse_windows_of(tx, others, starts)
    if not starts:
        return None
    free = []
    if pieces:
        free = free_slices(dataset, pieces[0].window_start, pieces[-1].window_start, ids_of(left_alone))
    build = _new_build(tx, new, lane.number, starts, wanted.rows + sum(piece.rows for piece in pieces), free)
    assigned = assign_slices(tx, build.id, *free) if free else 0
    if assigned != len(pieces):
        raise LedgerError(
            f"dataset {dataset!r}: {assigned:,} slices were there to claim just after {len(pieces):,} were; "
            "something writes to the ledger without the dataset's lock. Nothing was claimed"
        )
    replaced = starts if new.replaces or not is_flush else frozenset(to_correct)
    _replace(tx, build, replaced)
    return Claim(build, pieces, replaced, left_some=share_ends is not None)


def _refuse_pending(tx: Connection, new: NewBuild, starts: Collection[int]) -> None:
    """Refuse to merge files with rows that are about to be left out: others would take them for rows that came later.

    Raises:
        CorrectionPending: there are any; their flush goes first.
    """
    if not pending_corrections(tx, new.dataset).keys().isdisjoint(starts):
        raise CorrectionPending(new.dataset)


def _new_build(
    tx: Connection,
    new: NewBuild,
    lane: int,
    starts: Collection[int],
    rows: int,
    of_slices: Sequence[ColumnElement[bool]],
) -> Build:
    """Record a build in flight with a higher sequence than all before it; its slices are those ``of_slices``."""
    dataset = new.dataset
    sequence = tx.execute(
        update(datasets)
        .where(datasets.c.name == dataset)
        .values(next_sequence=datasets.c.next_sequence + 1 + secrets.randbelow(MOST_APART))
        .returning(datasets.c.next_sequence - 1)
    ).scalar_one()
    return build_of_row(
        tx.execute(
            insert(builds)
            .values(
                dataset=dataset,
                sequence=sequence,
                lane=lane,
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
                batches=_batch_count(of_slices).scalar_subquery() if of_slices else 0,
                rows=rows,
            )
            .returning(builds)
        ).one()
    )


def replace_also(tx: Connection, build: Build, window_starts: Iterable[int]) -> None:
    """Let a build in flight replace the files of more windows, before it commits."""
    _replace(tx, build, set(window_starts) - windows_replaced_by(tx, build.id))


def _replace(tx: Connection, build: Build, window_starts: Iterable[int]) -> None:
    listed = [{"build_id": build.id, "window_start": start} for start in sorted(window_starts)]
    if listed:
        tx.execute(insert(replaced_windows), listed)


def _last_of_share(tx: Connection, free: Sequence[ColumnElement[bool]], builders: int, least_rows: int) -> int | None:
    """Return the last window of a build's share of free slices; None where that is all that it could have."""
    rows = tx.execute(
        select(slices.c.window_start, func.sum(slices.c.rows))
        .where(*free)
        .group_by(slices.c.window_start)
        .order_by(slices.c.window_start)
    ).all()
    chosen = share([(start, int(count)) for start, count in rows], builders, least_rows)
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

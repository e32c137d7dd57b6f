"""The windows in which corrections take rows of published files, and how many builds have left out of them.

``corrected_windows`` names the windows in which published files may still have such rows; the next flush or rebuild of
a window leaves them out, counts them there, and is done with it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, Subquery, and_, delete, exists, func, insert, select, true, update

from timestore_pipeline.ledger.corrections import CORRECTION, Correction
from timestore_pipeline.ledger.schema import (
    build_corrections,
    builds,
    corrected_windows,
    corrections,
    replaced_windows,
    slices,
    windows,
)
from timestore_pipeline.ledger.statements import BUILD_IS_IN_FLIGHT, WINDOW_IS_PENDING, in_parts, of_windows, upsert_all
from timestore_pipeline.ledger.states import BuildKind, CorrectionKind

Taken = Counter[tuple[int, int]]
"""(window start, number of a correction) → rows that it takes there."""


@dataclass(frozen=True)
class LeftOut:
    """What a build leaves out because corrections take it: of the slices that it has, and of files that it replaces."""

    of_slices: Taken = field(default_factory=Counter)
    of_files: Taken = field(default_factory=Counter)

    @property
    def taken(self) -> Taken:
        """Both together."""
        return self.of_slices + self.of_files


_OF_PENDING = and_(
    corrected_windows.c.dataset == corrections.c.dataset, corrected_windows.c.number == corrections.c.number
)


def mark_windows(tx: Connection, dataset: str, number: int, starts: Iterable[int]) -> None:
    """Record that published files of these windows, or of builds in flight, may have rows that a correction takes."""
    for some in in_parts(sorted(starts), values_each=4):
        tx.execute(
            insert(corrected_windows),
            [{"dataset": dataset, "window_start": start, "number": number, "pending": True} for start in some],
        )


def windows_with_files(tx: Connection, dataset: str, first_window: int, last_window: int) -> set[int]:
    """Return the windows of a range that have published files, or that a build in flight may give any."""
    here = of_windows(windows, dataset, first_window, last_window)
    found = set(tx.execute(select(windows.c.window_start).where(*here)).scalars())
    for claimed in _in_builds():
        in_range = (claimed.c.dataset == dataset, claimed.c.window_start.between(first_window, last_window))
        found |= set(tx.execute(select(claimed.c.window_start).where(*in_range)).scalars())
    return found


def _in_builds() -> tuple[Subquery, Subquery]:
    """Return SQL for the windows that builds have just now: of slices that they claimed, and that they write anew."""
    claimed = select(slices.c.dataset, slices.c.window_start).join(builds, builds.c.id == slices.c.build_id)
    replaced = select(builds.c.dataset, replaced_windows.c.window_start).join(
        replaced_windows, replaced_windows.c.build_id == builds.c.id
    )
    return claimed.where(BUILD_IS_IN_FLIGHT).subquery(), replaced.where(BUILD_IS_IN_FLIGHT).subquery()


def pending_corrections(
    tx: Connection, dataset: str, first_window: int | None = None, last_window: int | None = None
) -> dict[int, tuple[Correction, ...]]:
    """Return window start → the corrections that may still take rows of its published files, oldest first."""
    query = (
        CORRECTION.add_columns(corrected_windows.c.window_start)
        .join(corrected_windows, _OF_PENDING)
        .where(WINDOW_IS_PENDING, *of_windows(corrected_windows, dataset, first_window, last_window))
        .order_by(corrected_windows.c.window_start, corrections.c.number)
    )
    found: defaultdict[int, tuple[Correction, ...]] = defaultdict(tuple)
    for row in tx.execute(query).mappings():
        values = dict(row)
        start = values.pop("window_start")
        found[start] += (Correction(**{**values, "kind": CorrectionKind(values["kind"])}),)
    return dict(found)


@dataclass(frozen=True)
class PendingQueue:
    """What of a dataset waits to be corrected in the table: windows by their starts, times in microseconds."""

    windows: int
    first_window: int
    last_window: int
    oldest_at: int


def pending_queues(tx: Connection, dataset: str | None = None) -> dict[str, PendingQueue]:
    """Return what waits to be corrected in the table of every dataset, or of one, where anything does.

    Windows that a build has just now are left out: no other one can correct them before it has ended.
    """
    here = corrected_windows.c
    # Asked of each pending window: mostly there is none, and then nobody looks at builds.
    in_builds = [
        exists().where(each.c.dataset == here.dataset, each.c.window_start == here.window_start)
        for each in _in_builds()
    ]
    query = (
        select(
            here.dataset,
            func.count(here.window_start.distinct()),
            func.min(here.window_start),
            func.max(here.window_start),
            func.min(corrections.c.acknowledged_at),
        )
        .select_from(corrected_windows.join(corrections, _OF_PENDING))
        .where(
            WINDOW_IS_PENDING, *(~each for each in in_builds), true() if dataset is None else here.dataset == dataset
        )
        .group_by(here.dataset)
    )
    return {name: PendingQueue(*values) for name, *values in tx.execute(query)}


def record_taken(tx: Connection, build_id: int, taken: Mapping[tuple[int, int], int]) -> None:
    """Record what a build leaves out, before it commits: whoever finds its commit in the table knows it by this."""
    tx.execute(delete(build_corrections).where(build_corrections.c.build_id == build_id))
    rows = [
        {"build_id": build_id, "window_start": start, "number": number, "rows": count}
        for (start, number), count in taken.items()
        if count
    ]
    for some in in_parts(rows, values_each=4):
        tx.execute(insert(build_corrections), some)


def taken_by_build(tx: Connection, build_id: int) -> Taken:
    """Return what a build has left out."""
    query = select(build_corrections.c.window_start, build_corrections.c.number, build_corrections.c.rows)
    found: Taken = Counter()
    for start, number, rows in tx.execute(query.where(build_corrections.c.build_id == build_id)):
        found[start, number] = int(rows)
    return found


def settle_windows(
    tx: Connection, dataset: str, kind: BuildKind, sequence: int, replaced: Collection[int], taken: Taken
) -> int:
    """Record what a build has left out of windows, and which of them need no correction any more.

    Returns:
        How many rows more than before were left out of them, now.

    A flush corrects all files of the windows that it replaces, a rebuild derives them again, and an expiry drops them.
    Of a rebuild the counts are those of all rows that there ever were. A build that only writes some files of a window
    anew settles nothing: the others may have rows that are still to be taken.
    """
    of_dataset = corrected_windows.c.dataset == dataset
    rebuilt = sorted(replaced) if kind is BuildKind.REBUILD else []
    again = sum(corrected_rows(tx, dataset, rebuilt).values()) if rebuilt and taken else 0
    for some in in_parts(rebuilt):
        tx.execute(
            update(corrected_windows).where(of_dataset, corrected_windows.c.window_start.in_(some)).values(rows=0)
        )
    counted = [
        {"dataset": dataset, "window_start": start, "number": number, "pending": False, "rows": rows}
        for (start, number), rows in taken.items()
    ]
    for some in in_parts(counted, values_each=5):
        upsert_all(tx, corrected_windows, some, _add_rows)
    more = max(0, taken.total() - again)
    if kind in (BuildKind.COMPACTION, BuildKind.REPAIR):
        return more
    older = select(corrections.c.number).where(
        corrections.c.dataset == dataset, corrections.c.before_sequence <= sequence
    )
    for some in in_parts(sorted(replaced)):
        here = (of_dataset, WINDOW_IS_PENDING, corrected_windows.c.window_start.in_(some))
        tx.execute(update(corrected_windows).where(*here, corrected_windows.c.number.in_(older)).values(pending=False))
    return more


def _add_rows(new):
    return {"rows": corrected_windows.c.rows + new.rows}


def count_corrected(tx: Connection, dataset: str, window_start: int, number: int, rows: int) -> None:
    """Record that a correction took rows of a window, by what files say."""
    row = {"dataset": dataset, "window_start": window_start, "number": number, "pending": False, "rows": rows}
    upsert_all(tx, corrected_windows, [row], _add_rows)


@dataclass(frozen=True)
class WindowCorrection:
    """A correction in one window: the rows that builds have left out there because of it, and whether more may come."""

    correction: Correction
    rows: int
    pending: bool


def corrections_of_window(tx: Connection, dataset: str, window_start: int) -> list[WindowCorrection]:
    """Return the corrections that have taken rows of a window, or still may of its files; oldest first."""
    query = (
        CORRECTION.add_columns(corrected_windows.c.rows, corrected_windows.c.pending)
        .join(corrected_windows, _OF_PENDING)
        .where(*of_windows(corrected_windows, dataset, window_start, window_start))
        .order_by(corrections.c.number)
    )
    found = []
    for row in tx.execute(query).mappings():
        values = dict(row)
        rows, pending = int(values.pop("rows")), bool(values.pop("pending"))
        if rows or pending:
            correction = Correction(**{**values, "kind": CorrectionKind(values["kind"])})
            found.append(WindowCorrection(correction, rows, pending))
    return found


def forget_corrected(tx: Connection, dataset: str) -> None:
    """Forget what was taken of published rows, and what was still to be taken: the table is gone."""
    tx.execute(delete(corrected_windows).where(corrected_windows.c.dataset == dataset))


def corrected_rows(tx: Connection, dataset: str, window_starts: Iterable[int] | None = None) -> dict[int, int]:
    """Return window start → rows that corrections took and that builds have left out, for those of these with any."""
    query = (
        select(corrected_windows.c.window_start, func.sum(corrected_windows.c.rows))
        .where(corrected_windows.c.dataset == dataset, corrected_windows.c.rows != 0)
        .group_by(corrected_windows.c.window_start)
    )
    wanted = None if window_starts is None else set(window_starts)
    return {start: int(rows) for start, rows in tx.execute(query) if wanted is None or start in wanted}

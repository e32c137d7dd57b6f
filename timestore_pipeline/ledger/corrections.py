"""Corrections: what takes back rows that were acknowledged before it, and on what of them it still acts (invariant 12).

The corrections of a dataset are numbered in the order in which they are acknowledged, and no clock is in that order.

- A segment says which correction was the last one before it (``after_correction``). Those with higher numbers act on
  its rows, for as long as there is the segment: also when it comes back late from quarantine or an aborted build.
- The file of a build has the rows of slices that the build had claimed, without what corrections took of them until
  then. So a correction acts on the files of builds that were claimed before it (``before_sequence``), and on no others.

``corrected_windows`` names the windows in which published files may still have such rows; the next flush or rebuild of
a window leaves them out, counts them there, and is done with it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    and_,
    delete,
    func,
    insert,
    select,
    true,
    union,
    update,
)

from timestore_pipeline.ledger.schema import (
    batches,
    build_corrections,
    builds,
    corrected_windows,
    corrections,
    datasets,
    replaced_windows,
    segments,
    slices,
    windows,
)
from timestore_pipeline.ledger.statements import in_parts, of_windows, upsert_all
from timestore_pipeline.ledger.states import BuildKind, BuildState, CorrectionKind

Taken = Counter[tuple[int, int]]
"""(window start, number of a correction) → rows that it takes there."""

_OF_PENDING = and_(
    corrected_windows.c.dataset == corrections.c.dataset, corrected_windows.c.number == corrections.c.number
)

IS_PENDING = corrected_windows.c.pending.is_(True)


@dataclass(frozen=True)
class NewCorrection:
    """What is to be taken back: the rows of a dataset with times from ``range_start`` until before ``range_end``.

    ``batch_id`` is the batch whose rows take the place, ``path`` the file by which a ledger that is made again knows
    the correction. Times are microseconds since the epoch.
    """

    dataset: str
    _: KW_ONLY
    kind: CorrectionKind
    range_start: int
    range_end: int
    batch_id: str
    fingerprint: str
    source: str
    path: str


@dataclass(frozen=True)
class Correction(NewCorrection):
    """A correction that was acknowledged as the dataset's number ``number``."""

    number: int
    before_sequence: int
    acknowledged_at: int

    def acts_on_file(self, sequence: int | None) -> bool:
        """Whether it may take rows of a file of the build with ``sequence``; None: of another program."""
        return sequence is None or sequence < self.before_sequence

    def may_take(self, min_time: int, max_time: int) -> bool:
        """Whether rows with times from the one to the other can be among those that it takes."""
        return self.range_start <= max_time and min_time < self.range_end

    def takes_all(self, min_time: int, max_time: int) -> bool:
        """Whether all rows with times from the one to the other are."""
        return self.range_start <= min_time and max_time < self.range_end


_CORRECTION = select(
    corrections.c.dataset,
    corrections.c.kind,
    corrections.c.range_start,
    corrections.c.range_end,
    corrections.c.batch_id,
    corrections.c.fingerprint,
    corrections.c.source,
    corrections.c.path,
    corrections.c.number,
    corrections.c.before_sequence,
    corrections.c.acknowledged_at,
)


def _corrections(tx: Connection, *conditions: ColumnElement[bool]) -> list[Correction]:
    query = _CORRECTION.where(*conditions).order_by(corrections.c.dataset, corrections.c.number)
    return [Correction(**{**row, "kind": CorrectionKind(row["kind"])}) for row in tx.execute(query).mappings()]


def corrections_so_far(tx: Connection, dataset: str) -> int:
    """Return the number of the last correction of a dataset, 0 where it had none."""
    return tx.execute(select(datasets.c.corrections).where(datasets.c.name == dataset)).scalar() or 0


def acknowledge_correction(tx: Connection, new: NewCorrection, now: int) -> int:
    """Record a correction; return its number. The caller holds the dataset's lock.

    From here on it acts on whatever was acknowledged before.
    """
    number, sequence = tx.execute(
        update(datasets)
        .where(datasets.c.name == new.dataset)
        .values(corrections=datasets.c.corrections + 1)
        .returning(datasets.c.corrections, datasets.c.next_sequence)
    ).one()
    row = {**asdict(new), "kind": new.kind.value, "number": number}
    tx.execute(insert(corrections).values(**row, before_sequence=sequence, acknowledged_at=now))
    return number


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
    taken = _windows_in_flight().subquery()
    in_range = taken.c.window_start.between(first_window, last_window)
    return found | set(tx.execute(select(taken.c.window_start).where(taken.c.dataset == dataset, in_range)).scalars())


def _windows_in_flight() -> CompoundSelect:
    """Return SQL for the windows that builds have just now: of slices that they claimed, or that they write anew."""
    in_flight = builds.c.state == BuildState.CLAIMED.value
    return union(
        select(slices.c.dataset, slices.c.window_start).join(builds, builds.c.id == slices.c.build_id).where(in_flight),
        select(builds.c.dataset, replaced_windows.c.window_start)
        .join(replaced_windows, replaced_windows.c.build_id == builds.c.id)
        .where(in_flight),
    )


def acting_on(tx: Connection, dataset: str, after: int, first_time: int, last_time: int) -> list[Correction]:
    """Return the corrections with numbers above ``after`` that may take rows with times from the first to the last."""
    return _corrections(
        tx,
        corrections.c.dataset == dataset,
        corrections.c.number > after,
        corrections.c.range_start <= last_time,
        corrections.c.range_end > first_time,
    )


def pending_corrections(
    tx: Connection, dataset: str, first_window: int | None = None, last_window: int | None = None
) -> dict[int, tuple[Correction, ...]]:
    """Return window start → the corrections that may still take rows of its published files, oldest first."""
    query = (
        _CORRECTION.add_columns(corrected_windows.c.window_start)
        .join(corrected_windows, _OF_PENDING)
        .where(IS_PENDING, *of_windows(corrected_windows, dataset, first_window, last_window))
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
    taken = _windows_in_flight().subquery()
    same = and_(
        taken.c.dataset == corrected_windows.c.dataset, taken.c.window_start == corrected_windows.c.window_start
    )
    query = (
        select(
            corrected_windows.c.dataset,
            func.count(corrected_windows.c.window_start.distinct()),
            func.min(corrected_windows.c.window_start),
            func.max(corrected_windows.c.window_start),
            func.min(corrections.c.acknowledged_at),
        )
        .select_from(corrected_windows.join(corrections, _OF_PENDING).outerjoin(taken, same))
        .where(
            IS_PENDING,
            taken.c.window_start.is_(None),
            true() if dataset is None else corrected_windows.c.dataset == dataset,
        )
        .group_by(corrected_windows.c.dataset)
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
) -> None:
    """Record what a build has left out of windows, and which of them need no correction any more.

    A flush corrects all files of the windows that it replaces, a rebuild derives them again, and an expiry drops them.
    Of a rebuild the counts are those of all rows that there ever were. A build that only writes some files of a window
    anew settles nothing: the others may have rows that are still to be taken.
    """
    of_dataset = corrected_windows.c.dataset == dataset
    rebuilt = sorted(replaced) if kind is BuildKind.REBUILD else []
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
    if kind in (BuildKind.COMPACTION, BuildKind.REPAIR):
        return
    older = select(corrections.c.number).where(
        corrections.c.dataset == dataset, corrections.c.before_sequence <= sequence
    )
    for some in in_parts(sorted(replaced)):
        here = (of_dataset, IS_PENDING, corrected_windows.c.window_start.in_(some))
        tx.execute(update(corrected_windows).where(*here, corrected_windows.c.number.in_(older)).values(pending=False))


def _add_rows(new):
    return {"rows": corrected_windows.c.rows + new.rows}


def count_corrected(tx: Connection, dataset: str, window_start: int, number: int, rows: int) -> None:
    """Record that a correction took rows of a window, by what files say."""
    row = {"dataset": dataset, "window_start": window_start, "number": number, "pending": False, "rows": rows}
    upsert_all(tx, corrected_windows, [row], _add_rows)


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


def correction_paths(tx: Connection) -> set[str]:
    """Return the relative paths of the files of all corrections."""
    return set(tx.execute(select(corrections.c.path)).scalars())


def is_acknowledged(tx: Connection, dataset: str, path: str) -> bool:
    """Whether the ledger has the correction whose file is ``path``."""
    query = select(corrections.c.number).where(corrections.c.dataset == dataset, corrections.c.path == path)
    return tx.execute(query).first() is not None


def latest_replacement(tx: Connection, dataset: str, fingerprint: str) -> Correction | None:
    """Return the latest correction that came with a batch of this content, if there was any."""
    found = _corrections(tx, corrections.c.dataset == dataset, corrections.c.fingerprint == fingerprint)
    return found[-1] if found else None


def last_word(tx: Connection, dataset: str, fingerprint: str) -> Correction | None:
    """Return the correction that came with a batch of this content; None where anything was said of its range since.

    Then the very same rows for the very same range are nothing new.
    """
    last = latest_replacement(tx, dataset, fingerprint)
    return last if last is not None and _is_last_word(tx, last) else None


def is_taken(tx: Connection, segment_id: str) -> bool:
    """Whether later corrections have taken all rows of a segment, so that nobody sees any of them."""
    query = (
        select(slices.c.dataset, segments.c.after_correction, slices.c.min_time, slices.c.max_time)
        .join(segments, segments.c.id == slices.c.segment_id)
        .where(segments.c.id == segment_id)
    )
    rows = tx.execute(query).all()
    return bool(rows) and all(
        any(each.takes_all(low, high) for each in acting_on(tx, dataset, after, low, high))
        for dataset, after, low, high in rows
    )


def _is_last_word(tx: Connection, correction: Correction) -> bool:
    """Whether nothing was acknowledged after a correction whose rows are in its range."""
    start, end = correction.range_start, correction.range_end
    if acting_on(tx, correction.dataset, correction.number, start, end - 1):
        return False
    later = (
        select(slices.c.segment_id)
        .join(segments, segments.c.id == slices.c.segment_id)
        .join(batches, batches.c.segment_id == segments.c.id)
        .where(
            slices.c.dataset == correction.dataset,
            slices.c.min_time < end,
            slices.c.max_time >= start,
            segments.c.after_correction >= correction.number,
            batches.c.batch_id != correction.batch_id,
        )
        .limit(1)
    )
    return tx.execute(later).first() is None


@dataclass(frozen=True)
class CorrectionRecord:
    """A correction as an operator is told of it.

    ``rows`` are those that builds have left out because of it so far, of windows where it was the first to take them;
    ``pending_windows`` is in how many windows published files may still have such rows.
    """

    correction: Correction
    rows: int
    windows: int
    pending_windows: int


def recorded_corrections(tx: Connection, dataset: str | None = None, most: int | None = None) -> list[CorrectionRecord]:
    """Return the corrections of a dataset, or of all, the latest first; at most so many."""
    in_windows = (
        select(
            corrected_windows.c.dataset,
            corrected_windows.c.number,
            func.sum(corrected_windows.c.rows).label("rows"),
            func.count().label("windows"),
            func.count().filter(IS_PENDING).label("pending"),
        )
        .group_by(corrected_windows.c.dataset, corrected_windows.c.number)
        .subquery()
    )
    same = and_(in_windows.c.dataset == corrections.c.dataset, in_windows.c.number == corrections.c.number)
    query = (
        _CORRECTION.add_columns(in_windows.c.rows, in_windows.c.windows, in_windows.c.pending)
        .select_from(corrections.outerjoin(in_windows, same))
        .order_by(corrections.c.acknowledged_at.desc(), corrections.c.dataset, corrections.c.number.desc())
        .limit(most)
    )
    if dataset is not None:
        query = query.where(corrections.c.dataset == dataset)
    found = []
    for row in tx.execute(query).mappings():
        values = dict(row)
        rows, touched, pending = (int(values.pop(name) or 0) for name in ("rows", "windows", "pending"))
        correction = Correction(**{**values, "kind": CorrectionKind(values["kind"])})
        found.append(CorrectionRecord(correction, rows, touched, pending))
    return found

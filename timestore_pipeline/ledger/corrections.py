"""Corrections: what takes back rows that were acknowledged before it, and on what of them it still acts (invariant 12).

The corrections of a dataset are numbered in the order in which they are acknowledged, and no clock is in that order.

- A segment says which correction was the last one before it (``after_correction``). Those with higher numbers act on
  its rows, for as long as there is the segment: also when it comes back late from quarantine or an aborted build.
- The file of a build has the rows of slices that the build had claimed, without what corrections took of them until
  then. So a correction acts on the files of builds that were claimed before it (``before_sequence``), and on no others.

In which windows published files may still have such rows is in ``corrected_windows``.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass

from sqlalchemy import ColumnElement, Connection, and_, func, insert, select, update

from timestore_pipeline.ledger.counters import CORRECTIONS, count
from timestore_pipeline.ledger.schema import batches, corrected_windows, corrections, datasets, segments, slices
from timestore_pipeline.ledger.statements import WINDOW_IS_PENDING
from timestore_pipeline.ledger.states import CorrectionKind


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


CORRECTION = select(
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
    query = CORRECTION.where(*conditions).order_by(corrections.c.dataset, corrections.c.number)
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
    count(tx, CORRECTIONS, new.dataset, "")
    return number


def acting_on(tx: Connection, dataset: str, after: int, first_time: int, last_time: int) -> list[Correction]:
    """Return the corrections with numbers above ``after`` that may take rows with times from the first to the last."""
    return _corrections(
        tx,
        corrections.c.dataset == dataset,
        corrections.c.number > after,
        corrections.c.range_start <= last_time,
        corrections.c.range_end > first_time,
    )


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
            func.count().filter(WINDOW_IS_PENDING).label("pending"),
        )
        .group_by(corrected_windows.c.dataset, corrected_windows.c.number)
        .subquery()
    )
    same = and_(in_windows.c.dataset == corrections.c.dataset, in_windows.c.number == corrections.c.number)
    query = (
        CORRECTION.add_columns(in_windows.c.rows, in_windows.c.windows, in_windows.c.pending)
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

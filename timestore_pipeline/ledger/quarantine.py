"""The ledger's side of the quarantine: what was set aside, why, and where its bytes are.

Slices whose segment cannot be read are set aside under an entry, and given back when it can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from sqlalchemy import Connection, RowMapping, bindparam, case, exists, func, select, text, update

from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.ledger.schema import batch_slices, batches, quarantine, segments, slices
from timestore_pipeline.ledger.slices import (
    OF_BATCH,
    SLICE_IS_FREE,
    complete,
    quarantine_slices,
    requeue_slices,
    rows_in,
)
from timestore_pipeline.ledger.statements import insert_unless_there
from timestore_pipeline.ledger.states import BuildKind, QuarantineKind, QuarantineState

# Who ended the quarantine of a file that could be staged after all.
_STAGING = "staging"


# Of a file system's block, and about what the ledger keeps of it.
_SMALLEST_FILE = 4_096


# How a reason goes on, where files of one content came under several names.
_ALSO_NAMED = "; the same file came as "
_AND_NAMED = " and "
_MOST_NAMES = 20


_TRIED_AFTER_SECONDS = (600, 3_600, 21_600)


@dataclass(frozen=True, kw_only=True)
class NewEntry:
    """What is set aside: a file, rows of a batch, or rows of a segment that cannot be read.

    ``path`` is relative to the staging directory. ``batch_id`` is the segment's id where the kind is ``segment``.
    ``try_again_at`` is when it is tried again by itself, where it may have been blamed for what it has not done.
    """

    dataset: str
    kind: QuarantineKind
    batch_id: str
    source: str
    path: str
    reason: str
    rows: int | None
    bytes: int
    created_at: int
    try_again_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class QuarantineEntry(NewEntry):
    """What was set aside, and what became of it."""

    id: int
    state: QuarantineState
    resolved_at: int | None = None
    resolved_by: str | None = None
    tries: int = 0


@dataclass(frozen=True)
class DamagedSegment:
    """A segment of which slices cannot be read, and why; ``path`` is where its file is from now on."""

    dataset: str
    id: str
    path: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class QuarantineTotals:
    """Open entries of one dataset: whole batches, segments, and the rows of segments and of staged batches."""

    batches: int
    rows: int
    segments: int = 0


def set_aside(tx: Connection, entry: NewEntry) -> QuarantineEntry:
    """Record that something was set aside; if it already is (same dataset, kind and batch), return that entry."""
    insert_unless_there(
        tx, quarantine, {**asdict(entry), "kind": entry.kind.value, "state": QuarantineState.OPEN.value}
    )
    same = (
        quarantine.c.dataset == entry.dataset,
        quarantine.c.kind == entry.kind.value,
        quarantine.c.batch_id == entry.batch_id,
        quarantine.c.state == QuarantineState.OPEN.value,
    )
    return _entry(tx.execute(select(quarantine).where(*same)).mappings().one())


def next_try_at(tries: int, now: int) -> int | None:
    """Return when what was tried again ``tries`` times is tried once more; None where that is enough."""
    return now + _TRIED_AFTER_SECONDS[tries] * 1_000_000 if tries < len(_TRIED_AFTER_SECONDS) else None


def entries_to_try_again(tx: Connection, now: int) -> list[QuarantineEntry]:
    """Return the open entries of which it is time to be tried again by themselves, oldest first."""
    return [entry for entry in open_entries(tx) if entry.try_again_at is not None and entry.try_again_at <= now]


def begin_try(tx: Connection, entry: QuarantineEntry, now: int) -> bool:
    """Count a try before it is made, as it may end the process; False where another process was first."""
    tried = tx.execute(
        update(quarantine)
        .where(
            quarantine.c.id == entry.id,
            quarantine.c.state == QuarantineState.OPEN.value,
            quarantine.c.tries == entry.tries,
        )
        .values(tries=entry.tries + 1, try_again_at=next_try_at(entry.tries + 1, now))
    )
    return tried.rowcount == 1


def open_entries(tx: Connection, dataset: str | None = None) -> list[QuarantineEntry]:
    """Return the open entries, oldest first, of one dataset or of all."""
    query = select(quarantine).where(quarantine.c.state == QuarantineState.OPEN.value).order_by(quarantine.c.id)
    if dataset is not None:
        query = query.where(quarantine.c.dataset == dataset)
    return [_entry(row) for row in tx.execute(query).mappings()]


def newest_entries(tx: Connection, dataset: str, most: int) -> list[QuarantineEntry]:
    """Return the newest open entries of a dataset, newest first."""
    query = (
        select(quarantine)
        .where(quarantine.c.state == QuarantineState.OPEN.value, quarantine.c.dataset == dataset)
        .order_by(quarantine.c.id.desc())
        .limit(most)
    )
    return [_entry(row) for row in tx.execute(query).mappings()]


def all_entries(tx: Connection) -> list[QuarantineEntry]:
    """Return every entry that there ever was, oldest first."""
    return [_entry(row) for row in tx.execute(select(quarantine).order_by(quarantine.c.id)).mappings()]


def entries_of_batch(tx: Connection, dataset: str, batch_id: str) -> list[QuarantineEntry]:
    """Return the open entries of one batch: of its file, or of rows of it."""
    query = (
        select(quarantine)
        .where(
            quarantine.c.dataset == dataset,
            quarantine.c.batch_id == batch_id,
            quarantine.c.kind != QuarantineKind.SEGMENT.value,
            quarantine.c.state == QuarantineState.OPEN.value,
        )
        .order_by(quarantine.c.id)
    )
    return [_entry(row) for row in tx.execute(query).mappings()]


def find_entry(tx: Connection, entry_id: int) -> QuarantineEntry | None:
    """Return one entry, open or not; None where there is none of that id."""
    row = tx.execute(select(quarantine).where(quarantine.c.id == entry_id)).mappings().first()
    return None if row is None else _entry(row)


def resolve_entry(tx: Connection, entry_id: int, state: QuarantineState, by: str, now: int) -> bool:
    """End an open entry one way or the other; False where it has ended already."""
    changed = tx.execute(
        update(quarantine)
        .where(quarantine.c.id == entry_id, quarantine.c.state == QuarantineState.OPEN.value)
        .values(state=state.value, resolved_at=now, resolved_by=by)
    )
    return changed.rowcount == 1


_FILES_SET_ASIDE = select(quarantine.c.batch_id).where(
    quarantine.c.dataset == bindparam("dataset"),
    quarantine.c.kind == QuarantineKind.BATCH.value,
    text(f"{quarantine.name}.state = '{QuarantineState.OPEN.value}'"),  # in the words of the partial index
)


def resolve_staged_files(tx: Connection, dataset: str, batch_ids: Iterable[str], now: int) -> None:
    """End the open entries of files whose batches are staged at last, so that no row is in two places."""
    waiting = tx.execute(_FILES_SET_ASIDE, {"dataset": dataset}).scalars()
    for batch_id in set(waiting) & set(batch_ids):
        tx.execute(
            update(quarantine)
            .where(
                quarantine.c.dataset == dataset,
                quarantine.c.kind == QuarantineKind.BATCH.value,
                quarantine.c.batch_id == batch_id,
                quarantine.c.state == QuarantineState.OPEN.value,
            )
            .values(state=QuarantineState.RETRIED.value, resolved_at=now, resolved_by=_STAGING)
        )


def name_resolver(tx: Connection, entry_id: int, by: str) -> None:
    """Say who had a file staged that staging itself knows only as staged."""
    tx.execute(
        update(quarantine)
        .where(quarantine.c.id == entry_id, quarantine.c.resolved_by == _STAGING)
        .values(resolved_by=by)
    )


def change_reason(tx: Connection, entry_id: int, reason: str) -> None:
    """Record why an open entry could not be retried just now; the other names of its file stay said."""
    entry = find_entry(tx, entry_id)
    if entry is not None:
        _say(tx, entry, reason + "".join(entry.reason.partition(_ALSO_NAMED)[1:]))


def name_also(tx: Connection, entry: QuarantineEntry, name: str) -> QuarantineEntry:
    """Say of an open entry that its file has come under another name too; return it as it is now.

    Whoever has dropped that one finds it nowhere else. Of very many names the last ones are not said.
    """
    names = entry.reason.partition(_ALSO_NAMED)[2]
    if name == entry.source or repr(name) in names or names.count(_AND_NAMED) >= _MOST_NAMES:
        return entry
    return _say(tx, entry, f"{entry.reason}{_AND_NAMED if names else _ALSO_NAMED}{name!r}")


def _say(tx: Connection, entry: QuarantineEntry, reason: str) -> QuarantineEntry:
    tx.execute(
        update(quarantine)
        .where(quarantine.c.id == entry.id, quarantine.c.state == QuarantineState.OPEN.value)
        .values(reason=reason)
    )
    return replace(entry, reason=reason)


def resolved_paths(tx: Connection) -> set[str]:
    """Return the paths that entries name and no open one does: their bytes are not needed any more."""
    named = tx.execute(select(quarantine.c.path).where(quarantine.c.state != QuarantineState.OPEN.value)).scalars()
    return set(named) - {entry.path for entry in open_entries(tx)}


def open_totals(tx: Connection) -> dict[str, QuarantineTotals]:
    """Return per dataset how much is in quarantine."""
    is_batch = quarantine.c.kind == QuarantineKind.BATCH.value
    is_segment = quarantine.c.kind == QuarantineKind.SEGMENT.value
    query = (
        select(
            quarantine.c.dataset,
            func.count().filter(is_batch).label("batches"),
            func.coalesce(func.sum(quarantine.c.rows).filter(~is_batch), 0).label("rows"),
            func.count().filter(is_segment).label("segments"),
        )
        .where(quarantine.c.state == QuarantineState.OPEN.value)
        .group_by(quarantine.c.dataset)
    )
    return {row.dataset: QuarantineTotals(row.batches, int(row.rows), row.segments) for row in tx.execute(query)}


def bytes_of_rows_aside(tx: Connection, dataset: str) -> int:
    """Return what the refused rows of a dataset take on the disk; each entry as much as the smallest file at least."""
    size = case((quarantine.c.bytes > _SMALLEST_FILE, quarantine.c.bytes), else_=_SMALLEST_FILE)
    query = select(func.coalesce(func.sum(size), 0)).where(
        quarantine.c.dataset == dataset,
        quarantine.c.kind == QuarantineKind.ROWS.value,
        quarantine.c.state == QuarantineState.OPEN.value,
    )
    return int(tx.execute(query).scalar_one())


def quarantined_bytes(tx: Connection) -> dict[str, int]:
    """Return per dataset the bytes that its open entries keep on disk."""
    query = (
        select(quarantine.c.dataset, func.sum(quarantine.c.bytes))
        .where(quarantine.c.state == QuarantineState.OPEN.value)
        .group_by(quarantine.c.dataset)
    )
    return {dataset: int(size) for dataset, size in tx.execute(query)}


def _entry(row: RowMapping) -> QuarantineEntry:
    return QuarantineEntry(**{**row, "kind": QuarantineKind(row["kind"]), "state": QuarantineState(row["state"])})


_NAMED_SOURCES = 3


def set_slices_aside(
    tx: Connection, damaged: DamagedSegment, window_starts: Sequence[int], now: int
) -> QuarantineEntry | None:
    """Take slices of a segment out of the queue under one entry.

    Returns:
        The entry, or None where nothing was set aside: another process did it, or a build that reads the segment is in
        flight.
    """
    lock_dataset(tx, damaged.dataset)
    in_flight = builds_in_flight(tx, damaged.dataset)
    reading = slices.c.segment_id == damaged.id, slices.c.build_id.in_([build.id for build in in_flight])
    # A rebuild reads segments of which it has claimed nothing.
    if (
        any(build.kind is BuildKind.REBUILD for build in in_flight)
        or tx.execute(select(exists().where(*reading))).scalar()
    ):
        return None
    unread = (slices.c.segment_id == damaged.id, slices.c.window_start.in_(window_starts), SLICE_IS_FREE)
    rows = rows_in(tx, *unread)
    if not rows:
        return None
    entry = set_aside(
        tx,
        NewEntry(
            dataset=damaged.dataset,
            kind=QuarantineKind.SEGMENT,
            batch_id=damaged.id,
            source=_sources(tx, damaged.id, window_starts),
            path=damaged.path,
            reason=damaged.reason,
            rows=0,
            bytes=damaged.bytes,
            created_at=now,
        ),
    )
    quarantine_slices(tx, entry.id, *unread)
    tx.execute(
        update(quarantine)
        .where(quarantine.c.id == entry.id)
        .values(rows=quarantine.c.rows + rows, path=damaged.path, reason=damaged.reason)
    )
    tx.execute(update(segments).where(segments.c.id == damaged.id).values(quarantined_at=now, path=damaged.path))
    complete(tx, [damaged.id], now)
    return find_entry(tx, entry.id)


def give_slices_back(
    tx: Connection, entry: QuarantineEntry, window_starts: Iterable[int], *, path: str, by: str, now: int
) -> bool:
    """Put slices that can be read again back into the queue, and resolve their entry when none is left in it.

    ``path`` is where the segment's file is once nothing of it is in quarantine. False where the entry has ended.
    """
    lock_dataset(tx, entry.dataset)
    current = find_entry(tx, entry.id)
    if current is None or current.state is not QuarantineState.OPEN:
        return False
    requeue_slices(tx, entry.id, window_starts)
    left = rows_in(tx, slices.c.quarantine_id == entry.id)
    if not left:
        resolve_entry(tx, entry.id, QuarantineState.RETRIED, by, now)
        tx.execute(update(segments).where(segments.c.id == entry.batch_id).values(quarantined_at=None, path=path))
    else:
        tx.execute(update(quarantine).where(quarantine.c.id == entry.id).values(rows=left))
    complete(tx, [entry.batch_id], now)
    return True


def discard_slices(tx: Connection, entry: QuarantineEntry, *, by: str, now: int) -> bool:
    """Give up the slices of an entry for good; True where no other slice needs the segment's file, so it may go.

    Else the file stays until the segment's other rows are published and its retention has passed.
    """
    lock_dataset(tx, entry.dataset)
    if not resolve_entry(tx, entry.id, QuarantineState.DISCARDED, by, now):
        return False
    here = segments.c.id == entry.batch_id
    tx.execute(update(segments).where(here).values(quarantined_at=None))
    complete(tx, [entry.batch_id], now)
    done = tx.execute(select(segments.c.published_at).where(here)).scalar() is not None
    if done:
        tx.execute(update(segments).where(here).values(unlinked_at=now))
    return done


def _sources(tx: Connection, segment_id: str, window_starts: Sequence[int]) -> str:
    names = list(
        tx.execute(
            select(batches.c.source)
            .join(batch_slices, OF_BATCH)
            .where(batches.c.segment_id == segment_id, batch_slices.c.window_start.in_(window_starts))
            .distinct()
            .order_by(batches.c.source)
        ).scalars()
    )
    more = f" and {len(names) - _NAMED_SOURCES} more" if len(names) > _NAMED_SOURCES else ""
    return ", ".join(names[:_NAMED_SOURCES]) + more

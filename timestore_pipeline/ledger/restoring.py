"""Putting into an empty ledger what files say: datasets, segments, batches, totals, quarantine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from sqlalchemy import Connection, func, insert, select, text, update

from timestore_pipeline.ledger.batches import BatchRow, NewSegment, SegmentRow, acknowledge
from timestore_pipeline.ledger.corrected_windows import count_corrected, mark_windows
from timestore_pipeline.ledger.corrections import Correction
from timestore_pipeline.ledger.datasets import Fixed, claim_positions
from timestore_pipeline.ledger.quarantine import NewEntry
from timestore_pipeline.ledger.schema import (
    batches,
    builds,
    corrections,
    datasets,
    past_rows,
    quarantine,
    segments,
    slices,
    windows,
)
from timestore_pipeline.ledger.schemas import SchemaStep, add_versions
from timestore_pipeline.ledger.slices import SliceRow, complete, quarantine_slices, restore_slices
from timestore_pipeline.ledger.states import BuildKind, BuildState, QuarantineState
from timestore_pipeline.ledger.windows import PublishedWindow, add_up_windows
from timestore_pipeline.model.columns import Column

REBUILD_TRIGGER = "ledger-rebuild"
"""The trigger of the one build that stands for all that a rebuilt ledger knows as published."""

# Any constant; PostgreSQL processes that rebuild at the same time queue up behind it.
_REBUILD_LOCK = 7_204_915_332


@dataclass(frozen=True)
class RestoredSegment:
    """A segment as files say it was. ``published`` maps windows to when; times in microseconds since the epoch.

    ``columns`` None: its file is gone, and nobody reads it any more. ``numbers`` is how many row numbers its rows need,
    where the dataset has a key: more than there are rows if some were taken out of another segment.
    """

    row: SegmentRow
    batches: tuple[BatchRow, ...]
    slices: tuple[SliceRow, ...]
    staged_at: int
    published: Mapping[int, int]
    on_disk: bool
    columns: tuple[Column, ...] | None
    numbers: int = 0
    after_correction: int = 0


@dataclass(frozen=True, kw_only=True)
class RestoredEntry(NewEntry):
    """Something in quarantine as its file says; ``windows`` are those of the damaged slices of a segment."""

    resolved: bool = False
    windows: tuple[int, ...] = ()


@dataclass(frozen=True)
class RestoredTable:
    """What the ledger is to keep of a table: its version and Delta id, and what its next build and row are given.

    ``corrections`` is the number of the dataset's last correction.
    """

    table_version: int | None
    table_id: str | None
    next_sequence: int
    next_position: int
    corrections: int = 0


@dataclass(frozen=True)
class RestoredPublication:
    """All that is in a table: totals by window, and when each window was published last (where a manifest says so)."""

    sequence: int
    table_version: int
    totals: Mapping[int, PublishedWindow]
    published_at: Mapping[int, int]
    batches: int


def lock_ledger(tx: Connection) -> int:
    """Let one process at a time rebuild; return how many batches and segments there are already."""
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _REBUILD_LOCK})
    return sum(tx.execute(select(func.count()).select_from(table)).scalar_one() for table in (batches, segments))


def restore_dataset(
    tx: Connection,
    dataset: str,
    fixed: Fixed,
    table: RestoredTable,
    versions: Sequence[tuple[Column, ...]],
    now: int,
) -> None:
    """Enter a dataset with the columns that it has had, oldest first; none where they are still to be inferred."""
    values = {**asdict(fixed), **asdict(table)}
    if tx.execute(update(datasets).where(datasets.c.name == dataset).values(**values)).rowcount == 0:
        tx.execute(insert(datasets).values(name=dataset, **values))
    add_versions(tx, dataset, 0, [SchemaStep(columns, source=REBUILD_TRIGGER) for columns in versions], now)


def restore_publication(tx: Connection, dataset: str, publication: RestoredPublication, *, owner: str, now: int) -> int:
    """Enter one build for all that is in the table, and the totals of its windows; return it.

    It has the sequence of the fence: the last commit that the ledger knows.
    """
    totals, published_at = publication.totals, publication.published_at
    starts = set(totals) | set(published_at)
    build_id = tx.execute(
        insert(builds)
        .values(
            dataset=dataset,
            sequence=publication.sequence,
            owner=owner,
            kind=(BuildKind.FLUSH if starts else BuildKind.REBUILD).value,
            trigger=REBUILD_TRIGGER,
            state=BuildState.PUBLISHED.value,
            claimed_at=now,
            lease_expires_at=now,
            finished_at=now,
            first_window=min(starts, default=0),
            last_window=max(starts, default=0),
            batches=publication.batches,
            rows=sum(window.rows for window in totals.values()),
            bytes=sum(window.bytes for window in totals.values()),
            files=sum(window.files for window in totals.values()),
            table_version=publication.table_version,
        )
        .returning(builds.c.id)
    ).scalar_one()
    if totals:
        tx.execute(
            insert(windows),
            [
                {
                    "dataset": dataset,
                    "window_start": window.window_start,
                    "rows": window.rows,
                    "bytes": window.bytes,
                    "files": window.files,
                    "published_at": published_at.get(window.window_start, now),
                    "build_id": build_id,
                }
                for window in totals.values()
            ],
        )
        add_up_windows(tx, dataset)
    return build_id


def restore_dead_builds(tx: Connection, dataset: str, sequences: Iterable[int], *, owner: str, now: int) -> None:
    """Enter builds that published nothing, so that what one of them still writes is known as left behind."""
    for sequence in sequences:
        tx.execute(
            insert(builds).values(
                dataset=dataset,
                sequence=sequence,
                owner=owner,
                kind=BuildKind.FLUSH.value,
                trigger=REBUILD_TRIGGER,
                state=BuildState.ABORTED.value,
                claimed_at=now,
                lease_expires_at=now,
                finished_at=now,
                first_window=0,
                last_window=0,
                batches=0,
                rows=0,
                error="the ledger was lost while it may have run; it is fenced",
            )
        )


def restore_segment(
    tx: Connection,
    dataset: str,
    restored: RestoredSegment,
    build_id: int | None,
    versions: Sequence[tuple[Column, ...]],
    now: int,
) -> None:
    """Enter a segment with its batches and slices, each slice published or staged as it was."""
    given = sum(batch.rows + batch.quarantined_rows + batch.dropped_rows for batch in restored.batches)
    numbers = max(given, restored.numbers)
    position = claim_positions(tx, dataset, numbers) if _has_key(tx, dataset) else None
    version = len(versions) if restored.columns is None else versions.index(restored.columns) + 1
    after = restored.after_correction
    new = NewSegment(restored.row, restored.batches, restored.slices, version, position, after)
    acknowledge(tx, dataset, new, restored.staged_at)
    restore_slices(tx, restored.row.id, build_id, restored.published)
    if not restored.on_disk:
        tx.execute(update(segments).where(segments.c.id == restored.row.id).values(unlinked_at=now))


def restore_batches_without_rows(
    tx: Connection, dataset: str, rows: Sequence[BatchRow], staged_at: int, after_correction: int
) -> None:
    """Enter batches of which every row was refused, or that had none."""
    acknowledge(tx, dataset, NewSegment(None, rows, after_correction=after_correction), staged_at)


def restore_corrections(tx: Connection, found: Iterable[Correction], pending: Mapping[int, Iterable[int]]) -> None:
    """Enter corrections; ``pending`` has the windows whose files may have rows that one takes, by its number."""
    for each in found:
        tx.execute(insert(corrections).values({**asdict(each), "kind": each.kind.value}))
        mark_windows(tx, each.dataset, each.number, pending.get(each.number, ()))


def restore_entries(tx: Connection, entries: Iterable[RestoredEntry], *, first_id: int, by: str, now: int) -> int:
    """Enter what is in quarantine under ids from ``first_id`` on; return the next free one."""
    entry_id = first_id
    for entry in entries:
        state = QuarantineState.RETRIED if entry.resolved else QuarantineState.OPEN
        row = {field.name: getattr(entry, field.name) for field in fields(NewEntry)}
        tx.execute(
            insert(quarantine).values(
                **{**row, "kind": entry.kind.value},
                id=entry_id,
                state=state.value,
                resolved_at=now if entry.resolved else None,
                resolved_by=by if entry.resolved else None,
            )
        )
        if entry.windows:
            quarantine_slices(
                tx, entry_id, slices.c.segment_id == entry.batch_id, slices.c.window_start.in_(entry.windows)
            )
            tx.execute(update(segments).where(segments.c.id == entry.batch_id).values(quarantined_at=now))
        entry_id += 1
    return entry_id


def restore_past_rows(tx: Connection, dataset: str, corrected: Mapping[int, int], now: int) -> dict[int, int]:
    """Enter the difference between what was published into each window and what the table has of it now.

    ``corrected`` has the number of the last correction of windows of which one may have taken rows; which one took how
    many nobody knows any more, so that one stands for all.

    Returns:
        Window start → rows that were published and that the table has no more (below zero: that it has besides), of
        windows in which keys do not account for the difference. They are entered as expired (or as forgotten).
    """
    ever = dict(
        tx.execute(
            select(slices.c.window_start, func.sum(slices.c.rows))
            .where(slices.c.dataset == dataset, slices.c.published_at.is_not(None))
            .group_by(slices.c.window_start)
        ).all()
    )
    live = dict(tx.execute(select(windows.c.window_start, windows.c.rows).where(windows.c.dataset == dataset)).all())
    keyed = _has_key(tx, dataset)
    past = {}
    for start in ever.keys() | live.keys():
        more = int(ever.get(start, 0)) - int(live.get(start, 0))
        if keyed and start in live and more > 0:
            here = (windows.c.dataset == dataset, windows.c.window_start == start)
            tx.execute(update(windows).where(*here).values(superseded=more))
            continue
        if more > 0 and start in corrected:
            count_corrected(tx, dataset, start, corrected[start], more)
            continue
        if more:
            past[start] = more
            tx.execute(
                insert(past_rows).values(
                    dataset=dataset,
                    window_start=start,
                    pruned_rows=max(0, -more),
                    expired_rows=max(0, more),
                    expired_at=now if more > 0 else None,
                )
            )
    return past


def _has_key(tx: Connection, dataset: str) -> bool:
    return tx.execute(select(datasets.c.key).where(datasets.c.name == dataset)).scalar() is not None


def finish_restoring(tx: Connection, segment_ids: Iterable[str], now: int) -> None:
    """Bring the states of segments and batches in line with their slices, once all is entered."""
    complete(tx, segment_ids, now)
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT setval(pg_get_serial_sequence('quarantine', 'id'), (SELECT max(id) FROM quarantine))"))

"""Writing one segment: a DuckDB file that is filled in one transaction, synced, renamed and then only read.

Rows whose time no window can hold are written to a quarantine file beside it and do not stay in the segment.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import column_definitions, column_list, literal
from timestore_pipeline.errors import BatchesRefused, StorageError
from timestore_pipeline.ledger.batches import SegmentRow
from timestore_pipeline.ledger.datasets import next_position
from timestore_pipeline.ledger.slices import SliceRow
from timestore_pipeline.ledger.tables import last_claimed_sequence
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import BATCH_COLUMN, ROW_COLUMN, Column
from timestore_pipeline.model.windows import TimeRange, from_micros
from timestore_pipeline.rows.read_plan import RowSource
from timestore_pipeline.segments.corrections import CorrectionFile, write_correction
from timestore_pipeline.segments.description import (
    METADATA_KEY,
    SEGMENT_TABLE,
    DescribedBatch,
    DescribedCorrection,
    DescribedGroup,
    Description,
    IncomingBatch,
    describe_segment,
    described_batches,
)
from timestore_pipeline.segments.judging import BatchTimes, Judge, RefusedRows, reason_in_words
from timestore_pipeline.storage.layout import pending_correction, refused_rows_key, segment_key
from timestore_pipeline.store import Store

# DuckDB's smallest and its default block size. Small blocks keep small segments small, 45 KB instead of 800 KB
# for 1,000 rows; large blocks make large segments a third smaller and faster to write.
_SMALL_BLOCK = 16_384
_LARGE_BLOCK = 262_144
_LARGE_FROM_BYTES = 4 << 20

# Of the time in which nothing is swept so much is relied on. The rest is for clocks that differ.
_SURELY_THERE = 0.1

_TABLE = f"segment.{SEGMENT_TABLE}"


@dataclass(frozen=True)
class WrittenSegment:
    """What :func:`write_segment` made; nothing of it counts before the ledger has it.

    ``row`` is None where no row could be staged. ``batches`` say what of each was staged. ``refused`` and ``dropped``
    (rows that came too late, and are nowhere) go by batch ordinal; ``refused_path`` (relative to the staging directory)
    holds the refused rows of all batches. ``judged_at`` is the moment by which they were late, in microseconds since
    the epoch. ``numbers`` is how many row numbers were given out, to refused rows too, where the dataset has a key.
    ``correction`` is what the rows replace, where they do, and ``correction_path`` the file that says it.
    """

    row: SegmentRow | None
    slices: tuple[SliceRow, ...] = ()
    batches: tuple[DescribedBatch, ...] = ()
    refused: Mapping[int, Sequence[RefusedRows]] = field(default_factory=dict)
    refused_path: str | None = None
    refused_bytes: int = 0
    dropped: Mapping[int, int] = field(default_factory=dict)
    judged_at: int = 0
    numbers: int = 0
    correction: DescribedCorrection | None = None
    correction_path: str | None = None

    @property
    def refused_rows(self) -> dict[int, int]:
        """How many rows of each batch are refused, of those that have any, by ordinal."""
        return {ordinal: sum(part.rows for part in parts) for ordinal, parts in self.refused.items()}

    @property
    def most_windows(self) -> int:
        """How many windows that batch has which has the most."""
        windows = Counter(ordinal for piece in self.slices for ordinal in piece.batch_rows)
        return max(windows.values(), default=0)

    @property
    def files(self) -> list[str]:
        """The files in staging that an acknowledgement rests on."""
        pending = self.correction_path and pending_correction(self.correction_path)
        paths = (self.row and self.row.path, self.refused_path, pending)
        return [path for path in paths if path]

    def is_there(self, store: Store) -> bool:
        """Whether nobody has swept the files as orphans since they were written."""
        age = now_micros() - self.judged_at
        if 0 <= age < store.staging.traits.unswept_seconds * _SURELY_THERE * 1_000_000:
            return True  # it is not swept before it is much older; asking costs, inside of a ledger transaction
        return all(store.staging.size(path) is not None for path in self.files)

    def discard(self, store: Store) -> None:
        """Remove the files of a segment that is not going to be acknowledged."""
        with suppress(StorageError):  # else the sweep does
            store.staging.delete(*self.files)


def new_segment_id() -> str:
    """Return an id that is unique over all processes and hosts, and sorts by time."""
    return f"{now_micros():014x}{secrets.token_hex(5)}"


@dataclass(frozen=True)
class SegmentDraft:
    """What is to be written as one segment.

    Args:
        columns: the dataset's columns, which every source selects in this order.
        sources: the rows, each with the ordinal of its batch.
        batches: what the batches are, by ordinal; the segment says so of itself.
        take_late: stage rows of closed windows whatever the dataset does with them, because somebody said so.
        times: the times of the batches by ordinal, where they are known without reading them back.
        most_windows: how many windows a batch may have rows in; 0 is no limit.
        position: that of row number 0, where rows of a dataset with a key keep the places that they had.
        after_correction: the number of the last correction that does not act on the rows.
        correction: the one that comes with the rows, where they replace a range; it is filled in when they are written.
    """

    columns: Sequence[Column]
    sources: Sequence[RowSource]
    batches: Sequence[IncomingBatch]
    take_late: bool = False
    times: Sequence[BatchTimes] | None = None
    most_windows: int = 0
    position: int | None = None
    after_correction: int = 0
    correction: DescribedCorrection | None = None

    @property
    def replaces(self) -> TimeRange | None:
        """The range of which the rows are all that there is to be; whoever replaces one is alone in a segment."""
        return self.batches[0].replaces if self.batches else None


def write_segment(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, draft: SegmentDraft
) -> WrittenSegment:
    """Write the rows of a draft into a new segment; returns once it is whole and durable on disk.

    Raises:
        TooManyWindows: batches have rows in more windows than they may; nothing is left behind.
        BatchesRefused: rows lie outside of the range that they are to replace; nothing is left behind.
        PlaceError: staging, or the dataset's folder in it, is not the one that segments were written to before.
        duckdb.Error, OSError: rows cannot be read or cast, or the disk cannot take them; nothing is left behind.
    """
    segment_id = new_segment_id()
    key = segment_key(spec.name, segment_id)
    store.places.claim_segments(spec.name)
    if spec.key and draft.position is None:
        # By this a ledger that is made again from files tells what came first; clocks go back.
        with store.ledger.read() as tx:
            draft = replace(draft, position=next_position(tx, spec.name))
    if draft.replaces is not None:
        with store.ledger.read() as tx:
            sequence = last_claimed_sequence(tx, spec.name) + 1
        correction = DescribedCorrection(draft.after_correction + 1, draft.replaces, sequence)
        draft = replace(draft, after_correction=correction.number, correction=correction, take_late=True)
    temporary = store.staging.scratch(key)
    try:
        written, groups = _fill(store, connection, spec, draft, temporary, segment_id)
    except BaseException:
        for statement in ("ROLLBACK", "DETACH segment"):
            with suppress(duckdb.Error):
                connection.execute(statement)
        temporary.unlink(missing_ok=True)
        temporary.with_name(temporary.name + ".wal").unlink(missing_ok=True)
        raise
    finally:
        for source in draft.sources:
            for name in source.tables:
                connection.unregister(name)
    try:
        reach(CrashPoint.SEGMENT_WRITTEN)
        if draft.correction is not None:
            said = CorrectionFile(draft.correction, draft.batches[0], segment_id if groups else None)
            written = replace(written, correction_path=write_correction(store, spec.name, segment_id, said))
        if not groups:
            temporary.unlink()
            return written
        size = temporary.stat().st_size
        store.staging.put(temporary, key)
        reach(CrashPoint.SEGMENT_IN_PLACE)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_name(temporary.name + ".wal").unlink(missing_ok=True)
    segment = SegmentRow(segment_id, key, size, sum(batch.rows for batch in written.batches))
    return replace(written, row=segment, slices=slices_of(groups, segment))


def _fill(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    draft: SegmentDraft,
    path: Path,
    segment_id: str,
) -> tuple[WrittenSegment, Sequence[DescribedGroup]]:
    """Return what is in a new segment, whose file is not in place yet, and what was not left in it."""
    columns, batches = draft.columns, draft.batches
    judge = Judge.of(
        spec,
        columns,
        store.settings.staging_max_future_ms,
        take_late=draft.take_late,
        most_windows=draft.most_windows,
    )
    expected_bytes = sum(batch.source_bytes for batch in batches)
    block = _LARGE_BLOCK if expected_bytes >= _LARGE_FROM_BYTES else _SMALL_BLOCK
    row_number = f", {ROW_COLUMN} BIGINT NOT NULL" if spec.key else ""
    # Without a log of its own: a segment that is not whole is thrown away, so there is nothing to recover.
    connection.execute(
        f"ATTACH {literal(str(path))} AS segment (BLOCK_SIZE {block}, RECOVERY_MODE no_wal_writes); BEGIN; "
        f"CREATE TABLE {_TABLE} ({column_definitions(columns)}, {BATCH_COLUMN} INTEGER NOT NULL{row_number})"
    )
    numbers = _insert(connection, spec, draft.sources)
    judged = judge.look(connection, _TABLE, draft.times)
    if draft.correction is not None:
        _check_range(spec.name, draft.correction.range, judged.groups)
    if judged.dropped:
        connection.execute(f"DELETE FROM {_TABLE} WHERE {judge.too_late}")
    described = described_batches(
        batches,
        _rows_by_ordinal(judged.groups),
        {ordinal: sum(part.rows for part in parts) for ordinal, parts in judged.refused.items()},
        {ordinal: reason_in_words(parts) for ordinal, parts in judged.refused.items()},
        judged.dropped,
    )
    description = Description(
        spec.name, spec.window.value, described, judged.groups, draft.position, draft.after_correction, draft.correction
    )
    refused_path, refused_bytes = None, 0
    if judged.refused:
        refused_path = refused_rows_key(spec.name, segment_id)
        kept = f"{column_list(columns)}, {BATCH_COLUMN}" + (f", {ROW_COLUMN}" if spec.key else "")
        refused_bytes = _set_rows_aside(store, connection, kept, judge.problem, refused_path, description)
    describe_segment(connection, "segment", description)
    connection.execute("COMMIT; DETACH segment")
    written = WrittenSegment(
        row=None,
        batches=described,
        refused=judged.refused,
        refused_path=refused_path,
        refused_bytes=refused_bytes,
        dropped=judged.dropped,
        judged_at=judge.now,
        numbers=numbers,
        correction=draft.correction,
    )
    return written, judged.groups


def _check_range(dataset: str, replaced: TimeRange, groups: Iterable[DescribedGroup]) -> None:
    """Refuse rows that lie outside of the range that they are to replace: what they would add is no replacement.

    Raises:
        BatchesRefused: there are any.
    """
    outside = [each for each in groups if each.min_time < replaced.start or each.max_time >= replaced.end]
    if outside:
        first = outside[0]
        time = from_micros(first.min_time if first.min_time < replaced.start else first.max_time).isoformat()
        reason = (
            f"it is to replace the range {replaced}, and has rows outside of it, at {time} for one. Leave these out, "
            "or stage it in addition to what is there, without a range"
        )
        raise BatchesRefused(dataset, {first.ordinal: reason})


def _insert(connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, sources: Iterable[RowSource]) -> int:
    """Fill the segment; return how many row numbers were given out, where the dataset has a key."""
    numbers = 0
    for source in sources:
        for name, table in source.tables.items():
            connection.register(name, table)
        rows = source.sql
        if spec.key and not source.numbered:
            rows = f"SELECT *, {numbers} + row_number() OVER () - 1 FROM ({source.sql})"
        numbers += connection.execute(f"INSERT INTO {_TABLE} {rows}").fetchall()[0][0]
    return numbers


def _rows_by_ordinal(groups: Iterable[DescribedGroup]) -> dict[int, int]:
    found: dict[int, int] = {}
    for group in groups:
        found[group.ordinal] = found.get(group.ordinal, 0) + group.rows
    return found


def _set_rows_aside(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    kept: str,
    problem: str,
    relative: str,
    description: Description,
) -> int:
    temporary = store.staging.scratch(relative)
    connection.execute(
        f"COPY (SELECT {kept}, {problem} AS _problem "
        f"FROM {_TABLE} WHERE {problem} IS NOT NULL) "
        f"TO {literal(str(temporary))} (FORMAT parquet, COMPRESSION zstd, "
        f"KV_METADATA {{{METADATA_KEY}: {literal(description.as_text())}}})"
    )
    reach(CrashPoint.REFUSED_ROWS_WRITTEN)
    size = temporary.stat().st_size
    store.staging.put(temporary, relative)
    reach(CrashPoint.REFUSED_ROWS_IN_PLACE)
    connection.execute(f"DELETE FROM {_TABLE} WHERE {problem} IS NOT NULL")
    return size


def slices_of(groups: Iterable[DescribedGroup], segment: SegmentRow) -> tuple[SliceRow, ...]:
    """Return the slices of a segment, in time order."""
    by_window: dict[int, list[DescribedGroup]] = {}
    for group in groups:
        by_window.setdefault(group.window_start, []).append(group)
    slices = []
    for window_start, members in sorted(by_window.items()):
        rows = sum(group.rows for group in members)
        slices.append(
            SliceRow(
                window_start=window_start,
                rows=rows,
                bytes=segment.bytes * rows // segment.rows,
                min_time=min(group.min_time for group in members),
                max_time=max(group.max_time for group in members),
                batch_rows={group.ordinal: group.rows for group in members},
            )
        )
    return tuple(slices)

"""Writing one segment: a DuckDB file that is filled in one transaction, synced, renamed and then only read.

Rows whose time no window can hold are written to a quarantine file beside it and do not stay in the segment.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from timestore_pipeline.clock import now_micros
from timestore_pipeline.columns import (
    BATCH_COLUMN,
    ROW_COLUMN,
    Column,
    column_definitions,
    column_list,
    literal,
    quote,
    utc_timestamp_sql,
)
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec, LatePolicy
from timestore_pipeline.durable_files import TEMPORARY_SUFFIX, make_folder, put_in_place
from timestore_pipeline.durations import format_duration
from timestore_pipeline.landing.readers import RowSource
from timestore_pipeline.ledger.batches import SegmentRow, SliceRow
from timestore_pipeline.staging.description import (
    METADATA_KEY,
    SEGMENT_TABLE,
    DescribedGroup,
    Description,
    IncomingBatch,
    describe_segment,
    described_batches,
)
from timestore_pipeline.store import QUARANTINE_FOLDER, Store
from timestore_pipeline.windows import from_micros, to_micros

# DuckDB's smallest and its default block size. Small blocks keep small segments small, 45 KB instead of 800 KB
# for 1,000 rows; large blocks make large segments a third smaller and faster to write.
_SMALL_BLOCK = 16_384
_LARGE_BLOCK = 262_144
_LARGE_FROM_BYTES = 4 << 20

# Later ones have no window with an end.
_LAST_MOMENT = to_micros(datetime(9998, 12, 31, tzinfo=UTC))

_LATE = "late"
_PROBLEMS = {
    "null": "the time is null",
    "infinite": "the time is infinite",
    "early": "the time is before the dataset's start, {start:%Y-%m-%d}",
    "late": "its window closed {lateness} after its end: the time is before {first_open:%Y-%m-%d %H:%M} UTC",
    "key": "a column of the key ({key}) is null",
    "future": "the time is after {horizon:%Y-%m-%d %H:%M:%S} UTC, more than TIMESTORE_STAGING_MAX_FUTURE_MS ahead",
}


@dataclass(frozen=True)
class RefusedRows:
    """Rows of one batch that no window takes, with the reason; ``late`` where that is that its window is closed."""

    reason: str
    rows: int
    late: bool = False


@dataclass(frozen=True)
class WrittenSegment:
    """What :func:`write_segment` made; nothing of it counts before the ledger has it.

    ``row`` is None where no row could be staged. ``batch_rows``, ``refused`` and ``dropped`` (rows that came too late,
    and are nowhere) go by batch ordinal; ``refused_path`` (relative to the staging directory) holds the refused rows
    of all batches. ``judged_at`` is the moment by which they were late, in microseconds since the epoch. ``numbers`` is
    how many row numbers were given out, to refused rows too, where the dataset has a key.
    """

    row: SegmentRow | None
    slices: tuple[SliceRow, ...] = ()
    batch_rows: Mapping[int, int] = field(default_factory=dict)
    refused: Mapping[int, Sequence[RefusedRows]] = field(default_factory=dict)
    refused_path: str | None = None
    refused_bytes: int = 0
    dropped: Mapping[int, int] = field(default_factory=dict)
    judged_at: int = 0
    numbers: int = 0

    def files(self, store: Store) -> list[Path]:
        """The files that an acknowledgement rests on."""
        return [store.segment_path(path) for path in (self.row and self.row.path, self.refused_path) if path]

    def discard(self, store: Store) -> None:
        """Remove the files of a segment that is not going to be acknowledged."""
        for path in self.files(store):
            path.unlink(missing_ok=True)


def new_segment_id() -> str:
    """Return an id that is unique over all processes and hosts, and sorts by time."""
    return f"{now_micros():014x}{secrets.token_hex(5)}"


def write_segment(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    columns: Sequence[Column],
    sources: Sequence[RowSource],
    *,
    batches: Sequence[IncomingBatch],
    expected_bytes: int,
    take_late: bool = False,
) -> WrittenSegment:
    """Write the rows of ``sources`` into a new segment; returns once it is whole and durable on disk.

    Args:
        store: the installation.
        connection: an in-memory connection without anything attached.
        spec: the dataset.
        columns: its columns, which every source selects in this order.
        sources: the rows, each with the ordinal of its batch.
        batches: what the batches are, by ordinal; the segment says so of itself.
        expected_bytes: rough size of the input; chooses the segment's block size.
        take_late: stage rows of closed windows whatever the dataset does with them, because somebody said so.

    Raises:
        duckdb.Error, OSError: rows cannot be read or cast, or the disk cannot take them; nothing is left behind.
    """
    segment_id = new_segment_id()
    folder = store.settings.staging_path / spec.name
    make_folder(folder)
    final = folder / f"{segment_id}.duckdb"
    temporary = folder / f"{segment_id}.duckdb{TEMPORARY_SUFFIX}"
    try:
        filled = _fill(
            store, connection, spec, columns, sources, batches, temporary, segment_id, expected_bytes, take_late
        )
    except BaseException:
        for statement in ("ROLLBACK", "DETACH segment"):
            with suppress(duckdb.Error):
                connection.execute(statement)
        temporary.unlink(missing_ok=True)
        temporary.with_name(temporary.name + ".wal").unlink(missing_ok=True)
        raise
    finally:
        for source in sources:
            for name in source.tables:
                connection.unregister(name)
    try:
        reach(CrashPoint.SEGMENT_WRITTEN)
        if not filled.groups:
            temporary.unlink()
            return _written(store, None, filled)
        size = temporary.stat().st_size
        put_in_place(temporary, final)
        reach(CrashPoint.SEGMENT_IN_PLACE)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_name(temporary.name + ".wal").unlink(missing_ok=True)
    rows = sum(group.rows for group in filled.groups)
    segment = SegmentRow(segment_id, str(final.relative_to(store.settings.staging_path)), size, rows)
    return _written(store, segment, filled)


@dataclass(frozen=True)
class _Filled:
    """What is in a new segment, and what was not left in it."""

    groups: Sequence[DescribedGroup]
    refused: Mapping[int, Sequence[RefusedRows]]
    refused_path: str | None
    dropped: Mapping[int, int]
    judged_at: int
    numbers: int


def _fill(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    columns: Sequence[Column],
    sources: Iterable[RowSource],
    batches: Sequence[IncomingBatch],
    path: Path,
    segment_id: str,
    expected_bytes: int,
    take_late: bool,
) -> _Filled:
    block = _LARGE_BLOCK if expected_bytes >= _LARGE_FROM_BYTES else _SMALL_BLOCK
    # Without a log of its own: a segment that is not whole is thrown away, so there is nothing to recover.
    connection.execute(f"ATTACH {literal(str(path))} AS segment (BLOCK_SIZE {block}, RECOVERY_MODE no_wal_writes)")
    connection.execute("BEGIN")
    row_number = f", {ROW_COLUMN} BIGINT NOT NULL" if spec.key else ""
    connection.execute(
        f"CREATE TABLE segment.{SEGMENT_TABLE} "
        f"({column_definitions(columns)}, {BATCH_COLUMN} INTEGER NOT NULL{row_number})"
    )
    numbers = 0
    for source in sources:
        for name, table in source.tables.items():
            connection.register(name, table)
        rows = source.sql
        if spec.key and not source.numbered:
            rows = f"SELECT *, {numbers} + row_number() OVER () - 1 FROM ({source.sql})"
        numbers += connection.execute(f"INSERT INTO segment.{SEGMENT_TABLE} {rows}").fetchall()[0][0]
    time_column = spec.time_column(columns)
    time = utc_timestamp_sql(time_column)
    now = now_micros()
    horizon = from_micros(min(now + store.settings.staging_max_future_ms * 1_000, _LAST_MOMENT))
    start, first_open = spec.first_window.start, spec.first_open_window(now).start
    late = (
        ""
        if take_late or spec.late is LatePolicy.ACCEPT
        else (f"WHEN {time} < make_timestamp({to_micros(first_open)}) THEN '{_LATE}' ")
    )
    problem = (
        f"CASE WHEN {quote(time_column.name)} IS NULL THEN 'null' "
        f"WHEN NOT isfinite({quote(time_column.name)}) THEN 'infinite' "
        f"WHEN {time} < make_timestamp({spec.first_window.start_micros}) THEN 'early' {late}{_null_in_key(spec)}"
        f"WHEN {time} > TIMESTAMP '{horizon:%Y-%m-%d %H:%M:%S}' THEN 'future' END"
    )
    found = (
        _groups_without_problems(connection, spec, time, problem)
        or connection.execute(
            f"SELECT {BATCH_COLUMN}, problem, epoch_us(window_start), count(*), "
            f"epoch_us(min(time)), epoch_us(max(time)) FROM ("
            f"SELECT {BATCH_COLUMN}, problem, CASE WHEN problem IS NULL THEN time END AS time, "
            f"CASE WHEN problem IS NULL THEN date_trunc('{spec.window}', time) END AS window_start FROM ("
            f"SELECT {BATCH_COLUMN}, {time} AS time, {problem} AS problem FROM segment.{SEGMENT_TABLE})) "
            f"GROUP BY ALL"
        ).fetchall()
    )
    refused: dict[int, list[RefusedRows]] = {}
    dropped: dict[int, int] = {}
    said = {
        "start": start,
        "horizon": horizon,
        "first_open": first_open,
        "lateness": format_duration(spec.lateness),
        "key": ", ".join(spec.key.columns) if spec.key else "",
    }
    for ordinal, kind, _, rows, _, _ in found:
        if kind == _LATE and spec.late is LatePolicy.DROP:
            dropped[ordinal] = rows
        elif kind is not None:
            reason = _PROBLEMS[kind].format(**said)
            refused.setdefault(ordinal, []).append(RefusedRows(reason, rows, late=kind == _LATE))
    if dropped:
        connection.execute(f"DELETE FROM segment.{SEGMENT_TABLE} WHERE {problem} = '{_LATE}'")
    groups = tuple(
        DescribedGroup(ordinal, window, rows, low, high)
        for ordinal, kind, window, rows, low, high in found
        if kind is None
    )
    description = Description(
        spec.name,
        spec.window.value,
        described_batches(
            batches,
            _rows_by_ordinal(groups),
            {ordinal: sum(part.rows for part in parts) for ordinal, parts in refused.items()},
            {ordinal: reason_in_words(parts) for ordinal, parts in refused.items()},
            dropped,
        ),
        groups,
    )
    refused_path = None
    if refused:
        refused_path = f"{QUARANTINE_FOLDER}/{spec.name}/{segment_id}.rows.parquet"
        kept = f"{column_list(columns)}, {BATCH_COLUMN}" + (f", {ROW_COLUMN}" if spec.key else "")
        _set_rows_aside(store, connection, kept, problem, refused_path, description)
    describe_segment(connection, "segment", description)
    connection.execute("COMMIT")
    connection.execute("DETACH segment")
    return _Filled(groups, refused, refused_path, dropped, now, numbers)


def _null_in_key(spec: DatasetSpec) -> str:
    if spec.key is None:
        return ""
    return f"WHEN {' OR '.join(f'{quote(name)} IS NULL' for name in spec.key.columns)} THEN 'key' "


def reason_in_words(parts: Iterable[RefusedRows]) -> str:
    """Return why rows of one batch were refused."""
    return "; ".join(f"{part.rows} rows: {part.reason}" for part in parts)


def _rows_by_ordinal(groups: Iterable[DescribedGroup]) -> dict[int, int]:
    found: dict[int, int] = {}
    for group in groups:
        found[group.ordinal] = found.get(group.ordinal, 0) + group.rows
    return found


def _groups_without_problems(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, time: str, problem: str
) -> list[tuple[int, None, int, int, int, int]] | None:
    """Return batch, no problem, window, rows, first and last time; None where any row has a problem.

    Almost always there is none, and then this costs less than the query that says which.
    """
    found = connection.execute(
        f"SELECT {BATCH_COLUMN}, NULL, epoch_us(date_trunc('{spec.window}', {time})), count(*), "
        f"epoch_us(min({time})), epoch_us(max({time})), count({problem}) FROM segment.{SEGMENT_TABLE} GROUP BY ALL"
    ).fetchall()
    return None if any(group[-1] for group in found) else [group[:-1] for group in found]


def _set_rows_aside(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    kept: str,
    problem: str,
    relative: str,
    description: Description,
) -> None:
    final = store.segment_path(relative)
    make_folder(final.parent)
    temporary = final.with_name(final.name + TEMPORARY_SUFFIX)
    connection.execute(
        f"COPY (SELECT {kept}, {problem} AS _problem "
        f"FROM segment.{SEGMENT_TABLE} WHERE {problem} IS NOT NULL) "
        f"TO {literal(str(temporary))} (FORMAT parquet, COMPRESSION zstd, "
        f"KV_METADATA {{{METADATA_KEY}: {literal(description.as_text())}}})"
    )
    reach(CrashPoint.REFUSED_ROWS_WRITTEN)
    put_in_place(temporary, final)
    reach(CrashPoint.REFUSED_ROWS_IN_PLACE)
    connection.execute(f"DELETE FROM segment.{SEGMENT_TABLE} WHERE {problem} IS NOT NULL")


def _written(store: Store, segment: SegmentRow | None, filled: _Filled) -> WrittenSegment:
    refused_path = filled.refused_path
    return WrittenSegment(
        row=segment,
        slices=slices_of(filled.groups, segment) if segment else (),
        batch_rows=_rows_by_ordinal(filled.groups),
        refused=filled.refused,
        refused_path=refused_path,
        refused_bytes=store.segment_path(refused_path).stat().st_size if refused_path else 0,
        dropped=filled.dropped,
        judged_at=filled.judged_at,
        numbers=filled.numbers,
    )


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

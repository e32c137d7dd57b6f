"""Reading slices back out of their segments, for builds and for queries.

Few segments are attached and read where they lie. Many small ones are first brought together in one scratch
table, some at a time: a statement over hundreds of attached files would take memory for each of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import duckdb

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import column_definitions, literal, quote, select_as, time_range_sql
from timestore_pipeline.errors import ObjectMissing, SegmentUnreadable
from timestore_pipeline.ledger.corrected_windows import Taken
from timestore_pipeline.ledger.slices import Slice
from timestore_pipeline.model.columns import POSITION_COLUMN, ROW_COLUMN, Column
from timestore_pipeline.rows.corrected import count_taken, kept_rows
from timestore_pipeline.rows.reasons import readable_reason
from timestore_pipeline.segments.description import SEGMENT_TABLE
from timestore_pipeline.store import Store

MOST_ATTACHED = 32
"""Most segments that are attached to one connection at a time."""

SCRATCH_SCHEMA = "gathered"
"""Schema of scratch tables, so that they have no name that a dataset could have, and no list of tables shows them."""

_ATTEMPTS = 3


def attach_segment(store: Store, connection: duckdb.DuckDBPyConnection, piece: Slice) -> None:
    """Attach a slice's segment, read-only, under its id.

    Raises:
        SegmentUnreadable: it is missing or damaged.
        PlaceError: the folder of the dataset's segments is away.
        StorageError: it cannot be fetched just now.
    """
    for attempt in range(_ATTEMPTS):
        try:
            path = store.staging.fetch(piece.path)
        except ObjectMissing as error:
            store.places.require_segments(piece.dataset)
            raise SegmentUnreadable(piece.dataset, store.staging.shown(piece.path), error.reason) from error
        try:
            connection.execute(f'ATTACH {literal(str(path))} AS "{piece.segment_id}" (READ_ONLY)')
            return
        except duckdb.Error as error:
            # The copy was evicted just now, or is damaged. Whoever reads from it keeps what he has open.
            if attempt < _ATTEMPTS - 1 and store.staging.forget(piece.path):
                continue
            if path.exists():
                reason = readable_reason(error)
            else:
                store.places.require_segments(piece.dataset)
                reason = "there is no such file"
            raise SegmentUnreadable(piece.dataset, store.staging.shown(piece.path), reason) from error


def bring_segments(store: Store, slices: Iterable[Slice]) -> None:
    """Fetch the segments of slices from an object store, several at a time; what fails says so when it is attached."""
    store.staging.bring({piece.path for piece in slices})


def detach_segment(connection: duckdb.DuckDBPyConnection, segment_id: str) -> None:
    """Detach a segment and give back its memory."""
    connection.execute(f'DETACH "{segment_id}"')


def segment_table(segment_id: str) -> str:
    """Return the SQL name of the table in an attached segment."""
    return f'"{segment_id}".{SEGMENT_TABLE}'


def rows_of_segment(spec: DatasetSpec, columns: Sequence[Column], piece: Slice) -> str:
    """Return what follows FROM to read the segment of a slice as rows of ``columns``, without what corrections take."""
    table = _kept_rows(spec, piece)
    return table if piece.columns == tuple(columns) else f"(SELECT {_as_rows_of(columns, piece)} FROM {table})"


def _kept_rows(spec: DatasetSpec, piece: Slice) -> str:
    return kept_rows(spec, piece.columns, segment_table(piece.segment_id), piece.corrections)


def rows_taken(connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, piece: Slice) -> Taken:
    """Return how many rows of a slice, whose segment is attached, each correction takes.

    Raises:
        duckdb.Error: the segment cannot be read.
    """
    window = spec.window_at(piece.window_start)
    return count_taken(connection, spec, piece.columns, segment_table(piece.segment_id), piece.corrections, window)


def _as_rows_of(columns: Sequence[Column], piece: Slice) -> str:
    """Return the SELECT list that makes rows of ``columns`` of a segment's; the position is where a row stood."""
    listed = select_as([column for column in columns if column.name != POSITION_COLUMN], piece.columns)
    if columns[-1].name != POSITION_COLUMN:
        return listed
    return f"{listed}, CAST({piece.position or 0} + {ROW_COLUMN} AS BIGINT) AS {POSITION_COLUMN}"


def by_segment(slices: Iterable[Slice]) -> dict[str, list[Slice]]:
    """Group slices by the id of their segment."""
    found: dict[str, list[Slice]] = defaultdict(list)
    for piece in slices:
        found[piece.segment_id].append(piece)
    return found


def select_slices(spec: DatasetSpec, columns: Sequence[Column], pieces: Sequence[Slice]) -> str:
    """Return SQL for the rows of slices of one attached segment, as rows of ``columns``, without what corrections take.

    Neighbouring windows are read as one range.
    """
    taking = {each.number: each for piece in pieces for each in piece.corrections}
    table = kept_rows(spec, pieces[0].columns, segment_table(pieces[0].segment_id), list(taking.values()))
    ranges: list[list[int]] = []
    for piece in sorted(pieces, key=lambda item: item.window_start):
        window = spec.window_at(piece.window_start)
        if ranges and ranges[-1][1] == window.start_micros:
            ranges[-1][1] = window.end_micros
        else:
            ranges.append([window.start_micros, window.end_micros])
    stored = pieces[0].columns
    time = spec.time_column(stored)
    condition = " OR ".join(time_range_sql(time, start, end) for start, end in ranges)
    return f"SELECT {_as_rows_of(columns, pieces[0])} FROM {table} WHERE {condition}"


def gather_slices(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    columns: Sequence[Column],
    slices: Iterable[Slice],
    table: str,
) -> Taken:
    """Copy the rows of many slices into a new ``table`` (a quoted SQL name) of the connection.

    Returns:
        What corrections take of them, which is not copied.

    Raises:
        SegmentUnreadable: a segment is missing or damaged, or has another number of rows than the ledger says.
    """
    connection.execute(f"CREATE TABLE {table} ({column_definitions(columns)})")
    taken: Taken = Counter()
    groups = list(by_segment(slices).values())
    for start in range(0, len(groups), MOST_ATTACHED):
        chunk = groups[start : start + MOST_ATTACHED]
        bring_segments(store, (pieces[0] for pieces in chunk))
        for pieces in chunk:
            attach_segment(store, connection, pieces[0])
        rows = " UNION ALL ".join(select_slices(spec, columns, pieces) for pieces in chunk)
        try:
            of_chunk: Taken = Counter()
            for piece in (piece for pieces in chunk for piece in pieces if piece.corrections):
                of_chunk += rows_taken(connection, spec, piece)
            copied = connection.execute(f"INSERT INTO {table} {rows}").fetchall()[0][0]
        except duckdb.Error as error:
            raise _named(store, chunk, readable_reason(error)) from error
        taken += of_chunk
        expected = sum(piece.rows for pieces in chunk for piece in pieces) - of_chunk.total()
        if copied != expected:
            raise _named(store, chunk, f"{copied} rows were read where the ledger has {expected}")
        for pieces in chunk:
            detach_segment(connection, pieces[0].segment_id)
    return taken


def _named(store: Store, chunk: Sequence[Sequence[Slice]], reason: str) -> SegmentUnreadable:
    paths = [store.staging.shown(pieces[0].path) for pieces in chunk]
    more = f" … and {len(paths) - 3} more" if len(paths) > 3 else ""
    return SegmentUnreadable(chunk[0][0].dataset, ", ".join(paths[:3]) + more, reason)


def scratch_table(dataset: str) -> str:
    """Return the quoted SQL name of the scratch table for a dataset's gathered slices, in a schema of its own."""
    return f"{SCRATCH_SCHEMA}.{quote(dataset)}"

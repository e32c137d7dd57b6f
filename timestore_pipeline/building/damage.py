"""Staged rows that cannot be read back: found by reading each slice alone, and set aside so that the rest goes on.

Only damage counts: a file that is gone, cut short or fails its checksums. A declaration that contradicts the rows is
no damage. What may pass (no memory, no permission, staging that is not mounted) never sends a row to quarantine; the
build is tried again.
"""

from __future__ import annotations

import errno
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import duckdb
from sqlalchemy import Connection

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import EVERY_VALUE, literal, time_range_sql, utc_timestamp_sql
from timestore_pipeline.errors import ObjectMissing, PlaceError, StorageError
from timestore_pipeline.exhaustion import out_of_files
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.history import failures_in_a_row
from timestore_pipeline.ledger.quarantine import DamagedSegment, QuarantineEntry, set_slices_aside
from timestore_pipeline.ledger.slices import Slice, unclaimed_slices
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.rows.reasons import readable_reason
from timestore_pipeline.segments.description import SEGMENT_TABLE, NotDescribed, read_segment
from timestore_pipeline.segments.slices import by_segment
from timestore_pipeline.storage.layout import key_aside
from timestore_pipeline.store import Store

log = log_named(__name__)

_NAMED_WINDOWS = 5


def out_of_attempts(store: Store, dataset: str) -> bool:
    """Whether so many builds of the dataset failed in a row that its segments are to be looked at."""
    with store.ledger.read() as tx:
        return failures_in_a_row(tx, dataset) >= store.settings.build_max_attempts


def set_unreadable_aside(store: Store, dataset: str) -> list[QuarantineEntry]:
    """Read every staged slice of the dataset that no build has, and quarantine those that cannot be read.

    Returns:
        An entry for each damaged segment; none where all can be read, so that something else is wrong.

    Raises:
        PlaceError: staging or the dataset's folder in it is not there, so nothing can be said of its segments.
    """
    spec = store.datasets[dataset]
    try:
        store.places.require_segments(dataset)
    except PlaceError:
        raise
    except StorageError as error:
        log.warning("%s: its segments cannot be looked at: %s", dataset, error)
        return []
    with store.ledger.read() as tx:
        pieces = unclaimed_slices(tx, dataset)
    entries = []
    for segment_id, damaged in unreadable_slices(store, spec, pieces).items():
        entry = _set_segment_aside(store, spec, segment_id, damaged)
        if entry is not None:
            log.error(
                "%s: segment %s cannot be read and %s rows of it are in quarantine: %s",
                dataset,
                segment_id,
                entry.rows,
                entry.reason,
            )
            entries.append(entry)
    return entries


def unreadable_slices(store: Store, spec: DatasetSpec, slices: Iterable[Slice]) -> dict[str, dict[Slice, str]]:
    """Return segment id → slice → reason, for those of ``slices`` whose rows cannot all be read back."""
    found = {}
    for segment_id, pieces in by_segment(slices).items():
        try:
            damaged = _damage(store, spec, pieces)
        except _CannotTell as error:
            log.warning("%s: segment %s cannot be looked at: %s", spec.name, segment_id, error)
            continue
        if damaged:
            found[segment_id] = damaged
    return found


def damaged_slices(store: Store, spec: DatasetSpec, pieces: Sequence[Slice]) -> dict[Slice, str]:
    """Return slice → reason, for those of one segment's slices that cannot be read, for whatever reason."""
    try:
        return _damage(store, spec, pieces)
    except _CannotTell as error:
        return dict.fromkeys(pieces, str(error))


class _CannotTell(Exception):
    """Something that may pass stands in the way: it says nothing of the segment."""


def _damage(store: Store, spec: DatasetSpec, pieces: Sequence[Slice]) -> dict[Slice, str]:
    try:
        store.staging.forget(pieces[0].path)  # what counts is the object, and not a copy of it
        path = store.staging.fetch(pieces[0].path)
    except ObjectMissing as error:
        return dict.fromkeys(pieces, error.reason)
    except StorageError as error:
        raise _CannotTell(str(error)) from error
    reason = _damage_of_file(path)
    if reason is not None:
        return dict.fromkeys(pieces, reason)
    # A connection of its own: an error in one database must not show in the next.
    with store.connect(*store.segment_folders(spec.name)) as connection:
        try:
            connection.execute(f"ATTACH {literal(str(path))} AS segment (READ_ONLY)")
        except duckdb.Error as error:
            return dict.fromkeys(pieces, _damage_in_words(error))
        expected = {piece.window_start: piece.rows for piece in pieces}
        try:
            counts = _rows_by_window(connection, spec, pieces[0].columns)
            wrong = [piece for piece in pieces if counts.get(piece.window_start, 0) != expected[piece.window_start]]
            if wrong and _is_as_described(connection, path, pieces):
                # Every value was read, and the file has what it was written with.
                raise _CannotTell("its rows lie in other windows by what datasets.yaml says now")
            return {piece: _wrong_count(counts.get(piece.window_start, 0), piece) for piece in wrong}
        except duckdb.Error:
            return {piece: reason for piece in pieces if (reason := _damage_of_slice(connection, spec, piece))}


def _damage_of_file(path: Path) -> str | None:
    """Return what is wrong with a file as the file system has it, None for nothing."""
    try:
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass
    except FileNotFoundError as error:
        if path.parent.is_dir():
            return "there is no such file"
        raise _CannotTell("the folder of the dataset's segments is not there; mount or restore it") from error
    except OSError as error:
        if error.errno == errno.EIO:
            return f"it cannot be read: {error.strerror}"
        raise _CannotTell(error.strerror or str(error)) from error
    return None


def _rows_by_window(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, columns: Sequence[Column]
) -> Mapping[int, int]:
    """Read a whole segment, every value of it, and return how many rows each window has."""
    time = utc_timestamp_sql(spec.time_column(columns))
    rows = connection.execute(
        f"SELECT epoch_us(date_trunc('{spec.window}', {time})), count(*), {EVERY_VALUE} "
        f"FROM segment.{SEGMENT_TABLE} GROUP BY 1"
    ).fetchall()
    return {start: count for start, count, _ in rows}


def _is_as_described(connection: duckdb.DuckDBPyConnection, path: Path, pieces: Sequence[Slice]) -> bool:
    """Whether a segment says of itself that it has these slices, and has as many rows as it says."""
    connection.execute("DETACH segment")
    try:
        description = read_segment(connection, path)[0]
    except NotDescribed:
        return False
    rows: Counter[int] = Counter()
    for group in description.groups:
        rows[group.window_start] += group.rows
    return description.dataset == pieces[0].dataset and all(rows[piece.window_start] == piece.rows for piece in pieces)


def _damage_of_slice(connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, piece: Slice) -> str | None:
    window = spec.window_at(piece.window_start)
    condition = time_range_sql(spec.time_column(piece.columns), window.start_micros, window.end_micros)
    try:
        row = connection.execute(
            f"SELECT count(*), {EVERY_VALUE} FROM segment.{SEGMENT_TABLE} WHERE {condition}"
        ).fetchone()
    except duckdb.Error as error:
        return _damage_in_words(error)
    found = row[0] if row else 0
    return None if found == piece.rows else _wrong_count(found, piece)


def _wrong_count(found: int, piece: Slice) -> str:
    return f"{found} rows were read where the ledger has {piece.rows}"


def _damage_in_words(error: duckdb.Error) -> str:
    if out_of_files(error):
        raise _CannotTell(str(error)) from error
    reason = readable_reason(error)
    if isinstance(error, duckdb.OutOfMemoryException) or "lock on file" in str(error):
        raise _CannotTell(reason) from error
    return reason


def _set_segment_aside(
    store: Store, spec: DatasetSpec, segment_id: str, damaged: Mapping[Slice, str]
) -> QuarantineEntry | None:
    """Move a segment to quarantine: it is there under both names until the ledger knows the new one."""
    staging = store.staging
    old = next(iter(damaged)).path
    new = key_aside(spec.name, old)
    try:
        if new != old and staging.size(old) is not None:
            staging.link(old, new)
    except OSError as error:
        shown = staging.shown(old)
        log.warning("%s: %s is in quarantine but stays where it is: %s", spec.name, shown, error.strerror or error)
    path = old

    def record(tx: Connection) -> QuarantineEntry | None:
        nonlocal path
        # Looked at in here, because a sweep removes a name that the ledger does not know.
        size = staging.size(new)
        path, size = (new, size) if size is not None else (old, staging.size(old))
        segment = DamagedSegment(spec.name, segment_id, path, size or 0, _reason(spec, damaged))
        return set_slices_aside(tx, segment, [piece.window_start for piece in damaged], now_micros())

    entry = store.ledger.transact(record, repeatable=False)
    if entry is None:
        return None  # the second name of the file is swept
    if path != old:
        staging.delete(old)
    return entry


def _reason(spec: DatasetSpec, damaged: Mapping[Slice, str]) -> str:
    """Return the reasons, each once, with the windows that it holds for."""
    windows: dict[str, list[str]] = defaultdict(list)
    for piece, reason in damaged.items():
        windows[reason].append(spec.window_at(piece.window_start).key)
    parts = []
    for reason, keys in windows.items():
        more = f" and {len(keys) - _NAMED_WINDOWS} more" if len(keys) > _NAMED_WINDOWS else ""
        parts.append(f"{', '.join(keys[:_NAMED_WINDOWS])}{more}: {reason}")
    return "; ".join(parts[:_NAMED_WINDOWS])

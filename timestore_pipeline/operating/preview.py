"""A look at what is in quarantine: the first rows or lines of an entry, as far as they can be read."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import duckdb

from timestore_pipeline.duck.sql import file_literal, literal
from timestore_pipeline.errors import StorageError
from timestore_pipeline.ledger.batches import ordinal_of_batch
from timestore_pipeline.ledger.quarantine import QuarantineEntry
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.model.columns import BATCH_COLUMN, ROW_COLUMN
from timestore_pipeline.operating.quarantine import kept_file
from timestore_pipeline.rows.reasons import readable_reason
from timestore_pipeline.segments.description import SEGMENT_TABLE
from timestore_pipeline.store import Store

PREVIEWED = 10
"""Most rows or lines that are shown."""

_SHOWN = f"COLUMNS(lambda name: name NOT IN ('{BATCH_COLUMN}', '{ROW_COLUMN}'))"
_MAX_LINE = 500
_TEXT_BYTES = 64 << 10


@dataclass(frozen=True)
class Preview:
    """The first rows (with their columns' names) or lines of an entry, or why there are none."""

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[object, ...], ...] = ()
    lines: tuple[str, ...] = ()
    problem: str | None = None


def preview(store: Store, entry: QuarantineEntry, most: int = PREVIEWED) -> Preview:
    """Return the beginning of an entry's bytes; nothing is raised for bytes that cannot be read.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    try:
        path = kept_file(store, entry)
    except StorageError as error:
        return Preview(problem=str(error))
    if path is None:
        return Preview(problem=f"there is no file {store.staging.shown(entry.path)}")
    if entry.kind is QuarantineKind.BATCH:
        return _first_lines(path, most)
    if entry.kind is QuarantineKind.SEGMENT:
        query = f"SELECT {_SHOWN} FROM segment.{SEGMENT_TABLE}"
        return _first_rows(store, path, query, most, attach=True)
    with store.ledger.read() as tx:
        ordinal = ordinal_of_batch(tx, entry.dataset, entry.batch_id)
    source = f"read_parquet({file_literal(path)})"
    query = f"SELECT {_SHOWN} FROM {source} WHERE {BATCH_COLUMN} = {ordinal}"
    return _first_rows(store, path, query, most)


def _first_rows(store: Store, path: Path, query: str, most: int, *, attach: bool = False) -> Preview:
    with store.connect(path.parent) as connection:
        try:
            if attach:
                connection.execute(f"ATTACH {literal(str(path))} AS segment (READ_ONLY)")
            found = connection.execute(f"{query} LIMIT {most}")
            columns = tuple(column[0] for column in found.description or ())
            return Preview(columns=columns, rows=tuple(found.fetchall()))
        except duckdb.Error as error:
            return Preview(problem=f"it cannot be read: {readable_reason(error)}")


def _first_lines(path: Path, most: int) -> Preview:
    try:
        with path.open("rb") as file:
            content = file.read(_TEXT_BYTES)
    except OSError as error:
        return Preview(problem=f"it cannot be read: {error.strerror or error}")
    if content.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as file:
                content = file.read(_TEXT_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            return Preview(problem=f"it cannot be unpacked: {error}")
    if b"\0" in content:
        return Preview(problem="it is no text")
    lines = content.decode(errors="replace").splitlines()
    return Preview(lines=tuple(line[:_MAX_LINE] for line in lines[:most]))

"""The ledger that is replaced: what its file still says, however old or damaged it is, and where it is moved to."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from timestore_pipeline.durable_files import fsync_path
from timestore_pipeline.errors import LedgerError
from timestore_pipeline.ledger.database import identity_at
from timestore_pipeline.settings import Settings
from timestore_pipeline.store import ledger_file


@dataclass(frozen=True)
class StagedSlice:
    """A slice that waits to be published, by the ledger that is replaced."""

    dataset: str
    segment_id: str
    window_start: int
    rows: int
    path: str


def move_ledger_aside(settings: Settings) -> Path | None:
    """Move a SQLite ledger to another name beside it; None where there is none.

    Raises:
        LedgerError: it is not SQLite, or cannot be moved.
    """
    file = ledger_file(settings)
    if file is None:
        raise LedgerError(
            "the ledger is no SQLite file, so it is not replaced: point TIMESTORE_LEDGER_URL to an empty database, "
            "or drop its tables, and run this again without --replace"
        )
    if not file.exists():
        return None
    target = file.with_name(f"{file.name}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
    try:
        # The log first: alone it does nothing, and a database without it would be an older one.
        for suffix in ("-wal", "-shm", ""):
            part = file.with_name(file.name + suffix)
            if part.exists():
                part.rename(target.with_name(target.name + suffix))
        fsync_path(file.parent)
    except OSError as error:
        raise LedgerError(f"the ledger {file} cannot be moved aside: {error.strerror or error}") from error
    return target


def put_ledger_back(settings: Settings, moved: Path | None) -> None:
    """Give a ledger that was moved aside its name again, in place of the one that could not be made.

    Its own error is what matters to whoever asked: where this fails too, the old one stays where it was moved to.
    """
    file = ledger_file(settings)
    if moved is None or file is None:
        return
    with suppress(OSError):
        for suffix in ("-wal", "-shm", ""):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
        # The database last: with its log missing it would be an older one.
        for suffix in ("-wal", "-shm", ""):
            part = moved.with_name(moved.name + suffix)
            if part.exists():
                part.rename(file.with_name(file.name + suffix))
        fsync_path(file.parent)


def refuse_ledger_of_others(file: Path, identity: str) -> None:
    """Leave a ledger where it is that says itself that it is of another installation; a damaged one says nothing."""
    found = _identity_in(file)
    if found not in (None, identity):
        raise LedgerError(
            f"the ledger {file} is of the installation {found}, and staging and tables are of {identity}. Nothing "
            "was done. Correct TIMESTORE_LEDGER_URL, TIMESTORE_STAGING_DIRECTORY or TIMESTORE_TABLES_URL."
        )


def identity_of_ledger(settings: Settings) -> str | None:
    """Return the identity of the ledger that is there, whatever else it knows; None where nobody can say."""
    file = ledger_file(settings)
    return identity_at(settings.resolved_ledger_url) if file is None else _identity_in(file)


def tables_known_to(file: Path | None) -> set[str]:
    """Return the datasets that have a table by the file of a ledger; none where that is missing or damaged."""
    return {name for (name,) in _answer(file, "SELECT name FROM datasets WHERE table_version IS NOT NULL")}


def staged_by(file: Path | None) -> list[StagedSlice]:
    """Return what is staged by the file of a ledger; nothing where that is missing or damaged."""
    rows = _answer(
        file,
        "SELECT slices.dataset, segment_id, window_start, slices.rows, path FROM slices "
        "JOIN segments ON segments.id = segment_id WHERE slices.published_at IS NULL AND quarantine_id IS NULL",
    )
    return [StagedSlice(*row) for row in rows]


def _identity_in(file: Path) -> str | None:
    """Return the identity in the file of a ledger; None where there is none, or where it is damaged."""
    rows = _answer(file, "SELECT identity FROM installation")
    return rows[0][0] if rows else None


def _answer(file: Path | None, query: str) -> list[tuple[Any, ...]]:
    """Return what the file of a ledger answers; nothing where it is missing or damaged."""
    if file is None or not file.exists():
        return []
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()
    return []

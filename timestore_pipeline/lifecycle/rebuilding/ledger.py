"""A ledger that was lost is made again from segments, tables, manifests and quarantine.

Exactly once (invariant 2) decides everything here: a slice is published if a manifest of a build that is in the table
says so, else it is staged; a batch is taken from one segment only. All is entered in one transaction: a rebuild that is
killed leaves a ledger that is as empty as before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, make_url
from sqlalchemy.exc import ArgumentError

from timestore_pipeline.clock import now_micros
from timestore_pipeline.connections import Connect, connector
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import Datasets, load_datasets
from timestore_pipeline.durable_files import fsync_path, make_folder
from timestore_pipeline.errors import LedgerError, LedgerInUse
from timestore_pipeline.ledger import Ledger
from timestore_pipeline.ledger.database import sqlite_file
from timestore_pipeline.ledger.registry import register
from timestore_pipeline.ledger.restoring import lock_ledger
from timestore_pipeline.lifecycle.rebuilding.dataset import RestoredDataset, Restoring
from timestore_pipeline.lifecycle.rebuilding.evidence import datasets_with_files, gather
from timestore_pipeline.lifecycle.rebuilding.restored import last_retry
from timestore_pipeline.settings import Settings, load_settings
from timestore_pipeline.store import Store, writer_pool


@dataclass(frozen=True)
class Rebuilt:
    """A ledger that was made again; ``moved_aside`` is where the one before is now."""

    location: str
    datasets: tuple[RestoredDataset, ...]
    moved_aside: Path | None = None

    @property
    def complete(self) -> bool:
        """Whether there was nothing that could not be restored."""
        return not any(each.problems for each in self.datasets)


def rebuild_ledger(
    settings: Settings | None = None,
    connect: Connect | None = None,
    *,
    by: str,
    replace_existing: bool = False,
    progress: Callable[[str], None] = lambda sentence: None,
) -> Rebuilt:
    """Make the ledger again where it is gone or empty; nothing else of the installation may run meanwhile.

    Args:
        settings: the installation, by default that of the environment.
        connect: opens DuckDB connections.
        by: who does it, for people.
        replace_existing: put it in place of a ledger that is in use or damaged, which is moved aside (SQLite only).
        progress: gets a sentence for each dataset.

    Raises:
        LedgerInUse: there is one with batches in it; nothing was done.
        LedgerError: it cannot be opened or written.
        TableError: a table cannot be read, so nobody can say what is published; nothing was entered.
        SettingsError, DatasetsFileError: as they say.
    """
    settings = settings or load_settings()
    datasets = load_datasets(settings.datasets_path)
    make_folder(settings.temp_path)
    connect = connect or connector(settings)
    moved = None
    if replace_existing:
        _look_before_replacing(settings, datasets, connect)
        moved = move_ledger_aside(settings)
    ledger = Ledger.open(settings.resolved_ledger_url, busy_timeout_seconds=settings.ledger_busy_timeout_seconds)
    store = Store(settings, datasets, ledger, connect, writer_pool(settings, connect))
    try:
        with ledger.write() as tx:
            known = lock_ledger(tx)
            if known:
                raise LedgerInUse(ledger.location, known)
            restored = _restore_all(store, tx, by, progress)
            reach(CrashPoint.LEDGER_REBUILT)
    finally:
        store.close()
    return Rebuilt(ledger.location, tuple(restored), moved)


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


def ledger_file(settings: Settings) -> Path | None:
    """Return the file of a SQLite ledger; None where it is another database.

    Raises:
        LedgerError: TIMESTORE_LEDGER_URL is no URL.
    """
    try:
        return sqlite_file(make_url(settings.resolved_ledger_url))
    except (ArgumentError, ValueError) as error:
        raise LedgerError("TIMESTORE_LEDGER_URL is not usable: it is no URL of a database") from error


def _look_before_replacing(settings: Settings, datasets: Datasets, connect: Connect) -> None:
    """Read all that a rebuild needs, and change nothing: a ledger that nothing else can stand in for is not moved."""
    with Store(settings, datasets, Ledger.open("sqlite://"), connect, writer_pool(settings, connect)) as store:
        for name in sorted(datasets_with_files(store)):
            gather(store, name, fence=False)


def _restore_all(store: Store, tx: Connection, by: str, progress: Callable[[str], None]) -> list[RestoredDataset]:
    restored = []
    found = {name: gather(store, name) for name in sorted(datasets_with_files(store))}
    next_entry = 1 + max((last_retry(evidence) for evidence in found.values()), default=0)
    for name, evidence in found.items():
        restoring = Restoring(store, tx, evidence, by)
        outcome, next_entry = restoring.restore(next_entry)
        restored.append(outcome)
        progress(f"{name}: {outcome.staged_rows:,} rows staged, {outcome.published_rows:,} rows published")
    refused = register(tx, store.datasets.values(), now_micros())
    return [
        replace(each, problems=(*each.problems, str(refused[each.dataset]))) if each.dataset in refused else each
        for each in restored
    ]

"""The kinds of faults of a soak, and how those that happen inside of a process are made to happen."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection

from timestore_pipeline.ledger import Ledger
from timestore_pipeline.table.delta import CommitFailedError, DeltaError, DeltaTable


class Kind(StrEnum):
    """What can go wrong, as the table at the end of a soak says it."""

    KILLED_AT_A_POINT = "SIGKILL at a crash point"
    KILLED_ANYWHERE = "SIGKILL at any moment"
    KILLED_AMONG_OTHERS = "SIGKILL or SIGSTOP among many processes"
    STOPPED = "SIGSTOP until past its lease, then SIGCONT"
    EIO = "EIO from fsync, rename, link, unlink or write"
    ENOSPC = "ENOSPC from fsync, rename, link or write"
    DISK_FULL = "disk full (ENOSPC to every library)"
    STORE_ERROR = "object store: an error instead of the answer"
    STORE_LOST = "object store: carried out, the answer lost"
    STORE_SLOW = "object store: slow, cut or never answered"
    DELTA_LOST = "Delta commit arrived, the caller saw an error"
    DELTA_FAILED = "Delta commit did not arrive, error"
    LEDGER_LOST = "ledger commit arrived, the caller saw an error"
    LEDGER_FAILED = "ledger commit did not arrive, error"
    CLOCK_FORWARD = "clock jumps forward (an hour, two days)"
    CLOCK_BACK = "clock jumps back (an hour, two days)"
    RESTORED = "older ledger over newer tables"
    RESTORED_BOTH = "older ledger and staging over newer tables"
    COPIED = "copied installation, given its own identity"
    COPIED_SHARED = "copied installation on the original's tables"
    STRANGER = "second installation on the same tables"
    OPTIMIZED = "another program optimizes the table"
    VACUUMED = "another program vacuums the table"
    APPENDED = "another program appends to the table"
    CHECKPOINTED = "another program makes a checkpoint, cleans the log"
    STAGING_AWAY = "staging not there, and back"
    TABLES_AWAY = "tables not there, and back"
    ARCHIVE_AWAY = "archive not there, and back"


class Seen(StrEnum):
    """What came of a fault."""

    WENT_ON = "went on"
    """The work that met it was done all the same."""
    REFUSED = "refused"
    """It ended with a clear error; done again, it succeeded."""
    RECOVERED = "recovered"
    """Its process was killed, or fenced; others settled what it had begun."""


Fired = Callable[[], object]
"""Called when a fault happens: only then it counts."""


@contextmanager
def failing_calls(numbers: Collection[int], code: int, fired: Fired) -> Iterator[None]:
    """Let calls by which files become durable fail in the block: those of these numbers, counted from 1."""
    calls = count(1)

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*arguments: Any, **options: Any) -> Any:
            if next(calls) in numbers:
                fired()
                raise OSError(code, os.strerror(code))
            return call(*arguments, **options)

        return attempt

    names = ["fsync", "link", "rename"] + (["unlink"] if code == errno.EIO else [])
    with pytest.MonkeyPatch.context() as patched:
        for name in names:
            patched.setattr(os, name, failing(getattr(os, name)))
        patched.setattr(Path, "write_bytes", failing(Path.write_bytes))
        yield


@contextmanager
def full_disk(disk: Path, leave: int) -> Iterator[None]:
    """Take all the space of a file system but ``leave`` bytes in the block."""
    filler = disk / "filler"
    space = os.statvfs(disk)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, space.f_bavail * space.f_frsize - leave))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def broken_delta_commits(
    plan: Mapping[int, bool], error: type[Exception], fired: Callable[[bool], object]
) -> Iterator[None]:
    """Let commits to tables in the block end with an error: those that ``plan`` has, by whether they arrive."""
    commits = count(1)
    commit = DeltaTable.create_write_transaction

    def broken(self: DeltaTable, *arguments: Any, **options: Any) -> None:
        arrives = plan.get(next(commits))
        if arrives is not False:
            commit(self, *arguments, **options)
        if arrives is not None:
            fired(arrives)
            raise error("the connection was reset, as the soak wants it")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DeltaTable, "create_write_transaction", broken)
        yield


DELTA_ERRORS = (DeltaError, CommitFailedError, OSError)
"""What delta-rs says when a commit ends badly."""


@contextmanager
def broken_ledger_commits(ledger: Ledger, plan: Mapping[int, bool], fired: Callable[[bool], object]) -> Iterator[None]:
    """Let commits to the ledger in the block end with an error: those that ``plan`` has, by whether they arrive.

    On SQLite it is an error of the disk; on PostgreSQL the connection breaks.
    """
    commits = count(1)
    here = threading.local()
    dialect = type(ledger._engine.dialect)
    commit, write = dialect.do_commit, Ledger.write

    @contextmanager
    def writing(self: Ledger) -> Iterator[Connection]:
        here.writes = True
        try:
            with write(self) as tx:
                yield tx
        finally:
            here.writes = False

    def broken(self: Any, connection: Any) -> None:
        arrives = plan.get(next(commits)) if getattr(here, "writes", False) else None
        if arrives is not False:
            commit(self, connection)
        if arrives is None:
            return
        fired(arrives)
        if isinstance(connection.driver_connection, sqlite3.Connection):
            raise sqlite3.OperationalError("disk I/O error")
        import psycopg

        connection.driver_connection.close()
        raise psycopg.OperationalError("the connection is lost")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Ledger, "write", writing)
        patched.setattr(dialect, "do_commit", broken)
        yield


class Clock:
    """The clock of all parts in this process, and how far it is from the real one."""

    def __init__(self, hours: float = 0) -> None:
        self.hours = hours

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let it be the clock in the block."""
        moved = SimpleNamespace(time_ns=lambda: time.time_ns() + int(self.hours * 3_600e9))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("timestore_pipeline.model.clock.time", moved)
            yield

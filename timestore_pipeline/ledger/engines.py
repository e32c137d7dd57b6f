"""Engines for the ledger: what is set on a connection to SQLite or PostgreSQL, and which failures mean what."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError

from timestore_pipeline.durable_files import PRIVATE_FILE, make_folder
from timestore_pipeline.errors import LedgerError

# Firewalls forget connections that are silent for long; a host that is gone must be noticed.
_NETWORK = {"connect_timeout": 10, "keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 3}
_RECYCLE_SECONDS = 1_800
# What is set on a connection. A process that stops in the middle of a transaction, or whose host is cut off, must not
# hold its locks for ever.
_SESSION = {
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}

_PAUSE_SECONDS = 0.02

# A deadlock or a conflict of two transactions: PostgreSQL ended one of them, and whoever does it again succeeds.
_CONFLICTS = frozenset({"40001", "40P01"})
# The server stops or starts, or has no connection left to give.
_OUTAGES = frozenset({"57P01", "57P02", "57P03", "53300"})


def parse_ledger_url(url: str) -> URL:
    """Return the SQLAlchemy ``url`` of a ledger, with the driver that is meant.

    Raises:
        LedgerError: it is no URL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise LedgerError(f"TIMESTORE_LEDGER_URL is not usable: {error}") from error
    except ValueError:
        # Its message has a part of the URL in it, and no one knows which.
        raise LedgerError("TIMESTORE_LEDGER_URL is not usable: its port is no number") from None
    if "@" in (parsed.host or ""):
        raise LedgerError("TIMESTORE_LEDGER_URL is not usable: write an @ in the password as %40")
    if parsed.drivername == "postgresql":
        # Which driver a bare name means depends on SQLAlchemy's version.
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


def sqlite_file(url: URL) -> Path | None:
    """Return the file of a SQLite database; None for one in memory, and for another kind of database."""
    on_disk = url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:"
    return Path(url.database).absolute() if on_disk and url.database else None


def ledger_engine(url: URL, *, busy_timeout_seconds: float, pool_size: int) -> Engine:
    """Return an engine for the ledger at ``url``; nothing is connected yet.

    ``busy_timeout_seconds`` is how long a statement waits for another transaction, ``pool_size`` the most connections
    that are kept open (PostgreSQL only; SQLite's are files).
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url, busy_timeout_seconds)
    if url.get_backend_name() == "postgresql":
        return _postgresql_engine(url, busy_timeout_seconds, pool_size)
    return create_engine(url)


def may_be_done_again(error: DBAPIError) -> bool:
    """Whether a transaction that failed so before its commit did nothing, and may well succeed if it is done again."""
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return state in _CONFLICTS | _OUTAGES or state.startswith("08")
    # A connection that broke has no state of its own.
    return error.connection_invalidated


def never_connected(error: DBAPIError) -> bool:
    """Whether a failure to connect may be over soon: the server starts again, the network comes back."""
    return isinstance(error, OperationalError | InterfaceError)


def _sqlite_engine(url: URL, busy_timeout_seconds: float) -> Engine:
    file = sqlite_file(url)
    if file is not None:
        make_folder(file.parent)
        # Made here for the sake of its mode, which SQLite gives to the files beside it.
        # Never one that is there: to close it would take from this process, by the rules of POSIX, the locks that its
        # other connections hold, and whoever closes the ledger next would remove the log under them.
        with suppress(FileExistsError):
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
    engine = create_engine(url, connect_args={"timeout": busy_timeout_seconds})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver must not open transactions by itself: it would do so too late and without IMMEDIATE.
        connection.isolation_level = None
        _keep_log(connection, busy_timeout_seconds)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine


def _keep_log(connection: Any, patience: float) -> None:
    """Let a SQLite database keep a write-ahead log; ``patience`` in seconds.

    Where another connection is just doing the same to a new file, SQLite does not wait for it by itself.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def _postgresql_engine(url: URL, busy_timeout_seconds: float, pool_size: int) -> Engine:
    network: dict[str, Any] = {name: value for name, value in _NETWORK.items() if name not in url.query}
    network.setdefault("application_name", "timestore")
    if "application_name" in url.query:
        del network["application_name"]
    engine = create_engine(
        url,
        connect_args=network,
        # Asked before it is used, so that a restart of the server costs a new connection and no error.
        pool_pre_ping=True,
        pool_recycle=_RECYCLE_SECONDS,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=busy_timeout_seconds,
        use_native_hstore=False,
    )
    session = {**_SESSION, "lock_timeout": f"{max(1, int(busy_timeout_seconds * 1000))}ms"}

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        before = connection.autocommit
        connection.autocommit = True
        connection.execute(
            f"SELECT {', '.join(['set_config(%s, %s, false)'] * len(session))},"
            # Acknowledged means on disk, whatever the server's default is; stricter settings stay as they are.
            " CASE WHEN current_setting('synchronous_commit') = 'off'"
            " THEN set_config('synchronous_commit', 'on', false) END",
            [part for setting in session.items() for part in setting],
        )
        connection.autocommit = before

    return engine

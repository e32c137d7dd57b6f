"""Opening the ledger, bringing its schema up to date, and its transactions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    ProgrammingError,
)

from timestore_pipeline.durable_files import PRIVATE_FILE, make_folder
from timestore_pipeline.errors import CommitUnknown, LedgerError

HEAD_REVISION = "0001"
"""The Alembic revision that this code works with."""

_MIGRATIONS = Path(__file__).parent / "migrations"
# Any constant; PostgreSQL processes that migrate at the same time queue up behind it.
_MIGRATION_LOCK = 7_204_915_331


class Ledger:
    """An open ledger. Use :meth:`read` and :meth:`write` as ``with`` blocks; both give a transaction.

    Example:
        >>> ledger = Ledger.open("sqlite:////tmp/ledger.sqlite")
        >>> with ledger.write() as tx:
        ...     claim_build(tx, ...)
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str, *, busy_timeout_seconds: float = 30.0) -> Ledger:
        """Open the ledger at the SQLAlchemy ``url``, creating or upgrading its tables where needed.

        Raises:
            LedgerError: it cannot be reached or was written by a newer version.
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
            # The driver that Dagster's storage brings; which one a bare name means depends on SQLAlchemy's version.
            parsed = parsed.set(drivername="postgresql+psycopg2")
        try:
            ledger = cls(_engine(parsed, busy_timeout_seconds))
            ledger._upgrade()
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise LedgerError(f"TIMESTORE_LEDGER_URL is not usable: {error}") from error
        except (OSError, DBAPIError) as error:
            raise LedgerError(f"the ledger {_without_secrets(parsed)} cannot be opened: {_cause(error)}") from error
        return ledger

    @property
    def location(self) -> str:
        """The ledger's URL without its password."""
        return _without_secrets(self._engine.url)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a transaction that sees one consistent moment of the ledger and changes nothing.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        with self._transaction("BEGIN") as tx:
            yield tx

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a transaction that commits when the block ends and rolls back when it raises.

        Raises:
            CommitUnknown: the ledger failed while it committed; look before doing it again.
            LedgerError: the ledger stays locked for longer than the busy timeout, or cannot be written.
        """
        with self._transaction("BEGIN IMMEDIATE") as tx:
            yield tx

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        engine = self._engine.execution_options(sqlite_begin=begin)
        if engine.dialect.name != "sqlite" and begin == "BEGIN":
            # PostgreSQL's default isolation would let two queries of one read see different moments.
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        committing = False
        try:
            with engine.begin() as tx:
                yield tx
                committing = begin != "BEGIN"
        except (IntegrityError, ProgrammingError, DataError):
            raise
        except DBAPIError as error:
            kind = CommitUnknown if committing else LedgerError
            raise kind(f"the ledger {self.location} cannot be used: {_cause(error)}") from error

    def _upgrade(self) -> None:
        with self._engine.connect() as connection:
            if _revision(connection) == HEAD_REVISION:
                return
        # Imported here because Alembic costs every process half a second and only the first one needs it.
        from alembic import command
        from alembic.config import Config
        from alembic.util.exc import CommandError

        with self._transaction("BEGIN IMMEDIATE") as tx:
            if tx.dialect.name == "postgresql":
                tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = tx
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise LedgerError(
                    f"the ledger {self.location} was written by another version of timestore ({error}); "
                    "upgrade this installation, or point TIMESTORE_LEDGER_URL elsewhere"
                ) from error


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _without_secrets(url: URL) -> str:
    # A driver takes a password as a parameter too.
    return url.set(query={}).render_as_string(hide_password=True)


def _engine(url: Any, busy_timeout_seconds: float) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        make_folder(Path(url.database).parent)
        # Made here for the sake of its mode, which SQLite gives to the files beside it.
        os.close(os.open(url.database, os.O_RDWR | os.O_CREAT, PRIVATE_FILE))
    engine = create_engine(url, connect_args={"timeout": busy_timeout_seconds})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver must not open transactions by itself: it would do so too late and without IMMEDIATE.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine


def _cause(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    return str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__

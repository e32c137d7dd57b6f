"""Opening the ledger, bringing its schema up to date, and its transactions."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, Connection, Engine, inspect, text
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    PendingRollbackError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from timestore_pipeline.errors import CommitUnknown, LedgerError, LedgerInterrupted, LedgerReplaced
from timestore_pipeline.ledger.engines import (
    ledger_engine,
    may_be_done_again,
    never_connected,
    parse_ledger_url,
    sqlite_file,
)
from timestore_pipeline.ledger.installation import draw_identity, read_identity
from timestore_pipeline.ledger.schema import VERSION_TABLE

T = TypeVar("T")


HEAD_REVISION = "0006"
"""The Alembic revision that this code works with."""


_MIGRATIONS = Path(__file__).parent / "migrations"


# Any constant; PostgreSQL processes that migrate at the same time queue up behind it.
_MIGRATION_LOCK = 7_204_915_331


_PAUSE_SECONDS = (0.02, 0.2)


# A server that restarts is back by then; one that was never there is not waited for any longer.
_OPENING_SECONDS = 5.0


class Ledger:
    """An open ledger. Use :meth:`read` and :meth:`write` as ``with`` blocks; both give a transaction.

    On SQLite there is one writer at a time. On PostgreSQL (READ COMMITTED) there are as many as there are datasets: a
    transaction that looks and then writes takes ``lock_dataset`` first, and of several datasets in the order of their
    names; nothing else that two transactions write is looked at before without an upsert or a conditional update.

    Example:
        >>> ledger = Ledger.open("sqlite:////tmp/ledger.sqlite")
        >>> claim = ledger.transact(lambda tx: claim_build(tx, claimant, wanted))
    """

    def __init__(self, engine: Engine, busy_timeout_seconds: float = 30.0) -> None:
        self._patience = busy_timeout_seconds
        self._engine = engine
        self._file = sqlite_file(engine.url)
        self._inode = _inode(self._file)
        self._identity = ""
        if engine.dialect.name == "sqlite":
            self._readers = engine.execution_options(sqlite_begin="BEGIN")
            self._writers = engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        else:
            # PostgreSQL's default isolation would let two queries of one read see different moments.
            self._readers = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            # Said here, because a server's or a role's default may be another one.
            self._writers = engine.execution_options(isolation_level="READ COMMITTED")

    @classmethod
    def open(
        cls, url: str, *, busy_timeout_seconds: float = 30.0, pool_size: int = 5, identity: str | None = None
    ) -> Ledger:
        """Open the ledger at the SQLAlchemy ``url``, creating or upgrading its tables where needed.

        Args:
            url: ``sqlite:///…`` or ``postgresql+psycopg://…``.
            busy_timeout_seconds: how long to wait for another transaction, and for a server that is away.
            pool_size: most connections to PostgreSQL that are kept; at moments up to twice as many are open.
            identity: what it is to have where it has none yet; drawn by default.

        Raises:
            LedgerError: it cannot be reached or was written by a newer version.
        """
        parsed = parse_ledger_url(url)
        try:
            engine = ledger_engine(parsed, busy_timeout_seconds=busy_timeout_seconds, pool_size=pool_size)
            ledger = cls(engine, busy_timeout_seconds)
            ledger._upgrade(identity)
        except ModuleNotFoundError as error:
            if error.name == "psycopg":
                raise LedgerError(
                    "TIMESTORE_LEDGER_URL names PostgreSQL, and its driver is not installed: "
                    "pip install 'timestore-pipeline[postgresql]'"
                ) from error
            raise LedgerError(f"TIMESTORE_LEDGER_URL is not usable: {error}") from error
        except NoSuchModuleError as error:
            raise LedgerError(f"TIMESTORE_LEDGER_URL is not usable: {error}") from error
        except (OSError, DBAPIError) as error:
            raise LedgerError(f"the ledger {_without_secrets(parsed)} cannot be opened: {_cause(error)}") from error
        return ledger

    @property
    def location(self) -> str:
        """The ledger's URL without its password."""
        return _without_secrets(self._engine.url)

    @property
    def file(self) -> Path | None:
        """The file of a ledger on SQLite; None for one in memory, and for another database."""
        return self._file

    @property
    def identity(self) -> str:
        """Whose ledger it is: 32 hexadecimal digits, drawn when it was first opened; its backups have them too."""
        return self._identity

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a transaction that sees one consistent moment of the ledger and changes nothing.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        with self._transaction(self._readers) as tx:
            yield tx

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a transaction that commits when the block ends and rolls back when it raises.

        Raises:
            CommitUnknown: the ledger failed while it committed; look before doing it again.
            LedgerInterrupted: the ledger ended the transaction, nothing was written; it may be done again.
            LedgerError: the ledger stays locked for longer than the busy timeout, or cannot be written.
        """
        with self._transaction(self._writers) as tx:
            yield tx

    def transact(self, work: Callable[[Connection], T], *, repeatable: bool = True) -> T:
        """Return what ``work`` returns for a transaction that is committed then; do it again where that was cut short.

        Args:
            work: what to do in the transaction. It may be called several times, each time with a new one.
            repeatable: whether doing it twice is the same as doing it once, so that it may be done again even when
                nobody knows whether its commit arrived. Work that only counts is not.

        Raises:
            CommitUnknown: as :meth:`write`, where the work is not repeatable or the ledger stays away.
            LedgerError: as :meth:`write`, or it was cut short for longer than the busy timeout.
        """
        deadline = time.monotonic() + self._patience
        doubt: CommitUnknown | None = None
        while True:
            try:
                with self.write() as tx:
                    return work(tx)
            except LedgerReplaced:
                raise
            except CommitUnknown as error:
                if not repeatable or time.monotonic() >= deadline:
                    raise
                doubt = error
            except LedgerInterrupted:
                if time.monotonic() >= deadline:
                    raise
            except LedgerError as error:
                # What could not be done again leaves the first commit as unknown as it was.
                if doubt is not None:
                    raise doubt from error
                raise
            time.sleep(random.uniform(*_PAUSE_SECONDS))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        committing = False
        try:
            with self._connect(engine) as connection, connection.begin():
                self._refuse_if_replaced()
                yield connection
                if engine is self._writers:
                    self._refuse_if_replaced()
                    committing = True
        except (IntegrityError, ProgrammingError, DataError):
            raise
        except (PoolTimeout, PendingRollbackError) as error:
            raise LedgerError(f"the ledger {self.location} cannot be used: {_cause(error)}") from error
        except DBAPIError as error:
            if may_be_done_again(error) and not (committing and error.connection_invalidated):
                kind = LedgerInterrupted
            else:
                kind = CommitUnknown if committing else LedgerError
            raise kind(f"the ledger {self.location} cannot be used: {_cause(error)}") from error

    def _connect(self, engine: Engine, patience: float = math.inf) -> Connection:
        """Return a connection; wait for a server that is away, as long as for one that is busy, or for ``patience``."""
        deadline = time.monotonic() + min(patience, self._patience)
        while True:
            try:
                return engine.connect()
            except DBAPIError as error:
                if engine.dialect.name == "sqlite" or not never_connected(error) or time.monotonic() >= deadline:
                    raise
            time.sleep(random.uniform(*_PAUSE_SECONDS))

    def _refuse_if_replaced(self) -> None:
        if _inode(self._file) != self._inode:
            raise LedgerReplaced(self.location)

    def _upgrade(self, identity: str | None) -> None:
        with self._connect(self._engine, _OPENING_SECONDS) as connection:
            migrated = _revision(connection) == HEAD_REVISION
            found = read_identity(connection) if migrated else None
        if not migrated:
            self.transact(self._migrate)
        # Not by the migration: a database may be copied once it is migrated, and opened as another installation's.
        self._identity = found or self.transact(lambda tx: draw_identity(tx, identity))

    def read_identity_again(self) -> None:
        """Take over the identity that this process has given to it on purpose."""
        with self.read() as tx:
            self._identity = read_identity(tx) or ""

    def _migrate(self, tx: Connection) -> None:
        # Imported here because Alembic costs every process half a second and only the first one needs it.
        from alembic import command
        from alembic.config import Config
        from alembic.util.exc import CommandError

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


def identity_at(url: str) -> str | None:
    """Return the identity of the ledger on a server; None where there is none yet, or where it cannot be asked.

    Nothing is made there.
    """
    engine = ledger_engine(parse_ledger_url(url), busy_timeout_seconds=_OPENING_SECONDS, pool_size=1)
    try:
        with engine.connect() as connection:
            return read_identity(connection)
    except DBAPIError:
        return None
    finally:
        engine.dispose()


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _without_secrets(url: URL) -> str:
    # A driver takes a password as a parameter too.
    return url.set(query={}).render_as_string(hide_password=True)


def _inode(file: Path | None) -> tuple[int, int] | None:
    """Return what tells a file from another one that takes its name; None where there is none."""
    try:
        status = file.stat() if file else None
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status else None


def _cause(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    return str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__

"""What every test would make anew and all can share: the schema of an empty ledger, and compiled statements.

A migration through Alembic costs a tenth of a second and a compiled statement a millisecond. Each test opens an
installation or two of its own and runs some hundred statements.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Dialect, Engine, event

from timestore_pipeline.ledger import database

_migrate = database.Ledger._migrate
_ledger_engine = database.ledger_engine


@contextmanager
def migrated_once() -> Iterator[None]:
    """Give new ledgers on SQLite the schema that one migration has left, without migrating each.

    Those on PostgreSQL are copies of a template (see ``postgresql.py``), so nothing is to be migrated there.
    """

    def migrate(ledger: database.Ledger, tx: Connection) -> None:
        if tx.dialect.name != "sqlite" or tx.exec_driver_sql("SELECT 1 FROM sqlite_master").first():
            _migrate(ledger, tx)
            return
        for statement in _schema():
            tx.exec_driver_sql(statement)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(database.Ledger, "_migrate", migrate)
        yield


@cache
def _schema() -> tuple[str, ...]:
    """Return the statements that make an empty ledger as migrations make it."""
    with TemporaryDirectory(prefix="timestore-schema-") as folder:
        path = Path(folder) / "ledger.sqlite"
        ledger = database.Ledger(_ledger_engine(URL.create("sqlite", database=str(path)), busy_timeout_seconds=30,
                                                pool_size=1))  # fmt: skip
        ledger.transact(lambda tx: _migrate(ledger, tx))
        ledger.close()
        with closing(sqlite3.connect(path)) as connection:
            return tuple(line for line in connection.iterdump() if not line.startswith(("BEGIN", "COMMIT")))


@contextmanager
def compiled_once() -> Iterator[None]:
    """Let all ledgers of this process that are on one kind of database share the statements that they compile.

    SQLAlchemy keeps them for each engine and its dialect, and each test has engines of its own.
    """
    shared: dict[str, tuple[Dialect, Any]] = {}

    def engine_of(url: URL, **options: Any) -> Engine:
        engine = _ledger_engine(url, **options)
        if url.drivername in shared:
            engine.dialect, engine._compiled_cache = shared[url.drivername]
        else:
            # Not before: a dialect knows its server from the first connection of its own engine on.
            event.listen(engine, "engine_connect", lambda _: keep(engine))
        return engine

    def keep(engine: Engine) -> None:
        shared.setdefault(engine.url.drivername, (engine.dialect, engine._compiled_cache))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(database, "ledger_engine", engine_of)
        yield

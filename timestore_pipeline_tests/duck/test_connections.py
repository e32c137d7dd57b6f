"""DuckDB connections: what a signal's handler raises is not lost in them, and a pool gives what was asked for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import duckdb
import pytest

from timestore_pipeline.duck.connections import ConnectionPool, connector
from timestore_pipeline.settings import Settings


class Told(BaseException):
    """What the handler raises, as Dagster's raises an exception of its own."""


@pytest.fixture
def handler() -> Iterator[None]:
    def tell(number: int, _frame: object) -> None:
        raise Told(number)

    before = signal.signal(signal.SIGUSR1, tell)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(params=["connection", "pooled connection"])
def opened(
    request: pytest.FixtureRequest, home: Path, make_settings: Callable[..., Settings]
) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    connect = connector(make_settings())
    return connect(home) if request.param == "connection" else ConnectionPool(connect, home).connection()


def test_a_signal_during_a_query_is_an_interrupt(
    handler: None, opened: AbstractContextManager[duckdb.DuckDBPyConnection]
):
    signaller = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))

    with pytest.raises(KeyboardInterrupt):
        _work(opened, signaller)


def _work(opened: AbstractContextManager[duckdb.DuckDBPyConnection], signaller: threading.Timer) -> None:
    with opened as connection:
        signaller.start()  # in time for the query, which takes longer than that on any machine
        connection.execute("SELECT sum(a.range * b.range) FROM range(1000000) a, range(150) b")


def test_other_errors_are_left_as_they_are(opened: AbstractContextManager[duckdb.DuckDBPyConnection]):
    with pytest.raises(RuntimeError, match="of another kind"), opened:
        raise RuntimeError("of another kind")


def test_a_pool_keeps_connections_of_other_numbers_of_threads_apart(home: Path, make_settings: Callable[..., Settings]):
    pool = ConnectionPool(connector(make_settings(duckdb_threads=2)), home)

    def threads_of(wanted: int | None) -> int:
        with pool.connection(threads=wanted) as connection:
            return connection.execute("SELECT current_setting('threads')").fetchall()[0][0]

    assert [threads_of(wanted) for wanted in (None, 1, None, 1)] == [2, 1, 2, 1]
    pool.close()

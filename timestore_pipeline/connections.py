"""DuckDB connections: the one place that says how they are configured.

Every connection is in-memory; segments are attached to it. There is no shared read-write DuckDB file
(invariant 4), so nothing ever waits for a DuckDB lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager

import duckdb

from timestore_pipeline.settings import Settings

Connect = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]
"""Opens an in-memory connection and closes it at the end of the ``with`` block."""


def connection_config(settings: Settings) -> dict[str, str | bool | int | float | list[str]]:
    """Return the DuckDB configuration of every connection, as a Dagster ``DuckDBResource`` takes it too."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": settings.duckdb_memory_limit,
        "temp_directory": str(settings.temp_path),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    if settings.duckdb_threads:
        config["threads"] = settings.duckdb_threads
    return config


def connector(settings: Settings) -> Connect:
    """Return a :data:`Connect` for ``settings``."""
    return prepared(lambda: closing(duckdb.connect(":memory:", config=connection_config(settings))))


class ConnectionPool:
    """Keeps DuckDB instances open for the next user: opening one takes longer than writing a small segment.

    Only for work that leaves nothing behind in the instance, as writing a segment does.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._idle: list[tuple[ExitStack, duckdb.DuckDBPyConnection]] = []

    @contextmanager
    def connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a connection that no one else uses; after an error it is closed rather than kept."""
        try:
            stack, connection = self._idle.pop()
        except IndexError:
            stack = ExitStack()
            connection = stack.enter_context(self._connect())
        try:
            yield connection
        except BaseException:
            stack.close()
            raise
        self._idle.append((stack, connection))

    def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            self._idle.pop()[0].close()


def prepared(connect: Connect) -> Connect:
    """Return ``connect`` with each connection's session made the same: times are UTC whatever the host's zone.

    The time zone belongs to an extension, so it cannot be part of :func:`connection_config`.
    """

    @contextmanager
    def connect_prepared() -> Iterator[duckdb.DuckDBPyConnection]:
        with connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection

    return connect_prepared

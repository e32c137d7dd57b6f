"""DuckDB connections: the one place that says how they are configured.

Every connection is in-memory; segments are attached to it. There is no shared read-write DuckDB file
(invariant 4), so nothing ever waits for a DuckDB lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

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

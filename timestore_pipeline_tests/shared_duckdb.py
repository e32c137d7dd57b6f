"""DuckDB instances that tests share: opening one costs more CPU than most of what is done with it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import duckdb

from timestore_pipeline.duck.connections import AS_SET, Connect, Reach, Share, connector, interrupts_passed_on
from timestore_pipeline.duck.sql import quote
from timestore_pipeline.settings import Settings
from timestore_pipeline.store import Store, writer_pool

_LEFT_BEHIND = """
SELECT 'DROP VIEW', view_name FROM duckdb_views() WHERE NOT internal AND database_name IN ('memory', 'temp')
UNION ALL SELECT 'DROP TABLE', table_name FROM duckdb_tables()
    WHERE database_name IN ('memory', 'temp') AND schema_name = 'main'
UNION ALL SELECT 'DROP SCHEMA', schema_name FROM duckdb_schemas()
    WHERE NOT internal AND database_name = 'memory' AND schema_name <> 'main'
UNION ALL SELECT 'DETACH', database_name FROM duckdb_databases() WHERE NOT internal AND database_name <> 'memory'
"""


class SharedInstances:
    """Gives each user an instance of its own, emptied of what the one before had attached and made.

    All reach the files below ``root``, and none is bounded. Whoever reads from an object store, or fails, has one that
    is new.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open = connector(Settings(home=root))
        self._idle: dict[int | None, list[tuple[ExitStack, duckdb.DuckDBPyConnection]]] = {}

    def connect(self, otherwise: Connect) -> Connect:
        """Return how a store connects that would do ``otherwise`` by itself."""

        @contextmanager
        def connect(folder: Reach, /, *more: Reach, share: Share = AS_SET) -> Iterator[duckdb.DuckDBPyConnection]:
            folders = [each if isinstance(each, Path) else each.local for each in (folder, *more)]
            if share.memory_limit or not all(each and each.is_relative_to(self._root) for each in folders):
                with otherwise(folder, *more, share=share) as connection:
                    yield connection
                return
            idle = self._idle.setdefault(share.threads, [])
            stack, connection = idle.pop() if idle else self._opened(share.threads)
            try:
                with interrupts_passed_on():
                    yield connection
            except BaseException:
                stack.close()
                raise
            try:
                for what, name in connection.execute(_LEFT_BEHIND).fetchall():
                    connection.execute(f"{what} {quote(name)}" + (" CASCADE" if what == "DROP SCHEMA" else ""))
            except duckdb.Error:  # an internal error has ended the instance
                stack.close()
            else:
                idle.append((stack, connection))

        return connect

    def _opened(self, threads: int | None) -> tuple[ExitStack, duckdb.DuckDBPyConnection]:
        stack = ExitStack()
        return stack, stack.enter_context(self._open(self._root, share=Share(threads)))

    def close(self) -> None:
        for idle in self._idle.values():
            while idle:
                idle.pop()[0].close()

    def used_by(self, store: Store) -> Store:
        """Return the store with connections from here."""
        connect = self.connect(store.connect)
        store.writers.close()
        return replace(store, connect=connect, writers=writer_pool(store.settings, connect))

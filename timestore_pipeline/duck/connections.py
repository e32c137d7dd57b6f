"""DuckDB connections: the one place that says how they are configured, and which files they reach.

Every connection is in-memory; segments are attached to it. There is no shared read-write DuckDB file
(invariant 4), so nothing ever waits for a DuckDB lock. A connection touches no file outside of the folders that it
was opened for, loads no extension from outside and cannot be told otherwise afterwards, whatever SQL it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import duckdb

from timestore_pipeline.cpu_time import CpuWatch, TookTooLong
from timestore_pipeline.duck.remote_files import duckdb_path, register_places
from timestore_pipeline.duck.sql import exact_name, literal
from timestore_pipeline.settings import Settings
from timestore_pipeline.storage import Storage

Open = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]
"""Opens an in-memory connection with :func:`connection_config`, and closes it at the end of the ``with`` block."""

Reach = Path | Storage
"""What a connection may be opened for: a folder, or a place for files, wherever it is."""

# Beyond these, idle connections are closed: each keeps threads and memory.
_MAX_IDLE = 4

_INTERRUPTED = "Query interrupted"

# After one of these DuckDB refuses whatever the instance is asked.
_DEADLY = (duckdb.InternalException, duckdb.FatalException)


@dataclass(frozen=True)
class StatementBounds:
    """What the statements of a connection may take: seconds each (0: no end), and bytes of disk in all."""

    seconds: float
    spill_bytes: int


@dataclass(frozen=True)
class Share:
    """What a connection gets of this host, where it is not what the settings say.

    Attributes:
        threads: with one, a COPY to several files fills one after the other.
        memory_limit: as DuckDB writes it, such as ``64MiB``.
        bounds: for SQL of others.
    """

    threads: int | None = None
    memory_limit: str | None = None
    bounds: StatementBounds | None = None


AS_SET = Share()
"""What the settings say."""

_Kind = tuple[tuple[Path, ...], Share]
"""What one pooled connection has and another not: more folders that it reaches, and a share."""


class Connect(Protocol):
    """Opens connections that are ready for work."""

    def __call__(
        self, folder: Reach, /, *more: Reach, share: Share = AS_SET
    ) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Give a connection that reaches the files under these folders and no others, closed after the block.

        It reaches DuckDB's temporary folder besides. A link out of the folders is not followed. Of a place in an object
        store it reads the files, and reaches the local folder in which they are prepared.
        """
        ...


def connection_config(settings: Settings) -> dict[str, str | bool | int | float | list[str]]:
    """Return the DuckDB configuration of every connection, as a Dagster ``DuckDBResource`` takes it too."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": settings.duckdb_memory_limit,
        "temp_directory": str(settings.temp_path),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "allow_persistent_secrets": False,
        # Else a name in a query may mean a variable of the Python code that runs it.
        "python_enable_replacements": False,
    }
    if settings.duckdb_threads:
        config["threads"] = settings.duckdb_threads
    return config


def connector(settings: Settings) -> Connect:
    """Return a :data:`Connect` for ``settings``."""
    return confined(lambda: closing(duckdb.connect(":memory:", config=connection_config(settings))))


def confined(open_connection: Open) -> Connect:
    """Return a :class:`Connect` over the connections of ``open_connection``.

    What is set here cannot be part of :func:`connection_config`: the time zone belongs to an extension, the bar to a
    session, and DuckDB takes no folders once outside access is off. Times are UTC whatever the host's zone, and no bar
    is drawn on standard output by a statement of more than two seconds.
    """

    @contextmanager
    def connect(folder: Reach, /, *more: Reach, share: Share = AS_SET) -> Iterator[duckdb.DuckDBPyConnection]:
        with open_connection() as connection, interrupts_passed_on():
            if share.threads:
                connection.execute(f"SET threads = {share.threads}")
            if share.memory_limit:
                connection.execute(f"SET memory_limit = {literal(share.memory_limit)}")
            _confine(connection, (folder, *more), share.bounds)
            yield connection

    return connect


@contextmanager
def interrupts_passed_on() -> Iterator[None]:
    """Raise what a signal's handler raised while DuckDB ran a query: an interrupt, and no failure of the query.

    DuckDB looks for signals when a statement is done, and puts a plain ``RuntimeError`` in the place of the handler's
    exception, whatever it was.

    Raises:
        KeyboardInterrupt: a handler raised, as Python's does of Ctrl-C and Dagster's of SIGTERM.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error) != _INTERRUPTED:
            raise
        raise KeyboardInterrupt("interrupted in a DuckDB query") from error


def kept_connection(
    settings: Settings, folder: Reach, /, *more: Reach, bounds: StatementBounds
) -> duckdb.DuckDBPyConnection:
    """Return a connection as :func:`connector` gives, which stays open for as long as a relation of it is in use."""
    connection = duckdb.connect(":memory:", config=connection_config(settings))
    _confine(connection, (folder, *more), bounds)
    return connection


def _confine(connection: duckdb.DuckDBPyConnection, reaches: tuple[Reach, ...], bounds: StatementBounds | None) -> None:
    places = [each for each in reaches if not isinstance(each, Path)]
    folders = [each if isinstance(each, Path) else each.root for each in reaches]
    # DuckDB compares names as they are written, and files are named to it as patterns.
    names = {spelling for each in folders for spelling in (str(each), exact_name(each))}
    names |= {duckdb_path(place) for place in places}
    register_places(connection, places)
    if bounds is not None:
        connection.execute(
            f"SET max_execution_time = {round(bounds.seconds * 1_000)}; "
            f"SET max_temp_directory_size = '{bounds.spill_bytes} B'"
        )
    connection.execute(
        "SET TimeZone = 'UTC'; "
        "SET enable_progress_bar = false; "
        # What must be durable is synced once, when it is whole, before anything rests on it: see durable_files.
        "SET fsync_mode = 'NONE'; "
        f"SET allowed_directories = [{', '.join(map(literal, sorted(names)))}]; "
        "SET enable_external_access = false; "
        "SET lock_configuration = true"
    )


class _Lent:
    """A connection of a pool in the hands of one user, who sees a DuckDB connection.

    An internal error ends its DuckDB instance: each later statement fails, whatever it is. Then the user goes on with
    another one, in which nothing is attached, registered or begun. So whoever looks at each of several inputs alone
    after an error finds what is wrong with that one, and not that an earlier one killed the instance.
    """

    def __init__(self, open_another: Callable[[], tuple[ExitStack, duckdb.DuckDBPyConnection]]) -> None:
        self._open = open_another
        self._stack, self._connection = open_another()
        self._suspect = False
        self._overdue = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **more: Any) -> Any:
            connection = self._connection
            try:
                result = found(*arguments, **more)
            except duckdb.Error as error:
                self._suspect = True
                if isinstance(error, _DEADLY):
                    self._replace()
                if self._overdue and isinstance(error, duckdb.InterruptException):
                    raise TookTooLong from error
                raise
            return self if result is connection else result

        return call

    def interrupt_overdue(self) -> None:
        """End what runs, from another thread, because it has had its time."""
        self._overdue = True
        self._connection.interrupt()

    def is_good_for_others(self) -> bool:
        """Whether the next user finds it as a new one: nothing has ended it, begun a transaction or interrupted it."""
        if not self._suspect:
            return not self._overdue
        try:
            self._connection.execute("SELECT 1").fetchall()
        except duckdb.Error:
            return False
        return not self._overdue

    def take_apart(self) -> tuple[ExitStack, duckdb.DuckDBPyConnection]:
        """Return the connection that it has now, and what closes it."""
        return self._stack, self._connection

    def _replace(self) -> None:
        self._stack.close()
        self._stack, self._connection = self._open()


class ConnectionPool:
    """Keeps DuckDB instances open for the next user: opening one takes longer than writing a small segment.

    Only for work that leaves nothing behind in the instance, as writing a segment does. All its connections reach the
    folders that it is made with. One that has met an internal error, an aborted transaction or an interrupt is closed.
    """

    def __init__(self, connect: Connect, folder: Path, /, *more: Path) -> None:
        self._connect = connect
        self._folders = (folder, *more)
        self._idle: list[tuple[_Kind, ExitStack, duckdb.DuckDBPyConnection]] = []
        self._watch = CpuWatch()

    @contextmanager
    def connection(
        self,
        *also: Path,
        threads: int | None = None,
        memory_limit: str | None = None,
        cpu_seconds: float | None = None,
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a connection that no one else uses and that reaches ``also`` too; after an error it is closed.

        ``threads`` and ``memory_limit`` go before the settings'. A statement is interrupted once the calling thread has
        worked for ``cpu_seconds`` since; with one thread that is all that works.

        Raises:
            TookTooLong: in the block, by the statement that was interrupted.
        """
        kind = (also, Share(threads, memory_limit))
        lent = _Lent(lambda: self._take(kind))
        try:
            with interrupts_passed_on(), self._watch.over(lent.interrupt_overdue, cpu_seconds):
                yield cast("duckdb.DuckDBPyConnection", lent)
        except BaseException:
            lent.take_apart()[0].close()
            raise
        stack, connection = lent.take_apart()
        if not lent.is_good_for_others():
            stack.close()
            return
        self._idle.append((kind, stack, connection))
        while len(self._idle) > _MAX_IDLE:
            self._idle.pop(0)[1].close()

    def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            self._idle.pop()[1].close()

    def _take(self, kind: _Kind) -> tuple[ExitStack, duckdb.DuckDBPyConnection]:
        for index in reversed(range(len(self._idle))):
            try:
                if self._idle[index][0] == kind:
                    return self._idle.pop(index)[1:]
            except IndexError:
                break  # another thread was quicker
        stack, (also, share) = ExitStack(), kind
        return stack, stack.enter_context(self._connect(*self._folders, *also, share=share))

"""What holds a query of ``timestore sql`` that is deep in one function of DuckDB: it hears of no bound there.

DuckDB looks for its deadline between two chunks of rows, and a function takes the memory of one value from the system.
So this process ends itself where the query does not, and the system refuses it the memory.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.errors import QueryError
from timestore_pipeline.inert import as_entry
from timestore_pipeline.settings import Settings

# What an interrupt may take until DuckDB has cleaned up, and what a limit leaves to all but DuckDB's own memory.
PATIENCE_SECONDS = 5.0
_SLACK_BYTES = 1 << 30
# Stacks and what allocators keep for each thread.
_SLACK_BYTES_OF_A_PROCESSOR = 32 << 20

_LOOKS_EVERY_SECONDS = 0.25
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


class QueryWatch:
    """Looks at what runs in :meth:`call` from another thread; time in which nothing runs there is not counted."""

    def __init__(self, seconds: float, end: Callable[[str], object]) -> None:
        self._seconds = seconds
        self._end = end
        self._at = time.monotonic() + seconds
        self._calls = 0
        self._running = False
        self._done = threading.Event()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Watch one call of DuckDB."""
        self._calls += 1
        self._running = True
        try:
            yield
        finally:
            self._running = False

    @contextmanager
    def watching(self) -> Iterator[QueryWatch]:
        """Watch the calls in the block."""
        if not self._seconds:
            yield self
            return
        watcher = threading.Thread(target=self._look, name="query-watch", daemon=True)
        watcher.start()
        try:
            yield self
        finally:
            self._done.set()
            watcher.join()

    def _look(self) -> None:
        # Counted in looks: what stopped this process, or kept it from working, took no time of the query's.
        patience, call = PATIENCE_SECONDS, 0
        while not self._done.wait(_LOOKS_EVERY_SECONDS):
            if not self._running or self._calls != call or time.monotonic() < self._at:
                patience, call = PATIENCE_SECONDS, self._calls
                continue
            patience -= _LOOKS_EVERY_SECONDS
            if patience <= 0:
                self._end(
                    f"the query took longer than {self._seconds:g} s and does not end by itself: one of its functions "
                    "works on too large a value. Ask for less at a time, or raise TIMESTORE_QUERY_MAX_SECONDS"
                )
                return


@contextmanager
def watched(settings: Settings) -> Iterator[QueryWatch]:
    """Hold a query in time and memory, to the end of the block; in time this process ends with it.

    Raises:
        QueryError: Python, or a library, has got no memory.
    """
    try:
        with _memory_limited(settings), QueryWatch(settings.query_max_seconds, _end_this_process).watching() as watch:
            yield watch
    except MemoryError as error:
        raise QueryError("the query needs more memory than its process may have. Ask for less at a time") from error


def _end_this_process(reason: str) -> None:
    # Nothing is flushed: whoever reads what is printed may wait.
    sys.stderr.write(f"timestore: {as_entry(reason)}\n")
    sys.stderr.flush()
    os._exit(ExitCode.FAILED)


@contextmanager
def _memory_limited(settings: Settings) -> Iterator[None]:
    """Let this process take what it has, twice what DuckDB may have, and some more; where the system can say it."""
    # Arrow reserves a GiB of addresses with its first buffer, and uses little of it.
    pa.allocate_buffer(1)
    try:
        has = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    slack = _SLACK_BYTES + _SLACK_BYTES_OF_A_PROCESSOR * (os.cpu_count() or 1)
    most = has + 2 * _bytes_of(settings.duckdb_memory_limit) + slack
    known = [each for each in (soft, hard) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([most, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _bytes_of(limit: str) -> int:
    """Return what a memory limit means, as DuckDB writes it; a decimal unit counts as the larger binary one."""
    number = limit.rstrip("iB ").rstrip("KMGT ")
    unit = limit[len(number) :].strip()[0]
    return int(float(number) * (1 << _UNITS[unit]))

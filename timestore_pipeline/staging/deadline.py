"""How long one group of landing files may be read, hashing included: a file that never ends holds nobody up."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb

from timestore_pipeline.errors import ReadingTooLong
from timestore_pipeline.inert import log_named

log = log_named(__name__)

# An interrupt that comes between two statements is lost.
_INTERRUPTED_EVERY_SECONDS = 0.5
_LEAST_PATIENCE_SECONDS = 30.0


def end_this_process(reason: str) -> None:
    """End it at once, whatever its other threads do: the ledger knows what it was reading."""
    log.critical("%s", reason)
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Deadline:
    """The moment (of ``time.monotonic()``) at which reading files of a dataset has taken ``seconds``."""

    dataset: str
    seconds: float
    at: float

    @classmethod
    def of(cls, dataset: str, seconds: float) -> Deadline:
        """Return the one that is ``seconds`` away."""
        return cls(dataset, seconds, time.monotonic() + seconds)

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return time.monotonic() >= self.at

    def check(self) -> None:
        """Raise :class:`ReadingTooLong` where it is over."""
        if self.passed:
            raise ReadingTooLong(self.dataset, self.seconds)

    @contextmanager
    def over(self, connection: duckdb.DuckDBPyConnection, end: Callable[[str], object] | None = None) -> Iterator[None]:
        """Interrupt what ``connection`` does when it is over, until the block ends.

        A library that is deep in one call hears no interrupt. Where interrupts have not helped for as long again (and
        half a minute at least), ``end`` is called with what is wrong, in words. Time in which this process was stopped
        does not count there.

        Raises:
            ReadingTooLong: it is over, and something failed since.
        """
        done = threading.Event()

        def watch() -> None:
            patience = max(self.seconds, _LEAST_PATIENCE_SECONDS)
            wait = self.at - time.monotonic()
            while not done.wait(max(wait, 0.0)):
                connection.interrupt()
                wait = _INTERRUPTED_EVERY_SECONDS
                patience -= wait
                if patience < 0 and end is not None:
                    end(
                        f"dataset {self.dataset!r}: reading its files heeds no interrupt, long after the "
                        f"{self.seconds:g} s that it may take (TIMESTORE_LANDING_MAX_READING_SECONDS); this process "
                        "ends. The next ones read them in smaller groups, and set the one aside that does this alone."
                    )
                    return

        watcher = threading.Thread(target=watch, name="reading-deadline", daemon=True)
        watcher.start()
        try:
            yield
        except (duckdb.Error, OSError) as error:
            if self.passed:
                raise ReadingTooLong(self.dataset, self.seconds) from error
            raise
        finally:
            done.set()
            watcher.join()

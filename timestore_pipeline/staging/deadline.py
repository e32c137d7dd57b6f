"""How long one group of landing files may be read, hashing included: a file that never ends holds nobody up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb

from timestore_pipeline.errors import ReadingTooLong

# An interrupt that comes between two statements is lost.
_INTERRUPTED_EVERY_SECONDS = 0.5


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
    def over(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Interrupt what ``connection`` does when it is over, until the block ends.

        Raises:
            ReadingTooLong: it is over, and something failed since.
        """
        done = threading.Event()

        def watch() -> None:
            wait = self.at - time.monotonic()
            while not done.wait(max(wait, 0.0)):
                connection.interrupt()
                wait = _INTERRUPTED_EVERY_SECONDS

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

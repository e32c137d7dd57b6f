"""How long a thread may work on one thing, in processor time: a busy machine does not make it any longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_LOOKS_EVERY_SECONDS = 0.25


class TookTooLong(Exception):
    """A piece of work had more processor time than it may have, and was ended."""


def cpu_clock() -> Callable[[], float]:
    """Return a clock of the processor time of the calling thread, in seconds, that any thread may read.

    Where the system has none for other threads, it is the time that passes.
    """
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    clock = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(clock)


@dataclass(frozen=True)
class CpuBudget:
    """What is left to one thread for one piece of work."""

    clock: Callable[[], float]
    end: float

    @classmethod
    def of(cls, seconds: float) -> CpuBudget:
        """Return a budget of the calling thread, from now on."""
        clock = cpu_clock()
        return cls(clock, clock() + seconds)

    @property
    def left(self) -> float:
        """Seconds that are left; none are, where it is 0."""
        return max(0.0, self.end - self.clock())

    def check(self) -> None:
        """Go on, for work that looks from time to time.

        Raises:
            TookTooLong: nothing is left.
        """
        if not self.left:
            raise TookTooLong


class CpuWatch:
    """Ends work that does not look itself: one thread looks at all that is watched, while there is any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[object, tuple[CpuBudget, Callable[[], None]]] = {}
        self._looks = False

    @contextmanager
    def over(self, end: Callable[[], None], seconds: float | None) -> Iterator[None]:
        """Call ``end`` again and again once the calling thread has worked for ``seconds`` in the block; None: never."""
        if seconds is None:
            yield
            return
        mark = object()
        with self._lock:
            self._watched[mark] = (CpuBudget.of(seconds), end)
            if not self._looks:
                self._looks = True
                threading.Thread(target=self._look, name="cpu-watch", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                del self._watched[mark]

    def _look(self) -> None:
        while True:
            time.sleep(_LOOKS_EVERY_SECONDS)
            with self._lock:
                # Within the lock: what is watched is neither finished nor in other hands yet.
                for budget, end in self._watched.values():
                    if not budget.left:
                        end()
                if not self._watched:
                    self._looks = False
                    return

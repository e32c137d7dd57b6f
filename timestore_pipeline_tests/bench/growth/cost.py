"""What an operation costs: wall time, CPU time here and in the database server, and statements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event


@dataclass(frozen=True)
class Cost:
    """Medians over some rounds: milliseconds, and how many statements went to the database."""

    wall_ms: float
    cpu_ms: float
    server_cpu_ms: float
    statements: int

    @property
    def all_cpu_ms(self) -> float:
        """CPU time of both sides."""
        return self.cpu_ms + self.server_cpu_ms


# What takes long varies little, and need not be done often.
_ENOUGH_MS = 4_000


def cost_of(action: Callable[[int], object], rounds: int, server_pids: Callable[[], Sequence[int]] = list) -> Cost:
    """Return what ``action`` costs, given the number of the round, after one round to warm up.

    Of an action that takes seconds one round may be all.
    """
    found: list[tuple[float, float, float, int]] = []
    with _statements_counted() as counted:
        for number in range(rounds + 1):
            pids = server_pids()
            before = counted[0], _cpu_seconds(pids), time.process_time(), time.perf_counter()
            action(number)
            after = counted[0], _cpu_seconds(pids), time.process_time(), time.perf_counter()
            statements, server, own, wall = (later - earlier for later, earlier in zip(after, before, strict=True))
            if number:
                found.append((wall * 1e3, own * 1e3, server * 1e3, int(statements)))
                if sum(row[1] for row in found) > _ENOUGH_MS:
                    break
    wall, own, server, statements = (statistics.median(column) for column in zip(*found, strict=True))
    return Cost(wall, own, server, int(statements))


def _cpu_seconds(pids: Sequence[int]) -> float:
    """Return how long processes of one thread each have been on a CPU."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) for pid in pids) / 1e9


@contextmanager
def _statements_counted() -> Iterator[list[int]]:
    counted = [0]

    def count(*_: Any) -> None:
        counted[0] += 1

    event.listen(Engine, "before_cursor_execute", count)
    try:
        yield counted
    finally:
        event.remove(Engine, "before_cursor_execute", count)

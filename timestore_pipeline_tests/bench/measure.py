"""Measuring pairs: ours and a baseline in turn, and what came out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Pair:
    """Paired timings, in seconds. ``ratio`` is baseline / ours: above 1 we are faster."""

    name: str
    baseline_name: str
    rows: int
    ours: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The median over the pairs of baseline time / our time."""
        return statistics.median(other / mine for mine, other in zip(self.ours, self.baseline, strict=True))

    @property
    def our_rate(self) -> float:
        """Our median rows per second."""
        return self.rows / statistics.median(self.ours)

    @property
    def baseline_rate(self) -> float:
        """The baseline's median rows per second."""
        return self.rows / statistics.median(self.baseline)

    def ratio_in_words(self) -> str:
        """Return the ratio with its spread."""
        ratios = [other / mine for mine, other in zip(self.ours, self.baseline, strict=True)]
        return f"**{self.ratio:.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"

    def line(self) -> str:
        """One line of the report."""
        ours, baseline = statistics.median(self.ours), statistics.median(self.baseline)
        return (
            f"| {self.name} | {self.our_rate:,.0f} rows/s ({ours:.3f} s) | {self.baseline_name} "
            f"| {self.baseline_rate:,.0f} rows/s ({baseline:.3f} s) | {self.ratio_in_words()} |"
        )


HEADER = "| what | ours (median) | baseline | baseline (median) | ratio, median (min to max) |\n|---|---|---|---|---|"


def timed(action: Callable[[], object]) -> float:
    """Return how many seconds ``action`` took."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_turn(pairs: Sequence[tuple[Pair, Callable[[], float], Callable[[], float]]], repeats: int) -> None:
    """Measure every pair ``repeats`` times after one warm-up, ours and the baseline alternating.

    The two callables do their own set-up and return the seconds that count.
    """
    for round_number in range(repeats + 1):
        for pair, ours, baseline in pairs:
            mine, other = ours(), baseline()
            if round_number:
                pair.ours.append(mine)
                pair.baseline.append(other)

"""How many faults of each kind a soak has injected, what came of them, and how many rows were counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from timestore_pipeline_tests.soak.faults import Kind, Seen


@dataclass
class Tally:
    """The figures of a soak. ``wanted`` is how many faults end it."""

    wanted: int
    faults: Counter[tuple[Kind, Seen]] = field(default_factory=Counter)
    rounds: int = 0
    batches: int = 0
    acknowledged: int = 0
    read: int = 0
    lost: int = 0
    doubled: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def injected(self) -> int:
        """All faults that happened."""
        return self.faults.total()

    @property
    def enough(self) -> bool:
        """Whether there were as many as were wanted."""
        return self.injected >= self.wanted

    def count(self, kind: Kind, seen: Seen, times: int = 1) -> None:
        """Count faults that happened."""
        self.faults[kind, seen] += times

    def of(self, kind: Kind) -> int:
        """Return how many there were of a kind."""
        return sum(self.faults[kind, seen] for seen in Seen)

    def table(self) -> Iterator[str]:
        """Yield the lines of a table: a fault, how many, and what was seen."""
        yield "| fault | injected | " + " | ".join(Seen) + " |"
        yield "| --- |" + " ---: |" * (1 + len(Seen))
        for kind in Kind:
            if total := self.of(kind):
                yield f"| {kind} | {total:,} | " + " | ".join(f"{self.faults[kind, seen]:,}" for seen in Seen) + " |"
        by_seen = " | ".join(f"{sum(self.faults[kind, seen] for kind in Kind):,}" for seen in Seen)
        yield f"| all | {self.injected:,} | {by_seen} |"

    def rows(self) -> str:
        """Return in a sentence what was counted."""
        return (
            f"{self.rounds:,} rounds, {self.batches:,} batches: {self.acknowledged:,} rows acknowledged, "
            f"{self.read:,} read, {self.lost:,} lost, {self.doubled:,} doubled"
        )

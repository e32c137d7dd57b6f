"""What was delivered to an installation, so which rows must be there, and what is wrong with those that are."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import combinations

import pyarrow as pa

PLAIN, KEYED = "ticks", "meters"
"""A dataset whose rows are appended, and one that has a row per key and day: the one that was acknowledged last."""

DATASETS_YAML = f"""
datasets:
  {PLAIN}: {{columns: {{id: bigint, at: timestamptz}}, time: at, window: day}}
  {KEYED}:
    columns: {{id: bigint, at: timestamptz, value: bigint}}
    time: at
    window: day
    key: {{columns: [id]}}
"""

MOST_ROWS = 100
_FOREIGN = 1_000_000_000
_DAY = 86_400_000_000
_START = datetime(2026, 1, 1, tzinfo=UTC)
_START_MICROS = int(_START.timestamp() * 1_000_000)

Row = tuple[int, ...]
"""Id, time in microseconds, and of a keyed dataset the value."""


@dataclass(frozen=True)
class Batch:
    """A batch whose rows follow from its number and the seed; the ids of plain ones start at number × 100."""

    seed: str
    number: int
    dataset: str

    @property
    def batch_id(self) -> str:
        """The producer's key."""
        return f"batch-{self.number}"

    @property
    def rows(self) -> tuple[Row, ...]:
        """Its rows, over two days; of a keyed one each key and day comes once."""
        dice = random.Random(f"{self.seed} {self.number} rows")
        count = dice.choice((1, 3, 20))
        times = [_START_MICROS + dice.randrange(2 * 86_400) * 1_000_000 for _ in range(count)]
        if self.dataset == PLAIN:
            return tuple((self.number * MOST_ROWS + place, at) for place, at in enumerate(times))
        first = self.number * MOST_ROWS
        return tuple((place, at, first + place) for place, at in enumerate(times))

    def table(self) -> pa.Table:
        """Its rows as a producer stages them."""
        return table_of(self.dataset, self.rows)

    def csv(self) -> str:
        """Its rows as a landing file."""
        names = ("id", "at", "value")[: 2 if self.dataset == PLAIN else 3]
        lines = [",".join(names)]
        for row in self.rows:
            at = (_START + timedelta(microseconds=row[1] - _START_MICROS)).isoformat()
            lines.append(",".join((str(row[0]), at, *map(str, row[2:]))))
        return "\n".join(lines) + "\n"


def table_of(dataset: str, rows: Iterable[Row]) -> pa.Table:
    """Return rows as a frame."""
    names = ("id", "at", "value")[: 2 if dataset == PLAIN else 3]
    types = {"id": pa.int64(), "at": pa.timestamp("us", "UTC"), "value": pa.int64()}
    columns = list(zip(*rows, strict=True))
    return pa.table([pa.array(values, types[name]) for name, values in zip(names, columns, strict=True)], list(names))


def foreign_row(number: int) -> Row:
    """Return a row that another program puts into the plain table."""
    return _FOREIGN + number, _START_MICROS + number % 86_400 * 1_000_000


def day_of(row: Row) -> str:
    """Return the window of a row."""
    return f"{_START + timedelta(microseconds=row[1] - _START_MICROS):%Y-%m-%d}"


@dataclass
class Books:
    """Batches in the order of their acknowledgement, rows of other programs, and batches of which nobody knows.

    ``doubts`` are those whose producer saw an error, or none: each is wholly there, or not at all.
    """

    acked: list[Batch] = field(default_factory=list)
    foreign: list[Row] = field(default_factory=list)
    doubts: list[Batch] = field(default_factory=list)

    def expected(self, dataset: str, also: Iterable[Batch] = ()) -> Counter[Row]:
        """Return the rows that any reader must find, with ``also`` acknowledged after the others."""
        batches = [batch for batch in (*self.acked, *also) if batch.dataset == dataset]
        if dataset == PLAIN:
            return Counter(self.foreign) + Counter(row for batch in batches for row in batch.rows)
        winners = {(row[0], row[1] // _DAY): row for batch in batches for row in batch.rows}
        return Counter(winners.values())

    def problems(self, found: Mapping[str, Counter[Row]]) -> list[str]:
        """Return what is wrong with the rows that were found."""
        return [
            f"{dataset}: {lost.total()} rows lost ({sorted(lost)[:5]}), "
            f"{more.total()} doubled or strange ({sorted(more)[:5]})"
            for dataset, rows in found.items()
            for lost, more in [self.difference(dataset, rows)]
            if lost or more
        ]

    def difference(self, dataset: str, found: Counter[Row]) -> tuple[Counter[Row], Counter[Row]]:
        """Return the rows that lack and those that are too many, by the kindest answer to what is in doubt."""
        doubts = [batch for batch in self.doubts if batch.dataset == dataset]
        if dataset == PLAIN:
            # Their ids are their own, so each says for itself whether it is there.
            there = [batch for batch in doubts if any(row in found for row in batch.rows)]
            choices = [there]
        else:
            choices = [list(some) for count in range(len(doubts) + 1) for some in combinations(doubts, count)]
        differences = []
        for choice in choices:
            expected = self.expected(dataset, choice)
            differences.append((expected - found, found - expected))
        return min(differences, key=lambda pair: pair[0].total() + pair[1].total())

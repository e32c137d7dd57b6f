"""What a validation measured, and whether that is what is promised: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from timestore_pipeline.policy import ServiceLevels
from timestore_pipeline.simulating.what_if import weighted_quantile

_RATE_TOLERANCE = 0.95
# What the machine may stall for once without being called too slow: a short load has no time to make up for it.
_STALL_SECONDS = 1.0


@dataclass(frozen=True)
class LoadSize:
    """What to put in: batches per second, rows per batch, and for how many seconds."""

    batches_per_second: float
    rows_per_batch: int
    seconds: float

    @property
    def batches(self) -> int:
        """How many batches that makes, at least one."""
        return max(1, round(self.batches_per_second * self.seconds))


@dataclass(frozen=True)
class RowCount:
    """What was found of one batch: its rows, and how many of them are different ones."""

    rows: int
    distinct: int


@dataclass(frozen=True)
class Measurements:
    """What happened. Durations in seconds; ``waits`` and ``flushes`` are of what was published.

    ``acknowledged`` says how many rows each batch had, by its number; ``readable`` and ``in_table`` what was found of
    it through the read API and in the table itself. ``wrong_reads`` are counts that were impossible while the load ran.
    """

    load: LoadSize
    loaded_seconds: float
    settled_seconds: float
    acknowledged: Mapping[int, int]
    refused: int
    errors: Sequence[str]
    pending_batches: int
    most_pending: int
    flushed_by_hand: int
    flushes: Sequence[float]
    waits: Sequence[float]
    reads: int
    wrong_reads: Sequence[str]
    readable: Mapping[int, RowCount]
    in_table: Mapping[int, RowCount]
    stage_seconds: Sequence[float]


@dataclass(frozen=True)
class Check:
    """One thing that is promised, what was measured, and whether that is good enough; None: nothing is promised."""

    name: str
    promised: str
    measured: str
    passed: bool | None


def checks(found: Measurements, levels: ServiceLevels) -> list[Check]:
    """Hold the measurements against what is promised."""
    offered = found.load.batches
    rate = len(found.acknowledged) / max(found.loaded_seconds, 1e-9)
    wanted = found.load.batches_per_second
    problems = _row_problems(found)
    rows = sum(found.acknowledged.values())
    return [
        Check(
            "load",
            f"{wanted:g} batches/s",
            f"{rate:.2f} batches/s, {len(found.acknowledged):,} of {offered:,} acknowledged",
            len(found.acknowledged) == offered
            and found.loaded_seconds <= offered / wanted / _RATE_TOLERANCE + _STALL_SECONDS,
        ),
        Check("refusals and errors", "none", _first(found.errors, found.refused), not (found.refused or found.errors)),
        Check(
            "queue settles",
            "nothing is staged",
            f"{found.pending_batches:,} batches after {found.settled_seconds:.0f} s, {found.most_pending:,} at most",
            found.pending_batches == 0,
        ),
        _time_check("flush latency, 95 %", levels.flush_seconds, found.flushes, 0.95),
        _time_check("freshness, longest", levels.publish_seconds, found.waits, 1.0),
        Check(
            "rows while it ran",
            "all, at every moment",
            found.wrong_reads[0] if found.wrong_reads else f"{found.reads:,} reads, all right",
            not found.wrong_reads and found.reads > 0,
        ),
        Check(
            "rows at the end",
            "each once",
            problems[0] if problems else f"{rows:,} rows, none lost, none doubled",
            not problems,
        ),
    ]


def _row_problems(found: Measurements) -> list[str]:
    """Say what is wrong with the rows of any batch, in the read API or in the table; nothing where all is well."""
    problems = []
    for place, counts in (("readable", found.readable), ("in the table", found.in_table)):
        for batch, rows in found.acknowledged.items():
            count = counts.get(batch, RowCount(0, 0))
            if count.distinct < rows:
                problems.append(f"batch {batch}: {rows - count.distinct} of {rows} rows are not {place}")
            if count.rows > count.distinct:
                problems.append(f"batch {batch}: {count.rows - count.distinct} rows are {place} more than once")
        strangers = counts.keys() - found.acknowledged.keys()
        # What was told to have failed may have been staged all the same: an error is no promise that it was not.
        if strangers and not found.errors:
            problems.append(f"{len(strangers)} batches are {place} that nobody was promised")
    return problems


def _time_check(name: str, promised: float, seconds: Sequence[float], of: float) -> Check:
    if not seconds:
        return Check(name, f"{promised:g} s" if promised else "nothing", "nothing was published", False)
    measured = weighted_quantile([(each, 1) for each in seconds], of)
    if not promised:
        return Check(name, "nothing", f"{measured:.2f} s", None)
    return Check(name, f"{promised:g} s", f"{measured:.2f} s", measured <= promised)


def _first(errors: Sequence[str], refused: int) -> str:
    parts = [f"{refused:,} refused"] if refused else []
    if errors:
        parts.append(f"{len(errors):,} errors, the first: {errors[0]}")
    return ", ".join(parts) or "none"

"""What other thresholds would have done to a dataset: its own past, replayed with them and with its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from timestore_pipeline.datasets import FlushSpec
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger.history import Arrival, FlushRecord, arrivals, flushes
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.policy import FlushThresholds, ServiceLevels, service_levels
from timestore_pipeline.simulating.replay import Machine, Replay, replay
from timestore_pipeline.store import Store

# Of a build that nobody has measured yet.
_FLUSH_MICROS = 1_000_000
# Footer and page headers of a Parquet file with a few columns.
_BYTES_PER_FILE = 700.0

Weighted = Sequence[tuple[float, int]]


@dataclass(frozen=True)
class Measured:
    """What really happened meanwhile; ``waits`` are (seconds, batches) of what was published."""

    flushes: tuple[FlushRecord, ...]
    waits: tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class WhatIf:
    """The past of a dataset from ``since`` to ``until`` (microseconds), as it was, and replayed twice."""

    dataset: str
    since: int
    until: int
    batches: int
    rows: int
    machine: Machine
    levels: ServiceLevels
    measured: Measured
    current: Replay
    proposed: Replay
    assumptions: tuple[str, ...]


def simulate(
    store: Store,
    dataset: str,
    proposed: FlushSpec,
    *,
    last_seconds: float,
    run_start_seconds: float,
    now: int | None = None,
) -> WhatIf:
    """Replay what was staged in the last ``last_seconds`` with other thresholds; those that are not proposed stay.

    Args:
        store: the installation.
        dataset: one of its datasets.
        proposed: other thresholds, 0 for none.
        last_seconds: how far to look back.
        run_start_seconds: what a run needs from the sensor's look to the claim of its build.
        now: microseconds since the epoch, by default the clock's.

    Raises:
        UnknownDataset: the dataset is not declared.
        TimestoreError: nothing was staged in that time.
    """
    spec = store.datasets[dataset]
    until = now_micros() if now is None else now
    since = max(0, until - int(last_seconds * 1e6))
    with store.ledger.read() as tx:
        past = arrivals(tx, dataset, since)
        flushed = flushes(tx, dataset, since)
        policy = store.policy(tx, spec)
    if not past:
        raise TimestoreError(
            f"dataset {dataset!r}: nothing was staged in that time, so there is nothing to replay. Look further back."
        )
    own = policy.flush
    other = FlushThresholds(
        max_rows=own.max_rows if proposed.max_rows is None else proposed.max_rows,
        max_bytes=own.max_bytes if proposed.max_bytes is None else proposed.max_bytes,
        max_age_ms=own.max_age_ms if proposed.max_age_ms is None else proposed.max_age_ms,
        late_max_age_ms=own.late_max_age_ms if proposed.late_max_age_ms is None else proposed.late_max_age_ms,
    )
    per_row, per_file = _parquet_size(past, flushed)
    machine = Machine(
        tick=max(1, store.settings.flush_sensor_interval_seconds) * 1_000_000,
        run_start=int(run_start_seconds * 1e6),
        flush=int(median([each.duration_micros for each in flushed])) if flushed else _FLUSH_MICROS,
        max_pending=policy.limits.max_pending,
        target_file_bytes=store.settings.build_target_file_bytes,
        bytes_per_row=per_row,
        bytes_per_file=per_file,
    )
    waits = tuple(
        ((each.published_at - each.staged_at) / 1e6, each.batches)
        for each in past
        if each.published_at and not each.late
    )
    return WhatIf(
        dataset=dataset,
        since=past[0].staged_at,
        until=until,
        batches=sum(each.batches for each in past),
        rows=sum(each.rows for each in past),
        machine=machine,
        levels=service_levels(store.settings, other),
        measured=Measured(tuple(flushed), waits),
        current=replay(past, own, machine, until),
        proposed=replay(past, other, machine, until),
        assumptions=_assumptions(machine, flushed),
    )


def weighted_quantile(values: Weighted, of: float) -> float:
    """Return the quantile ``of`` (0 … 1) of values with weights; nan where there is none.

    Example:
        >>> weighted_quantile([(1.0, 9), (100.0, 1)], 0.9)
        1.0
    """
    ordered = sorted(values)
    total = sum(weight for _, weight in ordered)
    reached = 0
    for value, weight in ordered:
        reached += weight
        if reached >= of * total:
            return value
    return math.nan


def _parquet_size(past: Sequence[Arrival], flushed: Sequence[FlushRecord]) -> tuple[float, float]:
    """Bytes per row and bytes per file, fitted to what flushes wrote by least squares."""
    wrote = [each for each in flushed if each.files and each.rows]
    if not wrote:
        return sum(each.bytes for each in past) / max(1, sum(each.rows for each in past)), _BYTES_PER_FILE
    rows_rows = sum(each.rows**2 for each in wrote)
    rows_files = sum(each.rows * each.files for each in wrote)
    files_files = sum(each.files**2 for each in wrote)
    rows_bytes = sum(each.rows * each.bytes for each in wrote)
    files_bytes = sum(each.files * each.bytes for each in wrote)
    determinant = rows_rows * files_files - rows_files**2
    if determinant > 1e-6 * rows_rows * files_files:
        per_row = (rows_bytes * files_files - files_bytes * rows_files) / determinant
        per_file = (files_bytes * rows_rows - rows_bytes * rows_files) / determinant
        if per_row > 0 and per_file >= 0:
            return per_row, per_file
    # All flushes are alike, or too different for a line: their mean is the best guess then.
    size, rows, files = (sum(getattr(each, name) for each in wrote) for name in ("bytes", "rows", "files"))
    per_file = min(_BYTES_PER_FILE, size / files / 2)
    return (size - per_file * files) / rows, per_file


def _assumptions(machine: Machine, flushed: Sequence[FlushRecord]) -> tuple[str, ...]:
    flush = f"{machine.flush / 1e6:.2f} s"
    sizes = f"{machine.bytes_per_row:,.1f} bytes per row and {machine.bytes_per_file:,.0f} per file"
    return (
        f"a flush takes {flush}, " + ("the median of those measured" if flushed else "as none was measured"),
        f"a run needs {machine.run_start / 1e6:g} s to start, the sensor looks every {machine.tick / 1e6:g} s",
        f"Parquet takes {sizes}, " + ("fitted to the flushes measured" if flushed else "taken from the segments"),
        "every flush is the sensor's: none by hand, none fails, nothing else needs the machine",
    )

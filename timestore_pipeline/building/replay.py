"""What thresholds make of arrivals: a pure function of both, by the same decision that the flush sensor makes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from timestore_pipeline.building.thresholds import FlushThresholds, Trigger, due_trigger
from timestore_pipeline.ledger.history import Arrival
from timestore_pipeline.ledger.queue import QueueState


@dataclass(frozen=True)
class Machine:
    """How this installation flushes, whatever the thresholds say; times in microseconds.

    Args:
        tick: time between two looks of the flush sensor.
        run_start: time from a look that finds the dataset due to the claim of its build.
        flush: how long a build takes.
        max_pending: limit of the queue in batches, 0 for none.
        target_file_bytes: size at which a build starts the next file.
        bytes_per_row: Parquet bytes that a row takes.
        bytes_per_file: Parquet bytes that a file takes besides its rows.
    """

    tick: int
    run_start: int
    flush: int
    max_pending: int
    target_file_bytes: int
    bytes_per_row: float
    bytes_per_file: float


@dataclass(frozen=True)
class Flush:
    """One flush of a replay: why, when it was claimed and published (microseconds), and what it took."""

    trigger: Trigger
    claimed_at: int
    published_at: int
    batches: int
    rows: int


@dataclass(frozen=True)
class Replay:
    """What thresholds would have done: flushes, sizes of files, and how long each arrival waited to be published.

    ``waits`` are (seconds, batches) per arrival; what no flush took has waited until the end, and is ``left``.
    """

    thresholds: FlushThresholds
    flushes: tuple[Flush, ...]
    file_bytes: tuple[float, ...]
    waits: tuple[tuple[float, int], ...]
    left_batches: int
    most_pending: int

    @property
    def triggers(self) -> Counter[Trigger]:
        """How many flushes each trigger caused."""
        return Counter(flush.trigger for flush in self.flushes)


@dataclass
class _Queue:
    """What is staged in the replay and in no build."""

    arrivals: list[Arrival] = field(default_factory=list)
    batches: int = 0
    rows: int = 0
    bytes: int = 0

    def add(self, arrival: Arrival) -> None:
        self.arrivals.append(arrival)
        self.batches += arrival.batches
        self.rows += arrival.rows
        self.bytes += arrival.bytes

    @property
    def oldest(self) -> int | None:
        return self.arrivals[0].staged_at if self.arrivals else None

    def state(self) -> QueueState:
        return QueueState(
            dataset="",
            pending_batches=self.batches,
            pending_rows=self.rows,
            pending_bytes=self.bytes,
            oldest_pending_at=self.oldest,
            staged_rows=self.rows,
            staged_bytes=self.bytes,
            oldest_staged_at=self.oldest,
        )


def replay(arrivals: Sequence[Arrival], thresholds: FlushThresholds, machine: Machine, until: int) -> Replay:
    """Replay arrivals, in the order of their times, with other thresholds up to ``until`` (microseconds).

    One build of the dataset is in flight at a time; a tick that finds the dataset due while one is waits for its end,
    as the sensor does. What arrives between the tick and the claim goes along.
    """
    queue = _Queue()
    flushes: list[Flush] = []
    files: list[float] = []
    waits: list[tuple[float, int]] = []
    most = position = 0
    now = arrivals[0].staged_at if arrivals else until
    free_at = now

    def take_in(moment: int) -> None:
        nonlocal position, most
        while position < len(arrivals) and arrivals[position].staged_at <= moment:
            queue.add(arrivals[position])
            position += 1
        most = max(most, queue.batches)

    while True:
        now = _next_look(arrivals, position, queue, thresholds, machine, now, free_at)
        if now > until:
            break
        take_in(now)
        trigger = due_trigger(queue.state(), thresholds, machine.max_pending, now) if now >= free_at else None
        if trigger is None:
            continue
        claimed_at = now + machine.run_start
        take_in(min(claimed_at, until))
        free_at = claimed_at + machine.flush
        flushes.append(Flush(trigger, claimed_at, free_at, queue.batches, queue.rows))
        files += _file_sizes(queue.arrivals, machine)
        waits += [((free_at - arrival.staged_at) / 1e6, arrival.batches) for arrival in queue.arrivals]
        queue = _Queue()
    take_in(until)
    waits += [(max(0, until - arrival.staged_at) / 1e6, arrival.batches) for arrival in queue.arrivals]
    return Replay(thresholds, tuple(flushes), tuple(files), tuple(waits), queue.batches, most)


def _next_look(
    arrivals: Sequence[Arrival],
    position: int,
    queue: _Queue,
    thresholds: FlushThresholds,
    machine: Machine,
    now: int,
    free_at: int,
) -> int:
    """The next tick at which the decision can be another one; far away where there is none."""
    moments = [arrivals[position].staged_at] if position < len(arrivals) else []
    if queue.oldest is not None:
        if free_at > now:
            moments.append(free_at)
        if thresholds.max_age_ms:
            moments.append(queue.oldest + thresholds.max_age_ms * 1_000)
    later = [_tick_at(max(moment, now + 1, free_at), machine.tick) for moment in moments]
    return min(later, default=2**63)


def _tick_at(moment: int, tick: int) -> int:
    return -(-moment // tick) * tick


def _file_sizes(arrivals: Sequence[Arrival], machine: Machine) -> list[float]:
    rows_of: defaultdict[int, int] = defaultdict(int)
    for arrival in arrivals:
        for window, rows in arrival.window_rows:
            rows_of[window] += rows
    sizes: list[float] = []
    for rows in rows_of.values():
        size = rows * machine.bytes_per_row
        count = max(1, -(-int(size) // machine.target_file_bytes))
        sizes += [size / count + machine.bytes_per_file] * count
    return sizes

"""What thresholds make of arrivals: a pure function of both, by the same decision that the flush sensor makes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from timestore_pipeline.building.thresholds import Due, Trigger, due_windows
from timestore_pipeline.ledger.history import Arrival
from timestore_pipeline.ledger.queue import LateQueue, QueueState
from timestore_pipeline.policy import FlushThresholds


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

    ``waits`` are (seconds, batches) per arrival that was not late, as late rows may wait longer; what no flush took has
    waited until the end, and is ``left``.
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


# Late rows are in windows before those of the others: one for each is enough to say which of them are due.
_LATE, _ON_TIME = 0, 1


@dataclass
class _Queue:
    """What is staged in the replay and in no build."""

    arrivals: list[Arrival] = field(default_factory=list)
    batches: int = 0
    rows: int = 0
    bytes: int = 0
    first: dict[bool, int] = field(default_factory=dict)

    def add(self, arrival: Arrival) -> None:
        self.arrivals.append(arrival)
        self.first.setdefault(arrival.late, arrival.staged_at)
        self.batches += arrival.batches
        self.rows += arrival.rows
        self.bytes += arrival.bytes

    def oldest(self, *, late: bool) -> int | None:
        return self.first.get(late)

    def state(self) -> QueueState:
        on_time, late = self.oldest(late=False), self.oldest(late=True)
        window, late_window = (None if each is None else key for each, key in ((on_time, _ON_TIME), (late, _LATE)))
        return QueueState(
            dataset="",
            pending_batches=self.batches,
            pending_rows=self.rows,
            pending_bytes=self.bytes,
            oldest_pending_at=on_time,
            staged_rows=self.rows,
            staged_bytes=self.bytes,
            oldest_staged_at=on_time,
            first_window=window,
            last_window=window,
            late=LateQueue(0 if late is None else 1, late, late, late_window, late_window),
        )

    def due_at(self, thresholds: FlushThresholds) -> list[int]:
        """When the oldest of what is staged reaches its age."""
        ages = ((False, thresholds.max_age_ms), (True, thresholds.late_age_ms))
        oldest = ((self.oldest(late=late), age_ms) for late, age_ms in ages)
        return [moment + age_ms * 1_000 for moment, age_ms in oldest if moment is not None and age_ms]

    def take(self, due: Due) -> _Queue:
        """Take out what is due: late rows wait longer, and the others do not wait for them."""
        taken, kept = _Queue(), _Queue()
        for arrival in self.arrivals:
            window = _LATE if arrival.late else _ON_TIME
            (taken if due.first_window <= window <= due.last_window else kept).add(arrival)
        vars(self).update(vars(kept))
        return taken


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
        # The next tick at which the decision can be another one; far away where there is none.
        later = [arrivals[position].staged_at] if position < len(arrivals) else []
        if queue.arrivals and free_at > now:
            later.append(free_at)
        later += queue.due_at(thresholds)
        now = min((_tick_at(max(moment, now + 1, free_at), machine.tick) for moment in later), default=2**63)
        if now > until:
            break
        take_in(now)
        due = due_windows(queue.state(), thresholds, machine.max_pending, now) if now >= free_at else None
        if due is None:
            continue
        claimed_at = now + machine.run_start
        take_in(min(claimed_at, until))
        free_at = claimed_at + machine.flush
        taken = queue.take(due)
        flushes.append(Flush(due.trigger, claimed_at, free_at, taken.batches, taken.rows))
        files += _file_sizes(taken.arrivals, machine)
        waits += _waits(taken, free_at)
    take_in(until)
    waits += _waits(queue, until)
    return Replay(thresholds, tuple(flushes), tuple(files), tuple(waits), queue.batches, most)


def _waits(queue: _Queue, until: int) -> list[tuple[float, int]]:
    on_time = (arrival for arrival in queue.arrivals if not arrival.late)
    return [(max(0, until - arrival.staged_at) / 1e6, arrival.batches) for arrival in on_time]


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

"""When a dataset is due to be flushed: pure functions of its queue and its thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from timestore_pipeline.ledger.queue import QueueState
from timestore_pipeline.policy import FlushThresholds


class Trigger(StrEnum):
    """Why a build runs."""

    ROWS = "rows"
    BYTES = "bytes"
    AGE = "age"
    PRESSURE = "pressure"
    """The queue passed half of its limit: tiny batches must not wait for their age."""
    EAGER = "eager"
    """All three thresholds are off, so whatever is staged is flushed."""
    CORRECTION = "correction"
    """Published rows are to be corrected: as soon as the correction has the age at which rows are flushed."""
    DIRECT = "direct"
    """Staging is switched off (deprecated): what is staged is published in the same call."""
    MANUAL = "manual"
    DRAIN = "drain"
    """An operator stopped intake and publishes all that is staged."""
    BACKFILL = "backfill"
    MAINTENANCE = "maintenance"


@dataclass(frozen=True)
class Due:
    """Why a dataset is due, and the windows (their starts, inclusive) that are."""

    trigger: Trigger
    first_window: int
    last_window: int


def due_windows(state: QueueState, thresholds: FlushThresholds, max_pending: int, now: int) -> Due | None:
    """Return what of the dataset is due, or None where nothing is; as :func:`due_trigger`.

    By its age only that part is due which has reached it: late rows wait longer, and the others do not wait for them.
    In all other cases everything is.
    """
    trigger = due_trigger(state, thresholds, max_pending, now)
    if trigger is None:
        return None
    on_time, late = (state.first_window, state.last_window), (state.late.first_window, state.late.last_window)
    if trigger is Trigger.AGE:
        on_time = on_time if _is_older(state.oldest_staged_at, thresholds.max_age_ms, now) else ()
        late = late if _is_older(state.late.oldest_staged_at, thresholds.late_age_ms, now) else ()
    corrected = (state.corrections.first_window, state.corrections.last_window) if state.corrections else ()
    if trigger is Trigger.CORRECTION:
        on_time, late = (), ()
    windows = [window for window in (*on_time, *late, *corrected) if window is not None]
    return Due(trigger, min(windows), max(windows))


def due_trigger(state: QueueState, thresholds: FlushThresholds, max_pending: int, now: int) -> Trigger | None:
    """Return why the dataset is due, or None where it is not.

    Args:
        state: its queue; what a build in flight has claimed does not count.
        thresholds: its thresholds that hold now.
        max_pending: the limit of its queue in batches, 0 for none.
        now: microseconds since the epoch.
    """
    if state.staged_rows == 0:
        return _correction_is_due(state, thresholds, now)
    if thresholds.all_off:
        return Trigger.EAGER
    if thresholds.max_rows and state.staged_rows >= thresholds.max_rows:
        return Trigger.ROWS
    if thresholds.max_bytes and state.staged_bytes >= thresholds.max_bytes:
        return Trigger.BYTES
    if thresholds.max_age_ms and (
        _is_older(state.oldest_staged_at, thresholds.max_age_ms, now)
        or _is_older(state.late.oldest_staged_at, thresholds.late_age_ms, now)
    ):
        return Trigger.AGE
    if max_pending and state.pending_batches * 2 >= max_pending:
        return Trigger.PRESSURE
    return _correction_is_due(state, thresholds, now)


def _correction_is_due(state: QueueState, thresholds: FlushThresholds, now: int) -> Trigger | None:
    if state.corrections and milliseconds_since(state.corrections.oldest_at, now) >= thresholds.max_age_ms:
        return Trigger.CORRECTION
    return None


def age_ms(state: QueueState, now: int) -> int:
    """Return the age of the oldest staged batch in milliseconds, late ones aside; 0 where there is none.

    And 0 where the clock went back.
    """
    return milliseconds_since(state.oldest_staged_at, now)


def oldest_due_from(state: QueueState, thresholds: FlushThresholds) -> int | None:
    """Return since when the oldest unpublished batch counts as staged, in microseconds; None where there is none.

    Late rows, which may wait longer, count from so much later.
    """
    grace = (thresholds.late_age_ms - thresholds.max_age_ms) * 1_000 if thresholds.max_age_ms else 0
    late_at = state.late.oldest_pending_at
    late_from = None if late_at is None else late_at + grace
    return min((at for at in (state.oldest_pending_at, late_from) if at is not None), default=None)


def _is_older(since: int | None, limit_ms: int, now: int) -> bool:
    return since is not None and milliseconds_since(since, now) >= limit_ms


def milliseconds_since(since: int | None, now: int) -> int:
    """Return how long ago a moment was; 0 for none, and where the clock went back."""
    return 0 if since is None else max(0, (now - since) // 1_000)

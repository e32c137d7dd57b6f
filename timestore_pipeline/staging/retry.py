"""Trying again while there is no room: how long to pause, and what is counted.

A refusal is counted as dropped once the caller is told of it, and each further attempt as retried, under the same
reason. Nothing acknowledged is ever dropped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import count as count_up
from typing import TypeVar

from sqlalchemy import Connection

from timestore_pipeline.errors import (
    ClientShareTaken,
    DiskFull,
    GuardrailExceeded,
    IntakePaused,
    LedgerError,
    StagingQueueFull,
    TimestoreError,
    TooManyIngests,
    WriterFull,
)
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.counters import DROPPED_BATCHES, RETRIED_BATCHES, count
from timestore_pipeline.staging.room import count_breaches
from timestore_pipeline.store import Store

T = TypeVar("T")

log = log_named(__name__)

REFUSALS: dict[type[TimestoreError], str] = {
    StagingQueueFull: "queue_full",
    ClientShareTaken: "queue_full",
    DiskFull: "disk_full",
    GuardrailExceeded: "guardrail",
    TooManyIngests: "busy",
    IntakePaused: "paused",
    WriterFull: "writer_full",
}
"""Errors that refuse a batch only for now → the reason that they are counted under."""

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0


def pause_before(retry: int, chance: float) -> float:
    """Return how many seconds to pause before the ``retry``-th retry (from 0).

    Twice as long each time up to a limit, and between half of that and all of it by ``chance`` (0 … 1), so that
    callers who were refused together do not come back together.
    """
    longest = min(_FIRST_PAUSE_SECONDS * 2 ** min(retry, 30), _LONGEST_PAUSE_SECONDS)
    return longest * (0.5 + chance / 2)


def when_there_is_room(store: Store, dataset: str, attempt: Callable[[], T], wait_seconds: float) -> T:
    """Return what ``attempt`` returns, trying again while it is refused for now, for ``wait_seconds`` at most.

    Raises:
        StagingQueueFull, DiskFull, GuardrailExceeded, TooManyIngests, IntakePaused: it was still refused after that.
    """
    deadline = time.monotonic() + wait_seconds
    for retry in count_up():
        try:
            return attempt()
        except tuple(REFUSALS) as error:
            left = deadline - time.monotonic()
            count_refusals(store, dataset, error, DROPPED_BATCHES if left <= 0 else RETRIED_BATCHES)
            if left <= 0:
                raise
            time.sleep(min(left, pause_before(retry, random.random())))
    raise AssertionError("unreachable")


def count_refusals(store: Store, dataset: str, error: TimestoreError, metric: str, batches: int = 1) -> None:
    """Count batches that were refused for the reason ``error``, under ``metric``: dropped or retried."""

    def count_them(tx: Connection) -> None:
        count(tx, metric, dataset, REFUSALS[type(error)], batches)
        if isinstance(error, GuardrailExceeded):
            count_breaches(tx, [error] * batches)

    try:
        store.ledger.transact(count_them, repeatable=False)
    except LedgerError as second:
        # Where the disk is full the ledger is too; the caller is to learn of the first error.
        log.warning("dataset %r: a refused batch could not be counted: %s", dataset, second)

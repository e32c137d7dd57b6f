"""Short processes at work on one installation, each of which says what it was told, and an audit of them all."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor

from sqlalchemy import func, select

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.errors import BuildInFlight, StagingQueueFull
from timestore_pipeline.ledger import schema
from timestore_pipeline.ledger.counters import (
    DROPPED_BATCHES,
    FLUSH_BATCHES,
    FLUSH_DURATION,
    FLUSH_ROWS,
    RETRIED_BATCHES,
    SEGMENT_BYTES,
)
from timestore_pipeline.metrics import push_metrics
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly
from timestore_pipeline_tests.forks import CONTEXT, take_environment

Audit = dict[tuple[str, str, str], float]


def let_work(environment: Mapping[str, str], numbers: Iterable[int]) -> Counter[str]:
    """Run a short process for each number, two at a time, and return what they were told in all."""
    with short_processes(environment) as pool:
        return sum(pool.map(_work, numbers), Counter())


def short_processes(environment: Mapping[str, str], at_once: int = 2) -> ProcessPoolExecutor:
    """Return a pool in which each call has a process of its own, with this environment."""
    return ProcessPoolExecutor(
        at_once,
        mp_context=CONTEXT,
        initializer=take_environment,
        initargs=(dict(environment),),
        max_tasks_per_child=1,
    )


def _work(number: int) -> Counter[str]:
    """Stage a batch, the same again, one that others stage too, and one too many; flush; push if there is a gateway."""
    told = Counter(dropped=0, duplicates=0)
    with Store.open() as store:
        for name in (f"own {number}", f"own {number}", "shared", f"more {number}"):
            try:
                receipt = stage(store, "weather", hourly(5, station=name.partition(" ")[2] or "JFK"), batch_id=name)
                told["duplicates"] += receipt.duplicate
            except StagingQueueFull:
                told["dropped"] += 1
        if number % 4 == 3:  # the queue is full by then
            with contextlib.suppress(BuildInFlight):
                flush_windows(store, BuildOrder("weather", owner=f"process {number}"))
        push_metrics(store)
    return told


def audit(store: Store, told: Mapping[str, int]) -> Audit:
    """What counters must be by the rows of the ledger and by what processes were told: not by counters."""
    builds = schema.builds
    published = (builds.c.state == "published", builds.c.dataset == "weather")
    query = select(func.count(), func.sum(builds.c.rows), func.sum(builds.c.batches)).where(*published)
    with store.ledger.read() as tx:
        flushes, rows, batches = tx.execute(query).one()
        sizes = tx.execute(select(func.count(), func.sum(schema.segments.c.bytes))).one()
    return {
        (DROPPED_BATCHES, "weather", "queue_full"): told["dropped"],
        (RETRIED_BATCHES, "weather", "duplicate"): told["duplicates"],
        (FLUSH_ROWS, "weather", "success"): rows,
        (FLUSH_BATCHES, "weather", "success"): batches,
        (f"{FLUSH_DURATION}_count", "weather", "success"): flushes,
        (f"{SEGMENT_BYTES}_count", "weather", ""): sizes[0],
        (f"{SEGMENT_BYTES}_sum", "weather", ""): sizes[1],
    }

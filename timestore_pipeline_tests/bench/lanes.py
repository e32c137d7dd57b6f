"""Lanes: a year of daily windows of one dataset published by one worker, and by two that share it."""

from __future__ import annotations

import os
import resource
import tempfile
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from timestore_pipeline.building.flush import flush_in_shares
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.errors import BuildInFlight
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline_tests.bench.building import copy_staged
from timestore_pipeline_tests.bench.measure import HEADER, Pair, in_turn, timed
from timestore_pipeline_tests.bench.staging import DATASETS, START_MICROS, open_store, ticks

DAYS = 365
ROWS = DAYS * 5_000
BATCHES = 10
_DAY_MICROS = 86_400_000_000
_START = START_MICROS - DAYS * _DAY_MICROS
_DAILY = DATASETS.replace("window: hour", "window: day").replace("start: 2026", "start: 2025")


def run(repeats: int, workspace: Path) -> list[str]:
    """Return the lines of the report."""
    staged = workspace / "staged"
    staged.mkdir()
    step = DAYS * _DAY_MICROS // ROWS
    with open_store(staged, _DAILY) as store:
        for number in range(BATCHES):
            start = _START + number * (ROWS // BATCHES) * step
            table: pa.Table = ticks(ROWS // BATCHES, seed=number, start_micros=start, step_micros=step)
            stage(store, "ticks", table)
    cpu: dict[int, list[float]] = {1: [], 2: []}
    pair = Pair(f"{ROWS:,} rows in {DAYS} windows, two workers and lanes", "one of each", ROWS)
    in_turn([(pair, lambda: _work(staged, 2, cpu[2]), lambda: _work(staged, 1, cpu[1]))], repeats)
    seconds = {workers: min(found) for workers, found in cpu.items()}
    return [
        HEADER,
        pair.line(),
        "",
        f"CPU seconds, the least of all rounds: {seconds[1]:.1f} with one worker, {seconds[2]:.1f} with two. "
        f"Load average at the end: {os.getloadavg()[0]:.1f}.",
    ]


def _work(staged: Path, workers: int, cpu: list[float]) -> float:
    """Let workers publish a copy of what is staged; return the seconds from their start together to the last's end."""
    context = get_context("spawn")
    with tempfile.TemporaryDirectory(dir=staged.parent) as name:
        folder = Path(name)
        copy_staged(staged, folder)
        begin, used = context.Barrier(workers + 1), context.SimpleQueue()
        processes = [context.Process(target=_worker, args=(folder, workers, begin, used)) for _ in range(workers)]
        for process in processes:
            process.start()
        begin.wait()
        seconds = timed(lambda: [process.join() for process in processes])
        assert {process.exitcode for process in processes} == {0}
        cpu.append(sum(used.get() for _ in processes))
        with open_store(folder, _DAILY) as store:
            found = live_files(open_table(store.table("ticks"), "ticks"))
        assert sum(file.rows for file in found) == ROWS
        return seconds


def _worker(folder: Path, lanes: int, begin, used) -> None:
    with open_store(folder, _DAILY, build_concurrent_builds=lanes) as store:
        begin.wait()
        before = _cpu()
        _publish(store)
        used.put(_cpu() - before)


def _publish(store: Store) -> None:
    try:
        flush_in_shares(store, BuildOrder("ticks", owner=f"bench {os.getpid()}"))
    except BuildInFlight:
        return  # the others have it all


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

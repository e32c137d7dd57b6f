"""Staging and building by 1, 2 and 4 processes at once, each with a dataset of its own, and the memory of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.staging.stage import stage
from timestore_pipeline_tests.bench.staging import DATASETS, START_MICROS, open_store, ticks

ROWS_PER_BATCH = 100_000
BATCHES = 10
_BEGIN_AFTER_SECONDS = 8.0


def measure(workers: tuple[int, ...], workspace: Path, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Return a row per number of processes: rows a second and per CPU second, and the peak memory of one process."""
    found = []
    for number in sorted(workers):
        home = workspace / f"workers-{number}"
        home.mkdir()
        name = next(line.strip(" :") for line in DATASETS.splitlines() if line.startswith("  "))
        declared = "".join(
            DATASETS.replace("datasets:\n", "").replace(f"  {name}:", f"  {name}_{each}:") for each in range(number)
        )
        text = f"datasets:\n{declared}"
        open_store(home, text).close()
        with ProcessPoolExecutor(number, mp_context=get_context("spawn")) as pool:
            begin = time.time() + _BEGIN_AFTER_SECONDS  # all have been imported by then
            done = [pool.submit(_work, home, text, f"{name}_{each}", begin) for each in range(number)]
            results = [each.result() for each in done]
        rows = ROWS_PER_BATCH * BATCHES * number
        row: dict[str, Any] = {"workers": number, "memory_mib": max(each["memory_mib"] for each in results)}
        for what in ("stage", "build"):
            seconds = max(each[what]["ended"] for each in results) - min(each[what]["began"] for each in results)
            row[what] = {
                "rows_per_second": rows / seconds,
                "rows_per_cpu_second": rows / sum(each[what]["cpu"] for each in results),
            }
        found.append(row)
        say(f"{number} processes: measured")
    return found


def _work(home: Path, declared: str, dataset: str, begin: float) -> dict[str, Any]:
    step = 24 * 3_600_000_000 // (ROWS_PER_BATCH * BATCHES)
    batches = [
        ticks(ROWS_PER_BATCH, seed=each, start_micros=START_MICROS + each * ROWS_PER_BATCH * step, step_micros=step)
        for each in range(BATCHES)
    ]
    with open_store(home, declared) as store:
        _sleep_until(begin)
        staged = _timed(lambda: [stage(store, dataset, batch) for batch in batches])
        built = _timed(lambda: flush_windows(store, BuildOrder(dataset, owner=f"the benchmark, {dataset}")))
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1_024
    return {"stage": staged, "build": built, "memory_mib": peak}


def _timed(action: Callable[[], object]) -> dict[str, float]:
    began, cpu = time.time(), time.process_time()
    action()
    return {"began": began, "ended": time.time(), "cpu": time.process_time() - cpu}


def _sleep_until(moment: float) -> None:
    while (left := moment - time.time()) > 0:
        time.sleep(left)

"""How cost grows: with datasets, with history, with table versions, with processes.

``python -m timestore_pipeline_tests.bench --only growth`` measures. What was measured is kept in ``docs/growth.json``,
from which the block "How cost grows" of ``docs/growth.md`` and its picture are made (``--write``).
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deltalake
import duckdb

from timestore_pipeline_tests.bench.growth import definitions, ledger, page, tables, workers

SIZES = {
    "datasets": "datasets",
    "batches": "batches of history",
    "versions": "table versions",
    "workers": "processes",
}
"""What can be chosen, and in words."""

PARTS = ("ledger", "definitions", "tables", "workers")


@dataclass(frozen=True)
class Sizes:
    """What to measure at: numbers of datasets, of batches of history, of table versions, of processes."""

    datasets: tuple[int, ...] = (10, 100, 1_000)
    batches: tuple[int, ...] = (10_000, 100_000)
    versions: tuple[int, ...] = (10, 100, 1_000)
    workers: tuple[int, ...] = (1, 2)


FULL = Sizes((10, 100, 1_000, 5_000), (10_000, 100_000, 1_000_000), (10, 100, 1_000, 10_000), (1, 2, 4))
"""The sizes of ``docs/growth.md``: about a quarter of an hour."""


def run(workspace: Path, sizes: Sizes, parts: tuple[str, ...] = PARTS, *, write: bool = False) -> list[str]:
    """Measure some parts and return the lines of the report; with ``write`` the docs get them, as far as measured."""

    def say(line: str) -> None:
        print(f"  {line}", flush=True)

    found: dict[str, Any] = {}
    for part in parts:
        began = os.getloadavg()[0]
        if part == "ledger":
            rows = ledger.measure(sizes.datasets, sizes.batches, workspace, say)
        elif part == "definitions":
            rows = definitions.measure(sizes.datasets, workspace, say)
        elif part == "tables":
            rows = tables.measure(sizes.versions, workspace, say)
        else:
            rows = workers.measure(sizes.workers, workspace, say)
        loads = sorted((round(began, 1), round(os.getloadavg()[0], 1)))
        found[part] = {"machine": _machine(), "load": loads, "rows": rows}
    if not write:
        return page.lines(found)
    whole = page.keep(found)
    return page.lines({part: whole[part] for part in parts})


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, duckdb {duckdb.__version__}, "
        f"deltalake {deltalake.__version__}"
    )

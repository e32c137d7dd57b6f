"""Carries the measured lines on, to more datasets and rows than anybody measured: which part is full first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DATASETS = 100_000
ROWS_A_DAY = 1_000_000_000
BATCHES_A_DAY = 24
"""Of one dataset, each flushed by a build of its own."""
INTERVAL_SECONDS = 30
"""Between two looks of a sensor."""
_DAY = 86_400


@dataclass(frozen=True)
class Line:
    """A part whose load grows with datasets: the core-seconds (or other units) a second that each dataset takes."""

    part: str
    formula: str
    per_dataset: float
    capacity: float
    unit: str
    remedy: str

    def load(self, datasets: int) -> float:
        """How much of the capacity is used, 1 being all of it."""
        return datasets * self.per_dataset / self.capacity

    @property
    def full_at(self) -> int:
        """The number of datasets at which nothing is left."""
        return int(self.capacity / self.per_dataset)


def lines(found: dict[str, Any]) -> list[Line]:
    """Return the parts, those that are full first before the others. Every figure comes from ``found``."""
    of_postgresql = sorted(
        (row for row in found["ledger"]["rows"] if row["ledger"] == "postgresql" and _is_by_datasets(found, row)),
        key=lambda row: row["datasets"],
    )
    small, large = of_postgresql[-2], of_postgresql[-1]
    step = large["datasets"] - small["datasets"]

    def slope(name: str) -> float:
        """CPU milliseconds, here and in the server, that one more dataset costs."""
        return max(1e-6, (_cpu(large, name) - _cpu(small, name)) / step)

    def sensor(part: str, name: str, remedy: str) -> Line:
        each = slope(name)
        formula = f"{each:.3f} ms of CPU × datasets / {INTERVAL_SECONDS} s"
        return Line(part, formula, each / 1e3 / INTERVAL_SECONDS, 1, "of a core", remedy)

    per_second = BATCHES_A_DAY / _DAY
    cycle = ("acknowledge a batch", "claim 10 slices", "publish them")
    server = sum(large["costs"][name]["server_cpu_ms"] for name in cycle)
    client = sum(large["costs"][name]["cpu_ms"] for name in cycle)
    trips = sum(large["costs"][name]["statements"] + 2 for name in cycle)
    table = _of(found["tables"]["rows"], versions=1_000, life="compacted, log cleaned")
    commit = table["costs"]["commit"]["cpu_ms"]
    loaded = found["definitions"]["rows"][-1]
    per_load = loaded["load_seconds"] / loaded["datasets"]
    memory = loaded["memory_mib"] / loaded["datasets"]
    one = _of(found["workers"]["rows"], workers=1)
    per_row = 1 / one["stage"]["rows_per_cpu_second"] + 1 / one["build"]["rows_per_cpu_second"]
    rows = ROWS_A_DAY / DATASETS
    push = large["push_bytes"] / large["datasets"]
    found_lines = [
        Line(
            "loading definitions, each process of a run",
            f"{per_load * 1e3:.2f} ms of CPU × datasets, at most {INTERVAL_SECONDS} s",
            per_load,
            INTERVAL_SECONDS,
            "s of CPU",
            "several installations, each with a share of the datasets; warm workers (Celery) load once",
        ),
        Line(
            "memory of each such process",
            f"{memory:.3f} MiB × datasets, of 2 GiB",
            memory,
            2_048,
            "of 2 GiB",
            "the same",
        ),
        sensor(
            "metrics: collecting and writing the picture",
            "metrics, whole picture",
            "`TIMESTORE_METRICS_SENSOR_INTERVAL_SECONDS`; the pull endpoint, scraped less often",
        ),
        Line(
            "metrics: bytes of a picture",
            f"{push / 1e3:.1f} kB × datasets, of 100 MB",
            push,
            1e8,
            "of 100 MB",
            "the same: a Pushgateway keeps the picture in memory, Prometheus each series",
        ),
        sensor("flush sensor", "flush evaluation", "`TIMESTORE_FLUSH_SENSOR_INTERVAL_SECONDS`"),
        sensor("landing sensor", "landing look", "`TIMESTORE_LANDING_SENSOR_INTERVAL_SECONDS`"),
        Line(
            "PostgreSQL, CPU",
            f"{server:.1f} ms a batch with its build × {BATCHES_A_DAY} a day × datasets",
            server / 1e3 * per_second,
            1,
            "of a core",
            "more batches to a segment, and longer thresholds: it is paid by the build, not by the row",
        ),
        Line(
            "ledger, CPU of those who call it",
            f"{client:.1f} ms × {BATCHES_A_DAY} a day × datasets",
            client / 1e3 * per_second,
            1,
            "of a core",
            "more workers; the same",
        ),
        Line(
            "ledger, waiting for round trips of 0.5 ms",
            f"{trips} × 0.5 ms × {BATCHES_A_DAY} a day × datasets",
            trips * 0.5e-3 * per_second,
            1,
            "of a worker",
            "more workers: they wait, and need no core; a database that is near",
        ),
        Line(
            "commits to tables, CPU",
            f"{commit:.1f} ms × {BATCHES_A_DAY} a day × datasets",
            commit / 1e3 * per_second,
            1,
            "of a core",
            "more workers, longer thresholds",
        ),
        Line(
            "rows: staging and building, CPU",
            f"{per_row * 1e6:.2f} µs × {rows:,.0f} rows a day × datasets",
            per_row * rows / _DAY,
            1,
            "of a core",
            "more workers",
        ),
    ]
    return sorted(found_lines, key=lambda line: line.full_at)


def table(found: dict[str, Any]) -> list[str]:
    """Return the page of arithmetic."""
    every = lines(found)
    rows = [
        f"| {line.part} | {line.formula} | {_amount(line.load(1_000))} | {_amount(line.load(10_000))} "
        f"| {_amount(line.load(DATASETS))} | {line.unit} | {line.full_at:,} | {line.remedy} |"
        for line in every
    ]
    return [
        f"{DATASETS:,} datasets of {ROWS_A_DAY / DATASETS:,.0f} rows a day each are {ROWS_A_DAY:,} rows a day, "
        f"{ROWS_A_DAY / _DAY:,.0f} a second. Each dataset gets {BATCHES_A_DAY} batches a day here and is flushed as "
        f"often, {DATASETS * BATCHES_A_DAY / _DAY:,.0f} of each a second; sensors look every {INTERVAL_SECONDS} s.",
        "",
        "| part | formula | at 1,000 | at 10,000 | at 100,000 | unit | full at datasets | what to turn |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"First comes **{every[0].part}**, at {every[0].full_at:,} datasets, then {every[1].part}, at "
        f"{every[1].full_at:,}. Rows are full last, at {max(each.full_at for each in every):,}: "
        "it is datasets and builds that cost, not rows. What Dagster itself does for each run and step is not in "
        "it, nor are disks and networks.",
    ]


def _amount(load: float) -> str:
    return f"{load:,.3f}" if load < 10 else f"{load:,.0f}"


def _is_by_datasets(found: dict[str, Any], row: dict[str, Any]) -> bool:
    return row["batches"] == min(each["batches"] for each in found["ledger"]["rows"])


def _cpu(row: dict[str, Any], name: str) -> float:
    return row["costs"][name]["cpu_ms"] + row["costs"][name]["server_cpu_ms"]


def _of(rows: list[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    return next(row for row in rows if all(row[name] == value for name, value in wanted.items()))

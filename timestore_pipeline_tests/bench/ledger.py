"""The ledger on PostgreSQL against SQLite: claims by 1, 2 and 4 processes, and evaluating 1,000 datasets."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from timestore_pipeline.building.due import plan_flushes
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.ledger.batches import BatchRow, NewSegment, SegmentRow, acknowledge
from timestore_pipeline.ledger.builds import NewBuild, mark_aborted
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.ledger.slices import SliceRow
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.bench import sensor
from timestore_pipeline_tests.bench.measure import timed
from timestore_pipeline_tests.bench.staging import START_MICROS
from timestore_pipeline_tests.builders import claim_slices
from timestore_pipeline_tests.postgresql import LEDGERS, URL_VARIABLE, running_server

WORKERS = (1, 2, 4)
_DATASETS = [f"dataset_{number}" for number in range(max(WORKERS))]
_SLICES = 20
_SECONDS = 3.0


def run(repeats: int, workspace: Path) -> list[str]:
    """Return the lines of the report; both databases sync every commit."""
    rates: dict[tuple[str, str, int], list[float]] = {}
    evaluations: dict[str, list[float]] = {}
    for number in range(repeats):
        for kind in LEDGERS:
            with _ledger(kind, workspace / f"{kind}-{number}") as home:
                for operation in (claim_and_give_back, _acknowledge):
                    for workers in WORKERS:
                        rate = _rate(home, operation, workers)
                        rates.setdefault((operation.__name__, kind, workers), []).append(rate)
    for kind in LEDGERS:
        with _ledger(kind, workspace / f"{kind}-plan") as home, sensor.filled_store(home / "many", due=False) as store:
            evaluations[kind] = [timed(lambda store=store: plan_flushes(store)) * 1_000 for _ in range(repeats + 2)][2:]
    names = {claim_and_give_back.__name__: f"claims of {_SLICES} slices, each given back",
             _acknowledge.__name__: "acknowledged batches"}  # fmt: skip
    lines = [
        "| a second, in all; every process works on a dataset of its own | SQLite | PostgreSQL | ratio |",
        "|---|---|---|---|",
    ]
    for operation, name in names.items():
        for workers in WORKERS:
            sqlite, postgresql = (statistics.median(rates[operation, kind, workers]) for kind in LEDGERS)
            lines.append(
                f"| {name}, {workers} processes | {sqlite:,.0f} | {postgresql:,.0f} | {postgresql / sqlite:.2f} |"
            )
    sqlite, postgresql = (statistics.median(evaluations[kind]) for kind in LEDGERS)
    count = sensor.DATASETS * sensor.BATCHES_PER_DATASET
    return [
        *lines,
        "",
        f"| {sensor.DATASETS:,} datasets, {count:,} staged batches | SQLite | PostgreSQL | ratio |",
        "|---|---|---|---|",
        f"| evaluate all flush triggers | {sqlite:.0f} ms | {postgresql:.0f} ms | {postgresql / sqlite:.2f} |",
    ]


@contextmanager
def _ledger(kind: str, home: Path) -> Iterator[Path]:
    home.mkdir()
    declare(home, _DATASETS)
    if kind == "sqlite":
        yield home
        return
    with running_server() as server, pytest.MonkeyPatch.context() as patched:
        patched.setenv(URL_VARIABLE, server.url(server.create_database()))
        yield home


def declare(home: Path, names: Iterable[str]) -> None:
    """Declare datasets of hourly windows in the installation of a folder."""
    declared = "\n".join(f"  {name}: {{time: time, window: hour, start: 2026-01-01}}" for name in names)
    (home / "datasets.yaml").write_text(f"datasets:\n{declared}\n")


def _rate(home: Path, operation: Any, workers: int) -> float:
    with store_in(home) as store:
        for name in _DATASETS:
            # The first batch brings the columns that slices are read with.
            stage(
                store, name, pa.table({"time": pa.array([START_MICROS], pa.timestamp("us", "UTC"))}), batch_id="first"
            )
            _acknowledge(store, name, f"{time.monotonic_ns()}", slices=_SLICES)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        begin = time.time() + 5  # all have been imported by then
        done = [pool.submit(_repeat, home, operation, name, begin) for name in _DATASETS[:workers]]
        return sum(each.result() for each in done) / _SECONDS


def store_in(home: Path) -> Store:
    """Open the installation in a folder, with the ledger of the environment if it names one."""
    url = {"ledger_url": os.environ[URL_VARIABLE]} if URL_VARIABLE in os.environ else {}
    return Store.open(Settings.model_validate({"home": home, **url}))


def _repeat(home: Path, operation: Any, dataset: str, begin: float) -> int:
    """Do ``operation`` for some seconds from ``begin`` on; return how often."""
    with store_in(home) as store:
        while (left := begin - time.time()) > 0:
            time.sleep(left)
        count = 0
        while time.time() < begin + _SECONDS:
            operation(store, dataset, f"{os.getpid()}-{time.monotonic_ns()}")
            count += 1
        return count


def claim_and_give_back(store: Store, dataset: str, unique: str, window: int | None = None, lanes: int = 1) -> None:
    """Claim what is staged of a dataset, or of one of its windows in a lane, and let it go."""
    now = now_micros()
    claim = store.ledger.transact(
        lambda tx: claim_slices(
            tx,
            NewBuild(dataset, owner=unique, trigger=Trigger.MANUAL, lease_micros=10**9, now=now, lanes=lanes),
            window,
            window,
        )
    )
    assert claim is not None
    store.ledger.transact(lambda tx: mark_aborted(tx, claim.build, error="", recovered=False, now=now_micros()))


def _acknowledge(store: Store, dataset: str, unique: str, slices: int = 1) -> None:
    hour = 3_600_000_000
    pieces = [
        SliceRow(START_MICROS + hour * number, 100, 1_000, START_MICROS, START_MICROS + 1, {0: 100})
        for number in range(slices)
    ]

    def record(tx: Any) -> None:
        lock_dataset(tx, dataset)
        segment = SegmentRow(unique[-32:], f"{dataset}/{unique}.duckdb", 45_056, 100 * slices)
        batch = BatchRow(unique, "0" * 64, f"{unique}.csv", 30_000, 100 * slices, 0, 0)
        acknowledge(tx, dataset, NewSegment(segment, [batch], pieces, schema_version=1), now_micros())

    store.ledger.transact(record)

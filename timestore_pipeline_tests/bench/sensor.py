"""The flush sensor's evaluation: 1,000 datasets with 100,000 staged batches, from ledger to plan."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from timestore_pipeline.building.due import plan_flushes
from timestore_pipeline.ledger.batches import BatchRow, NewSegment, SegmentRow, acknowledge
from timestore_pipeline.ledger.slices import SliceRow
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.settings import Settings
from timestore_pipeline.store import Store
from timestore_pipeline_tests.bench.measure import timed
from timestore_pipeline_tests.bench.staging import START_MICROS

DATASETS = 1_000
BATCHES_PER_DATASET = 100
ROWS_PER_BATCH = 600
_HOUR_MICROS = 3_600_000_000


def run(repeats: int, workspace: Path) -> list[str]:
    """Return the lines of the report: the worst case, every batch in a segment and slice of its own."""
    with filled_store(workspace / "sensor", due=True) as store:
        plan = plan_flushes(store)
        due = f"| all due: {len(plan.groups)} run to ask for {_measured(store, repeats)}"
    assert sum(len(group.requests) for group in plan.groups) == DATASETS
    with filled_store(workspace / "idle", due=False) as store:
        assert len(plan_flushes(store).waiting) == DATASETS
        idle = f"| none due: how far each is from each threshold {_measured(store, repeats)}"
    return [
        f"| {DATASETS:,} datasets, {DATASETS * BATCHES_PER_DATASET:,} staged batches | median | slowest "
        "| processor time, median |",
        "|---|---|---|---|",
        idle,
        due,
    ]


def _measured(store: Store, repeats: int) -> str:
    """Return the end of a line: how long evaluations take, and what they cost on a machine however busy."""
    clock, processor = [], []
    for _ in range(repeats):
        began = time.process_time()
        clock.append(timed(lambda: plan_flushes(store)) * 1_000)
        processor.append((time.process_time() - began) * 1_000)
    return f"| {statistics.median(clock):.0f} ms | {max(clock):.0f} ms | {statistics.median(processor):.0f} ms |"


def filled_store(folder: Path, *, due: bool) -> Store:
    folder.mkdir()
    names = [f"dataset_{number:04d}" for number in range(DATASETS)]
    declared = "\n".join(f"  {name}: {{time: time, window: hour, start: 2026-01-01}}" for name in names)
    (folder / "datasets.yaml").write_text(f"datasets:\n{declared}\n")
    thresholds = {"staging_flush_max_rows": 1_000 if due else 0, "staging_flush_max_bytes": 0}
    store = Store.open(Settings.model_validate({"home": folder, "staging_flush_max_age_ms": 86_400_000, **thresholds}))
    now = now_micros()
    with store.ledger.write() as tx:
        for name in names:
            for number in range(BATCHES_PER_DATASET):
                segment = f"{name}-{number}"
                start = START_MICROS + number % 24 * _HOUR_MICROS
                new = NewSegment(
                    SegmentRow(segment, f"{name}/{segment}.duckdb", 45_056, ROWS_PER_BATCH),
                    [BatchRow(segment, "0" * 64, f"{segment}.csv", 30_000, ROWS_PER_BATCH, 0, 0)],
                    [SliceRow(start, ROWS_PER_BATCH, 45_056, start, start + 1, {0: ROWS_PER_BATCH})],
                    schema_version=1,
                )
                acknowledge(tx, name, new, now)
    return store

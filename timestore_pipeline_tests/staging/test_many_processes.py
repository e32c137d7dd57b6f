"""Several processes at once on one dataset: no lock errors, no lost and no doubled rows (invariants 2 and 4)."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.errors import BatchConflict, BatchRejected, BuildInFlight
from timestore_pipeline.ledger.counters import RETRIED_BATCHES
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    counted,
    hourly,
    ingest,
    parquet_bytes,
    published,
    readable,
    rows_of,
)
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.forks import process_pool

STAGERS = 3
BATCHES = 8


def opened(home: Path) -> Store:
    return Store.open(Settings(home=home, staging_min_free_disk_bytes=0, staging_retention_seconds=0))


def batch(number: int) -> pa.Table:
    return hourly(10 + number, start=NEW_YEAR + timedelta(hours=5 * number), station=f"S{number}")


def stage_all(home: Path) -> list[tuple[str, bool]]:
    """Stages every batch, as all the others do: each must win some and none may fail."""
    with opened(home) as store:
        receipts = [stage(store, "weather", batch(number), batch_id=f"b{number}") for number in range(BATCHES)]
    return [(receipt.batch_id, receipt.duplicate) for receipt in receipts]


def stage_own(home: Path, who: int) -> int:
    with opened(home) as store:
        tables = (hourly(5 + number, station=f"P{who}-{number}") for number in range(BATCHES))
        return sum(stage(store, "weather", table).rows for table in tables)


def build_until(home: Path, stop: Path) -> int:
    """Builds, reads and cleans up until it is told to stop; returns how many rows it published."""
    rows = 0
    with opened(home) as store:
        while True:
            last = stop.exists()
            try:
                report = flush_windows(store, BuildOrder("weather", owner="builder"))
                rows += report.rows if report else 0
            except BuildInFlight:
                pass
            unlink_published_segments(store)
            sweep_orphans(store)
            found = Counter(readable(store))
            assert not found or max(found.values()) == 1, "a row is readable twice"
            if last:
                return rows


def ingest_files_of(home: Path) -> int:
    with opened(home) as store:
        return sum(report.rows for report in ingest(store).values())


def infer(home: Path, text: bool) -> str:
    with opened(home) as store:
        values = pa.array(["many"] if text else [1])
        try:
            stage(store, "events", pa.table({"at": [1_767_225_600_000], "n": values}))
        except BatchRejected as error:
            return error.reason
        return "staged"


def stage_conflicting(home: Path, rows: int) -> str:
    with opened(home) as store:
        try:
            return "duplicate" if stage(store, "weather", hourly(rows), batch_id="one").duplicate else "staged"
        except BatchConflict:
            return "conflict"


@pytest.fixture
def processes():
    with process_pool(4) as pool:
        yield pool


@pytest.mark.process
def test_the_same_batches_from_several_processes_are_staged_once(
    make_store: MakeStore, home: Path, processes: ProcessPoolExecutor
):
    store = make_store()

    outcomes = [future.result(120) for future in [processes.submit(stage_all, home) for _ in range(STAGERS)]]

    firsts = [batch_id for outcome in outcomes for batch_id, duplicate in outcome if not duplicate]
    assert sorted(firsts) == [f"b{number}" for number in range(BATCHES)]
    assert readable(store) == rows_of(*map(batch, range(BATCHES)))
    assert counted(store, RETRIED_BATCHES) == {"duplicate": (STAGERS - 1) * BATCHES}


@pytest.mark.process
def test_processes_stage_while_others_build_read_and_clean_up(
    make_store: MakeStore, home: Path, processes: ProcessPoolExecutor, tmp_path: Path
):
    store, stop = make_store(), tmp_path / "stop"

    builder: Future[int] = processes.submit(build_until, home, stop)
    stagers = [processes.submit(stage_own, home, who) for who in range(STAGERS)]
    try:
        staged = sum(stager.result(120) for stager in stagers)
    finally:
        stop.touch()
    built = builder.result(120)

    expected = rows_of(
        *(hourly(5 + number, station=f"P{who}-{number}") for who in range(STAGERS) for number in range(BATCHES))
    )
    assert staged == built == len(expected)
    assert readable(store) == published(store) == expected


@pytest.mark.process
def test_several_ingests_of_the_same_landing_folder_stage_each_file_once(
    make_store: MakeStore, home: Path, processes: ProcessPoolExecutor
):
    store = make_store()
    folder = store.settings.landing_path / "weather"
    folder.mkdir(parents=True)
    for number in range(20):
        (folder / f"{number}.parquet").write_bytes(parquet_bytes(batch(number)))

    rows = [future.result(120) for future in [processes.submit(ingest_files_of, home) for _ in range(STAGERS)]]

    expected = rows_of(*map(batch, range(20)))
    assert sum(rows) == len(expected)
    assert readable(store) == expected
    assert list(folder.iterdir()) == []
    build(store)
    assert published(store) == expected


@pytest.mark.process
def test_two_processes_that_infer_columns_agree_on_the_first_ones(
    make_store: MakeStore, home: Path, processes: ProcessPoolExecutor
):
    store = make_store()

    outcomes = [future.result(120) for future in [processes.submit(infer, home, who % 2 == 0) for who in range(4)]]

    kinds = [outcomes[0::2], outcomes[1::2]]
    # Numbers fit into a column of texts, words not into one of numbers.
    assert kinds in (
        [["staged"] * 2, ["staged"] * 2],
        [[outcomes[0]] * 2, ["staged"] * 2],
    )
    assert "staged" in outcomes
    assert len(readable(store, "events")) == (2 if "staged" in kinds[0] else 1)


@pytest.mark.process
def test_one_id_with_different_contents_belongs_to_whoever_is_first(
    make_store: MakeStore, home: Path, processes: ProcessPoolExecutor
):
    store = make_store()

    outcomes = [future.result(120) for future in [processes.submit(stage_conflicting, home, 1 + n) for n in range(4)]]

    assert sorted(outcomes) == ["conflict", "conflict", "conflict", "staged"]
    assert len(readable(store)) == 1 + outcomes.index("staged")

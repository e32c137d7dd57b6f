"""Every row is proved to be where it should be, and whatever is broken on purpose is found (invariant 2)."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.transaction import AddAction
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from timestore_pipeline.building.damage import set_unreadable_aside
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.lost_table import give_up_table
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import BuildInFlight
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.schema import batch_slices, slices, windows
from timestore_pipeline.ledger.windows import add_up_windows
from timestore_pipeline.model.columns import WINDOW_COLUMN
from timestore_pipeline.model.windows import WindowRange
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.quarantine import discard_entry
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import delta_schema, live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import build, hourly, segment_file
from timestore_pipeline_tests.conftest import DATASETS_YAML, MakeStore
from timestore_pipeline_tests.deaths import dies_at
from timestore_pipeline_tests.sampling import examples

NEW_YEAR = "2026-01-01"
SECOND = "2026-01-02"


def wrong(store: Store, *only: str) -> dict[str, str]:
    """What the audit finds wrong, by window; only the windows ``only`` are audited in full, by default all."""
    spec = store.datasets["weather"]
    touched = [spec.window_from_key(key) for key in only] or None
    return {each.window.key: "; ".join(each.problems) for each in audit_rows(store, "weather", touched).wrong}


def table_files(store: Store) -> list[Path]:
    """The live Parquet files, in the order of their windows."""
    path = store.table("weather").root
    return sorted(path / file.path for file in live_files(open_table(store.table("weather"), "weather")))


def cut_rows(path: Path) -> None:
    rows = pq.ParquetFile(path).read()
    pq.write_table(rows.slice(1), path)


def add_again(store: Store) -> None:
    """Commit a copy of a file that is in the table already, as a botched restore would."""
    path = store.table("weather").root
    original = table_files(store)[0]
    copy = original.with_name("copy.parquet")
    shutil.copy(original, copy)
    with store.ledger.read() as tx:
        columns = dataset_columns(tx, store.datasets["weather"]) or ()
    DeltaTable(str(path)).create_write_transaction(
        [
            AddAction(
                path=str(copy.relative_to(path)),
                size=copy.stat().st_size,
                partition_values={WINDOW_COLUMN: NEW_YEAR},
                modification_time=0,
                data_change=True,
                stats=f'{{"numRecords": {pq.read_metadata(copy).num_rows}}}',
            )
        ],
        "append",
        delta_schema(columns),
        [WINDOW_COLUMN],
    )


def change_ledger(statement: object) -> Callable[[Store], None]:
    def change(store: Store) -> None:
        with store.ledger.write() as tx:
            tx.execute(statement)  # type: ignore[call-overload]
            add_up_windows(tx, "weather")

    return change


def drop_rows_of_table(store: Store) -> None:
    DeltaTable(str(store.table("weather").root)).delete("temp = 0")


def append_foreign_rows(store: Store) -> None:
    path = str(store.table("weather").root)
    write_deltalake(path, DeltaTable(path).to_pyarrow_table().slice(0, 2), mode="append")


BREAKAGES: dict[str, Callable[[Store], object]] = {
    "rows cut from a file": lambda store: cut_rows(table_files(store)[0]),
    "a file removed": lambda store: table_files(store)[0].unlink(),
    "a file emptied": lambda store: table_files(store)[0].write_bytes(b""),
    "a file doubled in the table": add_again,
    "rows deleted from the table": drop_rows_of_table,
    "rows appended by somebody else": append_foreign_rows,
    "rows of a slice changed": change_ledger(update(slices).values(rows=slices.c.rows + 1)),
    "rows of batches changed": change_ledger(update(batch_slices).values(rows=batch_slices.c.rows - 1)),
    "rows of a window changed": change_ledger(update(windows).values(rows=windows.c.rows + 1)),
    "a slice forgotten": change_ledger(delete(slices).where(slices.c.published_at.is_not(None))),
    "a window forgotten": change_ledger(delete(windows)),
    "a slice queued again": change_ledger(update(slices).values(published_at=None, build_id=None)),
}


def test_rows_are_accounted_for_wherever_they_are(store: Store):
    stage(store, "weather", hourly(30))
    build(store)
    damaged = segment_file(store, stage(store, "weather", hourly(5, station="LGA")).segment_id)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    set_unreadable_aside(store, "weather")
    stage(store, "weather", hourly(7, station="EWR"))

    report = audit_rows(store, "weather")

    first, second = report.windows
    assert first.account
    assert (first.account.staged, first.account.published) == (36, 24)
    assert (first.account.quarantined, first.account.queued) == (5, 7)
    assert (first.table_rows, first.files, second.table_rows) == (24, 1, 6)
    assert report.wrong == ()
    assert report.files_opened == 2


def test_a_dataset_without_a_table_adds_up(store: Store):
    assert audit_rows(store, "weather").windows == ()

    stage(store, "weather", hourly(5))

    (window,) = audit_rows(store, "weather").windows
    assert (window.account and window.account.queued, window.table_rows, window.problems) == (5, 0, ())


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES.keys())
def test_what_is_broken_is_found_and_its_window_named(store: Store, breakage: Callable[[Store], object]):
    stage(store, "weather", hourly(48))
    build(store)
    assert wrong(store) == {}

    breakage(store)

    assert NEW_YEAR in wrong(store)


def test_what_is_wrong_is_said_in_numbers(store: Store):
    stage(store, "weather", hourly(48))
    build(store)
    file = table_files(store)[0]
    cut_rows(file)

    assert wrong(store) == {
        NEW_YEAR: f"{file} holds 23 rows, it was committed with 24; "
        "the table has 23 rows, 24 are recorded for the window"
    }


@pytest.mark.parametrize("breakage", [name for name in BREAKAGES if name not in {
    "rows of a slice changed", "rows of batches changed", "a slice forgotten", "a slice queued again",
}])  # fmt: skip
def test_windows_that_a_build_did_not_touch_are_held_against_the_table_too(store: Store, breakage: str):
    stage(store, "weather", hourly(48))
    build(store)
    BREAKAGES[breakage](store)

    assert NEW_YEAR in wrong(store, SECOND)


def test_only_the_files_of_touched_windows_are_opened(store: Store):
    stage(store, "weather", hourly(24 * 5))
    build(store)
    spec = store.datasets["weather"]

    report = audit_rows(store, "weather", [spec.window_from_key(SECOND)])

    assert (len(report.windows), len(report.proved), report.files_opened) == (5, 1, 1)


def test_rows_that_were_given_up_are_accounted_for(store: Store):
    damaged = segment_file(store, stage(store, "weather", hourly(5)).segment_id)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (entry,) = set_unreadable_aside(store, "weather")
    discard_entry(store, entry.id, by="the test")

    assert wrong(store) == {}


def test_a_new_table_in_place_of_a_deleted_one_adds_up(make_store: MakeStore):
    store = make_store(staging_retention_seconds=0)
    stage(store, "weather", hourly(5))
    build(store)
    unlink_published_segments(store)
    stage(store, "weather", hourly(30, station="LGA"))
    build(store)
    shutil.rmtree(store.table("weather").root)
    give_up_table(store, "weather")

    stage(store, "weather", hourly(3, station="EWR"))
    build(store)

    assert wrong(store) == {}


def test_a_build_that_died_after_its_commit_adds_up_before_and_after_it_is_settled(store: Store):
    stage(store, "weather", hourly(5))
    build(store)
    stage(store, "weather", hourly(5, station="LGA"))
    with dies_at(CrashPoint.MANIFEST_KEPT):
        flush_windows(store, BuildOrder("weather", owner="the dead"))

    assert len(table_files(store)) == 2
    assert wrong(store) == {}
    settle_dead_builds(store, owner_is_gone=lambda _: True)
    assert wrong(store) == {}


@pytest.mark.long
def test_an_audit_while_others_stage_and_build_finds_nothing(store: Store):
    stop = threading.Event()
    done: list[int] = []

    def work(station: str) -> None:
        while not stop.is_set():
            stage(store, "weather", hourly(30, station=station), batch_id=f"{station}{len(done)}")
            try:
                flush_windows(store, BuildOrder("weather", owner=station))
                done.append(1)
            except BuildInFlight:
                continue

    workers = [threading.Thread(target=work, args=(name,)) for name in ("JFK", "LGA")]
    for worker in workers:
        worker.start()
    try:
        audits = 0
        while audits < 20 or len(done) < 10:
            assert wrong(store) == {}
            audits += 1
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert wrong(store) == {}


@pytest.mark.long
@settings(max_examples=examples(15))
@given(
    st.lists(st.sampled_from(["stage", "stage old", "build", "build first", "damage", "retire"]), max_size=8),
    st.sampled_from(sorted(BREAKAGES)),
)
def test_whatever_was_done_adds_up_until_something_is_broken(steps: list[str], breakage: str):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "datasets.yaml").write_text(DATASETS_YAML)
        options = Settings(home=Path(folder), staging_min_free_disk_bytes=0, staging_retention_seconds=0)
        with Store.open(options) as store:
            for number, step in enumerate([*steps, "stage", "build"]):
                _do(store, step, number)
                assert wrong(store) == {}
            BREAKAGES[breakage](store)
            assert wrong(store)


def _do(store: Store, step: str, number: int) -> None:
    if step.startswith("stage"):
        stage(store, "weather", hourly(40 if step == "stage" else 3, station=f"S{number}"))
    elif step == "damage":
        path = segment_file(store, stage(store, "weather", hourly(3, station=f"S{number}")).segment_id)
        path.write_bytes(path.read_bytes()[:-1])
        set_unreadable_aside(store, "weather")
    elif step == "retire":
        unlink_published_segments(store)
    else:
        window = store.datasets["weather"].window_from_key(NEW_YEAR)
        flush_windows(
            store, BuildOrder("weather", WindowRange(None, window if step == "build first" else None), owner="the test")
        )

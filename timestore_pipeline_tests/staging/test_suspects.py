"""Files that end the process which reads them: read in smaller and smaller groups, and in the end not at all."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import cast

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import ReadingTooLong, StagingQueueFull
from timestore_pipeline.landing.files import files_for_one_run, scan_landing
from timestore_pipeline.ledger.landing import Readings, begin_alone, begin_readings
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.schema import readings
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating import quarantine as quarantining
from timestore_pipeline.operating.quarantine import find_due_again, retry_entry, try_again
from timestore_pipeline.segments.identity import unread_file_id
from timestore_pipeline.segments.segment import SegmentDraft
from timestore_pipeline.staging import arrivals, file_rows, load, suspects
from timestore_pipeline.staging import deadline as deadlines
from timestore_pipeline.staging.deadline import Deadline
from timestore_pipeline.staging.folder_arrivals import FolderArrivals
from timestore_pipeline.staging.suspects import MOST_ONCE_SUSPECTED, reading_groups, reading_id, suspected_datasets
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import NEW_YEAR, hourly, ingest, parquet_bytes, readable, weather
from timestore_pipeline_tests.conftest import WEATHER_CSV, MakeStore
from timestore_pipeline_tests.deaths import fails_at

Drop = Callable[..., Path]

FILES = [f"f{number}" for number in range(250)]


@given(st.dictionaries(st.sampled_from(FILES), st.builds(Readings, st.integers(1, 4), st.just(0), st.integers(0, 2))))
def test_every_file_is_in_one_group_and_what_is_suspected_twice_is_read_alone(before: dict[str, Readings]):
    groups = reading_groups(FILES, before)

    assert sorted(file_id for group in groups for file_id in group.file_ids) == sorted(FILES)
    assert [group.begun for group in groups] == sorted(group.begun for group in groups)
    for group in groups:
        assert {min(before[each].begun, 2) if each in before else 0 for each in group.file_ids} == {group.begun}
        assert group.begun == 0 or len(group.file_ids) <= MOST_ONCE_SUSPECTED
        assert group.begun < 2 or group.alone
    blamed = [before[each].alone for group in groups if group.begun == 2 for each in group.file_ids]
    assert blamed == sorted(blamed)


class Unheard:
    """A connection that hears no interrupt."""

    def __init__(self) -> None:
        self.interrupts = 0

    def interrupt(self) -> None:
        self.interrupts += 1


def test_a_reading_that_heeds_no_interrupt_has_an_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deadlines, "_LEAST_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(deadlines, "_INTERRUPTED_EVERY_SECONDS", 0.01)
    connection, ended, reasons = Unheard(), threading.Event(), []

    def end(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    with Deadline.of("weather", 0.05).over(cast("duckdb.DuckDBPyConnection", connection), end):
        assert ended.wait(60)

    assert connection.interrupts > 1
    assert "'weather': reading its files heeds no interrupt" in reasons[0]


def test_datasets_with_suspects_come_last_and_that_first_which_waits_longest(store: Store, drop: Drop):
    for name in ("weather", "events"):
        drop(store, name, "a.csv", WEATHER_CSV)
    chosen = files_for_one_run(store, scan_landing(store))
    assert suspected_datasets(store, chosen) == []

    for moment, name in enumerate(("weather", "events")):
        with store.ledger.write() as tx:
            begin_readings(tx, name, [reading_id(chosen[name][0])], moment)

    assert suspected_datasets(store, chosen) == ["weather", "events"]
    with store.ledger.write() as tx:
        begin_readings(tx, "weather", [reading_id(chosen["weather"][0])], 2)
    assert suspected_datasets(store, chosen) == ["events", "weather"]
    assert suspected_datasets(store, {"weather": chosen["weather"]}) == ["weather"]
    drop(store, "weather", "a.csv", WEATHER_CSV + "\n")  # another file
    assert suspected_datasets(store, files_for_one_run(store, scan_landing(store))) == ["events"]


def unended(store: Store) -> dict[str, Readings]:
    with store.ledger.read() as tx:
        rows = tx.execute(select(readings))
        return {row.batch_id: Readings(row.begun, row.last_at, row.alone) for row in rows}


def suspect(store: Store, *paths: Path, times: int = 1, alone: int = 0) -> None:
    """Pretend that processes have died of these files, which lie in landing."""
    for path in paths:
        (file,) = [each for each in scan_landing(store).of("weather") if each.path == path]
        file_id = unread_file_id(file.path.name, file.bytes, file.modified_at, file.version)
        with store.ledger.write() as tx:
            for _ in range(times):
                begin_readings(tx, "weather", [file_id], 0)
            for _ in range(alone):
                begin_alone(tx, "weather", file_id, 0)


def test_readings_that_ended_leave_nothing_behind(store: Store, drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)
    drop(store, "weather", "bad.csv", "bad\n")

    ingest(store)

    assert unended(store) == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StagingQueueFull("weather", 1, 1), RuntimeError("a bug")])
def test_a_reading_that_was_interrupted_or_refused_is_no_suspicion(store: Store, drop, error: BaseException):
    drop(store, "weather", "a.csv", WEATHER_CSV)

    with contextlib.suppress(KeyboardInterrupt, RuntimeError), fails_at(CrashPoint.BATCHES_RECORDED, error):
        ingest(store)

    assert unended(store) == {}


def test_files_beside_which_a_process_died_are_staged_after_the_others(store: Store, drop):
    old, new = (parquet_bytes(hourly(3, station=station)) for station in ("OLD", "NEW"))
    suspect(store, drop(store, "weather", "old.parquet", old))
    drop(store, "weather", "new.parquet", new)

    report = ingest(store)["weather"]

    assert [receipt.source for receipt in report.receipts] == ["new.parquet", "old.parquet"]
    assert len({receipt.segment_id for receipt in report.receipts}) == 2
    assert len(readable(store)) == 6
    assert unended(store) == {}
    assert list(store.settings.landing_path.rglob("*.parquet")) == []


def test_a_file_that_lands_again_after_it_was_quarantined_unread_gets_new_attempts(store: Store, drop):
    content = parquet_bytes(hourly(3))
    suspect(store, drop(store, "weather", "a.parquet", content), times=2, alone=3)
    assert "3 processes have ended" in ingest(store)["weather"].quarantined[0].reason

    drop(store, "weather", "a.parquet", content)

    assert ingest(store)["weather"].rows == 3


def test_no_number_of_processes_that_end_beside_a_file_speaks_against_it(store: Store, drop):
    suspect(store, drop(store, "weather", "a.parquet", parquet_bytes(hourly(3))), times=50, alone=2)

    assert ingest(store)["weather"].rows == 3


class Killed(BaseException):
    """What a process that is killed would not live to handle."""


def kill_at(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
    """Let a process end where ``name`` is called: nothing of what follows is done, recording included."""

    def die(*_: object, **__: object) -> None:
        monkeypatch.setattr(suspects, "_record", lambda *_: None)
        raise Killed

    monkeypatch.setattr(module, name, die)


@pytest.mark.parametrize(
    ("module", "name", "blamed"),
    [
        (suspects, "reach", 0),
        (FolderArrivals, "take_in", 1),
        (load, "known_of", 0),
        (load, "room_for", 0),
        (load, "turn", 0),
        (file_rows, "plan_reads", 1),
        (load, "write_segment", 1),
        (load, "acknowledge_segment", 0),
    ],
)
def test_a_file_is_blamed_only_for_what_ends_a_process_while_it_is_read(
    store: Store, drop, monkeypatch: pytest.MonkeyPatch, module: object, name: str, blamed: int
):
    suspect(store, drop(store, "weather", "a.parquet", parquet_bytes(hourly(3))), times=2)
    for _ in range(3):
        with monkeypatch.context() as dying:
            kill_at(dying, module, name)
            with contextlib.suppress(Killed):
                ingest(store)

    assert [each.alone for each in unended(store).values()] == [3 * blamed]


@pytest.mark.parametrize("name", ["reach", "begin_alone"])
def test_however_often_processes_are_killed_before_a_byte_is_read_no_file_is_quarantined(
    store: Store, drop, monkeypatch: pytest.MonkeyPatch, name: str
):
    for number in range(3):
        drop(store, "weather", f"{number}.parquet", parquet_bytes(hourly(3 + number)))
    for _ in range(8):
        with monkeypatch.context() as dying:
            kill_at(dying, suspects, name)
            with contextlib.suppress(Killed):
                ingest(store)

    ingest(store)

    assert len(readable(store)) == 12
    with store.ledger.read() as tx:
        assert open_entries(tx) == []


def test_what_was_blamed_is_tried_again_by_itself_but_not_for_ever(store: Store, drop, monkeypatch: pytest.MonkeyPatch):
    good = drop(store, "weather", "good.parquet", parquet_bytes(hourly(3)))
    killer = drop(store, "weather", "killer.csv", WEATHER_CSV)
    suspect(store, good, killer, times=2, alone=3)
    ingest(store)
    now = now_micros()
    tried = []
    stage_one = quarantining.stage_late_file

    def stage_or_die(store: Store, dataset: str, path: Path, source: str) -> object:
        tried.append(source)
        if source == "killer.csv":
            raise Killed
        return stage_one(store, dataset, path, source)

    monkeypatch.setattr(quarantining, "stage_late_file", stage_or_die)
    assert [try_again(store, now=now), tried] == [[], []]
    assert [entry.source for entry in find_due_again(store, now=now + 600_000_001)] == [
        "good.parquet",
        "killer.csv",
    ]
    for hours in range(1, 20):
        with contextlib.suppress(Killed):
            try_again(store, now=now + hours * 3_600_000_000)

    assert tried == ["good.parquet", *["killer.csv"] * 3]
    assert len(readable(store)) == 3


def test_a_queue_that_is_full_lets_suspects_wait(make_store: MakeStore, drop):
    store = make_store(staging_max_pending=1)
    content = parquet_bytes(hourly(3))
    suspect(store, drop(store, "weather", "old.parquet", content))
    drop(store, "weather", "new.csv", WEATHER_CSV)

    reports = [ingest(store)["weather"]]

    assert sum(report.batches for report in reports) == 1
    assert len(list(store.settings.landing_path.rglob("*.*"))) == 1


def huge() -> pa.Table:
    """A row that no connection of 40 MB can hold, in a file of kilobytes."""
    return weather((NEW_YEAR + timedelta(days=1), "x" * 150_000_000, 1.0))


@pytest.mark.long
def test_a_file_that_needs_more_memory_than_there_is_is_quarantined_and_the_others_are_staged_at_once(
    make_store: MakeStore, drop
):
    store = make_store(duckdb_memory_limit="40MB", duckdb_threads=1)
    drop(store, "weather", "bomb.parquet", parquet_bytes(huge(), compression="zstd"))
    drop(store, "weather", "a.csv", WEATHER_CSV)

    report = ingest(store)["weather"]

    assert [receipt.source for receipt in report.staged] == ["a.csv"]
    (entry,) = report.quarantined
    assert entry.source == "bomb.parquet"
    assert "more memory than there is" in entry.reason
    assert unended(store) == {}
    assert len(readable(store)) == 3


def test_a_query_that_never_ends_is_interrupted(store: Store):
    deadline = Deadline("weather", 0.01, time.monotonic() + 0.01)
    with (
        store.connect(store.settings.home) as connection,
        pytest.raises(ReadingTooLong, match="longer than"),
        deadline.over(connection),
    ):
        connection.execute("SELECT count(*) FROM range(1000000000) a, range(1000000000) b")


def test_a_file_whose_reading_never_ends_is_quarantined_and_the_others_are_staged_at_once(
    store: Store, drop, monkeypatch: pytest.MonkeyPatch
):
    drop(store, "weather", "endless.csv", WEATHER_CSV)
    for number in range(3):
        drop(store, "weather", f"{number}.parquet", parquet_bytes(hourly(3 + number)))
    write = load.write_segment

    def until_it_is_interrupted(*arguments: object) -> object:
        *_, draft = arguments
        assert isinstance(draft, SegmentDraft)
        if any(batch.source == "endless.csv" for batch in draft.batches):
            raise ReadingTooLong("weather", 900)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(load, "write_segment", until_it_is_interrupted)
    report = ingest(store)["weather"]

    assert len(readable(store)) == 12
    assert [entry.source for entry in report.quarantined] == ["endless.csv"]
    assert "TIMESTORE_LANDING_MAX_READING_SECONDS" in report.quarantined[0].reason
    assert report.quarantined[0].try_again_at is not None
    assert unended(store) == {}


def test_a_file_whose_hash_never_ends_is_quarantined_and_the_others_are_staged_at_once(
    store: Store, drop, monkeypatch: pytest.MonkeyPatch
):
    drop(store, "weather", "endless.csv", "x")
    drop(store, "weather", "a.csv", WEATHER_CSV)
    look = FolderArrivals.look

    def endless(self: FolderArrivals, path: Path, deadline: Deadline) -> tuple[int, str]:
        if path.name == "endless.csv":
            raise ReadingTooLong("weather", 900)
        return look(self, path, deadline)

    monkeypatch.setattr(FolderArrivals, "look", endless)
    report = ingest(store)["weather"]

    assert [receipt.source for receipt in report.staged] == ["a.csv"]
    assert [entry.source for entry in report.quarantined] == ["endless.csv"]
    assert unended(store) == {}


def test_a_file_larger_than_any_may_be_is_set_aside_without_a_byte_of_it_being_read(make_store: MakeStore, drop):
    store = make_store()
    for dataset in ("weather", "events"):
        monster = drop(store, dataset, "a-monster.csv", "")
        with monster.open("r+b") as file:
            file.truncate(15 << 40)
        os.utime(monster, (0, 0))
    drop(store, "weather", "b.csv", WEATHER_CSV)
    drop(store, "events", "b.jsonl", '{"at": 1767225600000, "what": "x"}\n')

    reports = ingest(store)

    for name, rows in (("weather", 3), ("events", 1)):
        assert reports[name].rows == rows
        (entry,) = reports[name].quarantined
        assert entry.source == "a-monster.csv"
        assert f"{15 << 40:,} bytes" in entry.reason
        assert "TIMESTORE_LANDING_MAX_FILE_BYTES" in entry.reason
    assert ingest(store) == {}
    assert not retry_entry(store, reports["weather"].quarantined[0].id, "me").done


@pytest.mark.process
def test_bytes_that_a_file_takes_on_the_disk_without_having_them_count(make_store: MakeStore, drop):
    store = make_store(landing_max_file_bytes=1 << 20)
    hoard = drop(store, "weather", "hoard.csv", WEATHER_CSV)
    done = subprocess.run(["fallocate", "--keep-size", "--length", "4MiB", str(hoard)], check=False)
    if done.returncode:
        pytest.skip("this file system takes nothing in advance")

    (entry,) = ingest(store)["weather"].quarantined

    assert "on the disk" in entry.reason


def test_a_file_that_grows_for_ever_is_hashed_no_further_than_it_was(store: Store, drop):
    path = drop(store, "weather", "a.csv", WEATHER_CSV)
    size = path.stat().st_size
    with path.open("ab") as writer, path.open("rb") as stream:
        writer.write(b"more" * 1_000_000)
        writer.flush()
        assert arrivals.hash_of(stream, size) == arrivals.blake3(WEATHER_CSV.encode()).hexdigest()

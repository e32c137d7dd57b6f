"""Ingesting landing files: staged once under any name and after any crash, then cleared away as set."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from timestore_pipeline import durable_files
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import (
    CommitUnknown,
    DiskFull,
    GuardrailExceeded,
    LedgerError,
    TimestoreError,
)
from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.ledger.counters import DROPPED_BATCHES, RETRIED_BATCHES
from timestore_pipeline.settings import AfterIngest
from timestore_pipeline.staging import folder_arrivals
from timestore_pipeline.staging.ingest import ingest_files
from timestore_pipeline.staging.stage import stage, stage_file
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    arrow_bytes,
    build,
    counted,
    declared,
    files_under,
    hourly,
    ingest,
    parquet_bytes,
    readable,
    rows_of,
    weather,
    weather_csv,
)
from timestore_pipeline_tests.conftest import WEATHER_CSV, MakeStore
from timestore_pipeline_tests.deaths import dies_at, fails_at
from timestore_pipeline_tests.staging.test_stage import REFUSED_FOR_NOW

Drop = Callable[..., Path]

OTHER_CSV = weather_csv("2026-01-03T00:00:00Z,EWR,9")


def test_files_of_a_dataset_become_batches_of_one_segment(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)
    drop(store, "weather", "b.csv", OTHER_CSV)

    report = ingest(store)["weather"]

    assert report.batches == 2
    assert report.rows == 4
    assert report.duplicates == report.quarantined_rows == 0
    assert [window.key for window in report.windows] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    by_source = {receipt.source: receipt for receipt in report.receipts}
    assert [window.key for window in by_source["a.csv"].windows] == ["2026-01-01", "2026-01-02"]
    assert by_source["a.csv"].segment_id == by_source["b.csv"].segment_id == report.segment_id
    segment = store.settings.staging_path / "weather" / f"{report.segment_id}.duckdb"
    assert segment.stat().st_size == report.segment_bytes
    assert len(readable(store)) == 4


def test_nothing_but_segments_and_the_ledger_is_left_in_staging(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)
    report = ingest(store)["weather"]

    left = files_under(store.settings.staging_path / "weather")

    assert left == [f"{report.segment_id}.duckdb"]


@pytest.mark.parametrize("after", AfterIngest)
def test_an_acknowledged_file_is_archived_deleted_or_kept_and_never_staged_again(
    make_store: MakeStore, drop: Drop, after: AfterIngest
):
    store = make_store(landing_after_ingest=after)
    landed = drop(store, "weather", "a.csv", WEATHER_CSV)
    ingest(store)

    assert landed.exists() == (after is AfterIngest.KEEP)
    today = store.settings.archive_path / "weather" / datetime.now(UTC).strftime("%Y-%m-%d")
    assert files_under(store.settings.archive_path) == (["a.csv"] if after is AfterIngest.ARCHIVE else [])
    if after is AfterIngest.ARCHIVE:
        assert (today / "a.csv").read_text() == WEATHER_CSV
    assert scan_landing(store).files == ()
    assert ingest(store) == {}
    assert len(readable(store)) == 3


def test_kept_files_do_not_stand_in_the_way_of_new_ones(make_store: MakeStore, drop: Drop):
    store = make_store(landing_after_ingest="keep", landing_max_files_per_run=2, staging_max_pending=3)
    for number in range(6):
        os.utime(drop(store, "weather", f"{number}.csv", weather_csv(f"2026-01-01,S,{number}")), (number, number))

    for _ in range(3):
        ingest(store)
        build(store)

    assert [row[2] for row in readable(store)] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_kept_file_that_is_written_anew_is_taken_again(make_store: MakeStore, drop: Drop):
    store = make_store(landing_after_ingest="keep")
    drop(store, "weather", "a.csv", WEATHER_CSV)
    ingest(store)
    drop(store, "weather", "a.csv", OTHER_CSV)

    assert ingest(store)["weather"].rows == 1
    assert len(readable(store)) == 4


def test_the_same_content_is_staged_once_under_any_name(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)
    first = ingest(store)["weather"]
    again = drop(store, "weather", "renamed.csv", WEATHER_CSV)

    second = ingest(store)["weather"]

    assert [(receipt.duplicate, receipt.rows) for receipt in second.receipts] == [(True, 3)]
    assert second.receipts[0].batch_id == first.receipts[0].batch_id
    assert second.rows == second.batches == 0
    assert not again.exists()
    assert len(readable(store)) == 3
    assert counted(store, RETRIED_BATCHES) == {"duplicate": 1}
    assert files_under(store.settings.archive_path) == ["a.csv", "renamed.csv"]


def test_the_same_content_twice_in_one_run_is_staged_once(store: Store, drop: Drop):
    for name in ("a.csv", "b.csv", "c.txt"):
        drop(store, "weather", name, WEATHER_CSV)

    report = ingest(store)["weather"]

    assert (report.batches, report.duplicates) == (1, 2)
    assert {receipt.source for receipt in report.receipts} == {"a.csv", "b.csv", "c.txt"}
    assert len(readable(store)) == 3
    assert scan_landing(store).files == ()
    assert counted(store, RETRIED_BATCHES) == {"duplicate": 2}


def test_a_duplicate_is_known_after_its_rows_are_published_and_its_segment_is_gone(make_store: MakeStore, drop: Drop):
    from timestore_pipeline.upkeep.published_segments import unlink_published_segments

    store = make_store(staging_retention_seconds=0)
    drop(store, "weather", "a.csv", WEATHER_CSV)
    ingest(store)
    build(store)
    unlink_published_segments(store)
    drop(store, "weather", "a.csv", WEATHER_CSV)

    report = ingest(store)["weather"]

    assert report.duplicates == 1
    assert len(readable(store)) == 3
    assert len(files_under(store.settings.archive_path)) == 2


def test_a_file_of_the_same_name_and_other_content_is_another_batch(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)
    ingest(store)
    drop(store, "weather", "a.csv", OTHER_CSV)

    assert ingest(store)["weather"].rows == 1
    assert len(readable(store)) == 4
    archived = [path.read_text() for path in store.settings.archive_path.rglob("*.csv")]
    assert sorted(archived) == sorted([WEATHER_CSV, OTHER_CSV])


def test_the_same_file_may_go_to_two_datasets(make_store: MakeStore, drop: Drop):
    store = make_store(declared(weather="", copy=""))
    drop(store, "weather", "a.csv", WEATHER_CSV)
    drop(store, "copy", "a.csv", WEATHER_CSV)

    ingest(store)

    assert len(readable(store, "weather")) == len(readable(store, "copy")) == 3


@pytest.mark.parametrize("after", AfterIngest)
def test_a_crash_between_acknowledging_and_clearing_away_stages_nothing_twice(
    make_store: MakeStore, drop: Drop, after: AfterIngest
):
    store = make_store(landing_after_ingest=after)
    drop(store, "weather", "a.csv", WEATHER_CSV)
    with dies_at(CrashPoint.BATCHES_ACKNOWLEDGED):
        ingest(store)
    assert len(readable(store)) == 3

    report = ingest(store)["weather"]

    assert [receipt.duplicate for receipt in report.receipts] == [True]
    assert len(readable(store)) == 3
    assert scan_landing(store).files == ()


def test_a_crash_before_acknowledging_leaves_the_file_for_the_next_run(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)
    with dies_at(CrashPoint.BATCHES_RECORDED):
        ingest(store)
    assert readable(store) == []

    assert ingest(store)["weather"].rows == 3
    assert len(readable(store)) == 3


def test_a_crash_between_quarantine_entry_and_move_loses_no_bad_file(store: Store, drop: Drop):
    landed = drop(store, "weather", "bad.csv", b"rubbish")
    with dies_at(CrashPoint.BAD_FILE_RECORDED):
        ingest(store)
    assert landed.exists()

    (entry,) = ingest(store)["weather"].quarantined

    assert entry.id == 1
    assert store.staging.fetch(entry.path).read_bytes() == b"rubbish"


def ingest_that_ends_once_acknowledged(store: Store, error: BaseException) -> None:
    """Ingest, and meet an error when the ledger has the segment already."""
    with fails_at(CrashPoint.BATCHES_ACKNOWLEDGED, error), pytest.raises(type(error)):
        ingest(store)


def test_when_it_is_unknown_whether_the_ledger_committed_the_segment_is_kept(store: Store, drop: Drop):
    """As when the connection to the ledger breaks after the server has committed."""
    drop(store, "weather", "a.csv", WEATHER_CSV)
    ingest_that_ends_once_acknowledged(store, CommitUnknown("the connection was lost"))

    assert len(readable(store)) == 3
    assert ingest(store)["weather"].duplicates == 1
    assert len(readable(store)) == 3


def test_a_process_that_is_interrupted_in_the_ledger_does_not_take_the_segment_away(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)
    ingest_that_ends_once_acknowledged(store, KeyboardInterrupt())

    assert len(readable(store)) == 3


def test_a_segment_that_was_swept_before_it_was_acknowledged_is_written_again(store: Store, drop: Drop):
    """As by a process that was stopped for longer than orphans are left alone."""
    from timestore_pipeline.upkeep.orphans import sweep_orphans

    drop(store, "weather", "a.csv", WEATHER_CSV)
    slept: list[int] = []

    with at(CrashPoint.SEGMENT_IN_PLACE, lambda: slept.append(sweep_orphans(store, older_than_seconds=-60).files)):
        report = ingest(store)["weather"]

    assert slept == [1]
    assert report.rows == 3
    assert len(readable(store)) == 3


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_text(WEATHER_CSV + "2026-01-04,NEW,1\n"), id="appended"),
        pytest.param(lambda path: os.truncate(path, 20), id="truncated"),
        pytest.param(lambda path: path.write_text(WEATHER_CSV.replace("JFK", "XXX")), id="overwritten"),
        pytest.param(lambda path: path.with_suffix(".new").rename(path), id="replaced"),
    ],
)
def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_run(
    store: Store, drop: Drop, change: Callable[[Path], object]
):
    drop(store, "weather", "good.csv", OTHER_CSV)
    landed = drop(store, "weather", "a.csv", WEATHER_CSV)
    replacement = landed.with_suffix(".new")
    replacement.write_text(WEATHER_CSV.replace("JFK", "YYY"))
    files = [file for file in scan_landing(store).of("weather") if file.path != replacement]

    with at(CrashPoint.SEGMENT_IN_PLACE, lambda: change(landed)):
        report = ingest_files(store, "weather", files)

    assert [receipt.source for receipt in report.receipts] == ["good.csv"]
    (sentence,) = report.skipped
    assert "a.csv changed while it was read" in sentence
    assert landed.exists()
    assert len(readable(store)) == 1


def test_a_file_that_vanishes_is_somebody_elses(store: Store, drop: Drop):
    drop(store, "weather", "good.csv", OTHER_CSV)
    gone = drop(store, "weather", "gone.csv", WEATHER_CSV)
    files = scan_landing(store).of("weather")
    gone.unlink()

    assert [receipt.source for receipt in ingest_files(store, "weather", files).receipts] == ["good.csv"]

    drop(store, "weather", "better.csv", weather_csv("2026-01-03,LGA,1"))
    gone = drop(store, "weather", "later_gone.csv", WEATHER_CSV)

    with at(CrashPoint.SEGMENT_IN_PLACE, gone.unlink):
        assert [receipt.source for receipt in ingest(store)["weather"].receipts] == ["better.csv"]
    assert len(readable(store)) == 2


def test_what_lands_under_the_same_name_meanwhile_is_neither_archived_nor_lost(make_store: MakeStore, drop: Drop):
    store = make_store(landing_after_ingest="delete")
    landed = drop(store, "weather", "latest.csv", WEATHER_CSV)

    def a_new_file_lands() -> None:
        landed.with_suffix(".partial").write_text(OTHER_CSV)
        landed.with_suffix(".partial").rename(landed)

    with at(CrashPoint.BATCHES_ACKNOWLEDGED, a_new_file_lands):
        ingest(store)
    assert landed.read_text() == OTHER_CSV

    ingest(store)

    assert len(readable(store)) == 4
    assert not landed.exists()


def test_the_archive_may_lie_on_another_file_system(store: Store, drop: Drop, monkeypatch: pytest.MonkeyPatch):
    rename = Path.rename

    def across(self: Path, target: Path) -> Path:
        if self.parent != Path(target).parent:
            raise OSError(18, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    name = "x" * 251 + ".csv"
    landed = drop(store, "weather", name, WEATHER_CSV)

    ingest(store)

    assert not landed.exists()
    assert files_under(store.settings.archive_path) == [name]


def test_an_archive_that_cannot_be_synced_is_a_warning_and_the_batch_is_acknowledged(
    store: Store, drop: Drop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    drop(store, "weather", "a.csv", WEATHER_CSV)
    monkeypatch.setattr(folder_arrivals, "fsync_path", fail)

    (report,) = ingest(store).values()

    assert report.batches == 1
    assert "may forget its files in a power cut: Input/output error" in caplog.text
    assert files_under(store.settings.archive_path) == ["a.csv"]


def test_a_file_that_cannot_be_archived_stays_staged_and_is_said_once(
    store: Store, drop: Drop, caplog: pytest.LogCaptureFixture
):
    (store.settings.archive_path / "weather").write_text("a file is in the way")
    drop(store, "weather", "a.csv", WEATHER_CSV)

    with caplog.at_level(logging.WARNING):
        report = ingest(store)["weather"]

    assert report.rows == 3
    assert "a.csv is staged but could not be cleared away" in caplog.text
    assert scan_landing(store).files == ()


def test_more_files_than_the_queue_has_room_for_wait(make_store: MakeStore, drop: Drop):
    store = make_store(staging_max_pending=2)
    drop(store, "weather", "a.csv", WEATHER_CSV)
    drop(store, "weather", "b.csv", OTHER_CSV)
    files = scan_landing(store).of("weather")
    stage(store, "weather", hourly(1, station="SEA"))

    report = ingest_files(store, "weather", files)

    assert [receipt.source for receipt in report.receipts] == ["a.csv"]
    (sentence,) = report.skipped
    assert "1 files wait" in sentence
    assert "2 batches are staged and unpublished, the limit is 2" in sentence
    assert len(scan_landing(store).files) == 1
    build(store)
    assert ingest(store)["weather"].batches == 1


def test_a_duplicate_needs_no_room_in_the_queue(make_store: MakeStore, drop: Drop):
    store = make_store(staging_max_pending=1)
    drop(store, "weather", "a.csv", WEATHER_CSV)
    ingest(store)
    drop(store, "weather", "b.csv", WEATHER_CSV)
    files = scan_landing(store).of("weather")

    assert ingest_files(store, "weather", files).duplicates == 1


def test_without_enough_free_disk_the_files_wait(make_store: MakeStore, drop: Drop):
    store = make_store(staging_min_free_disk_bytes=1 << 60)
    landed = drop(store, "weather", "a.csv", WEATHER_CSV)

    with pytest.raises(DiskFull, match="TIMESTORE_STAGING_MIN_FREE_DISK_BYTES"):
        ingest(store)

    assert landed.exists()
    assert readable(store) == []


@pytest.mark.parametrize("setting", ["staging_max_dataset_bytes", "staging_max_total_bytes"])
def test_a_size_guardrail_warns_or_refuses(
    make_store: MakeStore, drop: Drop, setting: str, caplog: pytest.LogCaptureFixture
):
    limit: dict[str, Any] = {setting: 1}
    stage(make_store(), "weather", hourly(1))
    landed = drop(make_store(), "weather", "a.csv", WEATHER_CSV)

    with pytest.raises(GuardrailExceeded, match=f"TIMESTORE_{setting.upper()}"):
        ingest(make_store(staging_guardrail_mode="enforce", **limit))
    assert landed.exists()

    with caplog.at_level(logging.WARNING):
        ingest(make_store(**limit))
    assert f"TIMESTORE_{setting.upper()}" in caplog.text
    assert len(readable(make_store())) == 4


@pytest.mark.only_on("sqlite")  # PostgreSQL has no lock on the whole ledger
def test_a_ledger_that_is_locked_for_too_long_leaves_the_files_and_no_segment(
    make_store: MakeStore, drop: Drop, monkeypatch: pytest.MonkeyPatch
):
    blocker, store = make_store(), make_store(ledger_busy_timeout_seconds=0.05)
    landed = drop(store, "weather", "a.csv", WEATHER_CSV)

    with blocker.ledger.write(), pytest.raises(LedgerError, match="locked"):
        ingest(store)

    assert landed.exists()
    assert files_under(store.settings.staging_path / "weather") == []
    assert ingest(store)["weather"].rows == 3


def test_a_disk_that_fails_while_a_segment_is_written_is_no_fault_of_the_files(store: Store, drop: Drop):
    landed = drop(store, "weather", "a.csv", WEATHER_CSV)
    full = duckdb.IOException("could not write: No space left on device")

    with (
        fails_at(CrashPoint.SEGMENT_WRITTEN, full),
        pytest.raises(TimestoreError, match=r"could not be written: could not write.*files wait"),
    ):
        ingest(store)

    assert landed.exists()
    assert ingest(store)["weather"].rows == 3


def test_a_failed_sync_acknowledges_nothing(store: Store, drop: Drop, monkeypatch: pytest.MonkeyPatch):
    drop(store, "weather", "a.csv", WEATHER_CSV)

    def fails(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(durable_files, "fsync_path", fails)
        with pytest.raises(TimestoreError, match="Input/output error"):
            ingest(store)

    assert readable(store) == []
    assert ingest(store)["weather"].rows == 3


def test_files_of_many_shapes_map_to_their_own_batches(store: Store, drop: Drop):
    """The ordinals of batches run over several statements and formats."""
    expected = {}
    for number in range(30):
        table = weather(*[(datetime(2026, 1, 1 + number % 3, tzinfo=UTC), f"S{number}", 1.0)] * (1 + number % 4))
        columns = table.column_names if number % 2 else table.column_names[::-1]
        content = [arrow_bytes, parquet_bytes][number % 3 % 2](table.select(columns))
        name = f"{number}.{['arrow', 'parquet'][number % 3 % 2]}"
        if number % 5 == 0:
            name = f"{number}.csv"
            content = (
                "\n".join(
                    [
                        ",".join(columns),
                        *(",".join(str(row[column]) for column in columns) for row in table.to_pylist()),
                    ]
                ).encode()
                + b"\n"
            )
        drop(store, "weather", name, content)
        expected[name] = table.num_rows

    report = ingest(store)["weather"]
    published = build(store)

    assert {receipt.source: receipt.rows for receipt in report.receipts} == expected
    per_source: dict[str, int] = {}
    for window in published.windows:
        for batch in window.batches:
            per_source[batch.source] = per_source.get(batch.source, 0) + batch.rows
    assert per_source == expected


def test_stage_file_leaves_the_file_and_says_when_it_was_staged_before(store: Store, tmp_path: Path):
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_bytes(hourly(4)))

    first, second = stage_file(store, "weather", path), stage_file(store, "weather", path)

    assert (first.rows, first.duplicate, second.rows, second.duplicate) == (4, False, 4, True)
    assert path.exists()
    assert readable(store) == rows_of(hourly(4))


def test_stage_file_and_landing_know_each_others_batches(store: Store, drop: Drop, tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text(WEATHER_CSV)
    stage_file(store, "weather", path)
    drop(store, "weather", "b.csv", WEATHER_CSV)

    assert ingest(store)["weather"].duplicates == 1
    assert len(readable(store)) == 3


@REFUSED_FOR_NOW
def test_a_file_that_is_refused_for_now_is_counted_as_dropped_while_landing_files_wait(
    make_store: MakeStore,
    drop: Drop,
    tmp_path: Path,
    settings: dict[str, Any],
    error: type[TimestoreError],
    reason: str,
):
    stage(make_store(), "weather", hourly(1))
    store = make_store(**settings)
    path = tmp_path / "a.csv"
    path.write_text(WEATHER_CSV)
    drop(store, "weather", "b.csv", OTHER_CSV)

    with pytest.raises(error):
        stage_file(store, "weather", path)
    with suppress(error):
        ingest(store)

    assert counted(store, DROPPED_BATCHES) == {reason: 1}

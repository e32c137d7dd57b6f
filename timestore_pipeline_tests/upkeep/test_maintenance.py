"""Maintenance: disk, table and ledger stay small, rows that should be there stay, and what is gone is accounted for."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from timestore_pipeline.building.compact import compact_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import RebuildRefused, TableError
from timestore_pipeline.ledger.accounts import past_of_windows
from timestore_pipeline.ledger.counters import EXPIRED_ROWS, EXPIRED_WINDOWS
from timestore_pipeline.ledger.windows import published_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import to_micros
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.upkeep.maintenance import MaintenanceReport, in_words, maintain
from timestore_pipeline.upkeep.vacuum import vacuum_table
from timestore_pipeline_tests.builders import NEW_YEAR, build, counted, declared, hourly, published, readable, rows_of
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.deaths import dies_at

HOUR, DAY = 3_600_000_000, 86_400_000_000

WITH_RETENTION = declared(weather="retention: {table: 30d}")


def later(micros: int) -> int:
    return now_micros() + micros


def run(store: Store, **options) -> MaintenanceReport:
    return maintain(store, owner="the test", **options)


def flushed(store: Store, flushes: int, hours: int = 24) -> list:
    tables = [hourly(hours, station=f"S{number}") for number in range(flushes)]
    for number, table in enumerate(tables):
        stage(store, "weather", table, batch_id=f"b{number}")
        build(store)
    return tables


def parquet_files(store: Store) -> set[Path]:
    return set(store.table("weather").root.glob("window_key=*/*.parquet"))


def live(store: Store) -> set[Path]:
    path = store.table("weather").root
    return {path / file.path for file in live_files(open_table(store.table("weather"), "weather"))}


@pytest.mark.long
def test_one_pass_after_the_other_leaves_only_what_is_needed(store: Store):
    tables = flushed(store, 4, hours=48)

    first = run(store)

    assert [each.compaction.files for each in first.datasets if each.dataset == "weather"] == [8]
    assert parquet_files(store) > live(store)
    assert not first.problems
    second = run(store, now=later(2 * HOUR))
    assert second.freed.files == 8 + 4  # Parquet files and segments
    assert parquet_files(store) == live(store)
    assert list((store.settings.staging_path / "weather").glob("[!.]*")) == []
    assert published(store) == readable(store) == rows_of(*tables)
    assert not audit_rows(store, "weather").wrong
    third = run(store, now=later(3 * HOUR))
    assert third.freed.files == 0
    assert list(in_words(third)) == []


@pytest.mark.long
def test_a_dry_run_says_the_same_and_changes_nothing(store: Store):
    flushed(store, 3, hours=48)
    compact_windows(store, BuildOrder("weather", owner="x"))
    stage(store, "weather", hourly(24, station="NEW"))
    build(store)
    moment = later(2 * HOUR)
    before = {path: path.stat().st_size for path in store.settings.home.rglob("*") if path.is_file()}

    told = run(store, dry_run=True, now=moment)

    after = {path: path.stat().st_size for path in store.settings.home.rglob("*") if path.is_file()}
    assert {path: size for path, size in after.items() if "ledger" not in path.name} == {
        path: size for path, size in before.items() if "ledger" not in path.name
    }
    done = run(store, now=moment)
    assert told.segments == done.segments
    assert told.datasets[0].vacuumed == done.datasets[0].vacuumed
    assert told.datasets[0].compaction.files == done.datasets[0].compaction.files == 2
    assert any("would be" in line for line in in_words(told))


def test_old_windows_are_dropped_and_the_rows_still_add_up(make_store: MakeStore):
    store = make_store(WITH_RETENTION)
    flushed(store, 1, hours=72)
    end_of_second = to_micros(NEW_YEAR + timedelta(days=2))

    run(store, now=end_of_second + 30 * DAY)

    assert published(store) == readable(store) == rows_of(hourly(72, station="S0").slice(48))
    assert counted(store, EXPIRED_WINDOWS) == {"": 2}
    assert counted(store, EXPIRED_ROWS) == {"": 48}
    with store.ledger.read() as tx:
        assert [past.expired for past in past_of_windows(tx, "weather").values()] == [24, 24]
        assert published_totals(tx)["weather"][:2] == (1, 24)
    assert not audit_rows(store, "weather").wrong
    assert run(store, now=end_of_second + 30 * DAY).datasets[0].expired.windows == 0


def test_a_window_that_had_expired_can_be_built_again(make_store: MakeStore):
    store = make_store(WITH_RETENTION)
    flushed(store, 1, hours=24)
    moment = to_micros(NEW_YEAR + timedelta(days=31))
    run(store, now=moment)
    assert published(store) == []

    rebuild_windows(store, BuildOrder("weather", owner="the test"))

    assert published(store) == rows_of(hourly(24, station="S0"))
    assert not audit_rows(store, "weather").wrong


def test_late_rows_of_a_dropped_window_are_published_and_then_dropped(make_store: MakeStore):
    store = make_store(WITH_RETENTION)
    flushed(store, 1)
    moment = to_micros(NEW_YEAR + timedelta(days=40))
    run(store, now=moment)
    stage(store, "weather", hourly(3, station="LATE"))
    build(store)

    assert published(store) == rows_of(hourly(3, station="LATE"))
    assert not audit_rows(store, "weather").wrong
    run(store, now=moment)
    assert published(store) == []
    assert counted(store, EXPIRED_ROWS) == {"": 27}
    assert not audit_rows(store, "weather").wrong


def test_a_reader_may_go_on_for_the_grace_period(make_store: MakeStore):
    store = make_store(vacuum_grace_seconds=3_600)
    tables = flushed(store, 3)
    with open_reader(store, ["weather"]) as connection:
        compact_windows(store, BuildOrder("weather", owner="x"))
        assert vacuum_table(store, "weather").files == 0
        assert vacuum_table(store, "weather", now=later(HOUR // 2)).files == 0
        assert len(connection.execute("SELECT * FROM weather").fetchall()) == sum(table.num_rows for table in tables)

    assert vacuum_table(store, "weather", now=later(HOUR + 10**6)).files == 3
    assert readable(store) == rows_of(*tables)


def test_grace_counts_from_when_readers_were_moved_on_not_from_the_commit(store: Store):
    """A compaction that died between its commit and the ledger: readers still have the version before it."""
    tables = flushed(store, 3)

    with dies_at(CrashPoint.TABLE_SYNCED):
        compact_windows(store, BuildOrder("weather", owner="x"))

    assert vacuum_table(store, "weather", now=later(10 * DAY)).files == 0
    assert readable(store) == rows_of(*tables)


def test_files_that_are_not_ours_are_left_alone(store: Store):
    flushed(store, 2)
    compact_windows(store, BuildOrder("weather", owner="x"))
    foreign = store.table("weather").root / "window_key=2026-01-01" / "part-00000.parquet"
    foreign.write_bytes(b"x")

    vacuum_table(store, "weather", now=later(DAY))

    assert foreign.exists()


@pytest.mark.long
def test_each_run_is_bounded(make_store: MakeStore):
    store = make_store(maintenance_max_removals=2)
    flushed(store, 5)
    run(store)

    passes = [run(store, now=later(2 * HOUR + number)) for number in range(4)]

    assert [report.segments.files for report in passes] == [2, 2, 1, 0]
    assert [each.vacuumed.files for report in passes for each in report.datasets if each.dataset == "weather"] == [
        2, 2, 1, 0,
    ]  # fmt: skip


@pytest.mark.long
def test_one_broken_table_holds_no_other_dataset(make_store: MakeStore):
    store = make_store(WITH_RETENTION.replace("  weather:", "  aaa:") + WITH_RETENTION.partition("datasets:\n")[2])
    for dataset in ("aaa", "weather"):
        for number in range(2):
            stage(store, dataset, hourly(24, station=f"S{number}"))
            build(store, dataset)
    entry = sorted((store.table("aaa").root / "_delta_log").glob("*.json"))[-1]
    entry.write_text("{")

    report = run(store, now=to_micros(NEW_YEAR + timedelta(days=9)))

    assert any("aaa" in problem for problem in report.problems)
    assert [each.compaction.merged_files for each in report.datasets] == [0, 1]


@pytest.mark.long
def test_the_ledger_forgets_old_batches_and_the_rows_still_add_up(store: Store):
    tables = flushed(store, 3, hours=48)
    run(store, now=later(2 * HOUR))
    assert stage(store, "weather", tables[0], batch_id="b0").duplicate

    report = run(store, now=later(40 * DAY))

    assert report.datasets[0].pruned.batches == 3
    assert report.datasets[0].pruned.segments == 3
    with store.ledger.read() as tx:
        assert [past.pruned for past in past_of_windows(tx, "weather").values()] == [72, 72]
    assert not audit_rows(store, "weather").wrong
    assert readable(store) == rows_of(*tables)
    with pytest.raises(RebuildRefused, match="72 rows of window 2026-01-01"):
        rebuild_windows(store, BuildOrder("weather", owner="the test"))
    assert not stage(store, "weather", tables[0], batch_id="b0").duplicate


def test_batches_that_are_staged_or_whose_segment_is_kept_are_remembered(make_store: MakeStore):
    store = make_store(staging_retention_seconds=10**9)
    table = hourly(3)
    flushed(store, 1)
    stage(store, "weather", table, batch_id="staged")

    assert run(store, now=later(400 * DAY)).datasets[0].pruned.batches == 0
    assert stage(store, "weather", table, batch_id="staged").duplicate


@pytest.mark.long
def test_old_builds_are_forgotten_but_not_the_last_ones(store: Store):
    flushed(store, 5)
    run(store)

    for days in (40, 80):
        run(store, now=later(days * DAY))
    report = run(store, now=later(81 * DAY))

    with store.ledger.read() as tx:
        left = tx.exec_driver_sql("SELECT kind, state FROM builds ORDER BY id").fetchall()
    assert report.datasets[0].pruned.builds == 0
    assert [tuple(row) for row in left] == [("flush", "published"), ("compaction", "published")]
    assert stage(store, "weather", hourly(1, station="MORE"))
    assert build(store).build_id == 7


def test_a_damaged_log_entry_is_a_problem_that_is_told(store: Store):
    flushed(store, 2)
    sorted((store.table("weather").root / "_delta_log").glob("*.json"))[-1].write_text("{")

    with pytest.raises(TableError):
        compact_windows(store, BuildOrder("weather", owner="x"))
    assert run(store).problems

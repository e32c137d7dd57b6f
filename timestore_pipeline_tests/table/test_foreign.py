"""Another program maintains a table: reads, builds and maintenance go on, and the row audit says what it changed."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.transaction import AddAction
from hypothesis import example, given
from hypothesis import strategies as st

from timestore_pipeline.building.completion import follow_others, published_windows
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import TableError
from timestore_pipeline.ledger.tables import table_versions
from timestore_pipeline.ledger.windows import window_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.doctor import look_at_table
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.restoring.ledger import rebuild_ledger
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage.table_folder import log_key
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.timestore import Timestore
from timestore_pipeline.upkeep.maintenance import maintain
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    declared,
    hourly,
    in_order,
    lose_ledger,
    readable,
    rows_of,
    weather,
)
from timestore_pipeline_tests.conftest import DATASETS_YAML, MakeStore
from timestore_pipeline_tests.deaths import dies_at
from timestore_pipeline_tests.sampling import examples

FIRST, SECOND = hourly(3), hourly(3, start=NEW_YEAR + timedelta(hours=3))
STAGED = hourly(3, start=NEW_YEAR + timedelta(hours=6))
EXTRA = weather((NEW_YEAR + timedelta(hours=9), "foreign", 9.0))


def table_of(store: Store) -> DeltaTable:
    return DeltaTable(str(store.table("weather").root))


def optimize(store: Store) -> None:
    assert table_of(store).optimize.compact()["numFilesRemoved"] > 1


def vacuum(store: Store) -> None:
    assert table_of(store).vacuum(0, dry_run=False, enforce_retention_duration=False)


def append(store: Store, rows: pa.Table = EXTRA, key: str | None = "2026-01-01") -> None:
    keyed = rows.append_column("window_key", pa.array([key] * rows.num_rows, pa.string()))
    write_deltalake(str(store.table("weather").root), keyed, mode="append")


def delete(store: Store) -> None:
    table_of(store).delete("temp < 1")


def clean_log(store: Store) -> None:
    """Leave of the log what a checkpoint needs, as a program with a short log retention does."""
    table = table_of(store)
    table.create_checkpoint()
    log = store.table("weather").root / "_delta_log"
    for entry in sorted(log.glob("*.json"))[:-1]:
        entry.unlink()


def two_flushes(store: Store) -> None:
    for rows in (FIRST, SECOND):
        stage(store, "weather", rows)
        build(store)
    stage(store, "weather", STAGED)


@pytest.mark.long
def test_reads_go_on_after_another_program_has_optimized_and_vacuumed(store: Store):
    two_flushes(store)
    optimize(store)
    vacuum(store)

    expected = rows_of(FIRST, SECOND, STAGED)
    assert readable(store) == expected
    assert query_rows(store, "SELECT count(*) AS n FROM weather").to_arrow().to_pylist() == [{"n": 9}]
    assert Timestore(store).read("weather").to_arrow().num_rows == 9
    assert audit_rows(store, "weather").wrong == ()
    build(store)
    assert readable(store) == expected
    assert maintain(store, owner="the test").problems == ()
    assert audit_rows(store, "weather").wrong == ()


def test_a_query_by_the_facade_is_the_first_that_notices(store: Store):
    two_flushes(store)
    optimize(store)
    vacuum(store)

    assert Timestore(store).sql("SELECT count(*) FROM weather").fetchall() == [(9,)]


def test_maintenance_follows_another_program_by_itself(store: Store):
    two_flushes(store)
    optimize(store)
    seen = table_of(store).version()

    assert maintain(store, owner="the test").problems == ()

    with store.ledger.read() as tx:
        assert table_versions(tx)["weather"] == seen
    vacuum(store)
    assert readable(store) == rows_of(FIRST, SECOND, STAGED)


@pytest.mark.long
def test_reads_go_on_after_another_program_has_cleaned_up_the_log(store: Store):
    two_flushes(store)
    optimize(store)
    vacuum(store)
    clean_log(store)

    assert readable(store) == rows_of(FIRST, SECOND, STAGED)
    build(store)
    assert readable(store) == rows_of(FIRST, SECOND, STAGED)
    in_a_day = now_micros() + 86_400_000_000
    assert maintain(store, owner="the test", now=in_a_day).problems == ()
    clean_log(store)
    assert maintain(store, owner="the test", now=in_a_day).problems == ()
    assert readable(store) == rows_of(FIRST, SECOND, STAGED)
    assert audit_rows(store, "weather").wrong == ()


def test_reads_go_on_after_the_log_was_cleaned_up_behind_a_commit_of_no_files(store: Store):
    two_flushes(store)
    table_of(store).alter.set_table_properties({"delta.logRetentionDuration": "interval 7 days"})
    clean_log(store)

    assert readable(store) == rows_of(FIRST, SECOND, STAGED)
    with pytest.raises(TableError, match="does not reach back to version 1 any more"):
        Timestore(store).as_of(version=1).read("weather")
    assert audit_rows(store, "weather").wrong == ()
    build(store)
    assert readable(store) == rows_of(FIRST, SECOND, STAGED)


def test_no_version_is_passed_over_whose_log_entry_is_empty(store: Store):
    two_flushes(store)
    (seen,) = seen_versions(store)
    table_of(store).alter.set_table_properties({"delta.logRetentionDuration": "interval 7 days"})
    (store.table("weather").root / log_key(seen)).write_bytes(b"")

    with pytest.raises(TableError, match="lacks the commit of its version"):
        readable(store)
    follow_others(store, "weather")
    assert seen_versions(store) == [seen]


def seen_versions(store: Store) -> list[int]:
    with store.ledger.read() as tx:
        return [version for version in table_versions(tx, ["weather"]).values() if version is not None]


def test_doctor_says_what_another_program_did_and_misses_no_file(store: Store):
    two_flushes(store)
    optimize(store)
    vacuum(store)

    found = {each.message: each.level.value for each in look_at_table(store, "weather")}

    assert list(found.values()) == ["warning", "ok"]
    assert "another program's (OPTIMIZE by delta-rs" in next(iter(found))


@pytest.mark.long
@pytest.mark.parametrize("then", [append, delete], ids=["append", "delete"])
def test_what_another_program_changed_is_read_and_named(store: Store, then: Callable[[Store], None]):
    two_flushes(store)
    then(store)

    assert follow_others(store, "weather")

    rows = rows_of(FIRST, SECOND, STAGED)
    deleted = {rows_of(FIRST)[0], rows_of(SECOND)[0]}
    expected = in_order([*rows, *rows_of(EXTRA)]) if then is append else [row for row in rows if row not in deleted]
    assert readable(store) == expected
    (wrong,) = audit_rows(store, "weather").wrong
    assert wrong.window.key == "2026-01-01"
    operation = "WRITE" if then is append else "DELETE"
    assert f"is another program's ({operation} by delta-rs" in "; ".join(wrong.problems)
    build(store)
    maintain(store, owner="the test")
    assert readable(store) == expected
    assert f"({operation} by delta-rs" in "; ".join(audit_rows(store, "weather").wrong[0].problems)
    assert not follow_others(store, "weather")


def test_files_of_another_program_may_lack_columns(store: Store):
    two_flushes(store)
    table = table_of(store)
    key = "window_key=2026-01-01/part-0.parquet"
    file = store.table("weather").root / key
    pq.write_table(EXTRA.drop_columns(["station"]), file)
    added = AddAction(key, file.stat().st_size, {"window_key": "2026-01-01"}, 0, True, "{}")
    table.create_write_transaction([added], "append", pa.schema(table.schema().to_arrow()), ["window_key"])

    build(store)

    assert [row[1] for row in readable(store) if row[2] == 9.0] == [None]


@pytest.mark.long
def test_rows_that_another_program_put_into_no_window_are_named(store: Store):
    two_flushes(store)
    for key in ("nonsense", None, "2026-01"):
        append(store, key=key)

    assert follow_others(store, "weather")

    report = audit_rows(store, "weather")
    assert len(report.stray) == 3
    assert "3 files of another program lie in no window of the dataset: " in (report.stray_in_words or "")
    assert report.wrong == ()
    build(store)
    assert maintain(store, owner="the test").problems == ()
    assert len(readable(store)) == 12


def test_times_that_another_program_cut_in_its_statistics_hide_no_row(store: Store):
    two_flushes(store)
    moment = NEW_YEAR + timedelta(hours=9, microseconds=123_456)
    append(store, weather((moment, "foreign", 9.0)))
    assert follow_others(store, "weather")

    for condition in (f"ts = '{moment}'", f"ts > '{moment - timedelta(microseconds=1)}'"):
        found = (
            query_rows(store, f"SELECT temp FROM weather WHERE station = 'foreign' AND {condition}")
            .to_arrow()
            .to_pylist()
        )
        assert found == [{"temp": 9.0}], condition


@pytest.mark.long
def test_a_ledger_is_made_again_beside_rows_that_another_program_put_into_no_window(store: Store):
    two_flushes(store)
    for key in ("nonsense", None):
        append(store, key=key)
    lose_ledger(store)

    rebuilt = rebuild_ledger(store.settings, by="the test")

    assert rebuilt.datasets[0].published_rows == 8
    with Store.open(store.settings) as again:
        assert len(readable(again)) == 11
        assert len(audit_rows(again, "weather").stray) == 2


@pytest.mark.parametrize("statistics", ["none", "numRecords"])
def test_files_of_another_program_without_statistics_are_counted(store: Store, statistics: str):
    two_flushes(store)
    append(store)
    entry = store.table("weather").root / f"_delta_log/{table_of(store).version():020d}.json"
    actions = [json.loads(line) for line in entry.read_text().splitlines()]
    for action in actions:
        if "add" in action:
            action["add"].pop("stats")
            if statistics != "none":
                action["add"]["stats"] = '{"nullCount":{}}'
    entry.write_text("\n".join(map(json.dumps, actions)))

    assert follow_others(store, "weather")

    assert len(readable(store)) == 10
    (wrong,) = audit_rows(store, "weather").wrong
    assert wrong.table_rows == wrong.recorded == 7


@pytest.mark.long
def test_a_commit_of_another_program_neither_hides_nor_doubles_rows_of_a_build_that_died(store: Store):
    """The build is in the table and not in the ledger; then another program commits, and somebody follows it."""
    two_flushes(store)
    with dies_at(CrashPoint.MANIFEST_KEPT):
        build(store)
    optimize(store)
    vacuum(store)

    expected = rows_of(FIRST, SECOND, STAGED)
    assert readable(store) == expected
    assert follow_others(store, "weather") is False
    assert readable(store) == expected
    assert audit_rows(store, "weather").wrong == ()
    stage(store, "weather", EXTRA)
    build(store)
    assert readable(store) == in_order([*expected, *rows_of(EXTRA)])


def test_rows_that_are_only_marked_as_deleted_are_not_read_as_if_they_were_not(store: Store):
    two_flushes(store)
    log = store.table("weather").root / "_delta_log"
    version = table_of(store).version()
    needs = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    protocol = {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **needs}}
    (log / f"{version + 1:020d}.json").write_text(json.dumps(protocol))

    with pytest.raises(TableError, match="needs deletionVectors to be read"):
        follow_others(store, "weather")
    with pytest.raises(TableError, match="needs deletionVectors to be read"):
        build(store)
    assert readable(store) == rows_of(FIRST, SECOND, STAGED)


def test_a_build_in_flight_goes_on_beside_another_program(store: Store):
    two_flushes(store)

    def meanwhile() -> None:
        optimize(store)
        assert follow_others(store, "weather")
        assert readable(store) == rows_of(FIRST, SECOND, STAGED)

    with at(CrashPoint.TABLE_CHECKED, meanwhile):
        build(store)

    assert readable(store) == rows_of(FIRST, SECOND, STAGED)
    assert audit_rows(store, "weather").wrong == ()


def assert_totals_are_those_of_the_table(store: Store, dataset: str = "weather") -> None:
    with store.ledger.read() as tx:
        seen = table_versions(tx)[dataset]
        found = {total.window_start: (total.rows, total.bytes, total.files) for total in window_totals(tx, dataset)}
    files = live_files(open_table(store.table(dataset), dataset, seen))
    windows = published_windows(store.datasets[dataset].window, files)
    assert found == {start: (window.rows, window.bytes, window.files) for start, window in windows.items()}


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "settled by a recovery"])
@pytest.mark.parametrize("meanwhile", [optimize, append])
def test_what_another_program_commits_between_the_look_of_a_build_and_its_commit_is_counted(
    store: Store, meanwhile: Callable[[Store], None], recorded: bool
):
    two_flushes(store)

    with at(CrashPoint.TABLE_CHECKED, lambda: meanwhile(store)):
        if recorded:
            build(store)
        else:
            with dies_at(CrashPoint.MANIFEST_KEPT):
                build(store)
    if not recorded:
        settle_dead_builds(store, owner_is_gone=lambda _: True)

    assert_totals_are_those_of_the_table(store)


def test_another_program_may_commit_before_the_first_build_of_a_new_table(store: Store):
    stage(store, "weather", FIRST)

    with at(CrashPoint.TABLE_CHECKED, lambda: append(store)):
        build(store)

    assert_totals_are_those_of_the_table(store)


def test_rows_that_another_program_adds_to_a_key_before_a_build_reads_it_are_not_taken_for_superseded_ones(
    make_store: MakeStore,
):
    store = make_store(declared(weather="key: {columns: [ts]}"))
    stage(store, "weather", FIRST)
    build(store)
    stage(store, "weather", SECOND)
    added = EXTRA.append_column("_position", pa.array([0], pa.int64()))

    with at(CrashPoint.SLICES_CLAIMED, lambda: append(store, added)):
        build(store)

    assert_totals_are_those_of_the_table(store)
    (wrong,) = audit_rows(store, "weather").wrong
    assert wrong.table_rows == FIRST.num_rows + SECOND.num_rows + EXTRA.num_rows


def test_a_log_that_is_cleaned_up_before_a_build_is_recorded_holds_nothing_up(store: Store):
    two_flushes(store)

    with at(CrashPoint.TABLE_CHECKED, lambda: optimize(store)), at(CrashPoint.TABLE_SYNCED, lambda: clean_log(store)):
        build(store)

    assert readable(store) == rows_of(FIRST, SECOND, STAGED)
    assert_totals_are_those_of_the_table(store)


def test_files_that_are_really_gone_are_said_with_what_to_do(store: Store):
    two_flushes(store)
    root = store.table("weather").root
    shutil.rmtree(root / "window_key=2026-01-01")

    for attempt in (
        lambda: query_rows(store, "SELECT * FROM weather").to_arrow(),
        lambda: readable(store),
        lambda: Timestore(store).read("weather"),
        lambda: Timestore(store).as_of(version=2).read("weather").to_arrow(),
    ):
        with pytest.raises(TableError, match=r"2 of 2 files of table version 2 are gone.*loss show weather"):
            attempt()


def test_an_old_version_whose_files_were_vacuumed_is_an_error_that_says_so(store: Store):
    two_flushes(store)
    with store.ledger.read() as tx:
        old = table_versions(tx)["weather"]
    optimize(store)
    vacuum(store)

    with pytest.raises(TableError, match="another program has vacuumed the table"):
        Timestore(store).as_of(version=old).read("weather").to_arrow()
    assert readable(store) == rows_of(FIRST, SECOND, STAGED)


def test_a_file_that_goes_while_rows_are_fetched_is_a_table_error(store: Store):
    two_flushes(store)
    rows = Timestore(store).read("weather")
    optimize(store)
    vacuum(store)

    with pytest.raises(TableError, match="read a later version"):
        rows.to_arrow()
    assert Timestore(store).read("weather").to_arrow().num_rows == 9


def test_rows_that_another_program_added_to_a_key_are_not_taken_for_superseded_ones(make_store: MakeStore):
    store = make_store(declared(weather="key: {columns: [ts]}"))
    stage(store, "weather", FIRST)
    build(store)
    append(store, EXTRA.append_column("_position", pa.array([0], pa.int64())))
    stage(store, "weather", SECOND)
    build(store)

    assert len(readable(store)) == 7
    (wrong,) = audit_rows(store, "weather").wrong
    assert "another program's (WRITE" in "; ".join(wrong.problems)


OPERATIONS = ["stage", "stage", "build", "die", "optimize", "vacuum", "append", "delete", "clean log", "maintain"]


@pytest.mark.long
@hypothesis.settings(max_examples=examples(6))
@given(operations=st.lists(st.sampled_from(OPERATIONS), min_size=4, max_size=10))
@example(operations=["stage", "build", "delete", "stage", "build"])
@example(operations=["stage", "build", "stage", "die", "delete", "stage", "build", "optimize", "vacuum", "maintain"])
def test_every_row_is_there_once_whatever_other_programs_do_in_between(operations: list[str]):
    """Invariant 2, with another program at the table: its rows are told from ours by their numbers alone."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "datasets.yaml").write_text(DATASETS_YAML)
        with Store.open(Settings(home=Path(folder), staging_min_free_disk_bytes=0)) as store:
            staged: set[float] = set()
            in_table: set[float] = set()
            numbers = itertools.count(1)
            foreign_rows = False

            def row() -> pa.Table:
                number = float(next(numbers))
                return weather((NEW_YEAR + timedelta(hours=20 * number), "JFK", number))

            def rows_in_table() -> bool:
                # A table is looked at once a build of it has been recorded.
                with store.ledger.read() as tx:
                    return table_versions(tx)["weather"] is not None and bool(in_table)

            for operation in operations:
                settle = operation in ("build", "die")
                if settle:
                    settle_dead_builds(store, lambda _: True)
                if operation == "stage":
                    batch = row()
                    stage(store, "weather", batch)
                    staged |= set(batch["temp"].to_pylist())
                elif settle and staged:
                    with dies_at(CrashPoint.MANIFEST_KEPT) if operation == "die" else nullcontext():
                        build(store)
                    in_table, staged = in_table | staged, set()
                elif operation == "maintain":
                    assert maintain(store, owner="the test").problems == ()
                elif rows_in_table():
                    if operation == "optimize":
                        table_of(store).optimize.compact()
                    elif operation == "vacuum":
                        table_of(store).vacuum(0, dry_run=False, enforce_retention_duration=False)
                    elif operation == "clean log":
                        clean_log(store)
                    elif operation == "append":
                        batch = row()
                        append(store, batch, batch["ts"].to_pylist()[0].strftime("%Y-%m-%d"))
                        in_table |= set(batch["temp"].to_pylist())
                        foreign_rows = True
                    elif operation == "delete":
                        gone = min(in_table)
                        table_of(store).delete(f"temp = {gone}")
                        in_table -= {gone}
                        foreign_rows = True
                    if foreign_rows:
                        follow_others(store, "weather")
                assert sorted(number for _, _, number in readable(store)) == sorted(staged | in_table), operation
            if not foreign_rows:
                assert audit_rows(store, "weather").wrong == ()

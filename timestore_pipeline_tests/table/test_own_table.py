"""Whose a table is: nothing is written into its folder or removed from it unless its log says that it is ours."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from timestore_pipeline.building.compact import compact_windows
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import TableError, TableNotOurs, TimestoreError
from timestore_pipeline.ledger.schema import builds
from timestore_pipeline.ledger.slices import unpublished_slices
from timestore_pipeline.ledger.tables import KnownTable, known_table, refused_tables
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.installation import change_identity
from timestore_pipeline.reading.lineage import trace_window
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.restoring.ledger import Consent, rebuild_ledger
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage.table_folder import may_be_removed
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import file_prefix
from timestore_pipeline.table.delta import DeltaTable
from timestore_pipeline.table.opening import declare_owner, owner_of
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.sequences import Commit
from timestore_pipeline.table.title import Objection, TableTitle, objection_to
from timestore_pipeline.timestore import Timestore
from timestore_pipeline.upkeep.maintenance import maintain
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline.upkeep.vacuum import vacuum_table
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    hourly,
    lose_ledger,
    publish,
    published,
    readable,
    rows_of,
)
from timestore_pipeline_tests.conftest import DATASETS_YAML, MakeStore
from timestore_pipeline_tests.installations import (
    LedgerCopy,
    another_installation,
    copy_installation,
    copy_of_ledger,
    ledger_put_back,
    put_back,
    state_of_folder,
    table_put_back,
)

FIRST = hourly(1, station="FIRST")
LOST = hourly(1, start=NEW_YEAR + timedelta(days=1), station="LOST")
MORE = hourly(1, start=NEW_YEAR + timedelta(days=1), station="MORE")
NEW = hourly(1, start=NEW_YEAR + timedelta(days=1), station="NEW")


def another_program_compacts_and_cleans_up(store: Store) -> None:
    """Leave of the log what a checkpoint needs."""
    table = table_of(store)
    table.optimize.compact()
    table.create_checkpoint()
    for entry in (store.table("weather").root / "_delta_log").glob("*.json"):
        if int(entry.stem) < table.version():
            entry.unlink()


def flush(store: Store) -> None:
    flush_windows(store, BuildOrder("weather", owner="the test"))


def table_of(store: Store) -> DeltaTable:
    return DeltaTable(store.table("weather").location)


class TestWhatATableSays:
    def test_it_says_whose_it_is_from_its_first_commit_on_and_every_commit_says_it_too(self, store: Store):
        for rows in (2, 3):
            stage(store, "weather", hourly(rows, station=str(rows)))
            build(store)
        compact_windows(store, BuildOrder("weather", owner="x"))

        log = store.table("weather").root / "_delta_log"
        said = []
        for entry in sorted(log.glob("*.json")):
            (info,) = [
                json.loads(line)["commitInfo"] for line in entry.read_text().splitlines() if "commitInfo" in line
            ]
            said.append(info["timestoreInstallation"])
        assert said == [store.ledger.identity] * 4
        assert owner_of(table_of(store)) == store.ledger.identity

    def test_the_ledger_knows_its_delta_id(self, store: Store):
        publish(store, FIRST)

        with store.ledger.read() as tx:
            assert known_table(tx, "weather").table_id == str(table_of(store).metadata().id)

    def test_it_outlives_checkpoints_the_clean_up_of_the_log_new_columns_and_what_other_programs_commit(
        self, make_store: MakeStore
    ):
        store = make_store(DATASETS_YAML.replace("window: day", "window: day\n    evolve: true"))
        publish(store, FIRST)
        stage(store, "weather", LOST.append_column("wind", pa.array([1.5])))
        build(store)
        another_program_compacts_and_cleans_up(store)

        assert owner_of(table_of(store)) == store.ledger.identity
        OwnTable(store, "weather").opened()


def ledger_before_the_commit(store: Store) -> LedgerCopy:
    """Build, and return the ledger as it was when the build was about to commit."""
    copies: list[LedgerCopy] = []
    with at(CrashPoint.MANIFEST_WRITTEN, lambda: copies.append(copy_of_ledger(store))):
        build(store)
    return copies[0]


class TestAnOlderLedger:
    @pytest.mark.parametrize("builds_since", [1, 2])
    def test_it_is_refused_before_anything_is_written(self, store: Store, builds_since: int):
        publish(store, FIRST)
        with ledger_put_back(store):
            since = [LOST, MORE][:builds_since]
            publish(store, *since)
        stage(store, "weather", NEW)
        before = state_of_folder(store.table("weather").root)

        for _ in range(3):  # what a first refusal leaves behind opens no door
            with pytest.raises(TableNotOurs, match=r"ledger does not know \d of its commits.*ledger rebuild") as raised:
                flush(store)
            assert raised.value.reason == Objection.AHEAD

        assert state_of_folder(store.table("weather").root) == before
        assert published(store) == rows_of(FIRST, *since)
        with store.ledger.read() as tx:
            assert refused_tables(tx)["weather"].reason == "ahead"

    @pytest.mark.parametrize("builds_before", [0, 1])
    def test_it_is_refused_though_the_log_says_nothing_of_our_builds_any_more(self, store: Store, builds_before: int):
        """Another program was the last that committed, and the entries before it were cleaned up."""
        stage(store, "weather", FIRST)
        if builds_before:
            build(store)
            stage(store, "weather", LOST)
        with ledger_put_back(store):
            build(store)
            publish(store, MORE, hourly(2, station="another"))
            expected = published(store)
            another_program_compacts_and_cleans_up(store)
        before = state_of_folder(store.table("weather").root)

        with pytest.raises(TableNotOurs, match=r"its log entry was cleaned up.*ledger rebuild") as raised:
            flush(store)

        assert raised.value.reason == Objection.AHEAD
        assert state_of_folder(store.table("weather").root) == before
        assert published(store) == expected

    @pytest.mark.parametrize("builds_before", [0, 1])
    def test_rows_that_it_does_not_know_are_not_missing_without_a_word(self, store: Store, builds_before: int):
        tables = [FIRST][:builds_before]
        publish(store, *tables)
        with ledger_put_back(store):
            publish(store, LOST)
        stage(store, "weather", NEW)

        for attempt in (
            lambda: readable(store),
            lambda: query_rows(store, "SELECT * FROM weather").to_arrow(),
            lambda: Timestore(store).read("weather").to_arrow(),
        ):
            with pytest.raises(TableError, match=r"is not read, as rows would be missing: .*ledger rebuild --replace"):
                attempt()

        if tables:  # the past is what it was
            assert rows_of(Timestore(store).as_of(version=1).read("weather").to_arrow()) == rows_of(FIRST)

    def test_nor_where_the_log_was_cleaned_up_since(self, store: Store):
        publish(store, FIRST)
        with ledger_put_back(store):
            publish(store, LOST)
            another_program_compacts_and_cleans_up(store)

        with pytest.raises(TableError, match=r"is not read, as rows would be missing: .*ledger rebuild --replace"):
            readable(store)

    def test_nothing_is_removed_or_merged_either(self, store: Store):
        for number in range(3):
            publish(store, hourly(2, station=f"S{number}"))
        with ledger_put_back(store):
            compact_windows(store, BuildOrder("weather", owner="x"))
        before = state_of_folder(store.table("weather").root)

        report = maintain(store, owner="x", now=now_micros() + 40 * 86_400_000_000)
        sweep_orphans(store, older_than_seconds=-60)

        assert state_of_folder(store.table("weather").root) == before
        assert any("does not know" in problem for problem in report.problems)

    def test_segments_that_it_does_not_know_are_not_swept(self, store: Store):
        publish(store, FIRST)
        with ledger_put_back(store):
            publish(store, LOST)
            stage(store, "weather", MORE)
        before = state_of_folder(store.staging.root / "weather")

        sweep_orphans(store, older_than_seconds=-60)

        assert state_of_folder(store.staging.root / "weather") == before

    def test_its_build_in_flight_is_settled_where_nothing_came_after(self, store: Store):
        publish(store, FIRST)
        stage(store, "weather", LOST)
        put_back(store, ledger_before_the_commit(store))

        (settled,) = settle_dead_builds(store, lambda owner: True)

        assert settled.published
        assert published(store) == readable(store) == rows_of(FIRST, LOST)

    def test_a_build_in_flight_of_then_is_left_where_more_came_after(self, store: Store):
        stage(store, "weather", FIRST)
        then = ledger_before_the_commit(store)
        publish(store, LOST)
        put_back(store, then)
        before = state_of_folder(store.table("weather").root)

        assert settle_dead_builds(store, lambda owner: True) == []
        assert state_of_folder(store.table("weather").root) == before

    def test_one_that_was_put_back_while_a_build_wrote_its_files_is_refused_at_the_commit(self, store: Store):
        publish(store, FIRST)
        night = copy_of_ledger(store)
        stage(store, "weather", LOST)

        def others_build() -> None:
            with ledger_put_back(store):
                put_back(store, night)
                publish(store, MORE)

        with at(CrashPoint.MANIFEST_WRITTEN, others_build), pytest.raises(TableNotOurs):
            flush(store)

        assert published(store) == rows_of(FIRST, MORE)


class TestAnotherInstallation:
    @pytest.mark.long
    def test_its_tables_are_refused_and_nothing_is_touched(self, store: Store, home: Path):
        publish(store, FIRST)
        before = state_of_folder(store.tables.root)

        with (
            pytest.raises(TimestoreError, match=store.ledger.identity),
            another_installation(home.parent / "other", tables_url=str(store.tables.root)) as other,
        ):
            stage(other, "weather", NEW)

        assert state_of_folder(store.tables.root) == before
        publish(store, LOST)
        assert published(store) == rows_of(FIRST, LOST)

    def test_its_table_in_a_folder_of_ours_is_refused_as_well(self, store: Store, home: Path):
        publish(store, FIRST)
        with another_installation(home.parent / "other") as other:
            shutil.copytree(store.table("weather").root, other.tables.root / "weather")
            stage(other, "weather", NEW)
            before = state_of_folder(other.tables.root)

            with pytest.raises(TableNotOurs, match=store.ledger.identity) as raised:
                flush(other)

            assert raised.value.reason == Objection.OTHER_INSTALLATION
            assert state_of_folder(other.tables.root) == before
            assert readable(other) == rows_of(NEW)

    def test_a_table_that_nobody_says_is_theirs_is_not_taken(self, store: Store):
        place = store.table("weather").root
        write_deltalake(place, FIRST.append_column("window_key", pa.array(["2026-01-01"])), partition_by=["window_key"])
        stage(store, "weather", NEW)
        before = state_of_folder(place)

        with pytest.raises(TableNotOurs, match="does not say whose it is") as raised:
            flush(store)

        assert raised.value.reason == Objection.UNPROVEN
        assert state_of_folder(place) == before

    def test_another_table_in_the_place_of_ours_is_refused(self, store: Store):
        publish(store, FIRST)
        place = store.table("weather").root
        place.rename(place.with_name("away"))
        DeltaTable.create(
            place, table_of_schema(), configuration={"timestore.installation": store.ledger.identity},
            raise_if_key_not_exists=False,
        )  # fmt: skip
        stage(store, "weather", NEW)

        with pytest.raises(TableNotOurs) as raised:
            flush(store)

        assert raised.value.reason == Objection.OTHER_TABLE
        shutil.rmtree(place)
        place.with_name("away").rename(place)
        build(store)
        assert published(store) == rows_of(FIRST, NEW)
        with store.ledger.read() as tx:
            assert refused_tables(tx) == {}

    @pytest.mark.parametrize("commits", [1, 3], ids=["at another version", "at the same version"])
    def test_another_table_in_the_place_of_ours_is_not_read(self, store: Store, commits: int):
        publish(store, FIRST)
        place = store.table("weather").root
        place.rename(place.with_name("away"))
        other = FIRST.append_column("window_key", pa.array(["2026-01-01"]))
        for _ in range(commits):
            write_deltalake(str(place), other, mode="append", partition_by=["window_key"])

        for attempt in (
            lambda: readable(store),
            lambda: query_rows(store, "SELECT * FROM weather").to_arrow(),
            lambda: Timestore(store).as_of(version=0).read("weather").to_arrow(),
            lambda: trace_window(store, "weather", "2026-01-01"),
        ):
            with pytest.raises(TableError, match=r"is not read: it is another table .*Put the former table back"):
                attempt()

        shutil.rmtree(place)
        place.with_name("away").rename(place)
        assert readable(store) == rows_of(FIRST)


def table_of_schema() -> pa.Schema:
    return pa.schema([("ts", pa.timestamp("us", "UTC")), ("window_key", pa.string())])


class TestATableFromBefore:
    """Tables that were made before tables said whose they are."""

    @pytest.fixture
    def old(self, store: Store) -> Store:
        publish(store, FIRST, LOST)
        table_of(store).alter.set_table_properties({"timestore.installation": ""}, raise_if_not_exists=False)
        log = store.table("weather").root / "_delta_log"
        (log / f"{3:020d}.json").unlink()
        first = log / f"{0:020d}.json"
        first.write_text(first.read_text().replace(f'"timestore.installation":"{store.ledger.identity}"', ""))
        with store.ledger.write() as tx:
            tx.exec_driver_sql("UPDATE datasets SET table_id = NULL")
        assert owner_of(table_of(store)) is None
        return store

    @pytest.mark.long
    def test_the_ledgers_own_is_adopted(self, old: Store):
        publish(old, NEW)

        assert owner_of(table_of(old)) == old.ledger.identity
        assert published(old) == readable(old) == rows_of(FIRST, LOST, NEW)

    def test_that_of_another_ledger_is_not(self, old: Store, home: Path):
        with another_installation(home.parent / "other") as other:
            shutil.copytree(old.table("weather").root, other.tables.root / "weather")
            stage(other, "weather", NEW)
            before = state_of_folder(other.tables.root)

            with pytest.raises(TableNotOurs):
                flush(other)

            assert state_of_folder(other.tables.root) == before

    def test_nor_is_it_where_the_ledger_is_older(self, store: Store, old: Store):
        with ledger_put_back(old):
            stage(old, "weather", NEW)
            with old.ledger.write() as tx:
                tx.exec_driver_sql("UPDATE datasets SET table_id = NULL")
            build(old)

        stage(old, "weather", MORE)
        with pytest.raises(TimestoreError):
            flush(old)
        assert published(old) == rows_of(FIRST, LOST, NEW)


class TestATableThatWasRestored:
    def test_one_that_is_older_than_the_ledger_is_refused_whatever_was_committed_to_it_since(self, store: Store):
        publish(store, FIRST)
        with table_put_back(store):
            publish(store, LOST)
        stage(store, "weather", NEW)
        with pytest.raises(TableError, match=r"is not read, .*it is at version 1, and was at 2.*entries of its log"):
            readable(store)
        with pytest.raises(TableNotOurs) as raised:
            flush(store)
        assert raised.value.reason == Objection.BEHIND
        assert unlink_published_segments(store, now=1 << 60).files == 0, "they are the only copy of rows"

        for _ in range(3):
            table_of(store).alter.set_table_properties({"whatever": "x"}, raise_if_not_exists=False)

        with pytest.raises(TableNotOurs) as raised:
            flush(store)
        assert raised.value.reason == Objection.BEHIND


class TestRemoving:
    def test_a_file_that_the_log_names_stays_whatever_the_ledger_thinks(self, store: Store):
        publish(store, FIRST)
        with store.ledger.write() as tx:
            tx.execute(update(builds).values(state="aborted", table_version=None))

        sweep_orphans(store, older_than_seconds=-60)
        vacuum_table(store, "weather", now=1 << 60)

        assert published(store) == rows_of(FIRST)

    @pytest.mark.long
    @given(
        window=st.from_regex(r"[0-9-]{1,12}", fullmatch=True),
        sequence=st.integers(0, 2**62),
        number=st.integers(0, 1_200),
        others=st.lists(st.text(max_size=20)),
    )
    def test_only_names_that_builds_give_may_go_and_never_a_live_one(
        self, window: str, sequence: int, number: int, others: list[str]
    ):
        key = f"window_key={window}/{file_prefix(sequence)}{number:03d}.parquet"

        assert may_be_removed(key, ())
        assert not may_be_removed(key, {key})
        for other in others:
            assert not may_be_removed(other, ())
            assert not may_be_removed(f"_delta_log/{other}.json", ())
            assert not may_be_removed(f"window_key={window}/{other}.parquet", ()) or other[:10].isdecimal()
        for foreign in (
            "part-00000-7.snappy.parquet",
            "0001-1.parquet",
            "00000000001.parquet",
            "x/0000000001-000.parquet",
        ):
            assert not may_be_removed(f"window_key={window}/{foreign}", ())


@pytest.mark.parametrize("said", ["9" * 30, "9223372036854775808", "-1", "x", "", None, 7, [1]])
def test_whatever_a_log_entry_says_is_a_commit_that_the_ledger_does_not_know(store: Store, said: Any):
    publish(store, FIRST)
    log = store.table("weather").root / "_delta_log"
    info = {"timestamp": 0, "operation": "WRITE", "timestoreAction": "publish", "timestoreSequence": said}
    (log / f"{2:020d}.json").write_text(json.dumps({"commitInfo": info}))
    stage(store, "weather", NEW)

    with pytest.raises(TableError):
        flush(store)

    assert published(store) == rows_of(FIRST)


KNOWN = KnownTable("me", "id", 5, 100, None, None)
TITLE = TableTitle("id", "weather", "me", 6)


@pytest.mark.parametrize(
    ("title", "known", "objection"),
    [
        (TITLE, KNOWN, None),
        (replace(TITLE, installation="other"), KNOWN, Objection.OTHER_INSTALLATION),
        (replace(TITLE, installation=None), KNOWN, None),
        (replace(TITLE, table_id="else"), KNOWN, Objection.OTHER_TABLE),
        (replace(TITLE, version=4), KNOWN, Objection.BEHIND),
        (replace(TITLE, has_last=False), KNOWN, Objection.BEHIND),
        (replace(TITLE, commits=(Commit(6, 50, False, 1, "x"),)), KNOWN, Objection.AHEAD),
        (replace(TITLE, commits=(Commit(6, 50, True, 1, "x"),)), KNOWN, None),
        (replace(TITLE, commits=(Commit(6, 101, True, 1, "x"),)), KNOWN, Objection.AHEAD),
        (replace(TITLE, commits=(Commit(6, 50, True, None, None),)), KNOWN, Objection.AHEAD),
        (replace(TITLE, installation=None), replace(KNOWN, table_id=None), Objection.UNPROVEN),
        (replace(TITLE, installation=None, empty=True), replace(KNOWN, table_id=None, version=None), None),
        (replace(TITLE, installation=None, empty=True, name="x"), replace(KNOWN, table_id=None), Objection.UNPROVEN),
    ],
)
def test_what_is_objected_to(title: TableTitle, known: KnownTable, objection: Objection | None):
    found = objection_to("weather", title, known, {})

    assert (found and found[0]) == objection


class TestWaysOut:
    @pytest.fixture
    def old_ledger(self, store: Store) -> Store:
        """A ledger that was put back to before the last two builds; one of them was merged with what was before."""
        publish(store, FIRST)
        with ledger_put_back(store):
            publish(store, LOST, MORE)
            compact_windows(store, BuildOrder("weather", owner="x"))
        stage(store, "weather", NEW)
        with pytest.raises(TableNotOurs):
            flush(store)
        return store

    @pytest.mark.long
    @pytest.mark.parametrize("retained", [True, False])
    def test_a_ledger_that_was_put_back_is_brought_up_to_date(self, old_ledger: Store, retained: bool, home: Path):
        store, identity = old_ledger, old_ledger.ledger.identity
        if not retained:  # all that was published by then was unlinked, too
            with store.ledger.read() as tx:
                staged = {piece.path for piece in unpublished_slices(tx)}
            for path in (store.staging.root / "weather").glob("*.duckdb"):
                if f"weather/{path.name}" not in staged:
                    path.unlink()
        lose_ledger(store)

        rebuild_ledger(store.settings, by="the test")

        with Store.open(store.settings) as again:
            assert again.ledger.identity == identity
            assert published(again) == rows_of(FIRST, LOST, MORE)
            assert readable(again) == rows_of(FIRST, LOST, MORE, NEW)
            build(again)
            assert published(again) == readable(again) == rows_of(FIRST, LOST, MORE, NEW)
            assert not audit_rows(again, "weather").wrong

    @pytest.mark.long
    def test_a_table_that_is_older_than_the_ledger_is_taken_as_it_is(self, store: Store):
        publish(store, FIRST)
        with table_put_back(store):
            publish(store, LOST)
        lose_ledger(store)

        rebuild_ledger(store.settings, by="the test")

        with Store.open(store.settings) as again:
            assert published(again) == rows_of(FIRST)
            assert readable(again) == rows_of(FIRST, LOST)
            build(again)
            assert published(again) == readable(again) == rows_of(FIRST, LOST)

    @pytest.mark.long
    def test_a_virtual_machine_that_is_put_back_while_its_tables_are_elsewhere(self, store: Store, home: Path):
        publish(store, FIRST)
        night, staging = copy_of_ledger(store), home.parent / "staging"
        shutil.copytree(store.staging.root / "weather", staging)
        publish(store, LOST)
        put_back(store, night)
        shutil.rmtree(store.staging.root / "weather")
        shutil.copytree(staging, store.staging.root / "weather")
        stage(store, "weather", NEW)
        with pytest.raises(TableNotOurs):
            flush(store)
        lose_ledger(store)

        rebuild_ledger(store.settings, by="the test")

        with Store.open(store.settings) as again:
            assert again.ledger.identity
            build(again)
            assert published(again) == readable(again) == rows_of(FIRST, LOST, NEW)
            assert stage(again, "weather", LOST).duplicate

    @pytest.mark.long
    def test_another_host_takes_the_tables_over_on_purpose(self, store: Store, home: Path):
        publish(store, FIRST)
        stage(store, "weather", NEW)
        other = home.parent / "other"
        other.mkdir()
        (other / "datasets.yaml").write_text(DATASETS_YAML)
        fields = {"ledger_url": f"sqlite:///{other / 'ledger.sqlite'}", "staging_min_free_disk_bytes": 0}
        settings = Settings(home=other, tables_url=str(store.tables.root), **fields)

        rebuild_ledger(settings, by="the test", consent=Consent(take_over=True))

        with Store.open(settings) as taken:
            assert taken.ledger.identity != store.ledger.identity
            assert readable(taken) == rows_of(FIRST)
            publish(taken, LOST)
            with pytest.raises(TimestoreError, match=taken.ledger.identity):
                build(store)
            assert published(taken) == readable(taken) == rows_of(FIRST, LOST)

    def test_a_build_that_is_about_to_commit_while_its_table_is_taken_over_is_refused(self, store: Store):
        stage(store, "weather", FIRST)

        def take_over() -> None:
            declare_owner(store.table("weather"), "weather", table_of(store), "0" * 32)

        with at(CrashPoint.TABLE_CHECKED, take_over), pytest.raises(TableError):
            flush(store)

        assert published(store) == []
        assert readable(store) == rows_of(FIRST)

    @pytest.mark.long
    @pytest.mark.only_on("sqlite")
    def test_a_copy_becomes_an_installation_of_its_own(self, store: Store, home: Path):
        publish(store, FIRST)
        stage(store, "weather", LOST)
        copy_installation(store, home.parent / "copy")
        settings = Settings(home=home.parent / "copy", staging_min_free_disk_bytes=0)
        with Store.open(settings) as copy:
            change_identity(copy)
        with Store.open(settings) as copy:
            build(copy)
            assert published(copy) == readable(copy) == rows_of(FIRST, LOST)
            assert published(store) == rows_of(FIRST)
            build(store)
            assert published(store) == readable(store) == rows_of(FIRST, LOST)

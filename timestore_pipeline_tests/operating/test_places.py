"""A place that is not there, is empty or is another's is refused: nothing is made anew, forgotten, set aside or swept.

And once it is back everything goes on by itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import SecretStr

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.errors import (
    CopyInPlace,
    LedgerError,
    LedgerLost,
    NothingToRebuildFrom,
    PlaceError,
    PlaceForeign,
    PlaceMissing,
    RebuildFromOthers,
    SegmentsAway,
    SegmentUnreadable,
    TableGone,
    TablesOfOthers,
    UnknownPlace,
)
from timestore_pipeline.ledger import Ledger
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.ledger.installation import forget_place, marked_places
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.tables import table_versions
from timestore_pipeline.operating.installation import adopt, change_identity
from timestore_pipeline.operating.observed_places import observe_places
from timestore_pipeline.operating.quarantine import discard_entry
from timestore_pipeline.places import PlaceState, state_of
from timestore_pipeline.restoring.ledger import Consent, rebuild_ledger
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage.layout import segments_mark
from timestore_pipeline.storage.marks import mark_key
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import build, hourly, ingest, lose_ledger, published, readable, rows_of, weather
from timestore_pipeline_tests.conftest import DATASETS_YAML, WEATHER_CSV, MakeStore
from timestore_pipeline_tests.object_store import Bucket

OLD = hourly(5)
NEW = hourly(3, station="LGA")
NEWER = hourly(2, station="EWR")
OTHERS = "0123456789abcdef" * 2

MISSING = ("gone", "empty", "another's")
"""What can be where a place was."""


@contextmanager
def away(folder: Path, instead: str = "gone") -> Iterator[None]:
    """Take a folder away, as the end of a mount does; leave ``instead`` in its place, which must stay as it is."""
    hidden = folder.rename(folder.with_name(f".{folder.name}-hidden"))
    if instead != "gone":
        folder.mkdir()
    if instead == "another's":
        for name in ("staging", "tables", "archive"):
            (folder / mark_key(name)).write_text(f"{OTHERS}\n")
    before = tree(folder)
    try:
        yield
    finally:
        assert folder.exists() == (instead != "gone"), "it was made anew"
        assert tree(folder) == before, "something was changed in its place"
        shutil.rmtree(folder, ignore_errors=True)
        hidden.rename(folder)


def tree(folder: Path) -> dict[str, int]:
    """Every file under a folder but those of the ledger, with its size."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "ledger.sqlite" not in path.name
    }


@pytest.fixture
def apart(home: Path, ledger_kind: str) -> dict[str, str]:
    """Settings that keep the ledger out of staging."""
    return {} if ledger_kind == "postgresql" else {"ledger_url": f"sqlite:///{home / 'ledger.sqlite'}"}


@pytest.fixture
def published_and_staged(make_store: MakeStore, apart: dict[str, str]) -> Store:
    """A store with :data:`OLD` in the table and :data:`NEW` in the queue, that sets damage aside at once."""
    store = make_store(**apart, build_max_attempts=1)
    stage(store, "weather", OLD)
    build(store)
    stage(store, "weather", NEW)
    return store


def ends_of_builds(store: Store) -> object:
    with store.ledger.read() as tx:
        return latest_builds(tx), open_entries(tx), table_versions(tx)


def assert_nothing_is_removed_or_read(store: Store) -> None:
    """A place is not there, so whoever removes or reads is refused."""
    with pytest.raises(PlaceError):
        sweep_orphans(store, older_than_seconds=0)
    with pytest.raises(PlaceError):
        unlink_published_segments(store, retention_micros=0)
    with pytest.raises(PlaceError):
        readable(store)


class TestTables:
    @pytest.mark.parametrize("instead", MISSING)
    def test_not_there_during_a_flush(self, published_and_staged: Store, instead: str):
        store = published_and_staged
        before = ends_of_builds(store)

        with away(store.tables.root, instead):
            for _ in range(3):
                with pytest.raises(PlaceError, match="TIMESTORE_TABLES_URL"):
                    build(store)
            assert_nothing_is_removed_or_read(store)
            stage(store, "weather", NEWER)
            assert ends_of_builds(store) == before

        assert readable(store) == rows_of(OLD, NEW, NEWER)
        assert build(store).rows == 5
        assert published(store) == readable(store) == rows_of(OLD, NEW, NEWER)

    def test_in_a_folder_of_the_mount_point(self, make_store: MakeStore, home: Path):
        (home / "mount").mkdir()
        store = make_store(tables_url="mount/lake/tables")
        stage(store, "weather", OLD)
        build(store)
        stage(store, "weather", NEW)

        with away(home / "mount", "empty"), pytest.raises(PlaceMissing, match="is not there"):
            build(store)

        build(store)
        assert published(store) == readable(store) == rows_of(OLD, NEW)

    def test_a_slip_of_the_pen_in_the_setting_is_refused_before_the_first_build_too(
        self, make_store: MakeStore, home: Path
    ):
        stage(make_store(), "weather", OLD)
        wrong = make_store(tables_url="data/tabels")

        with pytest.raises(PlaceMissing, match=r"tables: .*data/tabels is not there.*correct TIMESTORE_TABLES_URL"):
            build(wrong)

        assert not (home / "data" / "tabels").exists()
        assert build(make_store()).rows == 5

    def test_moved_with_all_that_is_in_it_is_the_same_place(self, published_and_staged: Store, make_store: MakeStore):
        store = published_and_staged
        moved = store.tables.root.rename(store.settings.home / "elsewhere")

        store = make_store(tables_url=str(moved), ledger_url=store.settings.resolved_ledger_url)

        assert build(store).rows == 3
        assert published(store) == readable(store) == rows_of(OLD, NEW)

    def test_a_second_installation_is_refused_before_its_first_row(self, store: Store, tmp_path: Path):
        stage(store, "weather", OLD)
        build(store)
        other_home = tmp_path / "other"
        other_home.mkdir()
        (other_home / "datasets.yaml").write_text(DATASETS_YAML)
        settings = Settings(
            home=other_home,
            staging_min_free_disk_bytes=0,
            ledger_url=f"sqlite:///{other_home / 'ledger.sqlite'}",  # type: ignore[arg-type]
        )
        shared = settings.model_copy(update={"tables_url": store.tables.location})

        with pytest.raises(LedgerLost, match=f"of the installation {store.ledger.identity}"):
            Store.open(shared)
        assert [path.name for path in other_home.iterdir()] == ["datasets.yaml"]
        # One that was there before, and whose setting was changed.
        Store.open(settings).close()
        with Store.open(shared) as other, pytest.raises(PlaceForeign) as refused:
            other.tables.require()
        assert refused.value.owner == store.ledger.identity
        with Store.open(shared) as other:
            stage(other, "weather", NEW)
            with pytest.raises(PlaceForeign):
                build(other)
        assert published(store) == rows_of(OLD)

    def test_given_up_one_after_the_other(self, published_and_staged: Store):
        store = published_and_staged
        shutil.rmtree(store.tables.root)

        assert "belongs to this installation now" in adopt(store, "tables")
        with pytest.raises(TableGone, match="adopt tables/weather"):
            build(store)
        assert [each.name for each in observe_places(store) if each.problem] == ["tables/weather"]
        assert "5 rows are staged again from segments, 0 rows are lost" in adopt(store, "tables/weather")

        assert build(store).rows == 8
        assert published(store) == readable(store) == rows_of(OLD, NEW)
        for name in ("tables/nothing", "table", ""):
            with pytest.raises(UnknownPlace):
                adopt(store, name)


class TestStaging:
    @pytest.mark.parametrize("instead", MISSING)
    def test_not_there_for_a_while(self, published_and_staged: Store, make_store: MakeStore, instead: str):
        store = published_and_staged
        before = ends_of_builds(store)

        with away(store.settings.staging_path, instead):
            for _ in range(3):
                with pytest.raises(PlaceError, match="TIMESTORE_STAGING_DIRECTORY"):
                    stage(store, "weather", NEWER)
                with pytest.raises(PlaceError):
                    build(store)
            assert_nothing_is_removed_or_read(store)
            make_store(ledger_url=store.settings.resolved_ledger_url)  # opens, and makes no folder in its place
            assert ends_of_builds(store) == before

        stage(store, "weather", NEWER)
        assert readable(store) == rows_of(OLD, NEW, NEWER)
        assert build(store).rows == 5
        assert published(store) == readable(store) == rows_of(OLD, NEW, NEWER)

    def test_anothers_file_is_not_removed_with_an_entry_of_ours(self, make_store: MakeStore, apart: dict[str, str]):
        store = make_store(**apart)
        stage(store, "weather", weather((None, "LGA", 1.0)))
        with store.ledger.read() as tx:
            (entry,) = open_entries(tx)
        (store.settings.staging_path / mark_key("staging")).write_text(f"{OTHERS}\n")

        with pytest.raises(PlaceForeign):
            discard_entry(store, entry.id, "the test")

        assert (store.settings.staging_path / entry.path).exists()

    @pytest.mark.only_on("sqlite")
    @pytest.mark.parametrize("instead", MISSING)
    def test_not_there_with_the_ledger_that_is_in_it(self, make_store: MakeStore, instead: str):
        store = make_store()
        stage(store, "weather", OLD)
        build(store)
        stage(store, "weather", NEW)

        with away(store.settings.staging_path, instead):
            with pytest.raises(LedgerLost, match="if its disk is not mounted"):
                make_store()
            with pytest.raises(LedgerError):
                stage(store, "weather", NEWER)

        assert readable(make_store()) == rows_of(OLD, NEW)

    def test_a_segment_that_is_gone_from_a_place_that_is_there_is_damage(self, published_and_staged: Store):
        store = published_and_staged
        for path in (store.settings.staging_path / "weather").glob("*.duckdb"):
            path.unlink()

        with pytest.raises(Exception, match="no such file"):
            readable(store)
        assert flush_windows(store, BuildOrder("weather", owner="the test")) is None
        with store.ledger.read() as tx:
            assert [entry.rows for entry in open_entries(tx)] == [3]


class TestSegmentsOfOneDataset:
    @pytest.mark.parametrize("instead", ["gone", "empty"])
    def test_away_nothing_is_set_aside_and_all_goes_on_when_they_are_back(
        self, published_and_staged: Store, drop: Callable[..., Path], instead: str
    ):
        store = published_and_staged
        with store.ledger.read() as tx:
            before = latest_builds(tx)["weather"]
        with away(store.staging.root / "weather", instead):
            for _ in range(4):
                with pytest.raises(SegmentsAway, match="installation adopt staging/weather"):
                    build(store)
                with pytest.raises(SegmentsAway):
                    stage(store, "weather", NEWER)
            with pytest.raises(SegmentsAway):
                readable(store)
            assert [each.name for each in observe_places(store) if each.problem] == ["staging/weather"]
            dropped = drop(store, "weather", "one.csv", WEATHER_CSV)
            with pytest.raises(SegmentsAway):
                ingest(store)
            assert dropped.exists()
            stage(store, "events", pa.table({"at": [1767225600000], "n": [1]}))
            assert flush_windows(store, BuildOrder("events", owner="the test")) is not None
            sweep_orphans(store, older_than_seconds=0)
            with store.ledger.read() as tx:
                assert latest_builds(tx)["weather"] == before
                assert open_entries(tx) == []

        ingest(store)
        stage(store, "weather", NEWER)
        build(store)
        with store.ledger.read() as tx:
            assert open_entries(tx) == []
        assert published(store) == readable(store)
        assert len(published(store)) == 5 + 3 + 3 + 2

    def test_folders_of_versions_without_marks_are_marked_by_the_next_segment(self, published_and_staged: Store):
        store = published_and_staged
        mark = store.staging.root / segments_mark("weather")
        mark.unlink()
        build(store)
        stage(store, "weather", NEWER)

        assert mark.exists()
        assert readable(store) == rows_of(OLD, NEW, NEWER)

    def test_gone_for_good_they_go_to_quarantine(self, published_and_staged: Store):
        store = published_and_staged
        shutil.rmtree(store.staging.root / "weather")

        with pytest.raises(UnknownPlace):
            adopt(store, "staging/unheard_of")
        adopt(store, "staging/weather")
        stage(store, "weather", NEWER)
        with pytest.raises(SegmentUnreadable, match="no such file"):
            readable(store)
        build(store)

        with store.ledger.read() as tx:
            assert [entry.rows for entry in open_entries(tx)] == [3]
        assert readable(store) == rows_of(OLD, NEWER)

    @pytest.mark.server
    def test_away_from_a_bucket(self, make_store: MakeStore, s3_bucket: Bucket):
        store = make_store(staging_directory=f"{s3_bucket.url}/staging")
        stage(store, "weather", OLD)
        store.staging.delete(*[entry.key for entry in store.staging.entries("weather/")])
        again = make_store(staging_directory=f"{s3_bucket.url}/staging")

        with pytest.raises(SegmentsAway, match="has neither its mark"):
            stage(again, "weather", NEW)
        with pytest.raises(SegmentsAway):
            build(again)


class TestArchive:
    @pytest.mark.parametrize("instead", MISSING)
    def test_not_there_files_wait(self, store: Store, drop: Callable[..., Path], instead: str):
        drop(store, "weather", "one.csv", WEATHER_CSV)
        ingest(store)
        dropped = drop(store, "weather", "two.csv", WEATHER_CSV.replace("JFK", "EWR"))

        with away(store.archive.root, instead), pytest.raises(PlaceError, match="LANDING_ARCHIVE_DIRECTORY"):
            ingest(store)
        assert dropped.exists()
        assert len(readable(store)) == 3

        ingest(store)
        assert len(readable(store)) == 6
        assert not dropped.exists()

    def test_not_there_where_nothing_is_archived(self, make_store: MakeStore, drop: Callable[..., Path]):
        store = make_store(landing_after_ingest="delete")
        drop(store, "weather", "one.csv", WEATHER_CSV)

        ingest(store)

        assert len(readable(store)) == 3
        assert not store.settings.archive_path.exists()


@pytest.mark.only_on("sqlite")
class TestRebuildingTheLedger:
    @pytest.mark.long
    @pytest.mark.matrix
    @pytest.mark.parametrize("place", ["tables", "staging"])
    @pytest.mark.parametrize("instead", MISSING)
    @pytest.mark.parametrize("replace", [False, True])
    def test_what_it_is_made_from_must_be_there(
        self, published_and_staged: Store, make_store: MakeStore, place: str, instead: str, replace: bool
    ):
        store = published_and_staged
        identity, settings = store.ledger.identity, store.settings
        if replace:
            store.close()
        else:
            lose_ledger(store)
        expected = NothingToRebuildFrom if instead != "another's" else RebuildFromOthers

        with away(settings.home / "data" / place, instead), pytest.raises(expected):
            rebuild_ledger(settings, by="ann@host", consent=Consent(replace_existing=replace))
        assert not list(settings.home.glob("ledger.sqlite.replaced*"))
        assert (settings.home / "ledger.sqlite").exists() == replace

        assert rebuild_ledger(settings, by="ann@host", consent=Consent(replace_existing=replace)).complete
        again = make_store(ledger_url=settings.resolved_ledger_url)
        assert again.ledger.identity == identity
        assert readable(again) == rows_of(OLD, NEW)
        sweep_orphans(again, older_than_seconds=0)
        build(again)
        assert published(again) == readable(again) == rows_of(OLD, NEW)

    def test_a_ledger_that_was_opened_too_early_gets_the_identity_of_the_places(
        self, published_and_staged: Store, make_store: MakeStore
    ):
        store = published_and_staged
        identity, url = store.ledger.identity, store.settings.resolved_ledger_url
        lose_ledger(store)
        Ledger.open(url).close()

        assert rebuild_ledger(store.settings, by="ann@host").complete

        again = make_store(ledger_url=url)
        assert again.ledger.identity == identity
        assert readable(again) == rows_of(OLD, NEW)

    def test_a_ledger_of_another_installation_is_not_replaced(self, published_and_staged: Store):
        store = published_and_staged
        settings = store.settings
        lose_ledger(store)
        Ledger.open(settings.resolved_ledger_url).close()

        with pytest.raises(LedgerError, match="is of the installation"):
            rebuild_ledger(settings, by="ann@host", consent=Consent(replace_existing=True))

        assert (settings.home / "ledger.sqlite").exists()

    @pytest.mark.parametrize("marked", [True, False])
    def test_a_new_home_does_not_adopt_the_tables_of_another_one(
        self, published_and_staged: Store, home: Path, marked: bool
    ):
        store = published_and_staged
        (other := home.parent / "other").mkdir()
        (other / "datasets.yaml").write_text(DATASETS_YAML)
        settings = Settings(
            home=other,
            ledger_url=SecretStr(f"sqlite:///{other / 'ledger.sqlite'}"),
            tables_url=str(store.tables.root),
            staging_min_free_disk_bytes=0,
        )
        mark = store.tables.root / mark_key("tables")
        content = mark.read_bytes()
        if not marked:
            mark.unlink()

        with pytest.raises(TablesOfOthers, match="--take-over"):
            rebuild_ledger(settings, by="ann@host", consent=Consent(adopt=True))

        mark.write_bytes(content)
        assert not (other / "ledger.sqlite").exists()
        build(store)
        assert published(store) == rows_of(OLD, NEW)

    def test_places_that_never_had_a_mark_are_taken_on_purpose(
        self, published_and_staged: Store, make_store: MakeStore
    ):
        store = published_and_staged
        lose_ledger(store)
        for path in store.settings.home.rglob(".timestore-*"):
            path.unlink()
        with pytest.raises(NothingToRebuildFrom, match="--adopt"):
            rebuild_ledger(store.settings, by="ann@host")

        assert rebuild_ledger(store.settings, by="ann@host", consent=Consent(adopt=True)).complete

        again = make_store(ledger_url=store.settings.resolved_ledger_url)
        assert {each.state for each in observe_places(again)} == {PlaceState.OURS}
        assert readable(again) == rows_of(OLD, NEW)


class TestBeforeThereWereMarks:
    @pytest.fixture
    def unmarked(self, published_and_staged: Store) -> Store:
        """An installation of the version before."""
        store = published_and_staged
        with store.ledger.write() as tx:
            for name in marked_places(tx):
                forget_place(tx, name)
        for path in store.settings.home.rglob(".timestore-*"):
            path.unlink()
        return store

    def test_what_the_ledger_knows_is_marked_when_it_is_opened(
        self, unmarked: Store, make_store: MakeStore, apart: dict[str, str]
    ):
        store = make_store(**apart)

        assert {each.state for each in observe_places(store)} == {PlaceState.OURS}
        build(store)
        assert published(store) == readable(store) == rows_of(OLD, NEW)

    @pytest.mark.parametrize("place", ["tables", "staging"])
    @pytest.mark.parametrize("instead", MISSING)
    def test_what_is_not_there_is_refused(
        self, unmarked: Store, make_store: MakeStore, apart: dict[str, str], place: str, instead: str
    ):
        with away(unmarked.settings.home / "data" / place, instead):
            store = make_store(**apart)
            with pytest.raises(PlaceError):
                build(store)

        build(store)
        assert published(store) == readable(store) == rows_of(OLD, NEW)

    @pytest.mark.only_on("sqlite")
    def test_segments_of_others_are_not_swept(self, unmarked: Store, tmp_path: Path):
        other = Settings(
            home=unmarked.settings.home,
            staging_min_free_disk_bytes=0,
            ledger_url=f"sqlite:///{tmp_path / 'other.sqlite'}",  # type: ignore[arg-type]
            tables_url=str(tmp_path / "tables"),
        )
        (unmarked.settings.home / "datasets.yaml").write_text("datasets: {events: {time: at, window: hour}}")
        with Store.open(other) as store, pytest.raises(PlaceMissing):
            sweep_orphans(store, older_than_seconds=0)


@pytest.mark.server
class TestInAnObjectStore:
    @pytest.fixture
    def fields(self, s3_bucket: Bucket, apart: dict[str, str]) -> dict[str, object]:
        return {
            **apart,
            "staging_directory": f"{s3_bucket.url}/staging",
            "tables_url": f"{s3_bucket.url}/tables",
            "build_max_attempts": 1,
            "object_store_timeout_seconds": 4,
        }

    @pytest.mark.parametrize("field", ["tables_url", "staging_directory"])
    def test_another_prefix_is_not_taken_for_the_place(
        self, make_store: MakeStore, s3_bucket: Bucket, fields: dict[str, object], field: str
    ):
        store = make_store(**fields)  # type: ignore[arg-type]
        stage(store, "weather", OLD)
        build(store)
        stage(store, "weather", NEW)
        before, facts = s3_bucket.keys(), ends_of_builds(store)
        s3_bucket.put(f"others/{mark_key('tables')}", OTHERS)
        s3_bucket.put(f"others/{mark_key('staging')}", OTHERS)

        for prefix, refusal in (("nowhere", PlaceMissing), ("others", PlaceForeign)):
            wrong = make_store(**{**fields, field: f"{s3_bucket.url}/{prefix}"})
            with pytest.raises(refusal):
                build(wrong)
            with pytest.raises(refusal):
                sweep_orphans(wrong, older_than_seconds=0)
            if field == "staging_directory":
                with pytest.raises(refusal):
                    stage(wrong, "weather", NEWER)
        assert (s3_bucket.keys(), ends_of_builds(store)) == (before, facts)

        again = make_store(**fields)  # type: ignore[arg-type]
        build(again)
        assert published(again) == readable(again) == rows_of(OLD, NEW)

    def test_work_is_no_two_installations(self, make_store: MakeStore, home: Path, fields: dict[str, object]):
        (home / "data" / "work").mkdir(parents=True)
        (home / "data" / "work" / mark_key("work")).write_text(OTHERS)

        with pytest.raises(PlaceForeign, match="TIMESTORE_WORK_DIRECTORY"):
            make_store(**fields)  # type: ignore[arg-type]


def test_a_process_that_goes_to_another_folder_has_its_files_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger_kind: str
):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "datasets.yaml").write_text(DATASETS_YAML)
    monkeypatch.chdir(here)
    relative = {} if ledger_kind == "postgresql" else {"ledger_url": "sqlite:///ledger.sqlite"}

    with Store.open(Settings(staging_min_free_disk_bytes=0, **relative)) as store:  # type: ignore[arg-type]
        stage(store, "weather", OLD)
        build(store)
        os.chdir(there)
        stage(store, "weather", NEW)
        build(store)
        assert published(store) == readable(store) == rows_of(OLD, NEW)

    assert [path.name for path in there.iterdir()] == ["datasets.yaml"]


@pytest.mark.parametrize("content", [b"", b"\xff\x00" * 40, b"0" * 100_000, b"not an identity\n"])
def test_a_mark_that_nobody_can_read_is_anothers(store: Store, content: bytes):
    stage(store, "weather", OLD)
    (store.settings.staging_path / mark_key("staging")).write_bytes(content)

    with pytest.raises(PlaceForeign):
        stage(store, "weather", NEW)

    adopt(store, "staging")
    stage(store, "weather", NEW)
    assert readable(store) == rows_of(OLD, NEW)


@pytest.mark.only_on("sqlite")
class TestACopy:
    def copy(self, store: Store, home: Path, **fields: str) -> Settings:
        stage(store, "weather", OLD)
        build(store)
        stage(store, "weather", NEW)
        store.close()
        shutil.copytree(store.settings.home, home)
        return Settings(home=home, staging_min_free_disk_bytes=0, **fields)  # type: ignore[arg-type]

    @pytest.mark.long
    def test_becomes_an_installation_of_its_own(self, store: Store, make_store: MakeStore, tmp_path: Path):
        settings = self.copy(store, tmp_path / "copy")
        with Store.open(settings) as copy:
            changed = change_identity(copy)
            assert changed.before == store.ledger.identity != changed.identity == copy.ledger.identity
            build(copy)
            assert published(copy) == readable(copy) == rows_of(OLD, NEW)
            assert {each.state for each in observe_places(copy)} == {PlaceState.OURS}

        original = make_store()
        assert original.ledger.identity == changed.before
        assert readable(original) == rows_of(OLD, NEW)
        stage(original, "weather", NEWER)
        mixed = settings.model_copy(update={"tables_url": original.tables.location})
        with Store.open(mixed) as copy, pytest.raises(PlaceForeign):
            flush_windows(copy, BuildOrder("weather", owner="the test"))
        assert build(original).rows == 5

    def test_of_which_a_place_is_still_the_originals_changes_nothing(self, store: Store, tmp_path: Path):
        settings = self.copy(store, tmp_path / "copy", tables_url=store.tables.location)
        with Store.open(settings) as copy:
            with pytest.raises(CopyInPlace, match="tables at "):
                change_identity(copy)
            assert {each.state for each in observe_places(copy)} == {PlaceState.OURS}
            assert change_identity(copy, in_place=True).identity == copy.ledger.identity


def test_what_a_place_is_follows_from_its_mark_and_the_ledger():
    ours, others = "a" * 32, "b" * 32
    for marked in (False, True):
        for known in (None, False, True):
            assert state_of(ours, ours, marked=marked, known_files=known) is PlaceState.OURS
            assert state_of(others, ours, marked=marked, known_files=known) is PlaceState.FOREIGN
    assert state_of(None, ours, marked=True, known_files=None) is PlaceState.MISSING
    assert state_of(None, ours, marked=False, known_files=False) is PlaceState.MISSING
    assert state_of(None, ours, marked=False, known_files=True) is PlaceState.NEW
    assert state_of(None, ours, marked=False, known_files=None) is PlaceState.NEW


class TestTheIdentityOfAnEmptyLedger:
    @pytest.mark.parametrize("tables_are_marked", [True, False])
    def test_it_is_that_of_the_places_that_are_adopted(
        self, store: Store, make_store: MakeStore, tables_are_marked: bool
    ):
        identity, tables = store.ledger.identity, store.tables.root
        for path in store.settings.home.rglob(".timestore-*"):
            if not (tables_are_marked and path.parent == tables):
                path.unlink()
        store.close()

        assert rebuild_ledger(store.settings, by="ann@host", consent=Consent(adopt=True)).complete

        assert make_store().ledger.identity == identity

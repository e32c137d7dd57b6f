"""A ledger that was lost is made again from files: what is in it then, what is not, and what is refused."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import (
    BatchConflict,
    LedgerError,
    LedgerInUse,
    LedgerLost,
    NotRestored,
    SegmentsLost,
    TableError,
    TablesAway,
    TimestoreError,
)
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.quarantine import QuarantineEntry, open_entries
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.ledger.windows import window_totals
from timestore_pipeline.model.windows import WindowRange
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.installation import adopt
from timestore_pipeline.operating.quarantine import discard_entry, retry_entry
from timestore_pipeline.restoring.ledger import Consent, Rebuilt, ledger_file, rebuild_ledger
from timestore_pipeline.segments.description import Description
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage.layout import is_segment
from timestore_pipeline.store import Store
from timestore_pipeline.table import manifests
from timestore_pipeline.table.manifests import MANIFEST_FOLDER, read_manifests
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    Rows,
    build,
    declared,
    files_under,
    flip_byte,
    hourly,
    in_order,
    ingest,
    lose_ledger,
    published,
    readable,
    rows_of,
    segment_file,
    unprivileged,
    weather,
    weather_csv,
)
from timestore_pipeline_tests.conftest import DATASETS_YAML, WEATHER_CSV, MakeStore
from timestore_pipeline_tests.sampling import examples
from timestore_pipeline_tests.soak.faults import failing_calls

pytestmark = pytest.mark.only_on("sqlite")

Drop = Callable[..., Path]

ONLY_EVENTS = "datasets:\n  events: {time: {column: at, unit: ms}, window: hour}\n"


def rebuilt(store: Store, *, replace_existing: bool = False) -> Rebuilt:
    return rebuild_ledger(store.settings, by="ann@host", consent=Consent(replace_existing=replace_existing))


def lost_and_rebuilt(store: Store, make_store: MakeStore, datasets_yaml: str = DATASETS_YAML, **settings) -> Store:
    """Lose the ledger, make it again, and open it."""
    lose_ledger(store)
    assert rebuilt(store).complete
    return make_store(datasets_yaml, **settings)


def entries(store: Store) -> list[QuarantineEntry]:
    with store.ledger.read() as tx:
        return open_entries(tx)


@contextmanager
def clock_ahead(hours: float) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        moved = SimpleNamespace(time_ns=lambda: time.time_ns() + int(hours * 3_600e9))
        patched.setattr("timestore_pipeline.model.clock.time", moved)
        yield


KEYED = declared(weather="key: {columns: [station]}")


class TestTheOrderOfRowsOfOneKey:
    def test_does_not_depend_on_the_clocks_of_those_who_staged_them(self, make_store: MakeStore):
        store = make_store(KEYED)
        with clock_ahead(hours=48):
            stage(store, "weather", weather((NEW_YEAR, "JFK", 1.0)))
        stage(store, "weather", weather((NEW_YEAR, "JFK", 2.0)))
        with clock_ahead(hours=24):
            stage(store, "weather", weather((NEW_YEAR, "LGA", 1.0)))
        newest = weather((NEW_YEAR, "JFK", 3.0), (NEW_YEAR, "LGA", 3.0))
        stage(store, "weather", newest)

        again = lost_and_rebuilt(store, make_store, KEYED)

        assert readable(again) == rows_of(newest)
        build(again)
        assert readable(again) == rows_of(newest)

    def test_outlives_a_second_rebuild(self, make_store: MakeStore):
        store = make_store(KEYED)
        stage(store, "weather", weather((NEW_YEAR, "JFK", 1.0)))
        store = lost_and_rebuilt(store, make_store, KEYED)
        with clock_ahead(hours=-48):
            newest = weather((NEW_YEAR, "JFK", 2.0))
            stage(store, "weather", newest)

            again = lost_and_rebuilt(store, make_store, KEYED)

        assert readable(again) == rows_of(newest)

    def test_is_by_clocks_for_segments_that_do_not_say_what_came_before(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ):
        store = make_store(KEYED)
        with monkeypatch.context() as before, clock_ahead(hours=48):
            before.setattr(
                Description, "as_text", lambda self, text=Description.as_text: text(replace(self, after=None))
            )
            stage(store, "weather", weather((NEW_YEAR, "JFK", 1.0)))
            stage(store, "weather", weather((NEW_YEAR, "JFK", 2.0)))
        newest = weather((NEW_YEAR, "JFK", 3.0))
        stage(store, "weather", newest)

        assert readable(lost_and_rebuilt(store, make_store, KEYED)) == rows_of(newest)

    def test_has_retried_rows_where_they_were(self, make_store: MakeStore):
        store = make_store(KEYED)
        good = [(NEW_YEAR + timedelta(hours=hour), f"S{hour}", 0.0) for hour in range(9)]
        soon = datetime.now(UTC) + timedelta(days=10)
        stage(store, "weather", weather(*good, (soon, "JFK", 1.0)))
        with clock_ahead(hours=24 * 20):
            newest = weather((soon, "JFK", 2.0))
            stage(store, "weather", newest)
            assert retry_entry(store, entries(store)[0].id, by="ann").rows == 1
            expected = in_order([*good, (soon, "JFK", 2.0)])
            assert readable(store) == expected

            assert readable(lost_and_rebuilt(store, make_store, KEYED)) == expected


class TestTheColumnsOfStagedRows:
    def test_are_in_the_order_in_which_they_came_whatever_the_clocks_said(self, make_store: MakeStore):
        evolving = declared(weather="evolve: true")
        store = make_store(evolving)
        with clock_ahead(hours=48):
            stage(store, "weather", hourly(1))
        wider = hourly(1, station="LGA").append_column("gust", pa.array([9.5]))
        stage(store, "weather", wider)
        stage(store, "weather", wider.append_column("humidity", pa.array([80])))
        expected = readable(store)

        again = lost_and_rebuilt(store, make_store, evolving)

        assert readable(again) == expected
        build(again)
        assert published(again) == expected


class TestWhatIsRestored:
    def test_the_newest_row_of_a_key_wins_though_the_clock_went_back_between_two_rebuilds(self, make_store: MakeStore):
        keyed = KEYED
        store = make_store(keyed)
        older, newer = weather((NEW_YEAR, "JFK", 1.0)), weather((NEW_YEAR, "JFK", 2.0))
        stage(store, "weather", older)
        with clock_ahead(hours=48):
            store = lost_and_rebuilt(store, make_store, keyed)
            build(store)
        stage(store, "weather", newer)

        again = lost_and_rebuilt(store, make_store, keyed)

        assert readable(again) == rows_of(newer)
        build(again)
        assert readable(again) == rows_of(newer)

    @pytest.mark.parametrize("call", range(1, 8))
    def test_a_disk_that_fails_is_a_clear_error_and_the_rebuild_can_be_done_again(
        self, store: Store, make_store: MakeStore, call: int
    ):
        stage(store, "weather", hourly(48))
        build(store)
        stage(store, "weather", hourly(5, station="LGA"))
        lose_ledger(store)

        with failing_calls({call}, errno.EIO, lambda: None), suppress(LedgerError, TableError):
            rebuilt(store, replace_existing=True)

        assert rebuilt(store, replace_existing=True).complete
        assert readable(make_store()) == rows_of(hourly(48), hourly(5, station="LGA"))

    @pytest.mark.long
    @pytest.mark.only_on("sqlite", "postgresql")
    def test_published_and_staged_rows_are_there_once_and_the_rest_goes_on(self, store: Store, make_store: MakeStore):
        stage(store, "weather", hourly(48))
        build(store)
        stage(store, "weather", hourly(5, station="LGA"))
        with store.ledger.read() as tx:
            totals = window_totals(tx, "weather")
            columns = dataset_columns(tx, store.datasets["weather"])

        again = lost_and_rebuilt(store, make_store)

        assert readable(again) == rows_of(hourly(48), hourly(5, station="LGA"))
        with again.ledger.read() as tx:
            assert [(each.window_start, each.rows, each.files) for each in window_totals(tx, "weather")] == [
                (each.window_start, each.rows, each.files) for each in totals
            ]
            assert dataset_columns(tx, again.datasets["weather"]) == columns
            assert queue_states(tx)["weather"].pending_rows == 5
        stage(again, "weather", hourly(3, station="EWR"))
        build(again)
        assert published(again) == rows_of(hourly(48), hourly(5, station="LGA"), hourly(3, station="EWR"))

    def test_batches_are_known_long_after_their_segments_are_gone(self, make_store: MakeStore):
        store = make_store(staging_retention_seconds=0)
        stage(store, "weather", hourly(48), batch_id="first")
        build(store)
        assert unlink_published_segments(store).files == 1

        again = lost_and_rebuilt(store, make_store)

        assert stage(again, "weather", hourly(48), batch_id="first").duplicate
        with pytest.raises(BatchConflict):
            stage(again, "weather", hourly(2), batch_id="first")
        assert readable(again) == rows_of(hourly(48))

    @pytest.mark.long
    def test_landing_files_that_stay_are_not_taken_twice(self, make_store: MakeStore, drop: Drop):
        store = make_store(landing_after_ingest="keep", staging_retention_seconds=0)
        drop(store, "weather", "a.csv", WEATHER_CSV)
        ingest(store)
        build(store)
        unlink_published_segments(store)

        again = lost_and_rebuilt(store, make_store, landing_after_ingest="keep")

        assert ingest(again)["weather"].duplicates == 1
        assert len(readable(again)) == 3

    def test_a_segment_of_which_one_window_is_published(self, store: Store, make_store: MakeStore):
        stage(store, "weather", hourly(48), batch_id="two days")
        build(store, first="2026-01-01", last="2026-01-01")

        again = lost_and_rebuilt(store, make_store)

        assert readable(again) == rows_of(hourly(48))
        with again.ledger.read() as tx:
            assert queue_states(tx)["weather"].pending_rows == 24
        build(again)
        assert published(again) == rows_of(hourly(48))

    @pytest.mark.long
    def test_inferred_columns_and_integer_times(self, store: Store, make_store: MakeStore, drop: Drop):
        drop(store, "events", "a.csv", "at,kind\n1767225600000,start\n1767312000000,stop\n")
        ingest(store)
        before = readable(store, "events")

        again = lost_and_rebuilt(store, make_store)

        assert readable(again, "events") == before
        build(again, "events")
        assert readable(lost_and_rebuilt(again, make_store), "events") == before

    @pytest.mark.long
    @pytest.mark.parametrize("retired", [False, True])
    def test_columns_that_came_later(self, make_store: MakeStore, retired: bool):
        wider = DATASETS_YAML.replace("temp: double}", "temp: double, wind: double}")
        store = make_store(staging_retention_seconds=0)
        stage(store, "weather", hourly(5))
        build(store)
        store = make_store(wider, staging_retention_seconds=0)
        stage(store, "weather", hourly(2, station="LGA").append_column("wind", pa.array([1.0, 2.0])))
        if retired:
            build(store)
            unlink_published_segments(store)
        before = readable(store)

        again = lost_and_rebuilt(store, make_store, wider, staging_retention_seconds=0)

        assert readable(again) == before
        stage(again, "weather", hourly(3, station="from before the column came"))
        flush_windows(again, BuildOrder("weather", owner="the test"))
        assert len(published(again)) == 10

    def test_a_dataset_that_is_not_declared_any_more(self, store: Store, make_store: MakeStore):
        stage(store, "weather", hourly(24))
        build(store)
        stage(store, "weather", hourly(5, station="LGA"))

        bystander = lost_and_rebuilt(make_store(ONLY_EVENTS), make_store, ONLY_EVENTS)
        with bystander.ledger.read() as tx:
            assert queue_states(tx)["weather"].pending_rows == 5

        again = make_store()
        assert readable(again) == rows_of(hourly(24), hourly(5, station="LGA"))
        build(again)
        assert len(published(again)) == 29

    @pytest.mark.only_on("sqlite", "postgresql")
    def test_rows_and_files_in_quarantine(self, store: Store, make_store: MakeStore, drop: Drop):
        stage(store, "weather", weather((NEW_YEAR, "JFK", 1.0), (None, "LGA", 2.0)), batch_id="half")
        stage(store, "weather", weather((None, "EWR", 3.0)), batch_id="none of it")
        drop(store, "weather", "bad.csv", "no,weather\n")
        ingest(store)
        before = {(entry.kind, entry.batch_id, entry.source, entry.path, entry.rows) for entry in entries(store)}

        again = lost_and_rebuilt(store, make_store)

        found = entries(again)
        assert {(entry.kind, entry.batch_id, entry.source, entry.path, entry.rows) for entry in found} == before
        assert {entry.reason for entry in found if entry.kind is QuarantineKind.ROWS} == {"1 rows: the time is null"}
        assert stage(again, "weather", weather((None, "EWR", 3.0)), batch_id="none of it").duplicate
        for entry in found:
            if entry.kind is QuarantineKind.BATCH:
                kept = again.staging.fetch(entry.path)
                kept.write_text(weather_csv("2026-01-03T00:30:00Z,EWR,4.5"))
                assert retry_entry(again, entry.id, "ann").rows == 1
            else:
                discard_entry(again, entry.id, "ann")
        assert entries(again) == []

    def test_refused_rows_that_were_decided_stay_decided(self, store: Store, make_store: MakeStore, drop: Drop):
        # Two batches share a file; one of them is discarded, and the other one waits.
        for name in ("a", "b"):
            drop(store, "weather", f"{name}.csv", weather_csv(f"2026-01-01,{name},1", f",{name},2"))
        ingest(store)
        first, second = entries(store)
        discard_entry(store, first.id, "ann")

        again = lost_and_rebuilt(store, make_store)

        assert [entry.batch_id for entry in entries(again)] == [second.batch_id]
        discard_entry(again, entries(again)[0].id, "ann")
        sweep_orphans(again, older_than_seconds=0)
        assert files_under(again.settings.staging_path / "_quarantine") == []

    @pytest.mark.only_on("sqlite", "postgresql")
    def test_rows_that_came_out_of_quarantine_do_not_come_out_twice(self, make_store: MakeStore):
        strict = DATASETS_YAML.replace("    window: day\n", "    window: day\n    start: 2026-01-01\n", 1)
        old = weather((NEW_YEAR - timedelta(days=9), "JFK", 1.0), (None, "LGA", 2.0))
        stage(make_store(strict), "weather", old)
        store = make_store()
        (entry,) = entries(store)
        retry_entry(store, entry.id, "ann")
        (left,) = entries(store)

        again = lost_and_rebuilt(store, make_store)

        (found,) = entries(again)
        assert (found.batch_id, found.rows) == (left.batch_id, 1)
        assert found.id > entry.id
        assert len(readable(again)) == 1

    @pytest.mark.long
    def test_damaged_slices_of_a_segment_that_was_set_aside(self, store: Store, make_store: MakeStore):
        path = segment_file(store, stage(store, "weather", hourly(24)).segment_id)
        backup = path.read_bytes()
        flip_byte(path, path.stat().st_size - 8_000)
        for _ in range(store.settings.build_max_attempts):
            try:
                flush_windows(store, BuildOrder("weather", owner="the test"))
            except TimestoreError:
                continue
        (before,) = entries(store)
        lose_ledger(store)
        outcome = rebuilt(store)

        again = make_store()
        (entry,) = entries(again)
        assert (entry.kind, entry.batch_id, entry.path) == (before.kind, before.batch_id, before.path)
        again.staging.fetch(entry.path).write_bytes(backup)
        if outcome.complete:
            assert retry_entry(again, entry.id, "ann").rows == 24
        else:
            with pytest.raises(NotRestored, match="timestore ledger rebuild --replace"):
                retry_entry(again, entry.id, "ann")
            again.close()
            assert rebuilt(again, replace_existing=True).complete
        assert readable(make_store()) == rows_of(hourly(24))

    def test_counters_start_from_zero_and_limits_are_gone(self, store: Store, make_store: MakeStore):
        from timestore_pipeline.ledger.counters import counter_values

        stage(store, "weather", hourly(1))
        build(store)

        with lost_and_rebuilt(store, make_store).ledger.read() as tx:
            assert counter_values(tx) == {}

    def test_nothing_at_all(self, store: Store, make_store: MakeStore):
        lose_ledger(store)

        assert rebuilt(store).datasets == ()

        assert stage(make_store(), "weather", hourly(1)).rows == 1


class TestTwoSegmentsWithOneBatch:
    """A process died before it had acknowledged its segment, and the batches came again."""

    def duplicate(self, store: Store, *batches: str) -> str:
        """Stage files, and leave a segment behind as if it had never been acknowledged."""
        folder = store.settings.landing_path / "weather"
        folder.mkdir(parents=True, exist_ok=True)
        for name in batches:
            (folder / f"{name}.csv").write_text(weather_csv(f"2026-01-01T00:00:00Z,{name},1"))
        segment_id = ingest(store)["weather"].segment_id
        assert segment_id is not None
        return segment_id

    def forget(self, store: Store, make_store: MakeStore) -> Store:
        """Another ledger, so that the same batches come again; the segments of the first one stay."""
        path = store.settings.staging_path / "weather"
        hidden = path.rename(store.settings.home / "hidden")
        lose_ledger(store)
        rebuilt(store)
        again = make_store()
        path.mkdir()
        for file in hidden.iterdir():
            file.rename(path / file.name)
        return again

    @pytest.mark.parametrize(
        ("first", "second"), [("ab", "ab"), ("ab", "abc"), ("abc", "ab"), ("ab", "bc"), ("abc", "bcd")]
    )
    def test_each_batch_is_taken_once(self, store: Store, make_store: MakeStore, first: str, second: str):
        self.duplicate(store, *first)
        store = self.forget(store, make_store)
        self.duplicate(store, *second)

        again = lost_and_rebuilt(store, make_store)

        assert [row[1] for row in readable(again)] == sorted(set(first + second))
        sweep_orphans(again, older_than_seconds=0)
        assert [row[1] for row in readable(again)] == sorted(set(first + second))
        build(again)
        assert len(published(again)) == len(set(first + second))

    @pytest.mark.long
    def test_the_one_that_is_published_counts(self, store: Store, make_store: MakeStore):
        self.duplicate(store, "a", "b")
        store = self.forget(store, make_store)
        self.duplicate(store, "b", "c")
        build(store)

        again = lost_and_rebuilt(store, make_store)

        assert [row[1] for row in readable(again)] == ["a", "b", "c"]
        build(again)
        assert len(published(again)) == 3

    @pytest.mark.long
    def test_carved_again_after_another_loss(self, store: Store, make_store: MakeStore):
        self.duplicate(store, "a", "b")
        store = self.forget(store, make_store)
        self.duplicate(store, "b", "c")

        again = lost_and_rebuilt(lost_and_rebuilt(store, make_store), make_store)

        assert [row[1] for row in readable(again)] == ["a", "b", "c"]


class TestWhatIsSaidOrRefused:
    def test_a_new_ledger_in_place_of_the_lost_one_is_refused(self, store: Store, make_store: MakeStore):
        stage(store, "weather", hourly(1))
        build(store)
        lose_ledger(store)

        for _ in range(2):
            with pytest.raises(LedgerLost, match="timestore ledger rebuild"):
                make_store()
        assert rebuilt(store).complete

    @pytest.mark.only_on("sqlite", "postgresql")
    def test_a_ledger_in_use_is_left_alone(self, store: Store):
        stage(store, "weather", hourly(1))

        with pytest.raises(LedgerInUse, match="--replace"):
            rebuilt(store)

        assert len(readable(store)) == 1

    @pytest.mark.long
    def test_replaced_it_is_moved_aside(self, store: Store, make_store: MakeStore):
        stage(store, "weather", hourly(3))
        build(store)

        outcome = rebuilt(store, replace_existing=True)

        assert outcome.moved_aside is not None
        assert outcome.moved_aside.stat().st_size > 0
        with pytest.raises(LedgerError, match="removed or replaced"):
            stage(store, "weather", hourly(1))
        assert readable(make_store()) == rows_of(hourly(3))

    def test_a_corrupt_ledger_is_replaced(self, store: Store, make_store: MakeStore):
        stage(store, "weather", hourly(3))
        store.close()
        file = ledger_file(store.settings)
        assert file is not None
        file.write_bytes(b"no database" * 1_000)

        with pytest.raises(LedgerError):
            rebuilt(store)
        assert rebuilt(store, replace_existing=True).complete

        assert readable(make_store()) == rows_of(hourly(3))

    @pytest.mark.long
    def test_a_segment_that_cannot_be_read_is_said_and_kept(self, store: Store, make_store: MakeStore):
        path = segment_file(store, stage(store, "weather", hourly(24)).segment_id)
        stage(store, "weather", hourly(2, station="LGA"))
        backup = path.read_bytes()
        path.write_bytes(backup[:5_000])
        lose_ledger(store)

        outcome = rebuilt(store)

        assert not outcome.complete
        again = make_store()
        sweep_orphans(again, older_than_seconds=0)
        assert path.exists()
        (entry,) = entries(again)
        assert entry.rows is None
        with pytest.raises(NotRestored):
            retry_entry(again, entry.id, "ann")
        build(again)
        path.write_bytes(backup)
        again.close()
        assert rebuilt(again, replace_existing=True).complete
        assert readable(make_store()) == rows_of(hourly(24), hourly(2, station="LGA"))

    def test_a_segment_that_cannot_be_read_may_be_given_up(self, store: Store, make_store: MakeStore):
        path = segment_file(store, stage(store, "weather", hourly(24)).segment_id)
        path.write_bytes(b"nothing")
        lose_ledger(store)
        rebuilt(store)
        again = make_store()

        discard_entry(again, entries(again)[0].id, "ann")
        sweep_orphans(again, older_than_seconds=0)

        assert not path.exists()
        assert entries(again) == []

    def test_rows_whose_segment_is_lost_too_are_said(self, store: Store, make_store: MakeStore):
        path = segment_file(store, stage(store, "weather", hourly(48)).segment_id)
        build(store, first="2026-01-01", last="2026-01-01")
        path.unlink()
        lose_ledger(store)

        (outcome,) = rebuilt(store).datasets

        assert "24 rows of segment" in outcome.problems[0]
        assert len(readable(make_store())) == 24

    def test_a_table_without_its_log_cannot_be_judged(self, store: Store):
        stage(store, "weather", hourly(3))
        build(store)
        shutil.rmtree(store.table("weather").root / "_delta_log")
        lose_ledger(store)

        with pytest.raises(TableError, match="_delta_log"):
            rebuilt(store)

    def test_a_replaced_ledger_is_not_moved_where_there_is_nothing_to_stand_in_for_it(self, store: Store):
        stage(store, "weather", hourly(3))
        build(store)
        log = store.table("weather").root / "_delta_log"
        log.rename(log.with_name("elsewhere"))
        file = ledger_file(store.settings)
        assert file is not None

        with pytest.raises(TableError):
            rebuilt(store, replace_existing=True)

        assert file.exists()
        log.with_name("elsewhere").rename(log)
        stage(store, "weather", hourly(3, station="LGA"))
        build(store)
        assert len(published(store)) == 6

    @pytest.mark.parametrize("replaced", [False, True], ids=["lost", "replaced"])
    def test_without_its_table_nothing_is_staged_again_until_that_is_back(
        self, store: Store, make_store: MakeStore, replaced: bool
    ):
        stage(store, "weather", hourly(3))
        build(store)
        stage(store, "events", pa.table({"at": [1767225600000], "n": [1]}))
        table = store.table("weather").root
        away = table.rename(table.parent.parent / "away")
        if replaced:  # with a ledger that knows the table, and without the mark that earlier versions did not leave
            (table.parent / ".timestore-table-weather").unlink()
            store.close()
        else:
            lose_ledger(store)

        for _ in range(2):
            with pytest.raises(TablesAway, match=r"'weather' has a table, and there is none at .*--lost-table weather"):
                rebuilt(store, replace_existing=replaced)
        away.rename(table)

        assert rebuilt(store, replace_existing=replaced).complete
        again = make_store()
        assert readable(again) == published(again) == rows_of(hourly(3))
        assert audit_rows(again, "weather").wrong == ()

    @pytest.mark.parametrize("replaced", [False, True], ids=["lost", "replaced"])
    @pytest.mark.parametrize("left", ["nothing", "manifests"])
    def test_a_table_that_is_gone_for_good_may_be_given_up(
        self, store: Store, make_store: MakeStore, left: str, replaced: bool
    ):
        stage(store, "weather", hourly(3))
        build(store)
        table = store.table("weather").root
        for path in table.iterdir():
            if path.name != MANIFEST_FOLDER or left == "nothing":
                shutil.rmtree(path)
        store.close() if replaced else lose_ledger(store)

        done = rebuild_ledger(
            store.settings, by="ann@host", consent=Consent(replace_existing=replaced, lost_tables=["weather"])
        )

        assert done.complete
        again = make_store()
        assert readable(again) == rows_of(hourly(3))
        build(again)
        assert published(again) == rows_of(hourly(3))
        assert readable(lost_and_rebuilt(again, make_store)) == rows_of(hourly(3))

    def test_a_table_that_was_given_up_before_is_not_missed(self, store: Store, make_store: MakeStore):
        stage(store, "weather", hourly(3))
        build(store)
        shutil.rmtree(store.table("weather").root)
        adopt(store, "tables/weather")

        assert readable(lost_and_rebuilt(store, make_store)) == rows_of(hourly(3))

    def test_a_table_that_is_there_is_not_given_up(self, store: Store):
        stage(store, "weather", hourly(3))
        build(store)
        lose_ledger(store)

        with pytest.raises(TableError, match="is there, so it is not given up"):
            rebuild_ledger(store.settings, by="ann@host", consent=Consent(lost_tables=["weather"]))

    def test_a_ledger_that_was_moved_aside_is_put_back_where_no_other_could_be_made(
        self, store: Store, make_store: MakeStore
    ):
        stage(store, "weather", hourly(3))
        build(store)
        stage(store, "weather", hourly(2, station="LGA"))
        store.close()

        def run_out() -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        with at(CrashPoint.LEDGER_REBUILT, run_out), pytest.raises(LedgerError, match="Too many open files"):
            rebuilt(store, replace_existing=True)

        file = ledger_file(store.settings)
        assert file is not None
        assert list(file.parent.glob("*.replaced-*")) == []
        with make_store() as again:
            assert readable(again) == rows_of(hourly(3), hourly(2, station="LGA"))
        assert rebuilt(store, replace_existing=True).complete
        assert readable(make_store()) == rows_of(hourly(3), hourly(2, station="LGA"))

    @pytest.mark.parametrize("left", ["nothing", "an empty folder", "newer rows"])
    def test_a_ledger_is_not_replaced_while_staged_segments_are_away(
        self, store: Store, make_store: MakeStore, left: str
    ):
        stage(store, "weather", hourly(3))
        build(store)
        stage(store, "weather", hourly(2, station="LGA"))
        home = store.staging.root / "weather"
        away = home.rename(home.parent.parent / "away")
        if left != "nothing":
            home.mkdir()
        if left == "newer rows":  # as versions did that made the folder anew
            for file in away.iterdir():
                if not is_segment(file.name):
                    shutil.copy(file, home)
            stage(store, "weather", hourly(1, station="EWR"))
        store.close()

        for _ in range(2):
            with pytest.raises(SegmentsLost, match=r"'weather' has 2 staged rows .*--lost-segments weather"):
                rebuilt(store, replace_existing=True)
        shutil.copytree(away, home, dirs_exist_ok=True)

        assert rebuilt(store, replace_existing=True).complete
        newer = [hourly(1, station="EWR")] if left == "newer rows" else []
        assert readable(make_store()) == rows_of(hourly(3), hourly(2, station="LGA"), *newer)

    def test_staged_segments_that_are_gone_for_good_may_be_given_up(self, store: Store, make_store: MakeStore):
        stage(store, "weather", hourly(3))
        build(store)
        stage(store, "weather", hourly(2, station="LGA"))
        shutil.rmtree(store.staging.root / "weather")
        store.close()

        rebuild_ledger(store.settings, by="ann@host", consent=Consent(replace_existing=True, lost_segments=["weather"]))

        again = make_store()
        stage(again, "weather", hourly(1, station="EWR"))
        assert readable(again) == rows_of(hourly(3), hourly(1, station="EWR"))

    def test_segments_that_were_published_since_an_older_ledger_are_not_missed(
        self, store: Store, make_store: MakeStore, tmp_path: Path
    ):
        stage(store, "weather", hourly(3))
        file = ledger_file(store.settings)
        assert file is not None
        with closing(sqlite3.connect(file)) as live, closing(sqlite3.connect(tmp_path / "older.sqlite")) as older:
            live.backup(older)
        build(store)
        unlink_published_segments(store, retention_micros=0)
        lose_ledger(store)
        shutil.copy(tmp_path / "older.sqlite", file)

        assert rebuilt(store, replace_existing=True).complete
        assert readable(make_store()) == rows_of(hourly(3))

    def test_another_granularity_than_that_of_the_segments_is_refused(self, store: Store, make_store: MakeStore):
        stage(store, "weather", hourly(3))
        lose_ledger(store)
        (store.settings.datasets_path).write_text(DATASETS_YAML.replace("window: day", "window: hour"))

        with pytest.raises(LedgerError, match="windows of one day in its segments and of one hour"):
            rebuilt(store)

    @pytest.mark.process
    def test_files_of_another_user_are_no_damage(self):
        assert "must not be read by this user" in unprivileged(rebuild_without_permission, DATASETS_YAML)


def rebuild_without_permission(store: Store) -> str:
    path = segment_file(store, stage(store, "weather", hourly(3)).segment_id)
    lose_ledger(store)
    path.chmod(0)
    try:
        rebuilt(store)
    except TimestoreError as error:
        return str(error)
    finally:
        path.chmod(0o600)
    return "nothing was said"


class TestManifests:
    @pytest.mark.long
    def test_many_are_merged_and_say_the_same(
        self, store: Store, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(manifests, "MERGE_FROM", 3)
        for day in range(11):
            stage(store, "weather", hourly(1, start=NEW_YEAR + timedelta(days=day)), batch_id=f"day {day}")
            build(store)
        folder = store.table("weather").root / MANIFEST_FOLDER

        assert len(files_under(folder)) < 6
        assert {each.contribution.batch_id for each in read_manifests(store.table("weather"))} == {
            f"day {day}" for day in range(11)
        }
        again = lost_and_rebuilt(store, make_store)
        assert len(readable(again)) == 11
        with again.ledger.read() as tx:
            assert queue_states(tx) == {}

    def test_of_a_merge_that_was_killed_both_sides_may_be_there(
        self, store: Store, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(manifests, "MERGE_FROM", 2)
        monkeypatch.setattr(manifests.Path, "unlink", lambda *_, **__: None)
        for day in range(3):
            stage(store, "weather", hourly(1, start=NEW_YEAR + timedelta(days=day)))
            build(store)
        monkeypatch.undo()

        assert len(list(read_manifests(store.table("weather")))) == 3

    def test_a_build_that_cannot_write_its_manifest_publishes_nothing(self, store: Store):
        stage(store, "weather", hourly(3))
        store.table("weather").root.mkdir(parents=True)
        (store.table("weather").root / MANIFEST_FOLDER).write_text("in the way")

        with pytest.raises(TimestoreError):
            build(store)

        assert published(store) == []
        (store.table("weather").root / MANIFEST_FOLDER).unlink()
        build(store)
        assert len(published(store)) == 3

    def test_other_readers_of_the_table_do_not_see_them(self, store: Store):
        stage(store, "weather", hourly(3))
        sequence = build(store).sequence

        assert files_under(store.table("weather").root / MANIFEST_FOLDER) == [
            f"0-{sequence:010d}-{sequence:010d}.arrow"
        ]
        assert len(published(store)) == 3


STEPS = st.lists(
    st.sampled_from(["stage", "refuse", "build one", "build", "retire", "sweep", "lose"]), min_size=3, max_size=12
)


@pytest.mark.long
@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS)
def test_whatever_happened_before_every_row_is_there_once(steps: list[str], make_store: MakeStore, home: Path):
    for path in home.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    store = make_store(staging_retention_seconds=0)
    expected: Rows = []
    for number, step in enumerate(steps):
        if step in {"stage", "refuse"}:
            batch = hourly(30, station=f"S{number}", start=NEW_YEAR + timedelta(days=number % 3))
            expected += rows_of(batch)
            refused = weather((None, "X", 1.0)) if step == "refuse" else hourly(0)
            assert stage(store, "weather", pa.concat_tables([batch, refused]), batch_id=f"b{number}").rows == 30
        elif step == "build one":
            day = store.datasets["weather"].window_from_key("2026-01-02")
            flush_windows(store, BuildOrder("weather", WindowRange(day, day), owner="x"))
        elif step == "build":
            flush_windows(store, BuildOrder("weather", owner="x"))
        elif step == "retire":
            unlink_published_segments(store)
        elif step == "sweep":
            sweep_orphans(store, older_than_seconds=0)
        else:
            waiting = len(entries(store))
            store = lost_and_rebuilt(store, make_store, staging_retention_seconds=0)
            assert len(entries(store)) == waiting
        assert readable(store) == in_order(expected)
    flush_windows(store, BuildOrder("weather", owner="x"))
    assert published(store) == in_order(expected)
    store.close()

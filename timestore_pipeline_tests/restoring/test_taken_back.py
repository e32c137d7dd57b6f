"""A ledger that is made again knows what was replaced, and only what was acknowledged."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.ledger.corrections import recorded_corrections
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.restoring.ledger import Rebuilt, rebuild_ledger
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage.layout import pending_correction
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import build, hourly, lose_ledger, readable, rows_of
from timestore_pipeline_tests.building.test_corrections import BY_KEY, hour, in_table, new, replaced, without
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.deaths import dies_at
from timestore_pipeline_tests.installations import ledger_put_back

pytestmark = pytest.mark.only_on("sqlite")


def made_again(store: Store, make_store: MakeStore, datasets_yaml: str, **settings) -> tuple[Store, Rebuilt]:
    """Lose the ledger, and make it again from files."""
    lose_ledger(store)
    done = rebuild_ledger(store.settings, by="the test")
    return make_store(datasets_yaml, **settings), done


def assert_has(store: Store, *tables: pa.Table) -> None:
    """Readers have these rows now, and after a flush the table has just these; all rows are accounted for."""
    expected = rows_of(*tables)
    for _ in range(2):
        assert readable(store) == expected
        assert audit_rows(store, "weather").wrong == ()
        flush_windows(store, BuildOrder("weather", owner="the test"))
    assert in_table(store) == expected


def numbers(store: Store) -> list[int]:
    with store.ledger.read() as tx:
        return [each.correction.number for each in recorded_corrections(tx, "weather")]


@BY_KEY
class TestACorrectionThatWasAcknowledged:
    def test_still_acts_on_files_and_on_what_is_staged(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(48))
        build(store)
        stage(store, "weather", hourly(48, station="LGA"))
        replaced(store, hour(20), hour(30), new(22))
        stage(store, "weather", new(25, station="LATER"))

        store, done = made_again(store, make_store, datasets_yaml)

        assert done.complete
        assert numbers(store) == [1]
        kept = [without(hourly(48), 20, 29), without(hourly(48, station="LGA"), 20, 29)]
        assert_has(store, *kept, new(22), new(25, station="LATER"))

    def test_of_an_emptied_range_has_no_segment(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(48))
        build(store)
        replaced(store, hour(0), hour(48), name="emptied")

        store, done = made_again(store, make_store, datasets_yaml)

        assert done.complete
        assert readable(store) == []
        assert replaced(store, hour(0), hour(48), name="emptied").duplicate
        assert_has(store)

    def test_was_applied_and_its_segments_are_gone(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml, staging_retention_seconds=0)
        stage(store, "weather", hourly(48))
        build(store)
        replaced(store, hour(20), hour(30), new(22))
        build(store)
        unlink_published_segments(store)

        store, done = made_again(store, make_store, datasets_yaml, staging_retention_seconds=0)

        assert done.complete
        assert_has(store, without(hourly(48), 20, 29), new(22))
        replaced(store, hour(22), hour(23))
        assert numbers(store) == [2, 1]
        assert_has(store, without(hourly(48), 20, 29))

    def test_died_before_its_file_said_so(self, make_store: MakeStore, datasets_yaml):
        """The next sweep lets it say so; a ledger that is lost before leaves it out, and says that."""
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(24))
        build(store)
        with dies_at(CrashPoint.BATCHES_ACKNOWLEDGED):
            replaced(store, hour(20), hour(24), new(22))
        sweep_orphans(store, older_than_seconds=0)

        store, done = made_again(store, make_store, datasets_yaml)

        assert done.complete
        assert_has(store, without(hourly(24), 20, 23), new(22))

    def test_has_both_names_where_an_object_store_was_renaming_it(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(24))
        build(store)
        replaced(store, hour(20), hour(24), new(22))
        (file,) = store.staging.entries("_corrections/")
        shutil.copy(store.staging.root / file.key, store.staging.root / pending_correction(file.key))

        store, done = made_again(store, make_store, datasets_yaml)

        assert done.complete
        assert_has(store, without(hourly(24), 20, 23), new(22))

    def test_lost_its_file_and_its_segment_says_it(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(24))
        build(store)
        replaced(store, hour(20), hour(24), new(22))
        shutil.rmtree(store.staging.root / "_corrections")

        store, done = made_again(store, make_store, datasets_yaml)

        assert done.complete
        assert_has(store, without(hourly(24), 20, 23), new(22))


@BY_KEY
@pytest.mark.parametrize(
    "point", [CrashPoint.CORRECTION_IN_PLACE, CrashPoint.SEGMENT_IN_PLACE, CrashPoint.BATCHES_RECORDED], ids=str
)
def test_one_that_was_never_acknowledged_takes_no_row(make_store: MakeStore, datasets_yaml, point: CrashPoint):
    store = make_store(datasets_yaml)
    stage(store, "weather", hourly(24))
    build(store)
    with dies_at(point):
        replaced(store, hour(20), hour(24), new(22))

    store, _ = made_again(store, make_store, datasets_yaml)

    assert numbers(store) == []
    assert_has(store, hourly(24))
    sweep_orphans(store, older_than_seconds=0)
    assert_has(store, hourly(24))
    assert list(store.staging.entries("_corrections/")) == []
    assert not replaced(store, hour(20), hour(24), new(22)).duplicate
    assert_has(store, without(hourly(24), 20, 23), new(22))


@BY_KEY
def test_rows_staged_with_an_older_ledger_beside_a_correction_are_kept_and_told(make_store: MakeStore, datasets_yaml):
    store = make_store(datasets_yaml)
    stage(store, "weather", hourly(48))
    with ledger_put_back(store):
        replaced(store, hour(20), hour(30), new(22))
    older = make_store(datasets_yaml)
    stage(older, "weather", new(25, station="LATER"))

    store, done = made_again(older, make_store, datasets_yaml)

    (problem,) = done.datasets[0].problems
    assert "does not know of correction 1" in problem
    assert_has(store, without(hourly(48), 20, 29), new(22), new(25, station="LATER"))

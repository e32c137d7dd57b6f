"""A table that is not where it was is waited for; given up, nothing is doubled, and what is lost is said."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.lost_table import give_up_table, prepare_table
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import BuildAborted, TableError, TableGone
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.counters import LOST_ROWS
from timestore_pipeline.ledger.windows import published_totals
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import file_prefix
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import build, counted, hourly, published, readable, rows_of, segment_file
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.deaths import dies_at

OLD = hourly(5)
NEW = hourly(3, station="LGA")
NEWER = hourly(2, station="EWR")


@pytest.fixture
def forgetful(make_store: MakeStore) -> Store:
    """A store that has published :data:`OLD` and retains nothing of it."""
    store = make_store(staging_retention_seconds=0)
    stage(store, "weather", OLD)
    build(store)
    assert unlink_published_segments(store).files == 1
    return store


@pytest.mark.parametrize("writing", [False, True])
def test_a_build_in_flight_is_settled_although_its_table_is_gone(
    forgetful: Store, caplog: pytest.LogCaptureFixture, writing: bool
):
    store = forgetful
    stage(store, "weather", NEW)
    with dies_at(CrashPoint.MANIFEST_WRITTEN):
        flush_windows(store, BuildOrder("weather", owner="the dead"))
    shutil.rmtree(store.table("weather").root)
    if writing:  # its builder went on for a while
        with store.ledger.read() as tx:
            (flight,) = builds_in_flight(tx, "weather")
        left = store.table("weather").root / "window_key=2026-01-01" / f"{file_prefix(flight.sequence)}000.parquet"
        left.parent.mkdir(parents=True)
        left.touch()

    assert settle_dead_builds(store, lambda owner: True) == []
    assert "there is no table at" in caplog.text
    with caplog.at_level(logging.ERROR):
        give_up_table(store, "weather")
        (settled,) = settle_dead_builds(store, lambda owner: True)

    assert not settled.published
    assert "was given up with 5 published rows" in caplog.text
    assert "5 rows are lost" in caplog.text
    assert counted(store, LOST_ROWS) == {"": 5}
    assert readable(store) == rows_of(NEW)
    assert build(store).rows == 3
    assert published(store) == readable(store) == rows_of(NEW)
    with store.ledger.read() as tx:
        assert builds_in_flight(tx) == []
        assert published_totals(tx)["weather"][1] == 3


def test_batches_that_are_lost_can_be_staged_again(forgetful: Store):
    store = forgetful
    shutil.rmtree(store.table("weather").root)
    stage(store, "weather", NEW)
    assert stage(store, "weather", OLD).duplicate  # nobody has given it up yet
    give_up_table(store, "weather")
    build(store)

    assert not stage(store, "weather", OLD).duplicate
    assert stage(store, "weather", NEW).duplicate
    build(store)
    assert published(store) == readable(store) == rows_of(OLD, NEW)


def test_what_is_still_retained_is_published_again(store: Store, caplog: pytest.LogCaptureFixture):
    stage(store, "weather", OLD)
    build(store)
    stage(store, "weather", NEW)
    build(store)
    shutil.rmtree(store.table("weather").root)
    with pytest.raises(TableError, match="there is no table"):
        readable(store)

    stage(store, "weather", NEWER)
    with pytest.raises(TableGone, match="adopt tables/weather"):
        flush_windows(store, BuildOrder("weather", owner="the test"))
    lost = give_up_table(store, "weather")
    report = build(store)

    assert lost is not None
    assert (lost.published_rows, lost.rows_staged_again) == (8, 8)
    assert report.rows == 10
    assert published(store) == readable(store) == rows_of(OLD, NEW, NEWER)
    assert counted(store, LOST_ROWS) == {}
    assert "0 rows are lost" in caplog.text
    assert unlink_published_segments(store, now=1 << 62).files == 3
    assert stage(store, "weather", OLD).duplicate


def build_while_its_table_is_given_up(store: Store, meanwhile: Callable[[], object]) -> None:
    """Build, and let others give up the table and do ``meanwhile`` just before the commit, which is refused."""
    stage(store, "weather", OLD)
    build(store)
    stage(store, "weather", NEW)
    root, away = store.table("weather").root, store.tables.root / "away"

    def others() -> None:
        with store.ledger.read() as tx:
            (flight,) = builds_in_flight(tx, "weather")
        root.rename(away)
        give_up_table(store, "weather")
        meanwhile()
        for file in away.rglob(f"{file_prefix(flight.sequence)}*"):  # as if it wrote its files only now
            path = root / file.relative_to(away)
            path.parent.mkdir(exist_ok=True)
            file.rename(path)

    with at(CrashPoint.MANIFEST_WRITTEN, others), pytest.raises(BuildAborted):
        flush_windows(store, BuildOrder("weather", owner="the sleeper"))


def test_a_builder_that_slept_through_it_all_publishes_nothing(store: Store):
    """Its slices were given back by another process, which also made the new table."""
    build_while_its_table_is_given_up(store, lambda: settle_dead_builds(store, lambda owner: owner == "the sleeper"))

    assert readable(store) == rows_of(OLD, NEW)
    assert build(store).rows == 8
    assert published(store) == readable(store) == rows_of(OLD, NEW)


def test_a_new_table_is_born_with_all_earlier_builds_fenced(store: Store):
    """Nobody settles the build in flight: it is the next build's table that refuses it."""
    spec = store.datasets["weather"]
    build_while_its_table_is_given_up(store, lambda: prepare_table(store, spec, spec.declared_columns or ()))
    settle_dead_builds(store, lambda owner: True)

    assert build(store).rows == 8
    assert published(store) == readable(store) == rows_of(OLD, NEW)


def test_a_crash_after_giving_up_the_table_or_making_the_new_one_changes_nothing(store: Store):
    stage(store, "weather", OLD)
    build(store)
    shutil.rmtree(store.table("weather").root)
    give_up_table(store, "weather")
    assert readable(store) == rows_of(OLD)

    with dies_at(CrashPoint.TABLE_CREATED):
        flush_windows(store, BuildOrder("weather", owner="the test"))
    assert readable(store) == rows_of(OLD)

    assert build(store).rows == 5
    assert published(store) == readable(store) == rows_of(OLD)


def test_a_table_that_lost_only_its_log_is_not_taken_for_deleted(store: Store):
    stage(store, "weather", OLD)
    build(store)
    log = store.table("weather").root / "_delta_log"
    away = log.rename(log.with_name("away"))
    stage(store, "weather", NEW)

    with pytest.raises(TableGone, match="restore it"):
        flush_windows(store, BuildOrder("weather", owner="the test"))
    away.rename(log)

    assert build(store).rows == 3
    assert published(store) == rows_of(OLD, NEW)


def test_a_retained_segment_that_is_gone_too_ends_in_quarantine(make_store: MakeStore):
    store = make_store(build_max_attempts=1)
    path = segment_file(store, stage(store, "weather", OLD).segment_id)
    build(store)
    stage(store, "weather", NEW)
    path.unlink()
    shutil.rmtree(store.table("weather").root)
    give_up_table(store, "weather")

    assert build(store).rows == 3
    assert readable(store) == rows_of(NEW)


def test_a_table_that_is_there_is_not_given_up(store: Store):
    stage(store, "weather", OLD)
    build(store)

    with pytest.raises(TableError, match="is there, so it is not given up"):
        give_up_table(store, "weather")
    (store.table("weather").root / "_delta_log").rename(store.table("weather").root / "away")
    with pytest.raises(TableError, match="still has Parquet files"):
        give_up_table(store, "weather")


def test_a_table_that_comes_back_goes_on_as_if_nothing_had_been(store: Store):
    stage(store, "weather", OLD)
    build(store)
    stage(store, "weather", NEW)
    away = store.table("weather").root.rename(store.tables.root / "away")
    with pytest.raises(TableGone):
        flush_windows(store, BuildOrder("weather", owner="the test"))
    assert not store.table("weather").root.exists()

    away.rename(store.table("weather").root)

    assert build(store).rows == 3
    assert published(store) == readable(store) == rows_of(OLD, NEW)

"""The deprecated way, straight to the table: exactly once like any other, and nothing is lost by switching."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from timestore_pipeline.building import at_once
from timestore_pipeline.building.due import plan_flushes
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import BatchConflict, TableError
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.counters import DIRECT_WRITE_BATCHES, RETRIED_BATCHES
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage, stage_file
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, counted, hourly, ingest, published, readable, rows_of
from timestore_pipeline_tests.conftest import WEATHER_CSV, MakeStore
from timestore_pipeline_tests.forks import process_pool

Drop = Callable[[Store, str, str, str | bytes], Path]

DEPRECATED = "TIMESTORE_STAGING_ENABLED=false writes straight to the table"


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """A store in which staging is switched off."""
    return make_store(staging_enabled=False)


@pytest.fixture
def deprecated() -> Iterator[None]:
    """What the test does is deprecated, and says so."""
    with pytest.warns(DeprecationWarning, match=DEPRECATED):
        yield


@pytest.mark.long
@pytest.mark.usefixtures("deprecated")
def test_rows_are_in_the_table_when_the_call_returns(store: Store, tmp_path: Path, drop: Drop):
    path = tmp_path / "a.csv"
    path.write_text("ts,station,temp\n2026-01-01,LGA,1\n")
    drop(store, "weather", "a.csv", WEATHER_CSV)

    stage(store, "weather", hourly(30))
    assert published(store) == rows_of(hourly(30))
    stage_file(store, "weather", path)
    assert len(published(store)) == 31
    ingest(store)
    assert published(store) == readable(store)
    assert len(published(store)) == 34

    assert counted(store, DIRECT_WRITE_BATCHES) == {"": 3}
    with store.ledger.read() as tx:
        assert latest_builds(tx)["weather"].trigger == Trigger.DIRECT


def test_every_use_warns(store: Store, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        for hours in (1, 2):
            with pytest.warns(DeprecationWarning, match=DEPRECATED):
                stage(store, "weather", hourly(hours))

    assert caplog.text.count(DEPRECATED) == 2


def test_a_warning_that_is_made_an_error_acknowledges_nothing(store: Store):
    # Warnings of this project are errors in its tests.
    with pytest.raises(DeprecationWarning):
        stage(store, "weather", hourly(1))

    assert readable(store) == []


@pytest.mark.usefixtures("deprecated")
def test_a_batch_id_is_as_good_as_when_it_is_staged(store: Store):
    stage(store, "weather", hourly(3), batch_id="hour-1")

    assert stage(store, "weather", hourly(3), batch_id="hour-1").duplicate
    with pytest.raises(BatchConflict):
        stage(store, "weather", hourly(4), batch_id="hour-1")

    assert published(store) == rows_of(hourly(3))
    assert counted(store, DIRECT_WRITE_BATCHES) == {"": 1}
    assert counted(store, RETRIED_BATCHES) == {"duplicate": 1}


@pytest.mark.long
def test_switching_either_way_loses_nothing(make_store: MakeStore):
    stage(make_store(), "weather", hourly(1))
    off = make_store(staging_enabled=False)
    assert readable(off) == rows_of(hourly(1))

    with pytest.warns(DeprecationWarning, match=DEPRECATED):
        stage(off, "weather", hourly(2))
    assert published(off) == rows_of(hourly(1), hourly(2)), "what was staged before is published too"

    on = make_store()
    stage(on, "weather", hourly(3))
    assert published(on) == rows_of(hourly(1), hourly(2))
    assert readable(on) == rows_of(hourly(1), hourly(2), hourly(3))
    build(on)
    assert published(on) == rows_of(hourly(1), hourly(2), hourly(3))


def test_what_is_staged_when_staging_is_switched_off_is_due_at_once(make_store: MakeStore):
    stage(make_store(), "weather", hourly(1))
    assert plan_flushes(make_store()).groups == ()

    (group,) = plan_flushes(make_store(staging_enabled=False)).groups

    assert group.requests[0].trigger is Trigger.EAGER


@pytest.mark.usefixtures("deprecated")
def test_what_cannot_be_published_is_acknowledged_and_stays_staged(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(*_: object, **__: object) -> None:
        raise TableError("the table is broken")

    with monkeypatch.context() as patched:
        patched.setattr(at_once, "flush_windows", broken)
        receipt = stage(store, "weather", hourly(3))

    assert receipt.rows == 3
    assert "stay staged until the next flush: the table is broken" in caplog.text
    assert (readable(store), published(store)) == (rows_of(hourly(3)), [])
    stage(store, "weather", hourly(4))
    assert published(store) == rows_of(hourly(3), hourly(4))


@pytest.mark.crash
@pytest.mark.parametrize(
    "point",
    [CrashPoint.BATCHES_ACKNOWLEDGED, CrashPoint.SLICES_CLAIMED, CrashPoint.TABLE_CHECKED, CrashPoint.TABLE_SYNCED],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_process_that_dies_before_it_has_published_is_made_up_for(
    make_store: MakeStore, home: Path, point: CrashPoint
):
    make_store()
    with process_pool(1) as pool:
        assert pool.submit(_die_at, home, point).exception() is not None
    store = make_store(staging_enabled=False, build_lease_seconds=20)
    assert readable(store) == rows_of(hourly(3)), "it was acknowledged"

    assert stage(store, "weather", hourly(3), batch_id="x").duplicate, "its caller was not told and tries again"

    assert published(store) == rows_of(hourly(3))
    assert readable(store) == rows_of(hourly(3))
    assert counted(store, DIRECT_WRITE_BATCHES) == {"": 1}
    with store.ledger.read() as tx:
        assert builds_in_flight(tx) == []


def _die_at(home: Path, point: CrashPoint) -> None:
    with at(point, lambda: os._exit(9)):
        _write_directly(home, 3, "x")


def _write_directly(home: Path, hours: int, batch_id: str) -> None:
    settings = Settings(home=home, staging_min_free_disk_bytes=0, staging_enabled=False, build_lease_seconds=0.5)
    with Store.open(settings) as store:
        stage(store, "weather", hourly(hours), batch_id=batch_id)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.process
def test_processes_that_write_directly_at_the_same_time_publish_every_row_once(make_store: MakeStore, home: Path):
    store = make_store()
    with process_pool(3) as pool:
        done = [pool.submit(_write_several, home, first) for first in (1, 4, 7)]
        assert [each.exception() for each in done] == [None] * 3

    assert published(store) == rows_of(*(hourly(hours) for hours in range(1, 10)))
    assert readable(store) == published(store)
    assert counted(store, DIRECT_WRITE_BATCHES) == {"": 9}


def _write_several(home: Path, first: int) -> None:
    settings = Settings(home=home, staging_min_free_disk_bytes=0, staging_enabled=False)
    with Store.open(settings) as store:
        for hours in range(first, first + 3):
            receipt = stage(store, "weather", hourly(hours))
            assert not receipt.duplicate
            assert set(rows_of(hourly(hours))) <= set(published(store))

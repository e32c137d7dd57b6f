"""What is gone for good can be given up: reads work, the audit adds up, and the ledger says who did it and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import LossRefused
from timestore_pipeline.ledger.accounts import recorded_losses, withdraw_loss
from timestore_pipeline.ledger.counters import LOST_ROWS
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.losses import accept_losses, missing_rows
from timestore_pipeline.reading.lineage import trace_window
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import build, counted, declared, hourly, published, readable, rows_of
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.deaths import dies_at
from timestore_pipeline_tests.operating.test_audit import (
    BREAKAGES,
    NEW_YEAR,
    SECOND,
    append_foreign_rows,
    cut_rows,
    drop_rows_of_table,
    table_files,
    wrong,
)

ORDER = BuildOrder("weather", owner="the test")
WHO = {"reason": "the disk of 2026-01 burned", "by": "the operator"}


def accept(store: Store, rows: int, *keys: str) -> list[int]:
    windows = [store.datasets["weather"].window_from_key(key) for key in keys]
    return [loss.rows for loss in accept_losses(store, ORDER, windows or None, rows=rows, **WHO)]


@pytest.fixture
def two_days(make_store: MakeStore) -> Store:
    """24 rows of New Year and 6 of the day after, published, and no segment has them any more."""
    store = make_store(staging_retention_seconds=0)
    stage(store, "weather", hourly(30))
    build(store)
    unlink_published_segments(store)
    return store


def test_a_file_that_is_gone_leaves_the_table_and_its_rows_are_a_loss(two_days: Store):
    table_files(two_days)[0].unlink()
    assert [(each.window.key, each.rows) for each in missing_rows(two_days, "weather")] == [(NEW_YEAR, 24)]

    with pytest.raises(LossRefused, match="24 rows are missing, not 23"):
        accept(two_days, 23)
    assert accept(two_days, 24) == [24]

    assert wrong(two_days) == {}
    assert readable(two_days) == published(two_days) == rows_of(hourly(30).slice(24))
    assert counted(two_days, LOST_ROWS) == {"": 24}
    (loss,) = trace_window(two_days, "weather", NEW_YEAR).losses
    assert (loss.reason, loss.accepted_by) == (WHO["reason"], WHO["by"])
    assert trace_window(two_days, "weather", SECOND).losses == ()
    with pytest.raises(LossRefused, match="nothing to accept"):
        accept(two_days, 24)


def test_rows_that_later_ones_had_taken_the_place_of_are_not_lost_with_these(make_store: MakeStore):
    store = make_store(declared(weather="key: {columns: [ts]}"))
    for number, hours in enumerate((24, 24, 9)):
        stage(store, "weather", hourly(hours, station=f"S{number}"))
        build(store)
    assert len(readable(store)) == 24
    for file in table_files(store):
        file.unlink()

    assert accept(store, 24) == [24]

    assert wrong(store) == {}
    assert counted(store, LOST_ROWS) == {"": 24}
    stage(store, "weather", hourly(3, station="LATER"))
    build(store)
    assert (len(readable(store)), wrong(store)) == (3, {})


def test_what_a_damaged_file_still_has_is_kept(two_days: Store):
    first, second = table_files(two_days)
    cut_rows(first)
    second.write_bytes(b"")

    assert accept(two_days, 1, NEW_YEAR) == [1]

    assert list(wrong(two_days)) == [SECOND]
    assert accept(two_days, 6) == [6]
    assert wrong(two_days) == {}
    assert published(two_days) == rows_of(hourly(24).slice(1))


def test_rows_that_others_deleted_or_added(two_days: Store):
    drop_rows_of_table(two_days)
    assert accept(two_days, 1) == [1]
    assert wrong(two_days) == {}

    append_foreign_rows(two_days)
    assert accept(two_days, -2) == [-2]

    assert wrong(two_days) == {}
    assert counted(two_days, LOST_ROWS) == {"": 1}
    stage(two_days, "weather", hourly(3, station="LGA"))
    build(two_days)
    assert wrong(two_days) == {}


def test_a_loss_that_is_withdrawn_is_reported_again(two_days: Store):
    table_files(two_days)[0].unlink()
    accept(two_days, 24)
    with two_days.ledger.write() as tx:
        (loss,) = recorded_losses(tx)
        assert withdraw_loss(tx, loss.id, by="another operator", now=1)
        assert not withdraw_loss(tx, loss.id, by="another operator", now=2)

    assert "24 rows were published, 0 are recorded" in wrong(two_days)[NEW_YEAR]
    with two_days.ledger.read() as tx:
        assert [(each.ended_at, each.ended_by) for each in recorded_losses(tx)] == [(1, "another operator")]


def test_a_rebuild_brings_the_rows_back_and_ends_the_loss(store: Store):
    stage(store, "weather", hourly(30))
    build(store)
    table_files(store)[0].unlink()
    accept(store, 24)

    rebuild_windows(store, BuildOrder("weather", owner="the test"))

    assert wrong(store) == {}
    assert published(store) == rows_of(hourly(30))
    with store.ledger.read() as tx:
        (loss,) = recorded_losses(tx)
    assert (loss.ended_by or "").startswith("rebuild")


def test_killed_between_the_table_and_the_ledger_the_same_command_goes_on(two_days: Store):
    table_files(two_days)[0].unlink()

    with dies_at(CrashPoint.PUBLICATION_COMMITTED):
        accept(two_days, 24)
    assert list(wrong(two_days)) == [NEW_YEAR]

    assert accept(two_days, 24) == [24]
    assert wrong(two_days) == {}


@pytest.mark.parametrize("name", ["rows of batches changed", "rows of a slice changed"])
def test_a_ledger_that_contradicts_itself_is_no_loss(two_days: Store, name: str):
    BREAKAGES[name](two_days)

    with pytest.raises(LossRefused, match="ledger rebuild"):
        accept(two_days, 0)


@pytest.mark.parametrize("cause", [cut_rows, lambda path: path.unlink()])
def test_later_builds_of_the_window_add_up(two_days: Store, cause: Callable[..., None]):
    cause(table_files(two_days)[0])
    (missing,) = missing_rows(two_days, "weather")
    accept(two_days, missing.rows)
    stage(two_days, "weather", hourly(5, station="LGA"))

    build(two_days)

    assert audit_rows(two_days, "weather").wrong == ()
    assert len(published(two_days)) == 30 - missing.rows + 5

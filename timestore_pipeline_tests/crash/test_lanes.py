"""A build of one lane killed or stopped between any two steps, while another lane completes and readers look on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.model.windows import WindowRange
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import published
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import JOBS, killed_at
from timestore_pipeline_tests.crash.conftest import Recover

pytestmark = pytest.mark.crash

BEFORE_THE_COMMIT = [CrashPoint.SLICES_CLAIMED, CrashPoint.PARQUET_IN_PLACE, CrashPoint.TABLE_CHECKED]
AFTER_THE_COMMIT = [CrashPoint.TABLE_COMMITTED, CrashPoint.TABLE_SYNCED, CrashPoint.MANIFEST_KEPT]
FIRST_DAY, SECOND_DAY = "build the first day", "build the second day"


@contextmanager
def somebody_reads(store: Store) -> Iterator[None]:
    """Read all the time: every acknowledged row of every batch must be there once, in each look."""
    wrong: list[BaseException] = []
    looks, done = threading.Semaphore(0), threading.Event()

    def look() -> None:
        try:
            while not done.is_set():
                rows.assert_acknowledged_rows_are_readable_once(store)
                looks.release()
        except BaseException as error:
            wrong.append(error)
            looks.release()

    reader = threading.Thread(target=look)
    reader.start()
    try:
        assert looks.acquire(timeout=120)
        yield
        for _ in range(2):  # the last one began after what was done meanwhile
            assert looks.acquire(timeout=120)
    finally:
        done.set()
        reader.join()
    assert not wrong, wrong


def build_second_day(store: Store) -> None:
    window = store.datasets["readings"].window_from_key("2026-01-02")
    assert flush_windows(store, BuildOrder("readings", WindowRange(window, window), owner="the test"))


def in_flight(store: Store) -> int:
    with store.ledger.read() as tx:
        return len(builds_in_flight(tx, "readings"))


def builds_second_day_beside(point: CrashPoint, store: Store) -> None:
    """Another lane completes, and readers look on."""
    build_second_day(store)
    assert in_flight(store) == (point in BEFORE_THE_COMMIT), "what is visible has ended, what is not has not"


@pytest.mark.matrix
@pytest.mark.parametrize("point", [*BEFORE_THE_COMMIT, *AFTER_THE_COMMIT], ids=str)
def test_a_lane_that_completes_beside_a_dead_one_shows_every_row_once(
    point: CrashPoint, at_work: Callable[..., Store], recover: Recover
):
    store = at_work(build_concurrent_builds=2)
    killed_at(store, FIRST_DAY, point)

    with somebody_reads(store):
        builds_second_day_beside(point, store)

    recover(store)
    rows.assert_all_is_well(store)


@pytest.mark.matrix
@pytest.mark.parametrize("point", [*BEFORE_THE_COMMIT, *AFTER_THE_COMMIT], ids=str)
def test_a_lane_that_completes_beside_one_that_is_held_up_shows_every_row_once(
    point: CrashPoint, at_work: Callable[..., Store], recover: Recover
):
    store = at_work(build_concurrent_builds=2)

    with somebody_reads(store), at(point, lambda: builds_second_day_beside(point, store)):
        JOBS[FIRST_DAY](store)

    recover(store)
    rows.assert_all_is_well(store)


@pytest.mark.parametrize("point", BEFORE_THE_COMMIT, ids=str)
def test_a_lane_that_was_fenced_publishes_nothing_although_others_went_on(
    point: CrashPoint, at_work: Callable[..., Store], recover: Recover
):
    store = at_work(build_concurrent_builds=2)
    found: list[object] = []

    def go_on_without_it() -> None:
        build_second_day(store)
        assert [each.published for each in settle_dead_builds(store, lambda owner: owner == "the child")] == [False]
        found.append(published(store, "readings"))

    with somebody_reads(store), pytest.raises(TimestoreError), at(point, go_on_without_it):
        JOBS[FIRST_DAY](store)

    assert [published(store, "readings")] == found
    recover(store)
    rows.assert_all_is_well(store)


def test_two_lanes_that_died_after_their_commits_are_published_by_whoever_recovers_one(
    at_work: Callable[..., Store], recover: Recover
):
    store = at_work(build_concurrent_builds=2)
    killed_at(store, FIRST_DAY, CrashPoint.TABLE_COMMITTED)
    killed_at(store, SECOND_DAY, CrashPoint.TABLE_COMMITTED)
    with somebody_reads(store):
        killed_at(store, "settle", CrashPoint.RECOVERY_PUBLISHED)

    recover(store)
    rows.assert_all_is_well(store)


def test_a_process_that_dies_while_it_records_several_builds_records_none(
    at_work: Callable[..., Store], recover: Recover
):
    store = at_work(build_concurrent_builds=2)
    killed_at(store, FIRST_DAY, CrashPoint.TABLE_COMMITTED)
    with somebody_reads(store):
        killed_at(store, SECOND_DAY, CrashPoint.PUBLICATION_RECORDED)
        assert in_flight(store) == 2

    recover(store)
    rows.assert_all_is_well(store)

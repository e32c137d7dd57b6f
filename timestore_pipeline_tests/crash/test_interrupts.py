"""SIGTERM at every step: the process ends at once, and what it held is free or found by recovery."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from timestore_pipeline.building.build import build_windows
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.store import Store
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import signal_at, start
from timestore_pipeline_tests.crash.conftest import Recover

pytestmark = pytest.mark.crash

STEPS = [
    ("stage", CrashPoint.REFUSED_ROWS_WRITTEN),
    ("stage", CrashPoint.SEGMENT_WRITTEN),
    ("stage", CrashPoint.SEGMENT_IN_PLACE),
    ("stage", CrashPoint.BATCHES_RECORDED),
    ("stage", CrashPoint.BATCHES_ACKNOWLEDGED),
    ("ingest", CrashPoint.READINGS_BEGUN),
    ("ingest", CrashPoint.BATCHES_RECORDED),
    ("ingest", CrashPoint.LANDING_FILE_CLEARED),
    ("build", CrashPoint.SLICES_RECORDED),
    ("build", CrashPoint.PARQUET_WRITTEN),
    ("build", CrashPoint.PARQUET_IN_PLACE),
    ("build", CrashPoint.TABLE_CHECKED),
    ("build", CrashPoint.TABLE_COMMITTED),
    ("build", CrashPoint.PUBLICATION_RECORDED),
    ("build", CrashPoint.PUBLICATION_COMMITTED),
    ("retire", CrashPoint.SEGMENT_UNLINKED),
]


@pytest.mark.parametrize(("job", "point"), STEPS, ids=str)
def test_sigterm_ends_a_process_and_loses_nothing(
    job: str, point: CrashPoint, at_work: Callable[..., Store], recover: Recover
):
    store = at_work()

    child = start(store, job, signal_at(point, signal.SIGTERM))

    assert child.exit_code(seconds=30) == -signal.SIGTERM
    recover(store)
    rows.assert_all_is_well(store)


@pytest.mark.parametrize(("job", "point"), STEPS, ids=str)
def test_an_interrupt_as_dagster_makes_of_sigterm_is_passed_on_and_loses_nothing(
    job: str, point: CrashPoint, at_work: Callable[..., Store], recover: Recover
):
    store = at_work()

    child = start(store, job, signal_at(point, signal.SIGTERM), interruptible=True)

    assert child.exit_code(seconds=30) == 1
    assert child.ending().error == "KeyboardInterrupt"
    recover(store)
    rows.assert_all_is_well(store)


@pytest.mark.parametrize(
    "point", [CrashPoint.PARQUET_WRITTEN, CrashPoint.TABLE_CHECKED, CrashPoint.TABLE_COMMITTED], ids=str
)
def test_an_interrupted_build_gives_its_slices_back_at_once(point: CrashPoint, at_work: Callable[..., Store]):
    store = at_work()

    start(store, "build", signal_at(point, signal.SIGTERM), interruptible=True).exit_code()

    with store.ledger.read() as tx:
        assert builds_in_flight(tx) == []
    rows.assert_acknowledged_rows_are_readable_once(store)
    again = build_windows(store, "readings", owner="the test")
    assert (again is None) == (point is CrashPoint.TABLE_COMMITTED)
    rows.assert_acknowledged_rows_are_readable_once(store)

"""SIGTERM at every step: the process ends at once, and what it held is free or found by recovery."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.store import Store
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import JOBS, signal_at, start
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


@pytest.mark.parametrize(
    ("job", "point"),
    [
        ("stage", CrashPoint.SEGMENT_IN_PLACE),
        ("ingest", CrashPoint.LANDING_FILE_CLEARED),
        ("build", CrashPoint.TABLE_COMMITTED),
    ],
    ids=str,
)
def test_sigterm_ends_a_process_and_loses_nothing(
    job: str, point: CrashPoint, at_work: Callable[..., Store], recover: Recover
):
    """Nothing holds the signal back, in no kind of job; then it leaves what SIGKILL leaves (test_kills.py)."""
    store = at_work()

    child = start(store, job, signal_at(point, signal.SIGTERM))

    assert child.exit_code() == -signal.SIGTERM
    recover(store)
    rows.assert_all_is_well(store)


@pytest.fixture
def terminate() -> Iterator[Callable[[], None]]:
    """Sends SIGTERM to this process, which takes it as Dagster's run processes do: an exception in its main thread."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(f"signal {number}")

    before = signal.signal(signal.SIGTERM, interrupt)
    yield lambda: signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.matrix
@pytest.mark.parametrize(("job", "point"), STEPS, ids=str)
def test_an_interrupt_as_dagster_makes_of_sigterm_is_passed_on_and_loses_nothing(
    job: str, point: CrashPoint, at_work: Callable[..., Store], recover: Recover, terminate: Callable[[], None]
):
    store = at_work()

    with pytest.raises(KeyboardInterrupt), at(point, terminate):
        JOBS[job](store)

    recover(store)
    rows.assert_all_is_well(store)


@pytest.mark.parametrize(
    "point", [CrashPoint.PARQUET_WRITTEN, CrashPoint.TABLE_CHECKED, CrashPoint.TABLE_COMMITTED], ids=str
)
def test_an_interrupted_build_gives_its_slices_back_at_once(
    point: CrashPoint, at_work: Callable[..., Store], terminate: Callable[[], None]
):
    store = at_work()

    with pytest.raises(KeyboardInterrupt), at(point, terminate):
        flush_windows(store, BuildOrder("readings", owner="the interrupted one"))

    with store.ledger.read() as tx:
        assert builds_in_flight(tx) == []
    rows.assert_acknowledged_rows_are_readable_once(store)
    again = flush_windows(store, BuildOrder("readings", owner="the test"))
    assert (again is None) == (point is CrashPoint.TABLE_COMMITTED)
    rows.assert_acknowledged_rows_are_readable_once(store)

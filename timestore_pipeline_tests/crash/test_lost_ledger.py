"""A process is killed anywhere, and then the ledger is lost: made again, every acknowledged row is there once."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import LedgerError, LedgerInUse, LedgerLost
from timestore_pipeline.ledger import Ledger
from timestore_pipeline.restoring.ledger import Rebuilt, ledger_file, rebuild_ledger
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import lose_ledger
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import BUILDING, Child, killed_at, signal_at, start
from timestore_pipeline_tests.crash.conftest import Recover

pytestmark = [pytest.mark.crash, pytest.mark.only_on("sqlite")]

POINTS = [
    *(("stage", point) for point in (
        CrashPoint.REFUSED_ROWS_IN_PLACE,
        CrashPoint.SEGMENT_WRITTEN,
        CrashPoint.SEGMENT_IN_PLACE,
        CrashPoint.BATCHES_RECORDED,
        CrashPoint.BATCHES_ACKNOWLEDGED,
    )),
    *(("ingest", point) for point in (
        CrashPoint.SEGMENT_IN_PLACE,
        CrashPoint.BATCHES_ACKNOWLEDGED,
        CrashPoint.BAD_FILE_RECORDED,
        CrashPoint.LANDING_FILE_CLEARED,
    )),
    ("build", CrashPoint.SLICES_CLAIMED),
    *(("build", point) for point in BUILDING[BUILDING.index(CrashPoint.PARQUET_RENAMED) :]),
    ("build and retire", CrashPoint.SEGMENT_UNLINKED),
    ("build and retire", CrashPoint.RETENTION_COMMITTED),
]  # fmt: skip


def rebuilt(store: Store) -> Rebuilt:
    return rebuild_ledger(store.settings, by="the test")


@pytest.mark.matrix
@pytest.mark.parametrize(("job", "point"), POINTS, ids=str)
def test_every_row_is_there_once(
    at_work: Callable[..., Store], make_store: MakeStore, recover: Recover, job: str, point: CrashPoint
):
    assert_rebuilt_after(job, point, at_work, make_store, recover)


@pytest.mark.matrix
@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize(
    ("job", "point"),
    [
        ("stage", CrashPoint.SEGMENT_IN_PLACE),
        ("build", CrashPoint.MANIFEST_WRITTEN),
        ("build", CrashPoint.TABLE_COMMITTED),
        ("build and retire", CrashPoint.RETENTION_COMMITTED),
    ],
    ids=str,
)
def test_every_row_is_there_once_on_a_server(
    at_work: Callable[..., Store], make_store: MakeStore, recover: Recover, job: str, point: CrashPoint
):
    assert_rebuilt_after(job, point, at_work, make_store, recover)


def rebuilt_while_it_sleeps(store: Store, make_store: MakeStore, job: str, point: CrashPoint) -> tuple[Store, Child]:
    """Rebuild the ledger while a job sleeps at a point, and let it go on; return the new store, and the job."""
    zombie = start(store, job, signal_at(point, signal.SIGSTOP))
    zombie.wait_until_stopped()
    lose_ledger(store)
    rebuilt(store)
    store = make_store(rows.DATASETS_YAML, staging_retention_seconds=0)
    zombie.signal(signal.SIGCONT)
    return store, zombie


def assert_rebuilt_after(
    job: str, point: CrashPoint, at_work: Callable[..., Store], make_store: MakeStore, recover: Recover
) -> None:
    store = at_work()
    killed_at(store, job, point)
    acknowledged = rows.in_ledger(store)

    lose_ledger(store)
    with pytest.raises(LedgerLost):
        make_store(rows.DATASETS_YAML)
    outcome = rebuilt(store)

    assert outcome.complete
    store = make_store(rows.DATASETS_YAML, staging_retention_seconds=0)
    assert acknowledged <= rows.in_ledger(store)
    recover(store)
    rows.assert_all_is_well(store)


@pytest.mark.parametrize(
    "point",
    [CrashPoint.SLICES_CLAIMED, CrashPoint.PARQUET_IN_PLACE, CrashPoint.MANIFEST_WRITTEN, CrashPoint.TABLE_CHECKED],
    ids=str,
)
def test_a_build_that_sleeps_through_it_cannot_publish_what_is_staged_again(
    at_work: Callable[..., Store], make_store: MakeStore, recover: Recover, point: CrashPoint
):
    store, zombie = rebuilt_while_it_sleeps(at_work(), make_store, "build", point)

    assert zombie.exit_code() == 1
    recover(store)
    rows.assert_all_is_well(store)


def test_a_sender_that_sleeps_through_it_is_not_told_that_it_got_in(
    at_work: Callable[..., Store], make_store: MakeStore, recover: Recover
):
    store, zombie = rebuilt_while_it_sleeps(at_work(), make_store, "stage", CrashPoint.BATCHES_RECORDED)

    assert zombie.exit_code() == 1
    assert zombie.ending().error == "LedgerReplaced"
    assert "was removed or replaced while it was in use" in zombie.ending().message
    recover(store)
    rows.assert_all_is_well(store)


KILLED_REBUILDS = [CrashPoint.LEDGER_REBUILT]


@pytest.mark.parametrize("point", KILLED_REBUILDS, ids=str)
def test_a_rebuild_that_is_killed_is_done_again(
    point: CrashPoint, at_work: Callable[..., Store], make_store: MakeStore, recover: Recover
):
    store = at_work()
    killed_at(store, "build", CrashPoint.TABLE_COMMITTED)
    lose_ledger(store)

    killed_at(store, "rebuild ledger", point)
    with pytest.raises(LedgerLost):
        make_store(rows.DATASETS_YAML)
    rebuilt(store)

    store = make_store(rows.DATASETS_YAML, staging_retention_seconds=0)
    recover(store)
    rows.assert_all_is_well(store)


def test_of_two_rebuilds_at_once_one_does_it(at_work: Callable[..., Store], make_store: MakeStore, recover: Recover):
    store = at_work()
    lose_ledger(store)

    first = start(store, "rebuild ledger", signal_at(CrashPoint.LEDGER_REBUILT, signal.SIGSTOP))
    first.wait_until_stopped()
    second = start(store, "rebuild ledger")
    first.signal(signal.SIGCONT)

    assert sorted([first.exit_code(), second.exit_code()]) == [0, 1]
    assert second.ending().error == LedgerInUse.__name__
    store = make_store(rows.DATASETS_YAML, staging_retention_seconds=0)
    recover(store)
    rows.assert_all_is_well(store)


def test_a_ledger_that_is_lost_again_and_again_is_made_again_each_time(
    at_work: Callable[..., Store], make_store: MakeStore, recover: Recover
):
    store = at_work()
    for _ in range(3):
        killed_at(store, "build", CrashPoint.PARQUET_IN_PLACE)
        lose_ledger(store)
        rebuilt(store)
        store = make_store(rows.DATASETS_YAML, staging_retention_seconds=0)
        rows.assert_acknowledged_rows_are_readable_once(store)
    recover(store)
    rows.assert_all_is_well(store)


def test_an_open_ledger_that_is_deleted_takes_nothing_more(at_work: Callable[..., Store]):
    store = at_work()
    file = ledger_file(store.settings)
    assert file is not None
    file.unlink()

    for transaction in (store.ledger.read, store.ledger.write):
        with pytest.raises(LedgerError, match="removed or replaced"), transaction():
            pass
    Ledger.open(store.settings.resolved_ledger_url).close()
    with pytest.raises(LedgerError, match="removed or replaced"), store.ledger.write():
        pass

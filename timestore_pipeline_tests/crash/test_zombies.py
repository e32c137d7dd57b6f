"""A process that is stopped, taken for dead, and wakes up later: it must not publish (invariant 5)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

import timestore_pipeline.staging.ingest as ingesting
import timestore_pipeline.staging.together as staging
from timestore_pipeline.building import recovery
from timestore_pipeline.building.build import build_windows
from timestore_pipeline.building.recovery import settle_build, settle_dead_builds
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.clock import now_micros
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import BuildInFlight, LedgerError
from timestore_pipeline.ledger.builds import Build, builds_in_flight, claim_slices
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.lifecycle.compaction import compact_dataset
from timestore_pipeline.lifecycle.retention import sweep_orphans, unlink_published_segments
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import ingest, published
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import Child, signal_at, start
from timestore_pipeline_tests.crash.conftest import Recover

pytestmark = pytest.mark.crash

Stopped = Callable[..., Child]

BEFORE_THE_COMMIT = [
    (CrashPoint.SLICES_CLAIMED, 1),
    (CrashPoint.PARQUET_WRITTEN, 1),
    (CrashPoint.PARQUET_SYNCED, 1),
    (CrashPoint.PARQUET_RENAMED, 1),
    (CrashPoint.PARQUET_IN_PLACE, 1),
    (CrashPoint.PARQUET_WRITTEN, 2),
    (CrashPoint.PARQUET_IN_PLACE, 2),
    (CrashPoint.TABLE_CHECKED, 1),
]
AFTER_THE_COMMIT = [
    (CrashPoint.TABLE_COMMITTED, 1),
    (CrashPoint.TABLE_SYNCED, 1),
    (CrashPoint.PUBLICATION_COMMITTED, 1),
]
IN_A_LEDGER_TRANSACTION = [(CrashPoint.SLICES_RECORDED, 1), (CrashPoint.PUBLICATION_RECORDED, 1)]


@pytest.fixture
def stopped() -> Iterator[Stopped]:
    """Starts a job that stops itself at a point, and waits until it has."""
    children: list[Child] = []

    def run(store: Store, job: str, point: CrashPoint, times: int = 1) -> Child:
        child = start(store, job, signal_at(point, signal.SIGSTOP, times))
        children.append(child)
        child.wait_until_stopped()
        return child

    yield run
    for child in children:
        child.kill()


def settle(store: Store) -> list[bool]:
    """Recover as the flush sensor does when a run is gone; whether each build that was settled was published."""
    settled = settle_dead_builds(store, owner_is_gone=lambda owner: owner == "the child")
    rows.assert_acknowledged_rows_are_readable_once(store)
    return [build.published for build in settled]


def nothing(store: Store) -> None:
    """Nobody builds again before the zombie wakes up."""


def claims(store: Store) -> None:
    """Another builder has claimed the slices and dies."""
    with store.ledger.write() as tx:
        assert claim_slices(
            tx, "readings", owner="another", trigger="manual", first_window=None, last_window=None,
            lease_micros=1, now=now_micros(),
        )  # fmt: skip


def builds_once(store: Store) -> None:
    """Another builder has published what was the zombie's."""
    assert build_windows(store, "readings", owner="another")


def builds_twice(store: Store) -> None:
    """And then more, so that the table's last sequence is further on."""
    builds_once(store)
    stage(store, "readings", rows.batch("e"), batch_id="e")
    builds_once(store)


@pytest.mark.parametrize("meanwhile", [nothing, claims, builds_once, builds_twice])
@pytest.mark.parametrize(("point", "times"), BEFORE_THE_COMMIT, ids=str)
def test_a_builder_that_was_fenced_publishes_nothing(
    point: CrashPoint,
    times: int,
    meanwhile: Callable[[Store], object],
    at_work: Callable[..., Store],
    stopped: Stopped,
    recover: Recover,
):
    store = at_work()
    zombie = stopped(store, "build", point, times)
    assert settle(store) == [False]
    meanwhile(store)
    before = published(store, "readings")

    zombie.signal(signal.SIGCONT)

    assert zombie.exit_code() == 1
    assert zombie.ending().error in {"BuildAborted", "TimestoreError", "SegmentUnreadable"}
    assert published(store, "readings") == before
    recover(store)
    rows.assert_all_is_well(store)


@pytest.mark.parametrize("meanwhile", [nothing, builds_twice])
@pytest.mark.parametrize(("point", "times"), AFTER_THE_COMMIT, ids=str)
def test_a_builder_taken_for_dead_after_its_commit_has_published_once(
    point: CrashPoint,
    times: int,
    meanwhile: Callable[[Store], object],
    at_work: Callable[..., Store],
    stopped: Stopped,
    recover: Recover,
):
    store = at_work()
    zombie = stopped(store, "build", point, times)
    assert settle(store) == ([] if point is CrashPoint.PUBLICATION_COMMITTED else [True])
    if meanwhile is builds_twice:
        stage(store, "readings", rows.batch("e"), batch_id="e")
        builds_once(store)
    unlink_published_segments(store)
    before = published(store, "readings")

    zombie.signal(signal.SIGCONT)

    assert zombie.exit_code() == 0
    assert published(store, "readings") == before
    rows.assert_acknowledged_rows_are_readable_once(store)
    recover(store)
    rows.assert_all_is_well(store)


@pytest.mark.parametrize(("point", "times"), IN_A_LEDGER_TRANSACTION, ids=str)
def test_a_builder_stopped_in_a_ledger_transaction_holds_recovery_up_and_breaks_nothing(
    point: CrashPoint, times: int, at_work: Callable[..., Store], stopped: Stopped, recover: Recover
):
    store = at_work(ledger_busy_timeout_seconds=0.2)
    zombie = stopped(store, "build", point, times)
    with pytest.raises(LedgerError, match="lock"):
        stage(store, "readings", rows.batch("e"), batch_id="e")
    rows.assert_acknowledged_rows_are_readable_once(store)

    zombie.signal(signal.SIGCONT)

    assert zombie.exit_code() == 0
    recover(store)
    rows.assert_all_is_well(store)


def test_refused_rows_that_were_swept_before_they_were_acknowledged_are_written_again(
    at_work: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
):
    store = at_work()
    write = staging.write_segment
    swept: list[int] = []

    def sleep_after_writing(*arguments, **options):
        written = write(*arguments, **options)
        if not swept:
            swept.append(sweep_orphans(store, older_than_seconds=0).files)
        return written

    monkeypatch.setattr(staging, "write_segment", sleep_after_writing)

    receipt = stage(store, "readings", rows.readings((), rows.TIMELESS), batch_id="only refused")

    assert receipt.quarantined_rows == len(rows.TIMELESS)
    assert swept == [1]
    with store.ledger.read() as tx:
        (entry,) = open_entries(tx, "readings")
    assert store.staging.fetch(entry.path).is_file()


@pytest.mark.parametrize(
    ("point", "times"),
    [
        (CrashPoint.SEGMENT_WRITTEN, 1),
        (CrashPoint.FILE_SYNCED, 1),
        (CrashPoint.FILE_RENAMED, 2),
        (CrashPoint.SEGMENT_IN_PLACE, 1),
    ],
    ids=str,
)
def test_a_file_that_is_swept_while_it_is_written_is_a_clear_error_or_written_again(
    point: CrashPoint, times: int, at_work: Callable[..., Store], stopped: Stopped, recover: Recover
):
    store = at_work()
    zombie = stopped(store, "stage", point, times)
    assert sweep_orphans(store, older_than_seconds=0).files

    zombie.signal(signal.SIGCONT)

    if zombie.exit_code() == 1:
        assert zombie.ending().error == "TimestoreError"
        assert "e" not in rows.in_ledger(store)
    recover(store)
    rows.assert_all_is_well(store)


def test_a_build_that_works_longer_than_its_lease_keeps_it(at_work: Callable[..., Store], recover: Recover):
    store = at_work(build_lease_seconds=0.3)
    child = start(store, "slow build")
    deadline = time.monotonic() + 60
    while not (build := in_flight(store)):
        assert time.monotonic() < deadline
    while now_micros() < build[0].claimed_at + 900_000:
        assert settle_dead_builds(store) == []
        time.sleep(0.02)

    assert child.exit_code() == 0
    assert build[0].id not in {build.id for build in in_flight(store)}
    recover(store)
    rows.assert_all_is_well(store)


def in_flight(store: Store) -> list[Build]:
    with store.ledger.read() as tx:
        return builds_in_flight(tx)


def test_a_lease_that_ran_out_lets_others_settle_the_build(at_work: Callable[..., Store], stopped: Stopped):
    store = at_work(build_lease_seconds=0.2)
    zombie = stopped(store, "build", CrashPoint.TABLE_CHECKED)
    (build,) = in_flight(store)
    with pytest.raises(BuildInFlight):
        build_windows(store, "readings", owner="another")
    assert settle_dead_builds(store, now=build.lease_expires_at - 1) == []

    assert [settled.published for settled in settle_dead_builds(store, now=build.lease_expires_at)] == [False]

    builds_once(store)
    zombie.signal(signal.SIGCONT)
    assert zombie.exit_code() == 1
    assert zombie.ending().error == "BuildAborted"


def test_a_recovery_that_was_overtaken_leaves_published_files_alone(
    at_work: Callable[..., Store], stopped: Stopped, recover: Recover
):
    store = at_work()
    stopped(store, "build", CrashPoint.TABLE_COMMITTED).kill()
    (dead,) = in_flight(store)
    assert settle(store) == [True]
    stage(store, "readings", rows.batch("e"), batch_id="e")
    builds_once(store)
    before = published(store, "readings")

    late = settle_build(store, dead, error="its owner is gone", recovered=True)

    assert late.published
    assert published(store, "readings") == before
    recover(store)
    rows.assert_all_is_well(store)


def test_two_recoveries_at_once_settle_a_build_once(
    at_work: Callable[..., Store], stopped: Stopped, recover: Recover, monkeypatch: pytest.MonkeyPatch
):
    store = at_work()
    stopped(store, "build", CrashPoint.PARQUET_IN_PLACE).kill()
    (dead,) = in_flight(store)
    fence = recovery.commit_fence
    others: list[bool] = []

    def overtaken(*arguments):
        if not others:
            others.append(True)
            others.append(settle_build(store, dead, error="its owner is gone", recovered=True).published)
            builds_once(store)
        return fence(*arguments)

    monkeypatch.setattr(recovery, "commit_fence", overtaken)

    assert not settle_build(store, dead, error="its owner is gone", recovered=True).published
    assert others == [True, False]
    recover(store)
    rows.assert_all_is_well(store)


def test_files_that_another_ingest_took_while_they_were_read_are_not_bad(
    at_work: Callable[..., Store], recover: Recover, monkeypatch: pytest.MonkeyPatch
):
    store = at_work()
    plan = ingesting.plan_reads
    others: list[int] = []

    def sleep_before_reading(*arguments):
        if not others:
            others.append(0)
            others.append(sum(report.batches for report in ingest(store).values()))
        return plan(*arguments)

    monkeypatch.setattr(ingesting, "plan_reads", sleep_before_reading)

    (report,) = ingest(store).values()

    assert others == [0, 2]
    assert report.batches == 0
    recover(store)
    rows.assert_all_is_well(store)


def builds_landed_files(store: Store) -> None:
    """More rows are published, so that the windows have another file."""
    ingest(store)
    builds_once(store)


def compacts(store: Store) -> None:
    """Another compaction has merged the files that were the zombie's to merge."""
    assert compact_dataset(store, "readings", owner="another", trigger=Trigger.MANUAL, thorough=True).merged_files


@pytest.mark.parametrize("meanwhile", [nothing, builds_landed_files, compacts])
@pytest.mark.parametrize(
    ("job", "point"),
    [
        ("compact", CrashPoint.SLICES_CLAIMED),
        ("compact", CrashPoint.PARQUET_IN_PLACE),
        ("compact", CrashPoint.TABLE_CHECKED),
        ("rebuild", CrashPoint.TABLE_CHECKED),
    ],
    ids=str,
)
def test_a_replacement_that_was_fenced_replaces_nothing(
    job: str,
    point: CrashPoint,
    meanwhile: Callable[[Store], object],
    at_work: Callable[..., Store],
    stopped: Stopped,
    recover: Recover,
):
    store = at_work(flushed=True)
    zombie = stopped(store, job, point)
    assert settle(store) == [False]
    meanwhile(store)
    before = published(store, "readings")

    zombie.signal(signal.SIGCONT)

    assert zombie.exit_code() == 1
    assert zombie.ending().error in {"BuildAborted", "TimestoreError", "TableError"}
    assert published(store, "readings") == before
    recover(store)
    rows.assert_all_is_well(store)

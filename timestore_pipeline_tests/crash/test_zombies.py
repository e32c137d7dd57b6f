"""Work that is held up, taken for dead, and goes on later: it must not publish (invariant 5).

What the others do meanwhile they do at a crash point, in the same process; where a lock or a lease of a process counts,
it is a process of its own that is stopped.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

import timestore_pipeline.staging.load as staging
from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_build, settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import BuildInFlight, LedgerError, TimestoreError
from timestore_pipeline.ledger.builds import Build, NewBuild, builds_in_flight
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import claim_slices, ingest, published
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import JOBS, killed_at, signal_at, start
from timestore_pipeline_tests.crash.conftest import Recover

pytestmark = pytest.mark.crash

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


def held_up(store: Store, job: str, point: CrashPoint, times: int, meanwhile: Callable[[], object]) -> None:
    """Do ``job``, and ``meanwhile`` in the middle of it."""
    with at(point, meanwhile, times):
        JOBS[job](store)


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
            tx, NewBuild("readings", owner="another", trigger="manual", lease_micros=1, now=now_micros())
        )


def builds_once(store: Store) -> None:
    """Another builder has published what was the zombie's."""
    assert flush_windows(store, BuildOrder("readings", owner="another"))


def builds_twice(store: Store) -> None:
    """And then more, so that the table's last sequence is further on."""
    builds_once(store)
    stage(store, "readings", rows.batch("e"), batch_id="e")
    builds_once(store)


@pytest.mark.matrix
@pytest.mark.parametrize("meanwhile", [nothing, claims, builds_once, builds_twice])
@pytest.mark.parametrize(("point", "times"), BEFORE_THE_COMMIT, ids=str)
def test_a_builder_that_was_fenced_publishes_nothing(
    point: CrashPoint,
    times: int,
    meanwhile: Callable[[Store], object],
    at_work: Callable[..., Store],
    recover: Recover,
):
    assert_replaces_nothing(at_work(), "build", point, times, meanwhile, recover)


def assert_replaces_nothing(
    store: Store, job: str, point: CrashPoint, times: int, meanwhile: Callable[[Store], object], recover: Recover
) -> None:
    """``job`` is taken for dead before its commit: what is published when it goes on stays as it is."""
    found: list[object] = []

    def others() -> None:
        assert settle(store) == [False]
        meanwhile(store)
        found.append(published(store, "readings"))

    with pytest.raises(TimestoreError):
        held_up(store, job, point, times, others)

    assert [published(store, "readings")] == found
    recover(store)
    rows.assert_all_is_well(store)


@pytest.mark.matrix
@pytest.mark.parametrize("meanwhile", [nothing, builds_twice])
@pytest.mark.parametrize(("point", "times"), AFTER_THE_COMMIT, ids=str)
def test_a_builder_taken_for_dead_after_its_commit_has_published_once(
    point: CrashPoint,
    times: int,
    meanwhile: Callable[[Store], object],
    at_work: Callable[..., Store],
    recover: Recover,
):
    store = at_work()
    found: list[object] = []

    def others() -> None:
        assert settle(store) == ([] if point is CrashPoint.PUBLICATION_COMMITTED else [True])
        if meanwhile is builds_twice:
            stage(store, "readings", rows.batch("e"), batch_id="e")
            builds_once(store)
        unlink_published_segments(store)
        found.append(published(store, "readings"))

    held_up(store, "build", point, times, others)

    assert [published(store, "readings")] == found
    rows.assert_acknowledged_rows_are_readable_once(store)
    recover(store)
    rows.assert_all_is_well(store)


@pytest.mark.parametrize(("point", "times"), IN_A_LEDGER_TRANSACTION, ids=str)
def test_a_builder_stopped_in_a_ledger_transaction_holds_others_up_and_breaks_nothing(
    point: CrashPoint, times: int, at_work: Callable[..., Store], recover: Recover
):
    store = at_work(ledger_busy_timeout_seconds=0.2)
    zombie = start(store, "build", signal_at(point, signal.SIGSTOP, times))
    zombie.wait_until_stopped()
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
    point: CrashPoint, times: int, at_work: Callable[..., Store], recover: Recover
):
    store = at_work()
    swept: list[int] = []

    try:
        held_up(store, "stage", point, times, lambda: swept.append(sweep_orphans(store, older_than_seconds=0).files))
    except TimestoreError:
        assert "e" not in rows.in_ledger(store)

    assert swept != [0]
    recover(store)
    rows.assert_all_is_well(store)


def test_a_build_that_works_longer_than_its_lease_keeps_it(at_work: Callable[..., Store], recover: Recover):
    store = at_work(build_lease_seconds=1)

    def wait_until_the_lease_would_have_run_out() -> None:
        (build,) = in_flight(store)
        first = build.lease_expires_at
        deadline = time.monotonic() + 120
        while build.lease_expires_at == first:
            assert time.monotonic() < deadline, "the lease is not extended"
            time.sleep(0.05)
            (build,) = in_flight(store)
        assert settle_dead_builds(store, now=first) == []

    held_up(store, "build", CrashPoint.TABLE_CHECKED, 1, wait_until_the_lease_would_have_run_out)

    assert in_flight(store) == []
    recover(store)
    rows.assert_all_is_well(store)


def in_flight(store: Store) -> list[Build]:
    with store.ledger.read() as tx:
        return builds_in_flight(tx)


def test_a_lease_that_ran_out_lets_others_settle_the_build(at_work: Callable[..., Store]):
    store = at_work(build_lease_seconds=60)
    zombie = start(store, "build", signal_at(CrashPoint.TABLE_CHECKED, signal.SIGSTOP))
    zombie.wait_until_stopped()
    (build,) = in_flight(store)
    with pytest.raises(BuildInFlight):
        flush_windows(store, BuildOrder("readings", owner="another"))
    assert settle_dead_builds(store, now=build.lease_expires_at - 1) == []

    assert [settled.published for settled in settle_dead_builds(store, now=build.lease_expires_at)] == [False]

    builds_once(store)
    zombie.signal(signal.SIGCONT)
    assert zombie.exit_code() == 1
    assert zombie.ending().error == "BuildAborted"


def test_a_recovery_that_was_overtaken_leaves_published_files_alone(at_work: Callable[..., Store], recover: Recover):
    store = at_work()
    killed_at(store, "build", CrashPoint.TABLE_COMMITTED)
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


def test_two_recoveries_at_once_settle_a_build_once(at_work: Callable[..., Store], recover: Recover):
    store = at_work()
    killed_at(store, "build", CrashPoint.PARQUET_IN_PLACE)
    (dead,) = in_flight(store)
    others: list[bool] = []

    def overtake() -> None:
        others.append(settle_build(store, dead, error="its owner is gone", recovered=True).published)
        builds_once(store)

    # The next commit is the fence.
    with at(CrashPoint.TABLE_CHECKED, overtake):
        assert not settle_build(store, dead, error="its owner is gone", recovered=True).published

    assert others == [False]
    recover(store)
    rows.assert_all_is_well(store)


def test_files_that_another_ingest_took_while_they_were_read_are_not_bad(
    at_work: Callable[..., Store], recover: Recover
):
    store = at_work()
    others: list[int] = []

    with at(
        CrashPoint.READINGS_BEGUN,
        lambda: others.append(sum(report.batches for report in ingest(store).values())),
    ):
        (report,) = ingest(store).values()

    assert others == [2]
    assert report.batches == 0
    recover(store)
    rows.assert_all_is_well(store)


def builds_landed_files(store: Store) -> None:
    """More rows are published, so that the windows have another file."""
    ingest(store)
    builds_once(store)


def compacts(store: Store) -> None:
    """Another compaction has merged the files that were the zombie's to merge."""
    assert compact_fully(store, BuildOrder("readings", owner="another")).merged_files


@pytest.mark.matrix
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
    recover: Recover,
):
    assert_replaces_nothing(at_work(flushed=True), job, point, 1, meanwhile, recover)

"""Interrupted builds: settled by the table, published or fenced, every row exactly once throughout (invariant 5)."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from timestore_pipeline.building.recovery import SettledBuild, settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import BuildAborted, LedgerError, TimestoreError
from timestore_pipeline.ledger.builds import NewBuild, builds_in_flight, get_build
from timestore_pipeline.ledger.counters import FLUSH_ROWS, RETRIED_BATCHES
from timestore_pipeline.ledger.states import BuildState
from timestore_pipeline.ledger.windows import window_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.staging.stage import stage, stage_file
from timestore_pipeline.storage import local
from timestore_pipeline.store import Store
from timestore_pipeline.table import commit as commit_module
from timestore_pipeline.table.delta import DeltaTable
from timestore_pipeline.table.sequences import last_published_sequence, last_sequence
from timestore_pipeline_tests.builders import (
    build,
    claim_slices,
    counted,
    declared,
    files_under,
    hourly,
    parquet_bytes,
    published,
    readable,
    rows_of,
)
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.deaths import dies_at, fails_at

ROWS = rows_of(hourly(30))


def everyone(_: str) -> bool:
    return True


BEFORE_THE_COMMIT = [
    pytest.param(CrashPoint.SLICES_CLAIMED, id="slices claimed"),
    pytest.param(CrashPoint.PARQUET_IN_PLACE, id="a window written"),
    pytest.param(CrashPoint.MANIFEST_WRITTEN, id="all windows written"),
]
AFTER_THE_COMMIT = [
    pytest.param(CrashPoint.TABLE_COMMITTED, id="committed and not synced"),
    pytest.param(CrashPoint.TABLE_SYNCED, id="committed"),
    pytest.param(CrashPoint.MANIFEST_KEPT, id="before the ledger"),
]


@pytest.mark.parametrize("point", BEFORE_THE_COMMIT)
def test_a_build_that_died_before_its_commit_is_fenced_and_its_rows_are_staged_again(store: Store, point: CrashPoint):
    stage(store, "weather", hourly(30))
    with dies_at(point):
        build(store)
    assert readable(store) == ROWS

    (settled,) = settle_dead_builds(store, everyone)

    assert not settled.published
    assert readable(store) == ROWS
    assert published(store) == []
    assert [name for name in files_under(store.table("weather").root) if not name.endswith(".json")] == []
    assert counted(store, RETRIED_BATCHES) == {"flush_abort": 1}
    assert counted(store, FLUSH_ROWS) == {"failure": 30}
    with store.ledger.read() as tx:
        record = get_build(tx, settled.build.id)
    assert (record.state, record.error) == (BuildState.ABORTED, "its owner the test is gone")
    assert build(store).sequence > settled.build.sequence
    assert published(store) == readable(store) == ROWS
    assert settle_dead_builds(store, everyone) == []


@pytest.mark.parametrize("point", AFTER_THE_COMMIT)
def test_a_build_that_died_after_its_commit_is_marked_published(store: Store, point: CrashPoint):
    stage(store, "weather", hourly(30))
    with dies_at(point):
        build(store)
    assert readable(store) == ROWS
    stage(store, "weather", hourly(3, station="MORE"))

    (settled,) = settle_dead_builds(store, everyone)

    assert (settled.published, settled.table_version) == (True, 1)
    assert published(store) == ROWS
    assert readable(store) == rows_of(hourly(30), hourly(3, station="MORE"))
    assert counted(store, RETRIED_BATCHES) == {}
    assert counted(store, FLUSH_ROWS) == {"success": 30}
    with store.ledger.read() as tx:
        assert [(total.rows, total.files) for total in window_totals(tx, "weather")] == [(24, 1), (6, 1)]
        record = get_build(tx, settled.build.id)
    assert (record.state, record.files, record.table_version) == (BuildState.PUBLISHED, 2, 1)
    build(store)
    assert published(store) == readable(store)


def test_a_recovery_syncs_what_it_finds_before_the_ledger_hears_of_it(store: Store, monkeypatch: pytest.MonkeyPatch):
    stage(store, "weather", hourly(3))
    with dies_at(CrashPoint.TABLE_COMMITTED):
        build(store)
    done: list[str] = []
    monkeypatch.setattr(local, "sync_private", lambda path: done.append(path.name))

    with at(CrashPoint.PUBLICATION_RECORDED, lambda: done.append("LEDGER")):
        settle_dead_builds(store, everyone)

    assert done.index(f"{1:020d}.json") < done.index("LEDGER")
    assert done.index("_delta_log") < done.index("LEDGER")


def test_a_build_syncs_a_fence_before_its_commit_that_nobody_has_synced(store: Store, monkeypatch: pytest.MonkeyPatch):
    stage(store, "weather", hourly(3))
    with dies_at(CrashPoint.MANIFEST_WRITTEN):
        build(store)
    with dies_at(CrashPoint.TABLE_COMMITTED):
        settle_dead_builds(store, everyone)
    settle_dead_builds(store, everyone)
    done: list[str] = []
    monkeypatch.setattr(local, "sync_private", lambda path: done.append(path.name))

    with at(CrashPoint.PUBLICATION_RECORDED, lambda: done.append("LEDGER")):
        assert build(store).table_version == 2

    # After a power cut a log with a gap would be no table any more.
    for version in (1, 2):
        assert done.index(f"{version:020d}.json") < done.index("LEDGER")


def test_a_build_lives_while_its_lease_does(make_store: MakeStore):
    store = make_store(build_lease_seconds=100)
    stage(store, "weather", hourly(3))
    with dies_at(CrashPoint.MANIFEST_WRITTEN):
        build(store)

    assert settle_dead_builds(store) == []
    assert settle_dead_builds(store, now=now_micros() + 99_000_000) == []
    assert settle_dead_builds(store, lambda owner: owner == "someone else") == []
    (settled,) = settle_dead_builds(store, now=now_micros() + 101_000_000)

    assert settled.build.owner == "the test"
    build(store)
    assert readable(store) == rows_of(hourly(3))


@pytest.mark.long
def test_a_lease_is_extended_while_a_build_works(make_store: MakeStore):
    store, other = make_store(build_lease_seconds=0.3), make_store(build_lease_seconds=0.3)
    stage(store, "weather", hourly(3))
    leases: set[int] = set()

    def wait() -> None:
        deadline = now_micros() + 20_000_000
        while len(leases) < 4 and now_micros() < deadline:
            with other.ledger.read() as tx:
                leases.update(claimed.lease_expires_at for claimed in builds_in_flight(tx))

    with at(CrashPoint.PARQUET_WRITTEN, wait):
        build(store)

    assert len(leases) == 4
    assert published(store) == rows_of(hourly(3))


def die_behind_a_fence(store: Store) -> None:
    """Let a build die before its commit, and whoever settles it right after the fence."""
    with dies_at(CrashPoint.MANIFEST_WRITTEN):
        build(store)
    with dies_at(CrashPoint.RECOVERY_FENCED):
        settle_dead_builds(store, everyone)


def test_a_fence_left_by_a_recoverer_that_died_is_not_taken_for_a_publication(store: Store):
    stage(store, "weather", hourly(30))
    die_behind_a_fence(store)
    table = DeltaTable(str(store.table("weather").root))
    with store.ledger.read() as tx:
        (flight,) = builds_in_flight(tx)
    assert (last_sequence(table, "weather"), last_published_sequence(table, "weather", 0)) == (flight.sequence, 0)
    assert readable(store) == ROWS

    (settled,) = settle_dead_builds(store, everyone)

    assert not settled.published
    assert readable(store) == ROWS
    build(store)
    assert published(store) == readable(store) == ROWS


def test_a_fence_behind_earlier_publications_is_not_taken_for_one_of_them(store: Store):
    stage(store, "weather", hourly(3))
    build(store)
    stage(store, "weather", hourly(4))
    die_behind_a_fence(store)

    (settled,) = settle_dead_builds(store, everyone)

    assert not settled.published
    assert published(store) == rows_of(hourly(3))
    assert readable(store) == rows_of(hourly(3), hourly(4))


@pytest.mark.parametrize("wake_at", [CrashPoint.SLICES_CLAIMED, CrashPoint.MANIFEST_WRITTEN])
@pytest.mark.parametrize("others_build", [True, False])
def test_a_builder_that_wakes_up_after_it_was_fenced_publishes_nothing(
    make_store: MakeStore, wake_at: CrashPoint, others_build: bool
):
    store, other = make_store(), make_store()
    stage(store, "weather", hourly(30))

    def meanwhile() -> None:
        assert [settled.published for settled in settle_dead_builds(other, everyone)] == [False]
        if others_build:
            stage(other, "weather", hourly(3, station="MORE"))
            build(other)

    with at(wake_at, meanwhile), pytest.raises(TimestoreError) as caught:
        build(store)

    assert caught.errisinstance(BuildAborted) or "published nothing" in str(caught.value)
    expected = rows_of(hourly(30), hourly(3, station="MORE")) if others_build else ROWS
    assert readable(store) == expected
    assert published(store) == (expected if others_build else [])
    assert counted(store, RETRIED_BATCHES) == {"flush_abort": 1}
    if not others_build:
        build(store)
    assert published(store) == readable(store) == expected


def test_a_builder_that_wakes_up_after_it_was_marked_published_changes_nothing(make_store: MakeStore):
    store, other = make_store(), make_store()
    stage(store, "weather", hourly(30))

    def others_settle() -> None:
        assert [settled.published for settled in settle_dead_builds(other, everyone)] == [True]

    with at(CrashPoint.TABLE_SYNCED, others_settle):
        report = build(store)

    assert report.rows == 30
    assert published(store) == readable(store) == ROWS
    assert counted(store, FLUSH_ROWS) == {"success": 30}
    with store.ledger.read() as tx:
        assert sum(total.rows for total in window_totals(tx, "weather")) == 30


def test_a_commit_whose_sync_failed_is_published_all_the_same(store: Store):
    stage(store, "weather", hourly(3))

    with fails_at(CrashPoint.TABLE_COMMITTED, OSError(5, "Input/output error")):
        report = build(store)

    assert report.table_version == 1
    assert published(store) == readable(store) == rows_of(hourly(3))


def test_when_the_ledger_fails_after_the_commit_the_rows_stay_readable_once(store: Store):
    stage(store, "weather", hourly(3))

    with fails_at(CrashPoint.PUBLICATION_RECORDED, LedgerError("the ledger is locked")), pytest.raises(LedgerError):
        build(store)
    assert readable(store) == published(store) == rows_of(hourly(3))

    settle_dead_builds(store, everyone)

    assert readable(store) == published(store) == rows_of(hourly(3))


def test_a_build_that_cannot_be_settled_is_left_and_holds_no_other_dataset(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
):
    store = make_store(declared(other="", weather=""))
    for dataset in ("weather", "other"):
        stage(store, dataset, hourly(3))
        with store.ledger.write() as tx:
            claim_slices(tx, NewBuild(dataset, owner="gone", trigger="rows", lease_micros=0, now=0))
        columns = store.datasets[dataset].declared_columns or ()
        commit_module.ensure_table(store.table(dataset), dataset, columns, store.ledger.identity)
    broken = store.table("weather").root / "_delta_log" / f"{0:020d}.json"
    whole = broken.read_bytes()
    broken.write_bytes(b"rubbish")

    with caplog.at_level(logging.ERROR):
        settled = settle_dead_builds(store)

    assert [item.build.dataset for item in settled] == ["other"]
    assert "'weather' cannot be settled" in caplog.text
    assert readable(store, "weather") == rows_of(hourly(3))
    broken.write_bytes(whole)
    assert [item.build.dataset for item in settle_dead_builds(store)] == ["weather"]


def test_two_recoveries_at_once_settle_a_build_once(make_store: MakeStore):
    store, other = make_store(), make_store()
    stage(store, "weather", hourly(30))
    with dies_at(CrashPoint.MANIFEST_WRITTEN):
        build(store)
    inner = list[SettledBuild]()

    # The next commit is the fence.
    with at(CrashPoint.TABLE_CHECKED, lambda: inner.extend(settle_dead_builds(other, everyone))):
        outer = settle_dead_builds(store, everyone)

    assert [item.published for item in (*inner, *outer)] == [False, False]
    assert counted(store, RETRIED_BATCHES) == {"flush_abort": 1}
    assert counted(store, FLUSH_ROWS) == {"failure": 30}
    build(store)
    assert published(store) == ROWS


def test_stage_file_after_a_kill_is_what_a_caller_would_do(store: Store, tmp_path: Path):
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_bytes(hourly(3)))
    with dies_at(CrashPoint.BATCHES_ACKNOWLEDGED):
        stage_file(store, "weather", path)

    assert stage_file(store, "weather", path).duplicate
    assert readable(store) == rows_of(hourly(3))

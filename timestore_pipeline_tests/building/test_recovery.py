"""Interrupted builds: settled by the table, published or fenced, every row exactly once throughout (invariant 5)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from timestore_pipeline.building import publication as publication_module
from timestore_pipeline.building import recovery as recovery_module
from timestore_pipeline.building import writing as writing_module
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
    files_under,
    hourly,
    parquet_bytes,
    published,
    readable,
    rows_of,
)
from timestore_pipeline_tests.conftest import MakeStore

ROWS = rows_of(hourly(30))


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def everyone(_: str) -> bool:
    return True


def stop_at(
    monkeypatch: pytest.MonkeyPatch, name: str, *, after: bool = False, module: Any = publication_module
) -> None:
    """Let the process end before (or after) it calls ``name``."""
    real = getattr(module, name)

    def stop(*args: Any, **kwargs: Any) -> None:
        if after:
            real(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(module, name, stop)


def interrupted_build(store: Store, name: str, *, after: bool = False, module: Any = publication_module) -> None:
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, name, after=after, module=module)
        stop_at(patched, "settle_build")  # an interrupted process would still tidy up, a dead one cannot
        with pytest.raises(Killed):
            build(store)


BEFORE_THE_COMMIT = [
    pytest.param("write_window", False, writing_module, id="slices claimed"),
    pytest.param("write_window", True, writing_module, id="a window written"),
    pytest.param("commit_build", False, publication_module, id="all windows written"),
]
AFTER_THE_COMMIT = [
    pytest.param("_sync_commit", False, commit_module, id="committed and not synced"),
    pytest.param("commit_build", True, publication_module, id="committed"),
    pytest.param("record_commit", False, publication_module, id="before the ledger"),
]


@pytest.mark.parametrize(("name", "after", "module"), BEFORE_THE_COMMIT)
def test_a_build_that_died_before_its_commit_is_fenced_and_its_rows_are_staged_again(
    store: Store, name: str, after: bool, module: Any
):
    stage(store, "weather", hourly(30))
    interrupted_build(store, name, after=after, module=module)
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


@pytest.mark.parametrize(("name", "after", "module"), AFTER_THE_COMMIT)
def test_a_build_that_died_after_its_commit_is_marked_published(store: Store, name: str, after: bool, module: Any):
    stage(store, "weather", hourly(30))
    interrupted_build(store, name, after=after, module=module)
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
    interrupted_build(store, "_sync_commit", module=commit_module)
    done: list[str] = []
    monkeypatch.setattr(local, "sync_private", lambda path: done.append(path.name))
    mark = recovery_module.record_commit
    monkeypatch.setattr(recovery_module, "record_commit", lambda *a, **k: done.append("LEDGER") or mark(*a, **k))

    settle_dead_builds(store, everyone)

    assert done.index(f"{1:020d}.json") < done.index("LEDGER")
    assert done.index("_delta_log") < done.index("LEDGER")


def test_a_build_syncs_a_fence_before_its_commit_that_nobody_has_synced(store: Store, monkeypatch: pytest.MonkeyPatch):
    stage(store, "weather", hourly(3))
    interrupted_build(store, "commit_build")
    with monkeypatch.context() as patched:
        stop_at(patched, "_sync_commit", module=commit_module)
        with pytest.raises(Killed):
            settle_dead_builds(store, everyone)
    settle_dead_builds(store, everyone)
    done: list[str] = []
    monkeypatch.setattr(local, "sync_private", lambda path: done.append(path.name))
    mark = publication_module.record_commit
    monkeypatch.setattr(publication_module, "record_commit", lambda *a, **k: done.append("LEDGER") or mark(*a, **k))

    assert build(store).table_version == 2

    # After a power cut a log with a gap would be no table any more.
    for version in (1, 2):
        assert done.index(f"{version:020d}.json") < done.index("LEDGER")


def test_a_build_lives_while_its_lease_does(make_store: MakeStore):
    store = make_store(build_lease_seconds=100)
    stage(store, "weather", hourly(3))
    interrupted_build(store, "commit_build")

    assert settle_dead_builds(store) == []
    assert settle_dead_builds(store, now=now_micros() + 99_000_000) == []
    assert settle_dead_builds(store, lambda owner: owner == "someone else") == []
    (settled,) = settle_dead_builds(store, now=now_micros() + 101_000_000)

    assert settled.build.owner == "the test"
    build(store)
    assert readable(store) == rows_of(hourly(3))


@pytest.mark.long
def test_a_lease_is_extended_while_a_build_works(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch):
    store, other = make_store(build_lease_seconds=0.3), make_store(build_lease_seconds=0.3)
    stage(store, "weather", hourly(3))
    write = writing_module.write_window
    leases: set[int] = set()

    def slow(*args: Any) -> Any:
        deadline = now_micros() + 20_000_000
        while len(leases) < 4 and now_micros() < deadline:
            with other.ledger.read() as tx:
                leases.update(claimed.lease_expires_at for claimed in builds_in_flight(tx))
        return write(*args)

    monkeypatch.setattr(writing_module, "write_window", slow)
    build(store)

    assert len(leases) == 4
    assert published(store) == rows_of(hourly(3))


def die_behind_a_fence(store: Store) -> None:
    """Let a build die before its commit, and whoever settles it right after the fence."""
    interrupted_build(store, "commit_build")
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, "mark_aborted", module=recovery_module)
        with pytest.raises(Killed):
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


def zombie(store: Store, wake_at: str, meanwhile: Callable[[], object]) -> pytest.ExceptionInfo[TimestoreError]:
    """Run a build that sleeps before ``wake_at`` until ``meanwhile`` is done; return how it ended."""
    module = writing_module if wake_at == "write_window" else publication_module
    real = getattr(module, wake_at)

    def sleep_then(*args: Any, **kwargs: Any) -> Any:
        meanwhile()
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, wake_at, sleep_then)
        with pytest.raises(TimestoreError) as caught:
            build(store)
    return caught


@pytest.mark.parametrize("wake_at", ["write_window", "commit_build"])
@pytest.mark.parametrize("others_build", [True, False])
def test_a_builder_that_wakes_up_after_it_was_fenced_publishes_nothing(
    make_store: MakeStore, wake_at: str, others_build: bool
):
    store, other = make_store(), make_store()
    stage(store, "weather", hourly(30))
    real_build = writing_module.write_window, publication_module.commit_build

    def meanwhile() -> None:
        writing_module.write_window, publication_module.commit_build = real_build
        assert [settled.published for settled in settle_dead_builds(other, everyone)] == [False]
        if others_build:
            stage(other, "weather", hourly(3, station="MORE"))
            build(other)

    caught = zombie(store, wake_at, meanwhile)

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
    commit = publication_module.commit_build

    def woken(*args: Any) -> int:
        version = commit(*args)
        assert [settled.published for settled in settle_dead_builds(other, everyone)] == [True]
        return version

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(publication_module, "commit_build", woken)
        report = build(store)

    assert report.rows == 30
    assert published(store) == readable(store) == ROWS
    assert counted(store, FLUSH_ROWS) == {"success": 30}
    with store.ledger.read() as tx:
        assert sum(total.rows for total in window_totals(tx, "weather")) == 30


def test_a_commit_whose_sync_failed_is_published_all_the_same(store: Store, monkeypatch: pytest.MonkeyPatch):
    stage(store, "weather", hourly(3))
    sync, failed = commit_module._sync_commit, []

    def fails_once(*args: Any, **kwargs: Any) -> int:
        if not failed:
            failed.append(True)
            raise OSError(5, "Input/output error")
        return sync(*args, **kwargs)

    monkeypatch.setattr(commit_module, "_sync_commit", fails_once)

    report = build(store)

    assert report.table_version == 1
    assert published(store) == readable(store) == rows_of(hourly(3))


def test_when_the_ledger_fails_after_the_commit_the_rows_stay_readable_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    stage(store, "weather", hourly(3))

    def locked(*_: Any, **__: Any) -> bool:
        raise LedgerError("the ledger is locked")

    with monkeypatch.context() as patched:
        patched.setattr(publication_module, "record_commit", locked)
        with pytest.raises(LedgerError):
            build(store)
    assert readable(store) == published(store) == rows_of(hourly(3))

    settle_dead_builds(store, everyone)

    assert readable(store) == published(store) == rows_of(hourly(3))


def test_a_build_that_cannot_be_settled_is_left_and_holds_no_other_dataset(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
):
    spec = "{columns: {ts: timestamptz, station: varchar, temp: double}, time: ts, window: day}"
    store = make_store(f"datasets: {{other: {spec}, weather: {spec}}}")
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
    interrupted_build(store, "commit_build")
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
    with pytest.MonkeyPatch.context() as patched:
        from timestore_pipeline.staging import load

        stop_at(patched, "acknowledge_segment", after=True, module=load)
        with pytest.raises(Killed):
            stage_file(store, "weather", path)

    assert stage_file(store, "weather", path).duplicate
    assert readable(store) == rows_of(hourly(3))

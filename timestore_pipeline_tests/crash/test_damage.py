"""Files that are damaged, a ledger that is locked, a clock that jumps: a clear error, and other datasets go on."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import LedgerError, SegmentUnreadable, TableError, TimestoreError
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage.table_folder import LOG_FOLDER
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import published, readable
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import killed_at
from timestore_pipeline_tests.crash.conftest import Recover

pytestmark = pytest.mark.crash

Damage = Callable[[Path], None]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    path.write_bytes(b"\xff\x00rubbish" * (path.stat().st_size // 9 + 1))


def removed(path: Path) -> None:
    path.unlink()


def others_go_on(store: Store) -> None:
    """The other dataset can be staged, built and read."""
    before = len(readable(store, "others"))
    stage(store, "others", rows.readings([1_000 + before]))
    assert len(readable(store, "others")) == before + 1
    flush_windows(store, BuildOrder("others", owner="the test"))
    assert len(published(store, "others")) == before + 1


@pytest.mark.parametrize("damage", [truncated, emptied, overwritten, removed])
def test_a_damaged_segment_is_a_clear_error_and_others_go_on(damage: Damage, make_store: MakeStore):
    store = make_store(rows.DATASETS_YAML)
    receipt = stage(store, "readings", rows.readings(range(2_000)))
    path = store.settings.staging_path / "readings" / f"{receipt.segment_id}.duckdb"
    damage(path)

    with pytest.raises(SegmentUnreadable, match=f"'readings'.*{receipt.segment_id}"):
        readable(store, "readings")
    with pytest.raises(TimestoreError, match="readings"):
        flush_windows(store, BuildOrder("readings", owner="the test"))

    assert settle_dead_builds(store, owner_is_gone=lambda owner: True) == []  # it let go of its claim by itself
    others_go_on(store)


def last_entry(store: Store) -> Path:
    return max((store.table("readings").root / LOG_FOLDER).glob("*.json"))


@pytest.mark.parametrize("damage", [truncated, overwritten, removed])
def test_a_damaged_log_entry_is_a_clear_error_until_it_is_restored(
    damage: Damage, at_work: Callable[..., Store], recover: Recover
):
    store = at_work()
    entry = last_entry(store)
    whole = entry.read_bytes()
    damage(entry)

    with pytest.raises(TableError, match="'readings'"):
        readable(store, "readings")
    with pytest.raises(TimestoreError, match="'readings'"):
        flush_windows(store, BuildOrder("readings", owner="the test"))
    others_go_on(store)
    settle_dead_builds(store, owner_is_gone=lambda owner: True)

    entry.write_bytes(whole)
    recover(store)
    rows.assert_all_is_well(store)


def test_rows_of_an_emptied_log_entry_are_not_left_out_silently(at_work: Callable[..., Store]):
    store = at_work()
    emptied(last_entry(store))

    with pytest.raises(TableError, match=r"'readings'.* lacks the commit of its version 1"):
        readable(store, "readings")

    others_go_on(store)


def test_a_table_whose_log_is_gone_is_not_made_anew(at_work: Callable[..., Store]):
    store = at_work()
    log = store.table("readings").root / LOG_FOLDER
    log.rename(log.with_name("elsewhere"))

    with pytest.raises(TableError, match=r"'readings'.*restore"):
        flush_windows(store, BuildOrder("readings", owner="the test"))

    assert not log.exists()
    log.with_name("elsewhere").rename(log)
    assert flush_windows(store, BuildOrder("readings", owner="the test"))
    rows.assert_acknowledged_rows_are_readable_once(store)


def test_a_log_folder_that_was_made_and_not_filled_is_no_table(make_store: MakeStore):
    store = make_store(rows.DATASETS_YAML)
    stage(store, "readings", rows.batch("a"))
    (store.table("readings").root / LOG_FOLDER).mkdir(parents=True)

    assert flush_windows(store, BuildOrder("readings", owner="the test"))

    assert len(published(store, "readings")) == len(rows.IDS["a"])


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("damage", [truncated, overwritten])
def test_a_damaged_ledger_is_a_clear_error(damage: Damage, make_store: MakeStore):
    store = make_store(rows.DATASETS_YAML)
    stage(store, "readings", rows.batch("a"))
    store.close()
    path = store.settings.staging_path / "ledger.sqlite"
    damage(path)

    with pytest.raises(LedgerError, match=r"ledger\.sqlite"):
        readable(make_store(rows.DATASETS_YAML), "readings")


@pytest.fixture
def lock() -> Callable[[Store], sqlite3.Connection]:
    """Locks a ledger as another process that writes to it does."""

    def hold(store: Store) -> sqlite3.Connection:
        connection = sqlite3.connect(
            store.settings.staging_path / "ledger.sqlite", isolation_level=None, check_same_thread=False
        )
        connection.execute("BEGIN IMMEDIATE")
        return connection

    return hold


@pytest.mark.only_on("sqlite")
def test_a_ledger_that_is_locked_for_a_while_is_waited_for(
    at_work: Callable[..., Store], recover: Recover, lock: Callable[[Store], sqlite3.Connection]
):
    store = at_work(ledger_busy_timeout_seconds=600)
    holder = lock(store)
    done: list[object] = []
    threads = [
        threading.Thread(target=lambda: done.append(stage(store, "readings", rows.batch("e"), batch_id="e"))),
        threading.Thread(target=lambda: done.append(flush_windows(store, BuildOrder("readings", owner="a thread")))),
    ]
    for thread in threads:
        thread.start()
    for _ in range(10):
        rows.assert_acknowledged_rows_are_readable_once(store)  # readers are not held up
    assert done == []

    holder.rollback()

    for thread in threads:
        thread.join(120)
    assert len(done) == len(threads)
    assert None not in done
    recover(store)
    rows.assert_all_is_well(store)


@pytest.mark.only_on("sqlite")
def test_a_ledger_that_stays_locked_is_a_clear_error_and_loses_nothing(
    at_work: Callable[..., Store], recover: Recover, lock: Callable[[Store], sqlite3.Connection]
):
    store = at_work(ledger_busy_timeout_seconds=0.2)
    holder = lock(store)

    with pytest.raises(LedgerError, match="locked"):
        stage(store, "readings", rows.batch("e"), batch_id="e")
    with pytest.raises(LedgerError, match="locked"):
        flush_windows(store, BuildOrder("readings", owner="the test"))

    holder.rollback()
    assert not list(store.settings.staging_path.rglob("*.tmp"))
    recover(store)
    rows.assert_all_is_well(store)


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock by some hours, for every part that reads it."""

    def move(hours: float) -> None:
        moved = SimpleNamespace(time_ns=lambda: time.time_ns() + int(hours * 3_600e9))
        monkeypatch.setattr("timestore_pipeline.model.clock.time", moved)

    return move


@pytest.mark.parametrize("hours", [-48, -1, 1, 48])
def test_a_clock_that_jumps_loses_and_doubles_nothing(
    hours: float, at_work: Callable[..., Store], recover: Recover, jump: Callable[[float], None]
):
    store = at_work()
    killed_at(store, "build", CrashPoint.TABLE_CHECKED)
    jump(hours)

    settled = settle_dead_builds(store)

    # Backwards, the lease of the dead build looks longer than it is; its owner's end is found all the same.
    assert len(settled) == (1 if hours > 0 else 0)
    unlink_published_segments(store)
    recover(store)
    jump(0)
    recover(store)
    unlink_published_segments(store)
    with store.ledger.read() as tx:
        assert builds_in_flight(tx) == []
    assert sorted(row[0] for row in published(store, "readings")) == sorted(
        row_id for ids in rows.IDS.values() for row_id in ids
    )
    rows.assert_acknowledged_rows_are_readable_once(store)

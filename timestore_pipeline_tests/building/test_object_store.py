"""Tables in an object store: every row is there once whatever the store does, and what it costs to read them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.duck.remote_files import duckdb_path
from timestore_pipeline.errors import (
    BuildAborted,
    LedgerLost,
    PlaceMissing,
    QueryError,
    StorageRefused,
    TableError,
    TableGone,
    TableNotOurs,
    TimestoreError,
)
from timestore_pipeline.ledger.counters import RETRIED_BATCHES
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.doctor import Level, look_at_table
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.restoring.ledger import rebuild_ledger
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage.marks import mark_key
from timestore_pipeline.store import Store
from timestore_pipeline.table.commit import commit_build
from timestore_pipeline.table.contents import file_prefix, live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.replacement import read_for_replacement
from timestore_pipeline.table.sequences import last_sequence
from timestore_pipeline.timestore import Timestore
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.vacuum import vacuum_table
from timestore_pipeline_tests.builders import NEW_YEAR, build, counted, hourly, published, readable, rows_of
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.fault_proxy import Effect, Fault, Request, denied, slow_down
from timestore_pipeline_tests.installations import build_behind_the_ledger
from timestore_pipeline_tests.object_store import Bucket

pytestmark = [pytest.mark.only_on("sqlite"), pytest.mark.server]

COMMIT = "*/_delta_log/*1.json"
"""The log entry of the first build; that of the table's creation is 0."""


@pytest.fixture
def store(make_store: MakeStore, s3_bucket: Bucket) -> Store:
    """Tables in a bucket; a test that takes answers away says itself how long they are waited for."""
    return make_store(tables_url=f"{s3_bucket.url}/some/tables", object_store_timeout_seconds=120)


def assert_everything_is_there_once(store: Store, rows: Any) -> None:
    """After a recovery and one more build: read by SQL, by any Delta reader, by the audit, and nothing left behind."""
    assert readable(store) == rows
    settle_dead_builds(store, owner_is_gone=lambda owner: True)
    assert readable(store) == rows
    flush_windows(store, BuildOrder("weather", owner="the test"))
    assert readable(store) == published(store) == rows
    assert audit_rows(store, "weather").wrong == ()
    sweep_orphans(store, 0)
    place = store.table("weather")
    keys = {entry.key for entry in place.entries()}
    live = {file.path for file in live_files(open_table(place, "weather"))}
    assert {key for key in keys if key.startswith("window_key=")} == live
    assert [key for key in keys if ".pending" in key] == []
    assert list(store.settings.temp_path.glob("*")) == []


# Each step of a build and of reading, as the requests that it makes of the store.
STEPS = {
    "look for the table": ("LIST", "*_delta_log/"),
    "read the log": ("GET", "*/_delta_log/*.json"),
    "put a file": ("PUT", "*.parquet"),
    "put the manifest": ("PUT", "*.pending.arrow"),
    "look at the file": ("HEAD", "*.parquet"),
    "commit": ("PUT", "*/_delta_log/*.json"),
    "keep the manifest": ("COPY", "*.arrow"),
    "drop the pending one": ("DELETE_MANY", "*"),
    "read rows": ("GET", "*.parquet"),
}
HITCHES: dict[str, Callable[[str, str], Fault]] = {
    "500": lambda operation, key: Fault(Effect.ERROR, operation, key, times=2),
    "SlowDown": lambda operation, key: slow_down(operation, key=key, times=2),
    "500 though it was done": lambda operation, key: Fault(Effect.ERROR_AFTER, operation, key),
    "a lost answer": lambda operation, key: Fault(Effect.DROP_AFTER, operation, key),
    "a reset": lambda operation, key: Fault(Effect.DROP_BEFORE, operation, key),
}


@pytest.mark.parametrize("steps", [["commit"], [step for step in STEPS if step != "commit"]], ids=["commit", "others"])
def test_a_hitch_in_a_step_costs_no_row_and_doubles_none(steps: list[str], store: Store, s3_bucket: Bucket):
    rows = [hourly(1, station="first")]
    stage(store, "weather", rows[0])
    build(store)
    for name, hitch in HITCHES.items():
        rows.append(hourly(3, station=name))
        stage(store, "weather", rows[-1])
        faults = {step: hitch(*STEPS[step]) for step in steps}
        with s3_bucket.proxy.spoilt(*faults.values()):
            with suppress(TimestoreError):
                build(store)
            assert readable(store) == rows_of(*rows), name

        assert [step for step, fault in faults.items() if not fault.hits] == [], name
    assert_everything_is_there_once(store, rows_of(*rows))


def test_the_answer_to_the_creation_of_a_table_may_be_lost(store: Store, s3_bucket: Bucket):
    stage(store, "weather", hourly(3))

    with s3_bucket.proxy.spoilt(Fault(Effect.DROP_AFTER, "PUT", "*/_delta_log/*0.json")) as _:
        build(store)

    assert_everything_is_there_once(store, rows_of(hourly(3)))


@pytest.mark.parametrize(
    ("effect", "timeout_seconds"),
    [(Effect.DROP_AFTER, 120), (Effect.HANG_AFTER, 2), (Effect.ERROR_AFTER, 120)],
    ids=str,
)
def test_a_commit_whose_answer_is_lost_is_published_once_by_its_own_build(
    effect: Effect, timeout_seconds: float, make_store: MakeStore, s3_bucket: Bucket
):
    store = make_store(tables_url=f"{s3_bucket.url}/some/tables", object_store_timeout_seconds=timeout_seconds)
    stage(store, "weather", hourly(3))

    with s3_bucket.proxy.spoilt(Fault(effect, "PUT", COMMIT)):
        report = build(store)

    assert report.rows == 3
    assert counted(store, RETRIED_BATCHES, "weather").get("flush_abort", 0) == 0
    assert last_sequence(open_table(store.table("weather"), "weather"), "weather") == report.sequence
    assert_everything_is_there_once(store, rows_of(hourly(3)))


def test_a_commit_that_comes_after_its_build_was_fenced_is_refused_by_the_store(store: Store, s3_bucket: Bucket):
    """The request is on its way while its sender is taken for dead: only the condition of the put can stop it."""
    stage(store, "weather", hourly(3))

    def fence(_: Request) -> None:
        with Store.open(store.settings) as other:
            (settled,) = settle_dead_builds(other, owner_is_gone=lambda owner: True)
            assert not settled.published

    with (
        s3_bucket.proxy.spoilt(Fault(Effect.CALL, "PUT", COMMIT, call=fence)),
        pytest.raises(BuildAborted),
    ):
        build(store)

    assert readable(store) == rows_of(hourly(3))
    assert published(store) == []
    assert_everything_is_there_once(store, rows_of(hourly(3)))


def test_an_older_ledger_changes_nothing_in_the_bucket(store: Store):
    build_behind_the_ledger(store)
    place = store.table("weather")
    before = list(place.entries())

    with pytest.raises(TableNotOurs):
        build(store)
    vacuum_table(store, "weather", now=now_micros() + 10 * 86_400_000_000)
    sweep_orphans(store, -60)

    assert list(place.entries()) == before
    assert published(store) == rows_of(hourly(3), hourly(3, station="LOST"))


def test_of_two_builds_on_the_same_state_of_a_table_one_is_refused(store: Store):
    """Whatever the order, delta-rs puts the log entry under a condition, so that the second finds it taken."""
    for rows in (2, 3):
        stage(store, "weather", hourly(rows, station=str(rows)))
        build(store)
    columns = store.datasets["weather"].declared_columns or ()
    with store.ledger.read() as tx:
        last = latest_builds(tx)["weather"]
    one, two = (replace(last, sequence=last.sequence + number) for number in (1, 2))
    own, place = OwnTable(store, "weather"), store.table("weather")
    stale = [read_for_replacement(own, build, ["2026-01-01"]) for build in (one, two)]
    commit_build(own, one, columns, (), stale[0])

    with pytest.raises(TableError, match="commit to s3://"):
        commit_build(own, two, columns, (), stale[1])

    assert last_sequence(open_table(place, "weather"), "weather") == one.sequence


def test_a_store_that_creates_a_key_twice_gets_no_table(store: Store, s3_bucket: Bucket):
    key = f"some/tables/{mark_key('tables')}"
    forgetful = Fault(Effect.CALL, "PUT", key, times=None, call=lambda _: s3_bucket.delete(key))

    with s3_bucket.proxy.spoilt(forgetful), pytest.raises(StorageRefused, match="If-None-Match"):
        stage(store, "weather", hourly(3))

    assert s3_bucket.keys() == []
    stage(store, "weather", hourly(3))
    build(store)
    assert_everything_is_there_once(store, rows_of(hourly(3)))


def test_another_bucket_is_not_taken_for_deleted_tables(store: Store, s3_bucket: Bucket, make_store: MakeStore):
    stage(store, "weather", hourly(3))
    build(store)
    store.tables.delete(*[entry.key for entry in store.tables.entries()])
    stage(store, "weather", hourly(3, station="new"))

    for opened in (store, make_store(tables_url=store.tables.location)):
        with pytest.raises((TableGone, PlaceMissing)):
            build(opened)
    assert s3_bucket.keys() == []


def test_a_narrow_query_over_a_large_file_fetches_a_part_of_it(store: Store, s3_bucket: Bucket):
    number = pa.array(range(200_000), pa.int64())
    times = pa.array([NEW_YEAR + timedelta(milliseconds=400 * each) for each in range(len(number))])
    names = pa.array([secrets.token_hex(20) for _ in range(len(number))])
    stage(store, "weather", pa.table({"ts": times, "station": names, "temp": number.cast(pa.float64())}))
    build(store)
    (file,) = live_files(open_table(store.table("weather"), "weather"))
    s3_bucket.proxy.forget()

    found = query_rows(store, "SELECT count(*), max(temp) FROM weather WHERE ts < '2026-01-01 00:00:04Z'").to_arrow()

    assert list(found.to_pylist()[0].values()) == [10, 9.0]
    requests = s3_bucket.proxy.passed("GET", "*.parquet")
    ranges = [request.headers["range"].removeprefix("bytes=").split("-") for request in requests]
    assert 0 < sum(int(last) - int(first) + 1 for first, last in ranges) < file.bytes / 3


def test_what_an_object_store_refuses_is_said_in_a_sentence(store: Store, s3_bucket: Bucket):
    stage(store, "weather", hourly(3))
    sequence = build(store).sequence

    with s3_bucket.proxy.spoilt(denied("GET", key="*.parquet", times=None)), pytest.raises(TableError) as raised:
        query_rows(store, "SELECT * FROM weather").to_arrow()

    assert "403" in str(raised.value), raised.value
    assert f"{file_prefix(sequence)}000.parquet" in str(raised.value)
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{other}')",
        "SELECT * FROM read_text('{table}/../secret.txt')",
        "SELECT * FROM read_text('s3://{bucket}/secret.txt')",
        "SELECT * FROM read_text('timestore://{bucket}/secret.txt')",
    ],
)
def test_a_query_reads_nothing_of_the_bucket_but_its_tables(sql: str, store: Store, s3_bucket: Bucket):
    stage(store, "weather", hourly(3))
    build(store)
    s3_bucket.put("secret.txt", "not for everybody")
    s3_bucket.put("some/tables/others/secret.txt", "not for everybody")
    table = duckdb_path(store.table("weather"))
    names = {"other": f"{table[: -len('weather')]}others/secret.txt", "table": table, "bucket": s3_bucket.name}

    with pytest.raises(QueryError):
        query_rows(store, f"SELECT (SELECT count(*) FROM weather), * FROM ({sql.format(**names)})").to_arrow()


def test_maintenance_of_a_table_in_an_object_store(store: Store, s3_bucket: Bucket):
    rows = [hourly(30, station=str(number)) for number in range(3)]
    for each in rows:
        stage(store, "weather", each)
        build(store)
    before = len(live_files(open_table(store.table("weather"), "weather")))
    early = rows_of(*rows[:2])

    merged = compact_fully(store, BuildOrder("weather", owner="the test"))

    assert (before, merged.merged_files) == (6, 2)
    assert readable(store) == published(store) == rows_of(*rows)
    with Timestore.open(store.settings) as timestore:
        assert rows_of(timestore.as_of(version=2).read("weather").to_arrow()) == early
        now = datetime.now(UTC)
        assert rows_of(timestore.as_of(time=now).read("weather").to_arrow()) == rows_of(*rows)
    freed = vacuum_table(store, "weather", now=now_micros() + 10**14)
    assert freed.files == 6
    assert_everything_is_there_once(store, rows_of(*rows))
    assert look_at_table(store, "weather").__next__().level is Level.OK


def test_a_lost_ledger_is_made_again_from_tables_in_an_object_store(
    store: Store, make_store: MakeStore, s3_bucket: Bucket
):
    stage(store, "weather", hourly(3), batch_id="one")
    build(store)
    stage(store, "weather", hourly(2, station="staged"), batch_id="two")
    store.close()
    ledger = store.settings.staging_path / "ledger.sqlite"
    for path in ledger.parent.glob("ledger.sqlite*"):
        path.unlink()
    with pytest.raises(LedgerLost, match="the table s3://"):
        make_store(**store.settings.model_dump(exclude_unset=True, exclude={"home", "staging_min_free_disk_bytes"}))

    rebuild_ledger(store.settings, by="the test")

    with Store.open(store.settings) as again:
        assert readable(again) == rows_of(hourly(3), hourly(2, station="staged"))
        assert stage(again, "weather", hourly(3), batch_id="one").duplicate
        assert_everything_is_there_once(again, rows_of(hourly(3), hourly(2, station="staged")))

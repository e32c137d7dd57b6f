"""Staging in an object store, as its users see it: damage, snapshots, lost ledgers, small caches, wrong settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline.building.damage import set_unreadable_aside
from timestore_pipeline.errors import SegmentUnreadable, SettingsError, StorageRefused
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.operating.doctor import Level, look_at_folders, look_at_segments
from timestore_pipeline.operating.quarantine import discard_entry, kept_at, retry_entry
from timestore_pipeline.restoring.ledger import rebuild_ledger
from timestore_pipeline.settings import load_settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.timestore import Timestore
from timestore_pipeline.upkeep.clearing import clear_staging, look_into_staging
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline.validation.scratch import scratch_name, scratch_store
from timestore_pipeline_tests.builders import build, hourly, in_order, ingest, readable, rows_of, weather
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.fault_proxy import denied
from timestore_pipeline_tests.object_store import CREDENTIALS, Bucket

pytestmark = [pytest.mark.server, pytest.mark.only_on("sqlite")]

Drop = Callable[[Store, str, str, str | bytes], Path]


@pytest.fixture
def store(make_store: MakeStore, s3_bucket: Bucket) -> Store:
    return make_store(staging_directory=f"{s3_bucket.url}/staging", staging_retention_seconds=0)


def only(bucket: Bucket, prefix: str = "") -> str:
    (key,) = (key for key in bucket.keys(f"staging/{prefix}") if not key.endswith(".resolved"))
    return key


def empty_cache(store: Store) -> None:
    for entry in list(store.staging.entries()):
        store.staging.forget(entry.key)


def test_rows_go_their_way_and_only_objects_are_left_that_somebody_needs(store: Store, s3_bucket: Bucket, drop: Drop):
    stage(store, "weather", hourly(30), batch_id="a")
    stage(store, "weather", weather((None, "LGA", 1.0)), batch_id="b")
    drop(store, "weather", "bad.csv", "ts,station\n1,2\n")
    ingest(store)
    empty_cache(store)

    assert readable(store) == rows_of(hourly(30))
    build(store)
    unlink_published_segments(store)

    assert readable(store) == rows_of(hourly(30))
    kept = s3_bucket.keys()
    assert sorted(key.rpartition(".")[2] for key in kept) == ["csv", "parquet"]
    with store.ledger.read() as tx:
        entries = open_entries(tx, "weather")
    assert {f"staging/{entry.path}" for entry in entries} == set(kept)
    assert all(kept_at(store, entry).startswith(f"{s3_bucket.url}/staging/_quarantine/") for entry in entries)
    home = store.settings.home
    here = {path.relative_to(home / "data").parts[0] for path in home.glob("data/**/*") if path.is_file()}
    assert here == {"work", "tables", "archive"}
    for entry in entries:
        discard_entry(store, entry.id, "the test")
    assert s3_bucket.keys() == []


def test_what_was_impossible_is_retried_from_where_it_is_kept(store: Store, s3_bucket: Bucket, drop: Drop):
    drop(store, "weather", "good_one_day.csv", "ts,station,temp\n2026-01-01T00:00:00Z,JFK,one\n")
    ingest(store)
    stage(store, "weather", weather((None, "LGA", 1.0)), batch_id="b")
    with store.ledger.read() as tx:
        entries = {entry.source: entry.id for entry in open_entries(tx, "weather")}
    still = retry_entry(store, entries["stage()"], "the test")
    assert "the time is null" in str(still.left)

    key = next(key for key in s3_bucket.keys("staging/") if key.endswith(".csv"))
    s3_bucket.put(key, "ts,station,temp\n2026-01-01T00:00:00Z,JFK,1\n")
    empty_cache(store)
    done = retry_entry(store, entries["good_one_day.csv"], "the test")

    assert (done.done, done.rows) == (True, 1)
    assert len(readable(store)) == 1
    assert key not in s3_bucket.keys("staging/")
    assert [path.name for path in store.settings.archive_path.rglob("*.csv")] != []


@pytest.mark.parametrize("damage", ["absent", "short", "other bytes"])
def test_a_damaged_object_is_named_set_aside_and_taken_back_when_it_is_restored(
    damage: str, store: Store, s3_bucket: Bucket
):
    stage(store, "weather", hourly(30), batch_id="a")
    key = only(s3_bucket, "weather/")
    stage(store, "weather", hourly(5, station="LGA"), batch_id="b")
    backup = s3_bucket.get(key)
    s3_bucket.delete(key)
    if damage != "absent":
        s3_bucket.put(key, backup[: len(backup) // 2] if damage == "short" else b"?" * len(backup))
    empty_cache(store)
    store.staging.forget(key.removeprefix("staging/"))

    with pytest.raises(SegmentUnreadable, match=f"{s3_bucket.url}/{key}"):
        readable(store)
    assert any(each.level is Level.ERROR for each in look_at_segments(store)) == (damage != "other bytes")
    (entry,) = set_unreadable_aside(store, "weather")
    assert readable(store) == rows_of(hourly(5, station="LGA"))
    assert entry.rows == 30

    s3_bucket.put(key, backup)
    retried = retry_entry(store, entry.id, "the test")

    assert (retried.done, retried.rows) == (True, 30)
    assert readable(store) == in_order(rows_of(hourly(30), hourly(5, station="LGA")))
    assert s3_bucket.keys("staging/_quarantine/") == []


def test_a_damaged_copy_is_fetched_again(store: Store, s3_bucket: Bucket):
    stage(store, "weather", hourly(30), batch_id="a")
    copy = store.staging.fetch(only(s3_bucket, "weather/").removeprefix("staging/"))
    copy.write_bytes(b"rubbish")

    assert readable(store) == rows_of(hourly(30))
    copy.write_bytes(b"rubbish")
    assert set_unreadable_aside(store, "weather") == []


def test_a_store_that_refuses_sets_nothing_aside(store: Store, s3_bucket: Bucket):
    stage(store, "weather", hourly(30), batch_id="a")
    empty_cache(store)

    with s3_bucket.proxy.spoilt(denied(times=None)):
        assert set_unreadable_aside(store, "weather") == []
        with pytest.raises(StorageRefused, match="AccessDenied"):
            readable(store)
        (finding,) = (each for each in look_at_folders(store.settings) if each.part == "store staging")

    assert finding.level is Level.ERROR
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in finding.message
    assert readable(store) == rows_of(hourly(30))


def test_a_relation_keeps_its_rows_while_all_is_flushed_unlinked_and_evicted(make_store: MakeStore, s3_bucket: Bucket):
    store = make_store(staging_directory=f"{s3_bucket.url}/staging", staging_retention_seconds=0, object_cache_bytes=0)
    for number in range(40):
        stage(store, "weather", hourly(3, station=f"S{number}"), batch_id=str(number))
    timestore = Timestore(store)
    few = timestore.sql("SELECT count(DISTINCT station) FROM weather WHERE ts < '2026-01-01T01:00:00Z'")
    rows = timestore.sql("SELECT * FROM weather")
    build(store)
    unlink_published_segments(store)
    for path in [path for path in store.staging.root.rglob("*") if path.is_file()]:
        path.unlink()

    assert s3_bucket.keys() == []
    assert few.fetchall() == [(40,)]
    assert rows.to_arrow_table().num_rows == 120
    assert len(readable(store)) == 120


def test_a_lost_ledger_is_made_again_from_objects(store: Store, s3_bucket: Bucket, make_store: MakeStore, drop: Drop):
    stage(store, "weather", hourly(30), batch_id="a")
    build(store)
    stage(store, "weather", hourly(5, station="LGA"), batch_id="b")
    stage(store, "weather", weather((None, "LGA", 1.0)), batch_id="c")
    drop(store, "weather", "bad.csv", "ts,station\n1,2\n")
    ingest(store)
    before = readable(store)
    store.close()
    for path in store.settings.work_path.glob("**/*"):  # another host
        if path.is_file():
            path.unlink()

    rebuilt = rebuild_ledger(store.settings, by="the test")

    assert rebuilt.complete
    again = make_store(staging_directory=f"{s3_bucket.url}/staging", staging_retention_seconds=0)
    assert readable(again) == before
    assert stage(again, "weather", hourly(5, station="LGA"), batch_id="b").duplicate
    with again.ledger.read() as tx:
        assert len(open_entries(tx, "weather")) == 2


def test_young_objects_of_nobody_stay_and_clearing_removes_what_is_named(store: Store, s3_bucket: Bucket):
    stage(store, "weather", hourly(3), batch_id="a")
    s3_bucket.put("staging/weather/unknown.duckdb", "of a process that is about to acknowledge it")

    assert sweep_orphans(store, older_than_seconds=0).files == 0
    (found,) = look_into_staging(store, ["weather"])
    cleared = clear_staging(store, ["weather"], by="the test", lose_rows=found.lost_rows)

    assert cleared.problems == ()
    assert s3_bucket.keys() == ["staging/weather/unknown.duckdb"]
    assert readable(store) == []


def test_a_validation_leaves_no_object(store: Store, s3_bucket: Bucket):
    with scratch_store(store, None) as scratch:
        name = scratch_name(scratch)
        s3_bucket.put(f"staging/{name}/x.duckdb", "x")
        assert s3_bucket.keys("staging/") != []

    assert s3_bucket.keys("staging/") == []


@pytest.mark.parametrize("url", ["http://example.org/x", "s3://user:hush@bucket/x", "s3:///x", "gs://b/a//b"])
def test_a_wrong_url_is_told_by_its_variable(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIMESTORE_STAGING_DIRECTORY", url)

    with pytest.raises(SettingsError, match="TIMESTORE_STAGING_DIRECTORY") as caught:
        load_settings()

    assert "hush" not in str(caught.value)

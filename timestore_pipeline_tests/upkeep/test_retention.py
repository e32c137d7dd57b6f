"""Files leave staging whole, only when nothing needs them, and orphans of crashes leave too (invariant 3)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.ledger.builds import NewBuild
from timestore_pipeline.ledger.segments import OnDisk, disk_usage
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.freed import Freed
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.commit import ensure_table
from timestore_pipeline.table.contents import file_prefix
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    claim_slices,
    files_under,
    hourly,
    ingest,
    readable,
    rows_of,
    segment_file,
    weather,
)
from timestore_pipeline_tests.conftest import MakeStore


def segments(store: Store) -> list[str]:
    return files_under(store.settings.staging_path / "weather")


def old(path: Path, seconds: float = 7_200) -> Path:
    os.utime(path, (time.time() - seconds, time.time() - seconds))
    return path


def test_a_segment_is_unlinked_when_its_last_row_was_published_long_enough_ago(make_store: MakeStore):
    store = make_store(staging_retention_seconds=100)
    stage(store, "weather", hourly(48))
    size = (store.settings.staging_path / "weather" / segments(store)[0]).stat().st_size
    build(store, last="2026-01-01")

    assert unlink_published_segments(store, now=now_micros() + 10**12) == Freed(0, 0)
    build(store)
    assert unlink_published_segments(store, now=now_micros() + 99_000_000) == Freed(0, 0)
    with store.ledger.read() as tx:
        assert disk_usage(tx) == {("weather", "retained"): OnDisk(1, size)}
    assert unlink_published_segments(store, now=now_micros() + 101_000_000) == Freed(1, size)

    assert segments(store) == []
    assert readable(store) == rows_of(hourly(48))
    with store.ledger.read() as tx:
        assert disk_usage(tx) == {}
    assert unlink_published_segments(store, now=now_micros() + 10**12) == Freed(0, 0)


@pytest.mark.parametrize("what", ["", "_delta_log"], ids=["gone", "without a log"])
def test_segments_stay_while_the_table_cannot_be_opened_that_has_their_rows(store: Store, what: str):
    segment_id = stage(store, "weather", hourly(3)).segment_id
    build(store)
    lost = store.table("weather").root / what
    lost.rename(lost.with_name("away"))
    late = now_micros() + 100 * 86_400_000_000

    assert unlink_published_segments(store, now=late) == Freed()
    assert segment_file(store, segment_id).exists(), "it may be the only copy"

    lost.with_name("away").rename(lost)
    assert unlink_published_segments(store, now=late).files == 1


def test_segments_stay_while_the_log_is_damaged_of_the_table_that_has_their_rows(store: Store):
    segment_id = stage(store, "weather", hourly(3)).segment_id
    build(store)
    for entry in (store.table("weather").root / "_delta_log").glob("*.json"):
        entry.write_text("no JSON")

    assert unlink_published_segments(store, now=now_micros() + 100 * 86_400_000_000) == Freed()
    assert segment_file(store, segment_id).exists(), "it may be the only copy"


def test_staged_and_claimed_rows_keep_their_segment(store: Store):
    stage(store, "weather", hourly(3))

    assert unlink_published_segments(store, now=now_micros() + 10**13) == Freed(0, 0)
    assert len(segments(store)) == 1


def test_a_segment_that_is_gone_already_is_marked(make_store: MakeStore):
    store = make_store(staging_retention_seconds=0)
    stage(store, "weather", hourly(3))
    build(store)
    (store.settings.staging_path / "weather" / segments(store)[0]).unlink()

    assert unlink_published_segments(store).files == 1
    assert unlink_published_segments(store).files == 0


def test_old_files_that_no_ledger_row_knows_are_swept_and_nothing_else(store: Store):
    stage(store, "weather", weather((None, "BAD", 1.0), (NEW_YEAR, "JFK", 1.0)))
    build(store)
    stage(store, "weather", hourly(3))
    landing = store.settings.landing_path / "weather"
    landing.mkdir(parents=True)
    (landing / "bad.rows.parquet").write_bytes(b"rubbish")
    ingest(store)
    staging, table = store.settings.staging_path, store.table("weather").root
    orphans = [
        staging / "weather" / "0123.duckdb",
        staging / "weather" / "0124.duckdb.tmp",
        staging / "weather" / "0124.duckdb.tmp.wal",
        staging / "_quarantine" / "weather" / "0125.rows.parquet",
        staging / "_quarantine" / "weather" / "0126.rows.parquet.tmp",
        table / "window_key=2026-01-01" / ".0000000009-.tmp" / "data_0.parquet",
        store.settings.temp_path / "weather-9.duckdb.tmp",
        store.settings.temp_path / "weather-9.duckdb.tmp.wal",
    ]
    for path in orphans:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234")
    known = {path for folder in (staging, table) for path in folder.rglob("*") if path.is_file()} - set(orphans)
    assert sweep_orphans(store) == Freed(0, 0)
    for path in (*known, *orphans, *(path.parent for path in orphans)):
        old(path)

    freed = sweep_orphans(store)

    assert freed.files == len(orphans)
    assert not any(path.exists() for path in orphans)
    assert all(path.exists() for path in known)
    assert len(readable(store)) == 4


@pytest.mark.parametrize("age", [0, 3_000])
def test_a_young_file_may_belong_to_a_process_at_work(store: Store, age: int):
    folder = store.settings.staging_path / "weather"
    folder.mkdir()
    path = old(folder / "0123.duckdb.tmp", age) if (folder / "0123.duckdb.tmp").write_bytes(b"x") else folder

    assert sweep_orphans(store) == Freed(0, 0)
    assert path.exists()
    assert sweep_orphans(store, older_than_seconds=age - 60).files == 1


def test_sweeping_an_installation_without_any_files_does_nothing(store: Store):
    assert sweep_orphans(store, older_than_seconds=-60) == Freed(0, 0)


def test_what_a_builder_writes_after_it_was_fenced_is_swept(store: Store):
    stage(store, "weather", hourly(3))
    with store.ledger.write() as tx:
        claim = claim_slices(tx, NewBuild("weather", owner="gone", trigger="rows", lease_micros=0, now=0))
    columns = store.datasets["weather"].declared_columns or ()
    ensure_table(store.table("weather"), "weather", columns, store.ledger.identity)
    assert claim is not None
    settle_dead_builds(store)
    late = store.table("weather").root / "window_key=2026-01-01" / f"{file_prefix(claim.build.sequence)}000.parquet"
    late.parent.mkdir()
    late.write_bytes(b"1234")
    build(store)
    for path in late.parent.iterdir():
        old(path)

    assert sweep_orphans(store) == Freed(1, 4)

    assert not late.exists()
    assert readable(store) == rows_of(hourly(3))

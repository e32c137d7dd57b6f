"""A segment that cannot be read back: readers and builds name it, and after bounded attempts the rest goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest

from timestore_pipeline.building.due import plan_flushes
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import QueryError, SegmentUnreadable, TimestoreError
from timestore_pipeline.ledger.quarantine import QuarantineEntry, open_entries, open_totals
from timestore_pipeline.ledger.queue import pending_batches, queue_states, staged_bytes
from timestore_pipeline.ledger.slices import unpublished_slices
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.metrics.projection import collect_metrics
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    SEGMENT_HEADER_BYTES,
    SMALL_BLOCK_BYTES,
    build,
    files_under,
    flip_byte,
    flip_row,
    hourly,
    published,
    readable,
    rows_of,
    segment_file,
    weather,
)
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.deaths import dies_at, fails_at

GOOD = hourly(5, station="LGA")
BAD = hourly(24, station="JFK")


def noisy(days: int) -> pa.Table:
    """A batch of ``weather``, hourly until new year, whose temperatures no block can hold many of."""
    random = Random(3)
    start = NEW_YEAR - timedelta(days=days)
    return weather(*((start + timedelta(hours=number), "JFK", random.random()) for number in range(24 * days)))


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite_header(path: Path) -> None:
    flip_byte(path, 8)


def overwrite_rows(path: Path) -> None:
    flip_byte(path, SEGMENT_HEADER_BYTES + SMALL_BLOCK_BYTES // 2)


def swap_for_another_segment(path: Path) -> None:
    """A file that DuckDB reads without complaint, with other rows than the ledger has."""
    other = next(file for file in path.parent.glob("*.duckdb") if file != path)
    path.write_bytes(other.read_bytes())


DAMAGES = [remove, empty, truncate, overwrite_header, overwrite_rows, swap_for_another_segment]
Damage = Callable[[Path], None]


def attempt(store: Store, times: int, dataset: str = "weather") -> None:
    for _ in range(times):
        with pytest.raises(TimestoreError):
            flush_windows(store, BuildOrder(dataset, owner="the test"))


def entries(store: Store) -> list[QuarantineEntry]:
    with store.ledger.read() as tx:
        return open_entries(tx)


@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_segment_is_set_aside_after_bounded_attempts_and_the_rest_is_published(store: Store, damage: Damage):
    bad = stage(store, "weather", BAD, source="bad.csv")
    stage(store, "weather", GOOD)
    path = segment_file(store, bad.segment_id)
    damage(path)
    left = path.read_bytes() if path.exists() else None

    attempt(store, 2)
    assert entries(store) == []
    report = build(store)

    assert report.rows == 5
    assert published(store) == readable(store) == rows_of(GOOD)
    (entry,) = entries(store)
    assert (entry.kind, entry.dataset, entry.rows, entry.source) == (QuarantineKind.SEGMENT, "weather", 24, "bad.csv")
    assert entry.reason.startswith("2026-01-01: ")
    kept = store.staging.fetch(entry.path)
    if left is None:
        assert not kept.exists()
    else:
        assert kept.read_bytes() == left
        assert entry.path == f"_quarantine/weather/{path.name}"
        assert not path.exists()


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage is not swap_for_another_segment])
def test_a_reader_of_a_damaged_segment_is_told_which_one(store: Store, damage: Damage):
    path = segment_file(store, stage(store, "weather", BAD).segment_id)
    damage(path)

    with pytest.raises(SegmentUnreadable, match=path.name):
        query_rows(store, "SELECT sum(temp) FROM weather").to_arrow()
    with pytest.raises(SegmentUnreadable, match=path.name), open_reader(store, ["weather"]) as connection:
        connection.execute("SELECT * FROM weather").fetchall()


def test_a_mistake_in_a_query_is_not_taken_for_damage(store: Store):
    flip_row(store, segment_file(store, stage(store, "weather", noisy(days=100)).segment_id), row=0)

    with pytest.raises(QueryError, match="nonsense"):
        query_rows(store, "SELECT nonsense FROM weather").to_arrow()


def test_other_datasets_go_on_meanwhile(store: Store):
    path = segment_file(store, stage(store, "weather", BAD).segment_id)
    stage(store, "events", hourly(3).rename_columns(["at", "station", "temp"]))
    truncate(path)

    attempt(store, 1)

    assert build(store, "events").rows == 3
    assert query_rows(store, "SELECT * FROM events").to_arrow().num_rows == 3


@pytest.mark.long
def test_only_the_damaged_windows_of_a_segment_are_set_aside(make_store: MakeStore):
    store = make_store(build_max_attempts=1)
    days = 120
    path = segment_file(store, stage(store, "weather", noisy(days)).segment_id)
    flip_row(store, path, row=0)

    report = build(store)

    (entry,) = entries(store)
    assert entry.rows == 24 * days - report.rows
    assert entry.rows is not None
    assert 24 <= entry.rows < 24 * 100
    assert published(store) == readable(store)
    assert len(readable(store)) == report.rows
    unlink_published_segments(store, now=1 << 62)
    assert store.staging.fetch(entry.path).exists()


def test_rows_in_quarantine_leave_the_queue_and_are_counted_where_they_are(make_store: MakeStore):
    store = make_store(build_max_attempts=1, staging_max_pending=2)
    path = segment_file(store, stage(store, "weather", BAD).segment_id)
    truncate(path)
    assert flush_windows(store, BuildOrder("weather", owner="the test")) is None

    with store.ledger.read() as tx:
        assert queue_states(tx) == {}
        assert unpublished_slices(tx) == []
        assert pending_batches(tx, "weather") == 0
        assert staged_bytes(tx) == {}
        totals = open_totals(tx)["weather"]
    assert (totals.batches, totals.segments, totals.rows) == (0, 1, 24)
    assert plan_flushes(store).groups == plan_flushes(store).waiting == ()
    samples = {
        (sample.name, sample.labels.get("component", "")): sample.value
        for family in collect_metrics(store)
        for sample in family.samples
        if sample.labels.get("dataset") == "weather"
    }
    size = entries(store)[0].bytes
    assert samples["timestore_quarantined_segments", ""] == 1
    assert samples["timestore_quarantined_rows", ""] == 24
    assert samples["timestore_staging_disk_usage_bytes", "staged"] == 0
    assert samples["timestore_staging_disk_usage_bytes", "quarantine"] == size > 0
    stage(store, "weather", GOOD)
    stage(store, "weather", hourly(7))  # within MAX_PENDING only if the quarantined batch does not count
    assert stage(store, "weather", BAD).duplicate


def test_neither_retention_nor_sweeping_touches_what_is_in_quarantine(make_store: MakeStore):
    store = make_store(build_max_attempts=1, staging_retention_seconds=0)
    truncate(segment_file(store, stage(store, "weather", BAD).segment_id))
    flush_windows(store, BuildOrder("weather", owner="the test"))

    unlink_published_segments(store, now=1 << 62)
    sweep_orphans(store, older_than_seconds=-60)

    (entry,) = entries(store)
    assert store.staging.fetch(entry.path).stat().st_size == entry.bytes
    assert files_under(store.settings.staging_path / "weather") == []


@pytest.mark.long
def test_a_failure_that_is_not_of_the_segments_sets_nothing_aside(store: Store):
    stage(store, "weather", GOOD)
    for _ in range(5):
        with fails_at(CrashPoint.PARQUET_WRITTEN, OSError(28, "No space left on device")):
            attempt(store, 1)

    assert entries(store) == []
    assert build(store).rows == 5


def test_a_staging_folder_that_is_not_there_sets_nothing_aside(make_store: MakeStore):
    store = make_store(build_max_attempts=1)
    stage(store, "weather", GOOD)
    folder = store.settings.staging_path / "weather"
    folder.rename(folder.with_name("elsewhere"))

    attempt(store, 3)
    folder.with_name("elsewhere").rename(folder)

    assert entries(store) == []
    assert build(store).rows == 5


def test_a_build_that_died_of_a_segment_is_followed_by_one_that_looks_first(make_store: MakeStore):
    from timestore_pipeline.building.recovery import settle_dead_builds

    store = make_store(build_max_attempts=2)
    stage(store, "weather", GOOD)
    truncate(segment_file(store, stage(store, "weather", BAD).segment_id))
    for _ in range(2):
        with dies_at(CrashPoint.SLICES_CLAIMED):
            flush_windows(store, BuildOrder("weather", owner="the test"))
        settle_dead_builds(store, lambda owner: True)

    assert build(store).rows == 5
    assert [entry.rows for entry in entries(store)] == [24]


@pytest.mark.long
def test_attempts_count_from_the_last_success(make_store: MakeStore):
    store = make_store(build_max_attempts=2)
    for hours in (1, 2):
        path = segment_file(store, stage(store, "weather", hourly(hours, start=NEW_YEAR)).segment_id)
        kept = path.read_bytes()
        truncate(path)
        attempt(store, 1)
        path.write_bytes(kept)
        build(store)

    assert entries(store) == []
    assert len(readable(store)) == 3

"""Slices in many segments: read and built with bounded memory, every row once."""

from __future__ import annotations

from datetime import timedelta

import pytest

from timestore_pipeline.errors import SegmentUnreadable
from timestore_pipeline.segments.slices import MOST_ATTACHED
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import NEW_YEAR, build, hourly, published, readable, rows_of

SEGMENTS = MOST_ATTACHED * 2 + 3


@pytest.mark.long
def test_more_segments_than_are_attached_at_once_read_and_build_every_row_once(store: Store) -> None:
    tables = [
        hourly(60, start=NEW_YEAR + timedelta(seconds=number), station=f"S{number}") for number in range(SEGMENTS)
    ]
    for table in tables:
        stage(store, "weather", table)

    assert readable(store) == rows_of(*tables)
    report = build(store, "weather")

    assert report.rows == 60 * SEGMENTS
    assert [window.rows for window in report.windows] == [24 * SEGMENTS, 24 * SEGMENTS, 12 * SEGMENTS]
    assert published(store) == rows_of(*tables)
    assert readable(store) == rows_of(*tables)


@pytest.mark.long
def test_rows_of_many_segments_are_published_in_time_order(store: Store) -> None:
    for number in reversed(range(SEGMENTS)):
        stage(store, "weather", hourly(1, start=NEW_YEAR + timedelta(minutes=number), station=f"S{number}"))

    build(store, "weather")

    with store.connect(store.table("weather").root) as connection:
        files = [str(path) for path in store.table("weather").root.rglob("*.parquet")]
        times = [row[0] for row in connection.execute("SELECT ts FROM read_parquet(?)", [files]).fetchall()]
    assert len(times) == SEGMENTS
    assert times == sorted(times)


@pytest.mark.long
def test_a_build_of_some_windows_leaves_the_other_slices_of_its_segments_staged(store: Store) -> None:
    tables = [hourly(30, station=f"S{number}") for number in range(SEGMENTS)]
    for table in tables:
        stage(store, "weather", table)

    report = build(store, "weather", "2026-01-02", "2026-01-02")

    assert report.rows == 6 * SEGMENTS
    assert len(published(store)) == 6 * SEGMENTS
    assert readable(store) == rows_of(*tables)


@pytest.mark.long
def test_one_missing_segment_among_many_is_named_and_leaves_all_slices_staged(store: Store) -> None:
    receipts = [stage(store, "weather", hourly(1, station=f"S{number}")) for number in range(SEGMENTS)]
    lost = store.staging.fetch(f"weather/{receipts[5].segment_id}.duckdb")
    lost.rename(lost.with_suffix(".away"))

    with pytest.raises(SegmentUnreadable, match=str(receipts[5].segment_id)):
        build(store, "weather")

    lost.with_suffix(".away").rename(lost)
    assert build(store, "weather").rows == SEGMENTS
    assert not list(store.settings.temp_path.iterdir())

"""Windows derived again from retained segments: the same rows, in one swap, or a refusal that says what is missing."""

from __future__ import annotations

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.flush import BuildReport
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.errors import BuildInFlight, RebuildRefused
from timestore_pipeline.ledger.builds import NewBuild, build_in_flight
from timestore_pipeline.ledger.windows import window_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import WindowRange
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import (
    build,
    claim_slices,
    declared,
    flip_row,
    hourly,
    published,
    readable,
    rows_of,
    segment_file,
)
from timestore_pipeline_tests.conftest import MakeStore

LATER = now_micros() + 10**13


def rebuild(store: Store, first: str | None = None, last: str | None = None) -> BuildReport | None:
    window = store.datasets["weather"].window_from_key
    return rebuild_windows(
        store,
        BuildOrder(
            "weather", WindowRange(window(first) if first else None, window(last) if last else None), owner="the test"
        ),
    )


def files(store: Store) -> int:
    return len(live_files(open_table(store.table("weather"), "weather")))


@pytest.mark.long
def test_windows_are_swapped_in_one_commit_for_the_same_rows_in_fewer_files(store: Store):
    tables = [hourly(48, station=f"S{number}") for number in range(3)]
    for number, table in enumerate(tables):
        stage(store, "weather", table, batch_id=f"b{number}")
        build(store)
    version = open_table(store.table("weather"), "weather").version()

    report = rebuild(store)

    assert report is not None
    assert (report.rows, report.files, report.table_version) == (144, 2, version + 1)
    assert [[batch.batch_id for batch in window.batches] for window in report.windows] == [["b0", "b1", "b2"]] * 2
    assert published(store) == readable(store) == rows_of(*tables)
    assert files(store) == 2
    with store.ledger.read() as tx:
        assert [(total.rows, total.files) for total in window_totals(tx, "weather")] == [(72, 1), (72, 1)]
    assert not audit_rows(store, "weather").wrong


def test_what_is_staged_for_the_windows_is_published_with_it(store: Store):
    stage(store, "weather", hourly(48))
    build(store)
    stage(store, "weather", hourly(48, station="NEW"))

    report = rebuild(store, "2026-01-02", "2026-01-02")

    assert report is not None
    assert report.rows == 48
    assert readable(store) == rows_of(hourly(48), hourly(48, station="NEW"))
    assert len(published(store)) == 72
    assert not audit_rows(store, "weather").wrong
    assert build(store).rows == 24


def test_a_table_that_somebody_has_spoilt_is_made_good(store: Store):
    stage(store, "weather", hourly(48))
    build(store)
    DeltaTable(str(store.table("weather").root)).delete("temp > 10")
    assert published(store) != rows_of(hourly(48))

    rebuild(store)

    assert published(store) == readable(store) == rows_of(hourly(48))


def test_there_is_nothing_to_build_again_where_nothing_ever_was(store: Store):
    assert rebuild(store) is None
    stage(store, "weather", hourly(3))
    assert rebuild(store, "2026-02-01", "2026-02-01") is None
    report = rebuild(store)
    assert report is not None
    assert report.rows == 3


def test_it_is_refused_once_retention_no_longer_covers_a_window(make_store: MakeStore):
    store = make_store(staging_retention_seconds=0)
    stage(store, "weather", hourly(48), batch_id="old", source="old.csv")
    build(store)
    unlink_published_segments(store, now=LATER)
    stage(store, "weather", hourly(24, station="NEW"), batch_id="new")
    build(store)

    with pytest.raises(
        RebuildRefused, match=r"old \(old.csv\) with 24 rows in window 2026-01-01: .*unlinked"
    ) as caught:
        rebuild(store)

    assert len(caught.value.missing) == 2
    assert "new" not in str(caught.value)
    assert readable(store) == rows_of(hourly(48), hourly(24, station="NEW"))
    with store.ledger.read() as tx:
        assert build_in_flight(tx, "weather") is None


def test_a_dataset_can_keep_its_segments_for_longer(make_store: MakeStore):
    store = make_store(declared(weather="retention: {staging: 7d}"), staging_retention_seconds=0)
    stage(store, "weather", hourly(3))
    build(store)

    assert unlink_published_segments(store).files == 0
    assert unlink_published_segments(store, now=now_micros() + 6 * 86_400_000_000).files == 0
    assert unlink_published_segments(store, now=now_micros() + 8 * 86_400_000_000).files == 1


@pytest.mark.long
def test_it_is_refused_where_a_segment_is_damaged_and_names_its_batches(store: Store):
    good = stage(store, "weather", hourly(30), batch_id="good")
    bad = stage(store, "weather", hourly(20_000, station="BAD"), batch_id="bad")
    assert good.segment_id != bad.segment_id
    build(store)
    flip_row(store, segment_file(store, bad.segment_id), 5)
    before = published(store)

    with pytest.raises(RebuildRefused, match="batch bad") as caught:
        rebuild(store)

    assert "batch good" not in str(caught.value)
    assert published(store) == readable(store) == before


def test_it_waits_for_a_build_in_flight(store: Store):
    stage(store, "weather", hourly(3))
    with store.ledger.write() as tx:
        claim_slices(tx, NewBuild("weather", owner="x", trigger="rows", lease_micros=10**9, now=now_micros()))

    with pytest.raises(BuildInFlight):
        rebuild(store)


def test_columns_that_have_grown_since_are_in_the_rebuilt_files(make_store: MakeStore):
    inferred = "datasets:\n  weather:\n    time: ts\n    window: day\n"
    store = make_store(inferred)
    stage(store, "weather", hourly(48))
    build(store)
    wider = hourly(24, station="NEW").append_column("gust", pa.array([1.5] * 24))
    stage(store, "weather", wider)

    rebuild(store)

    assert len(published(store)) == len(readable(store)) == 72
    assert {len(row) for row in published(store)} == {4}
    assert not audit_rows(store, "weather").wrong


@pytest.mark.long
def test_files_with_fewer_columns_are_compacted_before_and_after_the_table_has_the_new_ones(make_store: MakeStore):
    inferred = "datasets:\n  weather:\n    time: ts\n    window: day\n"
    store = make_store(inferred)
    for number in range(2):
        stage(store, "weather", hourly(24, station=f"S{number}"))
        build(store)
    stage(store, "weather", hourly(24, station="NEW").append_column("gust", pa.array([1.5] * 24)))

    def compact() -> int:
        return compact_fully(store, BuildOrder("weather", owner="the test")).files

    before = readable(store)
    assert compact() == 2
    assert readable(store) == before
    build(store)
    assert compact() == 2
    assert published(store) == readable(store) == before

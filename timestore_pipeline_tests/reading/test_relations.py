"""Reading: staged and published rows as one relation, at one consistent moment."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import QueryError, SegmentUnreadable, TableError, TimestoreError, UnknownDataset
from timestore_pipeline.ledger.builds import NewBuild
from timestore_pipeline.reading import relations
from timestore_pipeline.reading.relations import open_reader, take_snapshots
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.commit import ensure_table
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    claim_slices,
    declared,
    hourly,
    published,
    readable,
    rows_of,
)
from timestore_pipeline_tests.conftest import MakeStore

COUNT_AND_SUM = "SELECT count(*) AS n, sum(temp) AS total FROM weather"


def count_and_sum(store: Store) -> tuple[int, float | None]:
    (row,) = query_rows(store, COUNT_AND_SUM).to_arrow().to_pylist()
    return row["n"], row["total"]


@pytest.mark.long
def test_count_and_sum_are_right_at_every_moment(make_store: MakeStore):
    store = make_store(staging_retention_seconds=0)
    assert count_and_sum(store) == (0, None)
    stage(store, "weather", hourly(48))
    stage(store, "weather", hourly(24, start=NEW_YEAR + timedelta(days=1), station="LGA"))
    acked = (72, float(sum(range(48)) + sum(range(24))))

    assert count_and_sum(store) == acked
    ensure_table(
        store.table("weather"), "weather", store.datasets["weather"].declared_columns or (), store.ledger.identity
    )
    with store.ledger.write() as tx:
        claim = claim_slices(tx, NewBuild("weather", owner="x", trigger="rows", lease_micros=0, now=0))
    assert claim is not None
    assert count_and_sum(store) == acked

    settle_dead_builds(store)
    assert count_and_sum(store) == acked
    build(store, last="2026-01-01")
    assert count_and_sum(store) == acked
    unlink_published_segments(store)
    assert count_and_sum(store) == acked
    build(store)
    assert count_and_sum(store) == acked
    unlink_published_segments(store)
    assert count_and_sum(store) == acked
    assert len(published(store)) == 72


def test_a_commit_that_the_ledger_has_not_heard_of_is_not_read_twice(store: Store):
    stage(store, "weather", hourly(3))
    build(store)
    stage(store, "weather", hourly(30, station="LGA"))
    seen: list[object] = []

    with at(CrashPoint.TABLE_SYNCED, lambda: seen.extend([readable(store), published(store)])):
        build(store)

    both = rows_of(hourly(3), hourly(30, station="LGA"))
    assert seen == [both, both]
    assert readable(store) == both


def test_a_snapshot_says_where_the_rows_are(store: Store):
    stage(store, "weather", hourly(48))
    build(store, last="2026-01-01")

    weather, events = take_snapshots(store)

    assert (weather.spec.name, weather.table_version) == ("weather", 1)
    assert [(piece.rows, piece.window_start) for piece in weather.slices] == [
        (24, store.datasets["weather"].window_from_key("2026-01-02").start_micros)
    ]
    assert (events.spec.name, events.columns, events.table_version, events.slices) == ("events", None, None, ())
    assert [snapshot.spec.name for snapshot in take_snapshots(store, ["events"])] == ["events"]


def test_what_comes_later_does_not_show_in_an_open_reader(make_store: MakeStore):
    store = make_store(staging_retention_seconds=0)
    stage(store, "weather", hourly(30))

    with open_reader(store) as connection:
        stage(store, "weather", hourly(3, station="LATER"))
        build(store)
        unlink_published_segments(store)
        seen = connection.execute(COUNT_AND_SUM).fetchall()

    assert seen == [(30, float(sum(range(30))))]
    assert len(readable(store)) == 33


def test_a_segment_that_is_unlinked_under_a_reader_is_found_in_the_table(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
):
    store, other = make_store(staging_retention_seconds=0), make_store(staging_retention_seconds=0)
    stage(store, "weather", hourly(30))
    take, taken = relations.take_snapshots, []

    def slow(*args: Any) -> Any:
        snapshots = take(*args)
        if not taken:
            taken.append(snapshots)
            build(other)
            assert unlink_published_segments(other).files == 1
        return snapshots

    monkeypatch.setattr(relations, "take_snapshots", slow)

    assert readable(store) == rows_of(hourly(30))
    assert taken[0][0].slices


def test_a_missing_segment_is_an_error_and_not_fewer_rows(store: Store):
    receipt = stage(store, "weather", hourly(3))
    (store.settings.staging_path / "weather" / f"{receipt.segment_id}.duckdb").unlink()

    with pytest.raises(SegmentUnreadable, match="there is no such file"):
        query_rows(store, COUNT_AND_SUM).to_arrow()


def test_a_missing_table_is_an_error_and_not_fewer_rows(store: Store):
    stage(store, "weather", hourly(3))
    build(store)
    store.table("weather").root.rename(store.table("gone").root)

    with pytest.raises(TableError, match="dataset 'weather'"):
        query_rows(store, COUNT_AND_SUM).to_arrow()


@pytest.mark.parametrize("damaged", [slice(4, 60), slice(60, 400)], ids=["header of a page", "up to the footer"])
def test_a_damaged_file_of_a_table_is_named(store: Store, damaged: slice):
    stage(store, "weather", hourly(3_000))
    build(store)
    (file, *_) = (store.table("weather").root / path for path in live_paths(store))
    whole = bytearray(file.read_bytes())
    whole[damaged] = b"\xff" * len(whole[damaged])
    file.write_bytes(whole)

    with pytest.raises(TableError, match=f"dataset 'weather'.*{file.name} is damaged.*loss show weather"):
        query_rows(store, "select hash(columns(*)) from weather").to_arrow()


def live_paths(store: Store) -> list[str]:
    return [file.path for file in live_files(open_table(store.table("weather"), "weather"))]


def test_a_damaged_dataset_does_not_stand_in_the_way_of_others(make_store: MakeStore):
    store = make_store(declared(weather="", other=""))
    receipt = stage(store, "other", hourly(3))
    (store.settings.staging_path / "other" / f"{receipt.segment_id}.duckdb").write_bytes(b"rubbish")
    stage(store, "weather", hourly(3))

    assert count_and_sum(store) == (3, 3.0)
    with pytest.raises(SegmentUnreadable, match="dataset 'other'"):
        query_rows(store, "select * from weather join other using (ts)").to_arrow()


def test_a_damaged_segment_fails_a_query_that_needs_it(store: Store):
    receipt = stage(store, "weather", hourly(3_000))
    segment = store.settings.staging_path / "weather" / f"{receipt.segment_id}.duckdb"
    whole = segment.read_bytes()
    segment.write_bytes(bytes(byte ^ 0xFF if place > 20_000 else byte for place, byte in enumerate(whole)))

    with pytest.raises(TimestoreError):
        query_rows(store, COUNT_AND_SUM).to_arrow()


def test_a_dataset_whose_columns_are_not_known_yet_has_no_view(store: Store):
    with open_reader(store) as connection:
        views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()

    assert views == [("weather",)]
    with pytest.raises(QueryError, match="events"):
        query_rows(store, "select * from events").to_arrow()


def test_datasets_can_be_joined(make_store: MakeStore):
    store = make_store(declared(weather="", other=""))
    stage(store, "weather", hourly(5))
    stage(store, "other", hourly(3))
    build(store, "other")

    found = (
        query_rows(store, 'SELECT count(*) AS n FROM "weather" w JOIN Other o ON w.ts = o.ts').to_arrow().to_pylist()
    )

    assert found == [{"n": 3}]


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("select nonsense from weather", "nonsense"),
        ("selec 1", "syntax"),
        ("select * from nowhere", "nowhere"),
        ("select 1/0::int, error('at run time')", "at run time"),
    ],
)
def test_a_query_that_cannot_run_says_why(store: Store, sql: str, reason: str):
    with pytest.raises(QueryError, match=reason):
        query_rows(store, sql).to_arrow()


def test_an_unknown_dataset_is_refused_by_name(store: Store):
    with pytest.raises(UnknownDataset), open_reader(store, ["wheather"]):
        pass


def test_staged_windows_are_read_and_no_others_of_the_same_segment(store: Store):
    """Every second window of one segment is published: the others must come from it, and only once."""
    table = hourly(24 * 6)
    stage(store, "weather", table)
    for day in (1, 3, 5):
        build(store, first=f"2026-01-0{day}", last=f"2026-01-0{day}")

    assert readable(store) == rows_of(table)
    assert len(published(store)) == 72


def test_paths_with_awkward_letters_are_read(make_settings: Any, tmp_path: Any):
    home = tmp_path / 'it\'s [a] "home" {x} é*'
    home.mkdir()
    (home / "datasets.yaml").write_text(declared(weather=""))
    with Store.open(make_settings(home=home)) as store:
        stage(store, "weather", hourly(30))
        assert readable(store) == rows_of(hourly(30))
        build(store, last="2026-01-01")
        assert readable(store) == rows_of(hourly(30))

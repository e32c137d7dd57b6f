"""Builds: what is staged for some windows becomes files of the table, in one commit, exactly once."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import BuildInFlight, SegmentUnreadable, TableError, TimestoreError
from timestore_pipeline.ledger.builds import NewBuild, build_in_flight
from timestore_pipeline.ledger.counters import FLUSH_BATCHES, FLUSH_ROWS
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.ledger.states import BuildState
from timestore_pipeline.ledger.windows import window_totals
from timestore_pipeline.model.windows import WindowRange
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
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
    weather,
)
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.sampling import examples


def test_a_build_publishes_everything_that_is_staged(store: Store):
    tables = [hourly(30), hourly(30, station="LGA")]
    for table in tables:
        stage(store, "weather", table)

    report = build(store)

    assert (report.rows, report.batches, report.files) == (60, 2, 2)
    assert [(window.window.key, window.rows, window.files) for window in report.windows] == [
        ("2026-01-01", 48, 1),
        ("2026-01-02", 12, 1),
    ]
    assert report.windows[0].min_time == NEW_YEAR
    assert report.windows[1].max_time == NEW_YEAR + timedelta(hours=29)
    assert published(store) == readable(store) == rows_of(*tables)
    assert flush_windows(store, BuildOrder("weather", owner="the test")) is None
    with store.ledger.read() as tx:
        assert [(total.rows, total.files) for total in window_totals(tx, "weather")] == [(48, 1), (12, 1)]
    assert counted(store, FLUSH_ROWS) == {"success": 60}
    assert counted(store, FLUSH_BATCHES) == {"success": 2}


def test_a_build_over_a_range_publishes_these_windows_only(store: Store):
    table = hourly(24 * 5)
    stage(store, "weather", table)

    report = build(store, first="2026-01-02", last="2026-01-03")

    middle = table.slice(24, 48)
    assert [window.window.key for window in report.windows] == ["2026-01-02", "2026-01-03"]
    assert published(store) == rows_of(middle)
    assert readable(store) == rows_of(table)
    assert build(store, last="2026-01-01").rows == 24
    assert build(store, first="2026-01-05").rows == 24
    assert readable(store) == rows_of(table)
    assert build(store).rows == 24
    assert published(store) == rows_of(table)


def test_a_range_without_staged_rows_builds_nothing(store: Store):
    stage(store, "weather", hourly(3))
    window = store.datasets["weather"].window_from_key("2026-02-01")

    assert flush_windows(store, BuildOrder("weather", WindowRange(window, window), owner="the test")) is None
    with store.ledger.read() as tx:
        assert build_in_flight(tx, "weather") is None


def test_late_rows_go_to_their_own_window(store: Store):
    stage(store, "weather", hourly(48))
    build(store)
    late = weather((NEW_YEAR + timedelta(hours=5), "LATE", 1.0), (NEW_YEAR + timedelta(days=40), "NEW", 2.0))
    stage(store, "weather", late)

    report = build(store)

    assert [window.window.key for window in report.windows] == ["2026-01-01", "2026-02-10"]
    assert published(store) == readable(store) == rows_of(hourly(48), late)
    folder = store.table("weather").root / "window_key=2026-01-01"
    assert len(files_under(folder)) == 2
    with store.ledger.read() as tx:
        assert {total.window_start: total.files for total in window_totals(tx, "weather")}[
            report.windows[0].window.start_micros
        ] == 2


def test_each_window_names_the_batches_and_files_it_came_from(store: Store):
    stage(store, "weather", hourly(30), batch_id="one", source="a.csv")
    stage(store, "weather", hourly(3, station="LGA"), batch_id="two", source="b.csv")

    report = build(store)

    assert [[(batch.batch_id, batch.source, batch.rows) for batch in window.batches] for window in report.windows] == [
        [("one", "a.csv", 24), ("two", "b.csv", 3)],
        [("one", "a.csv", 6)],
    ]


def test_a_report_says_why_and_how_old(store: Store):
    stage(store, "weather", hourly(3))
    with store.ledger.read() as tx:
        from timestore_pipeline.ledger.queue import queue_states

        oldest = queue_states(tx)["weather"].oldest_staged_at

    report = flush_windows(store, BuildOrder("weather", owner="run-1", trigger=Trigger.AGE))

    assert report is not None
    assert (report.trigger, report.oldest_staged_at) == (Trigger.AGE, oldest)
    with store.ledger.read() as tx:
        last = latest_builds(tx)["weather"]
    assert (last.owner, last.trigger, last.state, last.table_version) == ("run-1", "age", "published", 1)
    assert last.files == 1
    assert last.bytes == report.bytes > 0


def many_rows(count: int, *, shuffled: bool) -> pa.Table:
    numbers = np.arange(count)
    if shuffled:
        np.random.default_rng(7).shuffle(numbers)
    start = int(NEW_YEAR.timestamp() * 1e6)
    return pa.table(
        {
            "ts": pa.array(start + numbers * 60_000).cast(pa.timestamp("us", "UTC")),
            "station": pa.array(numbers * 2_654_435_761 % 2**32).cast(pa.string()),
            "temp": np.sin(numbers),
        }
    )


@pytest.mark.long
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("batches", [1, 30])
def test_row_groups_are_sorted_by_time_and_do_not_overlap(store: Store, shuffled: bool, batches: int):
    table = many_rows(300_000, shuffled=shuffled)
    for number in range(batches):
        stage(store, "weather", table.slice(number * 300_000 // batches, 300_000 // batches))

    assert build(store).files == 1

    (path,) = store.table("weather").root.rglob("*.parquet")
    file = pq.ParquetFile(path)
    groups = sorted(
        file.read_row_group(number, ["ts"])["ts"].cast(pa.int64()).to_numpy().tolist()
        for number in range(file.num_row_groups)
    )
    assert len(groups) > 1
    assert sum(map(len, groups)) == 300_000
    assert all(group == sorted(group) for group in groups)
    assert all(one[-1] <= other[0] for one, other in pairwise(groups))


@pytest.mark.long
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_window_larger_than_the_target_becomes_several_files_in_time_order(store: Store, shuffled: bool):
    table = many_rows(600_000, shuffled=shuffled)
    stage(store, "weather", table.slice(0, 350_000))
    stage(store, "weather", table.slice(350_000))

    report = flush_windows(store, BuildOrder("weather", owner="the test", target_file_bytes=1 << 20))

    assert report is not None
    assert report.files >= 4
    assert report.windows[0].files == report.files
    folder = store.table("weather").root / "window_key=2026-01-01"
    times = [pq.read_table(folder / name)["ts"].cast(pa.int64()).to_numpy() for name in files_under(folder)]
    assert all(one.max() <= other.min() for one, other in pairwise(times)), "files are in time order"
    assert sum(map(len, times)) == 600_000
    total = DeltaTable(str(store.table("weather").root)).to_pyarrow_table()
    assert total.sort_by("ts").select(table.column_names).equals(table.sort_by("ts"))


def test_published_files_are_plain_zstd_parquet_that_says_where_it_is_from(store: Store):
    stage(store, "weather", hourly(3))
    report = build(store)

    (path,) = store.table("weather").root.rglob("*.parquet")
    footer = pq.ParquetFile(path)

    assert footer.schema_arrow.names == ["ts", "station", "temp"]
    assert footer.metadata.row_group(0).column(0).compression == "ZSTD"
    about = {key.decode(): value.decode() for key, value in (footer.metadata.metadata or {}).items()}
    assert (about["dataset"], about["window_key"], about["build"]) == ("weather", "2026-01-01", str(report.build_id))


EVERY_TYPE = """
datasets:
  weather:
    columns: {ts: timestamptz, flag: boolean, tiny: tinyint, small: smallint, n: integer, big: bigint, f: float,
              d: double, text: varchar, raw: blob, day: date, local: timestamp, exact: "decimal(10,2)",
              zoned: timestamptz}
    time: ts
    window: day
"""
MICROSECONDS = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
CELLS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "flag": (pa.bool_(), st.booleans()),
    "tiny": (pa.int8(), st.integers(-128, 127)),
    "small": (pa.int16(), st.integers(-(2**15), 2**15 - 1)),
    "n": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "big": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "f": (pa.float32(), st.floats(width=32)),
    "d": (pa.float64(), st.floats()),
    "text": (pa.string(), st.text(max_size=80).filter(lambda text: "\0" not in text)),
    "raw": (pa.binary(), st.binary(max_size=20)),
    "day": (pa.date32(), st.dates()),
    "local": (pa.timestamp("us"), MICROSECONDS),
    "exact": (pa.decimal128(10, 2), st.decimals("-99999999.99", "99999999.99", places=2)),
    "zoned": (pa.timestamp("us", "UTC"), MICROSECONDS),
}
row_of_cells = st.fixed_dictionaries({name: st.none() | cells for name, (_, cells) in CELLS.items()})


@pytest.mark.long
@given(st.lists(row_of_cells, min_size=1, max_size=6))
@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_statistics_in_the_log_are_those_of_the_data(make_store: MakeStore, rows: list[dict[str, Any]]):
    store = make_store(EVERY_TYPE)
    batch = pa.table(
        {
            "ts": pa.array([NEW_YEAR + timedelta(seconds=number) for number in range(len(rows))]),
            **{name: pa.array([row[name] for row in rows], type_) for name, (type_, _) in CELLS.items()},
        }
    )
    receipt = stage(store, "weather", batch)
    if receipt.duplicate:
        return

    report = build(store)

    log = DeltaTable(str(store.table("weather").root), version=report.table_version)
    actions = pa.table(log.get_add_actions(flatten=True))
    mine = next(index for index, path in enumerate(actions["path"].to_pylist()) if f"/{report.sequence:010d}-" in path)
    assert actions["num_records"][mine].as_py() == len(rows)
    for name in batch.column_names:
        column = batch[name].combine_chunks()
        assert actions[f"null_count.{name}"][mine].as_py() == column.null_count, name
        if f"min.{name}" not in actions.column_names:
            assert name in {"raw"}
            continue
        low, high = (actions[f"{bound}.{name}"][mine] for bound in ("min", "max"))
        values = [value for value in column.to_pylist() if value is not None] if name not in {"local", "zoned"} else [
            value for value in column.cast(pa.int64()).to_pylist() if value is not None]  # fmt: skip
        if not low.is_valid:
            assert not high.is_valid
            continue
        if name in {"local", "zoned"}:
            low, high = low.cast(pa.int64()), high.cast(pa.int64())
        assert not any(isinstance(value, float) and math.isnan(value) for value in values), name
        assert (low.as_py(), high.as_py()) == (min(values), max(values)), name
    for name in ("ts", "n", "big", "tiny", "small"):
        if batch[name].null_count < len(rows):
            assert actions[f"min.{name}"][mine].is_valid, f"{name} has bounds"


@pytest.mark.parametrize("value", ["'infinity'", "'-infinity'", "'12000-01-01'", "'0044-03-15 (BC)'", "'0500-03-15'"])
def test_times_that_few_readers_know_stay_readable(make_store: MakeStore, drop: Any, value: str):
    from timestore_pipeline_tests.builders import ingest

    store = make_store(
        "datasets: {weather: {time: ts, window: day, "
        "columns: {ts: timestamptz, a: timestamp, b: timestamptz, c: date}}}"
    )
    landed = drop(store, "weather", "a.parquet", b"")
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            f"COPY (SELECT TIMESTAMPTZ '2026-01-01' AS ts, CAST({value} AS TIMESTAMP) AS a, "
            f"CAST({value} AS TIMESTAMPTZ) AS b, CAST({value} AS DATE) AS c) TO '{landed}' (FORMAT parquet)"
        )
    ingest(store)

    build(store)

    from timestore_pipeline.reading.relations import open_reader

    with open_reader(store, ["weather"]) as connection:
        found = connection.execute(f"SELECT a = {value}, b = {value}, c = {value} FROM weather").fetchall()
    assert found == [(True, True, True)]
    assert DeltaTable(str(store.table("weather").root)).to_pyarrow_table().num_rows == 1
    log = (store.table("weather").root / "_delta_log" / f"{1:020d}.json").read_text()
    assert "infinity" not in log
    assert "BC" not in log
    assert "12000" not in log


@pytest.mark.parametrize("text", ["𠀀", "\U0006789d", "😀", "\ufffd", "a\\u0062", '"\\', "\x7f\x01"])
def test_bounds_of_texts_are_these_texts(store: Store, text: str):
    stage(store, "weather", weather((NEW_YEAR, text, 1.0)))
    build(store)

    actions = pa.table(DeltaTable(str(store.table("weather").root)).get_add_actions(flatten=True))

    assert (actions["min.station"].to_pylist(), actions["max.station"].to_pylist()) == ([text], [text])


@pytest.mark.long
def test_filters_of_other_readers_find_every_row(make_store: MakeStore):
    """Wrong bounds in the log would let a reader skip a file that has what it looks for."""
    store = make_store(EVERY_TYPE)
    schema = {name: type_ for name, (type_, _) in CELLS.items()}
    for number in range(4):
        row = {
            "flag": number % 2 == 0, "tiny": number, "small": -number, "n": number, "big": 2**60 + number,
            "f": 0.1 * number, "d": 0.1 * number, "text": f"é{number}", "raw": b"x", "day": date(2026, 1, 1 + number),
            "local": datetime.fromisoformat(f"2026-01-01T00:00:00.00000{number}"), "exact": None,
            "zoned": datetime(2026, 1, 1, 0, 0, 0, number, tzinfo=UTC),
        }  # fmt: skip
        columns = {name: pa.array([row[name]], type_) for name, type_ in schema.items()}
        stage(store, "weather", pa.table({"ts": pa.array([NEW_YEAR + timedelta(days=number)]), **columns}))
        build(store)
    table = DeltaTable(str(store.table("weather").root))

    for name in ("tiny", "small", "n", "big", "f", "d", "text", "day", "local", "zoned"):
        for value in table.to_pyarrow_table(columns=[name])[name]:
            found = table.to_pyarrow_dataset().to_table(filter=pc.field(name) == value)
            assert found.num_rows == 1, (name, value)


def test_only_one_build_of_a_dataset_is_in_flight(store: Store):
    stage(store, "weather", hourly(3))
    with store.ledger.write() as tx:
        claim_slices(tx, NewBuild("weather", owner="run-1", trigger="rows", lease_micros=10**9, now=0))

    with pytest.raises(BuildInFlight, match="build 1 of run-1 is in flight"):
        build(store)

    assert readable(store) == rows_of(hourly(3))


def in_flight(store: Store, dataset: str = "weather") -> bool:
    with store.ledger.read() as tx:
        return build_in_flight(tx, dataset) is not None


def test_a_missing_segment_fails_its_build_and_is_named(store: Store):
    receipt = stage(store, "weather", hourly(3))
    segment = store.settings.staging_path / "weather" / f"{receipt.segment_id}.duckdb"
    kept = segment.read_bytes()
    segment.unlink()

    with pytest.raises(SegmentUnreadable, match=r"dataset 'weather': segment .*duckdb cannot be read: there is no"):
        build(store)

    assert not in_flight(store)
    assert counted(store, FLUSH_ROWS) == {"failure": 3}
    with store.ledger.read() as tx:
        last = latest_builds(tx)["weather"]
    assert last.state is BuildState.ABORTED
    assert str(segment) in str(last.error)
    segment.write_bytes(kept)
    build(store)
    assert published(store) == readable(store) == rows_of(hourly(3))


@pytest.mark.parametrize("damage", ["truncated", "rubbish", "flipped", "empty"])
def test_a_damaged_segment_releases_its_slices_and_other_datasets_go_on(make_store: MakeStore, damage: str):
    store = make_store(declared(weather="", other=""))
    receipt = stage(store, "weather", many_rows(5_000, shuffled=True))
    stage(store, "other", hourly(3))
    segment = store.settings.staging_path / "weather" / f"{receipt.segment_id}.duckdb"
    whole = segment.read_bytes()
    flipped = bytes(byte ^ 0xFF if position > 40_000 else byte for position, byte in enumerate(whole))
    segment.write_bytes(
        {"truncated": whole[: len(whole) // 2], "rubbish": b"x" * 9_999, "flipped": flipped, "empty": b""}[damage]
    )

    with pytest.raises(TimestoreError):
        build(store)

    assert not in_flight(store)
    assert published(store) == []
    assert files_under(store.table("weather").root) == ["00000000000000000000.json", "00000000000000000001.json"]
    build(store, "other")
    assert published(store, "other") == rows_of(hourly(3))
    segment.write_bytes(whole)
    assert build(store).rows == 5_000
    assert len(published(store)) == 5_000


def test_a_segment_with_other_rows_than_the_ledger_knows_is_not_published(store: Store):
    receipt = stage(store, "weather", hourly(3))
    segment = store.settings.staging_path / "weather" / f"{receipt.segment_id}.duckdb"
    with duckdb.connect(str(segment)) as connection:
        connection.execute("DELETE FROM rows WHERE temp = 1")

    with pytest.raises(SegmentUnreadable, match=r"2 rows of window 2026-01-01 were read where the ledger has 3"):
        build(store)

    assert published(store) == []


def test_a_table_that_cannot_be_made_claims_nothing_and_other_datasets_go_on(make_store: MakeStore):
    store = make_store(declared(weather="", other=""))
    stage(store, "weather", hourly(3))
    stage(store, "other", hourly(3))
    store.table("weather").root.write_text("a file is in the way")

    with pytest.raises(TableError, match=r"dataset 'weather': the table at .* cannot be used"):
        build(store)

    assert not in_flight(store)
    build(store, "other")
    store.table("weather").root.unlink()
    build(store)
    assert published(store) == published(store, "other") == rows_of(hourly(3))


def test_a_window_folder_that_cannot_be_written_releases_the_slices(store: Store):
    stage(store, "weather", hourly(3))
    build(store)
    stage(store, "weather", hourly(30))
    (store.table("weather").root / "window_key=2026-01-02").write_text("a file is in the way")

    with pytest.raises(TimestoreError, match="published nothing"):
        build(store)

    assert not in_flight(store)
    assert readable(store) == rows_of(hourly(3), hourly(30))
    (store.table("weather").root / "window_key=2026-01-02").unlink()
    build(store)
    assert published(store) == readable(store) == rows_of(hourly(3), hourly(30))


def test_a_table_whose_log_is_damaged_is_reported_and_claims_nothing(store: Store):
    stage(store, "weather", hourly(3))
    build(store)
    stage(store, "weather", hourly(4))
    entry = store.table("weather").root / "_delta_log" / f"{1:020d}.json"
    whole = entry.read_bytes()
    entry.write_bytes(whole[:50])

    with pytest.raises(TableError, match="dataset 'weather'"):
        build(store)

    assert not in_flight(store)
    entry.write_bytes(whole)
    build(store)
    assert published(store) == rows_of(hourly(3), hourly(4))


def test_a_file_that_is_not_whole_before_the_commit_is_not_committed(store: Store):
    stage(store, "weather", hourly(3))

    def cut() -> None:
        (file,) = store.table("weather").root.rglob("*.parquet")
        file.write_bytes(parquet_bytes(hourly(1)))

    with at(CrashPoint.MANIFEST_WRITTEN, cut), pytest.raises(TableError, match=r"has \d+ bytes instead of \d+"):
        build(store)

    build(store)
    assert published(store) == rows_of(hourly(3))


def test_everything_is_synced_before_the_ledger_hears_of_it(store: Store, monkeypatch: pytest.MonkeyPatch):
    stage(store, "weather", hourly(30))
    synced: list[str] = []

    def sync(path: Path) -> None:
        synced.append("/".join(path.parts[-2:]))

    for module in ("storage.table_folder", "storage.local", "durable_files"):
        for name in ("fsync_path", "sync_private"):
            monkeypatch.setattr(f"timestore_pipeline.{module}.{name}", sync, raising=False)

    with at(CrashPoint.PUBLICATION_RECORDED, lambda: synced.append("LEDGER")):
        build(store)

    order = {name: synced.index(name) for name in synced}
    data = [name for name in synced if ".tmp/" in name]
    assert len(data) == 2
    for name in data:
        assert order[name] < order["_delta_log/00000000000000000001.json"]
    for key in ("2026-01-01", "2026-01-02"):
        assert order[f"weather/window_key={key}"] < order["_delta_log/00000000000000000001.json"]
    assert order["_delta_log/00000000000000000001.json"] < order["weather/_delta_log"] or "weather/_delta_log" in synced
    assert synced[-1] == "LEDGER"
    assert synced[-2] == "weather/_delta_log"

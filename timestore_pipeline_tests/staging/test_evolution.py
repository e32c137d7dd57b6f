"""Columns that come later: taken up with the batch that brings them, null in older rows, published, never lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder

from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import BatchRejected, ColumnsChanged
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.schemas import schema_history
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    arrow_bytes,
    build,
    hourly,
    in_order,
    ingest,
    parquet_bytes,
    readable,
)
from timestore_pipeline_tests.builders import published as rows_in_table
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.deaths import dies_at

INFERRED = "datasets: {weather: {time: ts, window: day}}"
DECLARED = "datasets: {weather: {time: ts, window: day, columns: {ts: timestamptz, n: int}%s}}"
TS = pa.timestamp("us", "UTC")
Drop = Callable[..., Path]


def batch(n: Any = 1, type_: pa.DataType | None = None, **more: Any) -> pa.Table:
    """One row with the time, a number ``n`` and more columns."""
    table = pa.table({"ts": pa.array([NEW_YEAR], TS), "n": pa.array([n], type_ or pa.int32())})
    for name, value in more.items():
        table = table.append_column(name, value if isinstance(value, pa.Array) else pa.array([value]))
    return table


def moment(*parts: int) -> datetime:
    """A time without a zone."""
    return datetime(*parts, tzinfo=UTC).replace(tzinfo=None)


def history(store: Store) -> list[tuple[int, dict[str, str], str]]:
    """(version, columns, source) of the dataset's columns, oldest first."""
    with store.ledger.read() as tx:
        return [
            (each.version, {column.name: column.type for column in each.columns}, each.source)
            for each in schema_history(tx, "weather")
        ]


def values(store: Store, *names: str) -> list[tuple[Any, ...]]:
    """Some columns of all rows as the read API has them."""
    rows = query_rows(store, f"SELECT {', '.join(names)} FROM weather").to_arrow().to_pylist()
    return in_order(row.values() for row in rows)


def test_a_new_column_is_null_in_older_rows_staged_and_published(make_store: MakeStore):
    store = make_store(INFERRED)
    stage(store, "weather", batch(1), source="first")
    stage(store, "weather", batch(2, gust=7.5), source="second")

    assert values(store, "n", "gust") == [(1, None), (2, 7.5)]
    build(store)
    stage(store, "weather", batch(3, note="é"), source="third")
    stage(store, "weather", batch(4), source="fourth")

    expected = [(1, None, None), (2, 7.5, None), (3, None, "é"), (4, None, None)]
    assert values(store, "n", "gust", "note") == expected
    build(store)
    assert values(store, "n", "gust", "note") == expected
    assert [row[1:] for row in rows_in_table(store)] == expected
    assert [source for _, _, source in history(store)] == ["first", "second", "third"]
    assert list(history(store)[-1][1]) == ["ts", "n", "gust", "note"]


def test_a_table_without_a_new_column_is_read_with_it(make_store: MakeStore):
    store = make_store(INFERRED)
    stage(store, "weather", batch(1))
    build(store)
    stage(store, "weather", batch(2, gust=7.5))

    assert values(store, "n", "gust") == [(1, None), (2, 7.5)]
    assert query_rows(store, "SELECT n FROM weather WHERE gust IS NULL").to_arrow().to_pylist() == [{"n": 1}]


WIDENINGS = {
    "int8 to int16": (pa.int8(), 127, pa.int16(), 30_000, "SMALLINT"),
    "int32 to int64": (pa.int32(), 1, pa.int64(), 1 << 40, "BIGINT"),
    "float to double": (pa.float32(), 0.5, pa.float64(), 0.1, "DOUBLE"),
    "date to timestamp": (pa.date32(), date(2020, 1, 2), pa.timestamp("us"), moment(2020, 1, 2, 3), "TIMESTAMP"),
    "decimals": (pa.decimal128(6, 2), Decimal("9999.25"), pa.decimal128(8, 4), Decimal("1.0001"), "DECIMAL(8,4)"),
}


@pytest.mark.parametrize("change", WIDENINGS)
@pytest.mark.parametrize("built", [False, True])
def test_a_wider_type_is_taken_up_and_older_rows_keep_their_values(make_store: MakeStore, change: str, built: bool):
    narrow, first, wide, second, type_ = WIDENINGS[change]
    store = make_store(INFERRED)
    stage(store, "weather", batch(first, narrow))
    if built:
        build(store)

    stage(store, "weather", batch(second, wide))
    stage(store, "weather", batch(first, narrow), batch_id="narrow again")

    assert history(store)[-1][1]["n"] == type_
    as_wide = pa.array([first], narrow).cast(wide).to_pylist()[0]
    expected = in_order([(as_wide,), (as_wide,), (second,)])
    assert values(store, "n") == expected
    build(store)
    assert values(store, "n") == expected
    assert in_order((row[1],) for row in rows_in_table(store)) == expected
    queried = QueryBuilder().register("t", DeltaTable(str(store.table("weather").root))).execute("SELECT n FROM t")
    assert in_order((row["n"],) for row in pa.table(queried.read_all()).to_pylist()) == expected


def test_files_that_bring_columns_share_a_run_with_those_that_do_not(make_store: MakeStore, drop: Drop):
    store = make_store(INFERRED)
    drop(store, "weather", "a.csv", "ts,n\n2026-01-01 00:00:00,1\n")
    drop(store, "weather", "b.csv", "ts,n,wind\n2026-01-01 00:00:00,2,9\n")
    drop(store, "weather", "c.csv", "ts,n,wind\n2026-01-01 00:00:00,3,9.5\n")
    drop(store, "weather", "d.jsonl", '{"ts": "2026-01-01 00:00:00", "n": 4, "note": "x"}\n')
    drop(store, "weather", "e.jsonl", '{"ts": "2026-01-01 00:00:00", "n": 5}\n')
    drop(store, "weather", "f.arrow", arrow_bytes(pa.table({"n": [6], "ts": [moment(2026, 1, 1)], "up": [True]})))

    report = ingest(store)["weather"]

    assert report.quarantined == ()
    assert report.batches == 6
    assert values(store, "n", "wind", "note", "up") == [
        (1, None, None, None), (2, 9.0, None, None), (3, 9.5, None, None),
        (4, None, "x", None), (5, None, None, None), (6, None, None, True),
    ]  # fmt: skip
    assert [column.name for column in report.columns] == ["ts", "n", "wind", "note", "up"]


REFUSED = {
    "renamed": (batch(1).rename_columns(["ts", "m"]), ["missing columns: 'n'", "unknown columns: 'm'"]),
    "dropped": (batch(1).drop_columns(["n"]), ["missing columns: 'n'"]),
    "another kind": (batch("many", pa.string()), ["'n'", "many"]),
    "a fraction": (batch(1.5, pa.float64()), ["column 'n' arrives as DOUBLE and is kept as INTEGER"]),
    "other case": (batch(1, N=pa.array([1])), ["'N' is called as 'n'"]),
    "nested": (batch(1, deep=pa.array([{"a": 1}])), ["column 'deep'", "declare the column as varchar"]),
    "reserved": (batch(1, window_key="w"), ["'window_key' is reserved"]),
    "two at once": (batch(1.5, pa.float64(), deep=2).drop_columns(["ts"]), ["missing columns: 'ts'", "'n' arrives as"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_any_other_difference_sets_the_batch_aside_with_what_differs(make_store: MakeStore, drop: Drop, what: str):
    store = make_store(INFERRED)
    stage(store, "weather", batch(1))
    table, reasons = REFUSED[what]
    drop(store, "weather", "bad.parquet", parquet_bytes(table))
    drop(store, "weather", "good.parquet", parquet_bytes(batch(2, gust=1.0)))

    (entry,) = ingest(store)["weather"].quarantined

    assert entry.source == "bad.parquet"
    assert all(reason in entry.reason for reason in reasons), entry.reason
    assert history(store)[-1][1] == {"ts": "TIMESTAMP WITH TIME ZONE", "n": "INTEGER", "gust": "DOUBLE"}
    with pytest.raises(BatchRejected):
        stage(store, "weather", table)


def test_nothing_is_taken_up_from_a_file_that_cannot_be_read(make_store: MakeStore, drop: Drop):
    store = make_store(INFERRED)
    stage(store, "weather", batch(1))
    drop(store, "weather", "bad.csv", "ts,n,gust\n2026-01-01 00:00:00,many,1\n")
    drop(store, "weather", "good.csv", "ts,n\n2026-01-01 00:00:00,2\n")

    report = ingest(store)["weather"]

    assert [entry.source for entry in report.quarantined] == ["bad.csv"]
    assert values(store, "n") == [(1,), (2,)]
    assert len(history(store)) == 1


def test_a_column_without_any_value_waits_for_one(make_store: MakeStore, drop: Drop):
    store = make_store(INFERRED)
    stage(store, "weather", batch(1))
    stage(store, "weather", batch(2, late=pa.nulls(1)))
    drop(store, "weather", "a.csv", "ts,n,late\n2026-01-01 00:00:00,3,\n")
    drop(store, "weather", "b.jsonl", '{"ts": "2026-01-01 00:00:00", "n": 4, "late": null}\n')
    assert ingest(store)["weather"].quarantined == ()
    assert len(history(store)) == 1

    drop(store, "weather", "c.csv", "ts,n,late\n2026-01-01 00:00:00,5,0.5\n")
    ingest(store)

    assert values(store, "n", "late") == [(1, None), (2, None), (3, None), (4, None), (5, 0.5)]


def test_text_whose_values_need_a_wider_type_gets_it(make_store: MakeStore, drop: Drop):
    store = make_store(INFERRED)
    stage(store, "weather", batch(1, day=date(2026, 1, 1)))
    drop(store, "weather", "a.csv", f"ts,n,day\n2026-01-01 00:00:00,{1 << 40},2026-01-02\n")
    drop(store, "weather", "b.csv", "ts,n,day\n2026-01-01 00:00:00,3,2026-01-02 05:00:00\n")
    drop(store, "weather", "c.csv", "ts,n,day\n2026-01-01 00:00:00,3.5,2026-01-02\n")

    report = ingest(store)["weather"]

    assert [(entry.source, "3.5" in entry.reason) for entry in report.quarantined] == [("c.csv", True)]
    assert history(store)[-1][1] | {"ts": ""} == {"ts": "", "n": "BIGINT", "day": "TIMESTAMP"}
    assert values(store, "n", "day") == [
        (1, moment(2026, 1, 1)), (1 << 40, moment(2026, 1, 2)), (3, moment(2026, 1, 2, 5)),
    ]  # fmt: skip


def test_a_time_column_of_days_becomes_one_of_moments(make_store: MakeStore):
    store = make_store(INFERRED)
    days = pa.table({"ts": pa.array([date(2026, 1, 1), date(2026, 1, 2)], pa.date32()), "n": [1, 2]})
    stage(store, "weather", days)
    moments = pa.table({"ts": [moment(2026, 1, 1, 5), moment(2026, 1, 3)], "n": [3, 4]})
    stage(store, "weather", moments)

    expected = [(moment(2026, 1, 1), 1), (moment(2026, 1, 1, 5), 3), (moment(2026, 1, 2), 2)]
    assert values(store, "ts", "n") == in_order([*expected, (moment(2026, 1, 3), 4)])
    build(store, first="2026-01-01", last="2026-01-02")
    assert values(store, "ts", "n") == in_order([*expected, (moment(2026, 1, 3), 4)])
    assert rows_in_table(store) == in_order(expected)


def test_declared_columns_are_a_contract_until_the_dataset_may_evolve(make_store: MakeStore, drop: Drop):
    store = make_store(DECLARED % "")
    drop(store, "weather", "a.parquet", parquet_bytes(batch(1, gust=1.0)))
    (entry,) = ingest(store)["weather"].quarantined
    assert "unknown columns: 'gust'" in entry.reason
    assert "evolve: true" in entry.reason
    with pytest.raises(BatchRejected):
        stage(store, "weather", batch(1 << 40, pa.int64()))

    store = make_store(DECLARED % ", evolve: true")
    retried = retry_entry(store, entry.id, "the test")
    stage(store, "weather", batch(1 << 40, pa.int64()))

    assert retried.done
    assert values(store, "n", "gust") == [(1, 1.0), (1 << 40, None)]
    with store.ledger.read() as tx:
        assert open_entries(tx) == []


def test_an_inferred_dataset_can_be_held_to_what_it_has(make_store: MakeStore):
    store = make_store("datasets: {weather: {time: ts, window: day, evolve: false}}")
    stage(store, "weather", batch(1))

    with pytest.raises(BatchRejected, match="unknown columns: 'gust'"):
        stage(store, "weather", batch(1, gust=1.0))


@pytest.mark.long
def test_what_the_datasets_file_adds_or_widens_is_taken_up_when_a_store_is_opened(make_store: MakeStore, drop: Drop):
    old = make_store(DECLARED % "")
    stage(old, "weather", batch(1))
    build(old)

    store = make_store((DECLARED % "").replace("n: int", "n: bigint, gust: double"))

    assert history(store)[-1] == (
        2, {"ts": "TIMESTAMP WITH TIME ZONE", "n": "BIGINT", "gust": "DOUBLE"}, "datasets.yaml",
    )  # fmt: skip
    assert values(store, "n", "gust") == [(1, None)]
    # A process that still has the old file goes on, and its batches need not know the new column.
    stage(old, "weather", batch(2))
    stage(store, "weather", batch(1 << 40, pa.int64(), gust=1.0))
    build(old)
    assert values(old, "n", "gust") == values(store, "n", "gust") == in_order([(1, None), (2, None), (1 << 40, 1.0)])
    assert len(history(make_store((DECLARED % "").replace("n: int", "n: bigint, gust: double")))) == 2
    with pytest.raises(ColumnsChanged, match="n BIGINT"):
        stage(make_store((DECLARED % "").replace("n: int", "n: smallint")), "weather", batch(5))


def test_optional_columns_may_be_missing_and_are_null_then(make_store: MakeStore, drop: Drop):
    store = make_store(DECLARED % ", optional: [n]")
    drop(store, "weather", "a.csv", "ts\n2026-01-01\n")
    stage(store, "weather", batch(1))

    assert ingest(store)["weather"].quarantined == ()
    assert values(store, "n") == [(1,), (None,)]


@pytest.mark.long
def test_changes_of_many_stagers_at_once_are_all_kept(make_store: MakeStore):
    store = make_store(INFERRED)
    stage(store, "weather", batch(0))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: stage(store, "weather", batch(n, **{f"c{n}": float(n)})), range(1, 9)))

    with store.ledger.read() as tx:
        columns = dataset_columns(tx, store.datasets["weather"]) or ()
    assert {column.name for column in columns} == {"ts", "n", *(f"c{n}" for n in range(1, 9))}
    assert [version for version, _, _ in history(store)] == list(range(1, 10))
    for n in range(1, 9):
        assert query_rows(store, f"SELECT c{n} FROM weather WHERE n = {n}").to_arrow().to_pylist() == [
            {f"c{n}": float(n)}
        ]


def test_a_segment_that_was_overtaken_by_a_new_column_is_written_again(make_store: MakeStore):
    store = make_store(INFERRED)
    stage(store, "weather", batch(0))

    with at(CrashPoint.SEGMENT_IN_PLACE, lambda: stage(store, "weather", batch(1, theirs=1.0))):
        stage(store, "weather", batch(2, mine=2.0))

    assert values(store, "n", "theirs", "mine") == [(0, None, None), (1, 1.0, None), (2, None, 2.0)]
    assert len(list((store.settings.staging_path / "weather").glob("*.duckdb"))) == 3


def test_rows_from_quarantine_are_staged_with_the_columns_of_now(make_store: MakeStore):
    store = make_store(INFERRED, staging_max_future_ms=0)
    later = NEW_YEAR.replace(year=2200)
    table = pa.table({"ts": pa.array([NEW_YEAR, later], TS), "n": pa.array([1, 2], pa.int32())})
    stage(store, "weather", table)
    stage(store, "weather", batch(1 << 40, pa.int64(), gust=1.0))
    with store.ledger.read() as tx:
        (entry,) = open_entries(tx)

    retried = retry_entry(make_store(INFERRED, staging_max_future_ms=10**13), entry.id, "the test")

    assert retried.rows == 1
    assert values(store, "n", "gust") == in_order([(1, None), (2, None), (1 << 40, 1.0)])


def test_keys_of_json_lines_that_look_renamed_are_not_taken_up(make_store: MakeStore, drop: Drop):
    store = make_store(INFERRED)
    drop(store, "weather", "a.jsonl", json.dumps({"ts": "2026-01-01 00:00:00", "n": 1}))
    ingest(store)
    drop(store, "weather", "b.jsonl", json.dumps({"ts": "2026-01-01 00:00:00", "m": 1}))

    (entry,) = ingest(store)["weather"].quarantined

    assert "missing columns: 'n'; unknown columns: 'm'" in entry.reason


def test_hourly_batches_of_the_declared_dataset_are_as_before(store: Store):
    stage(store, "weather", hourly(3))
    build(store)
    assert len(readable(store)) == 3
    assert [version for version, _, _ in history(store)] == [1]


def types_in_files(store: Store, column: str) -> set[str]:
    """The types that a column has in the live files of the table, as their footers say."""
    files = [path.removeprefix("file://") for path in DeltaTable(str(store.table("weather").root)).file_uris()]
    schemas = [pq.read_schema(file) for file in files]
    return {str(schema.field(column).type) for schema in schemas if column in schema.names}


@pytest.mark.long
@pytest.mark.parametrize("change", WIDENINGS)
def test_the_commit_that_widens_a_column_leaves_no_file_with_the_narrow_type(make_store: MakeStore, change: str):
    narrow, first, wide, second, _ = WIDENINGS[change]
    store = make_store(INFERRED)
    for day in range(3):
        rows = batch(first, narrow).set_column(0, "ts", pa.array([NEW_YEAR + timedelta(days=day)], TS))
        stage(store, "weather", rows)
        build(store)
    before = DeltaTable(str(store.table("weather").root)).version()

    stage(store, "weather", batch(second, wide))
    build(store)

    assert types_in_files(store, "n") == {str(wide)}
    as_wide = pa.array([first], narrow).cast(wide).to_pylist()[0]
    expected = in_order([(as_wide,)] * 3 + [(second,)])
    assert values(store, "n") == in_order((row[1],) for row in rows_in_table(store)) == expected
    assert audit_rows(store, "weather").wrong == ()
    old = DeltaTable(str(store.table("weather").root), version=before).to_pyarrow_table()
    assert old["n"].to_pylist() == pa.array([first] * 3, narrow).to_pylist()


def test_files_that_never_had_a_column_stay_when_it_is_widened(make_store: MakeStore):
    store = make_store(INFERRED)
    stage(store, "weather", batch(1))
    build(store)
    (untouched,) = DeltaTable(str(store.table("weather").root)).file_uris()
    later = pa.array([NEW_YEAR + timedelta(days=1)], TS)
    stage(store, "weather", batch(2, gust=pa.array([0.5], pa.float32())).set_column(0, "ts", later))
    build(store)

    stage(store, "weather", batch(3, gust=0.1).set_column(0, "ts", later))
    build(store)

    assert untouched in DeltaTable(str(store.table("weather").root)).file_uris()
    assert types_in_files(store, "gust") == {"double"}
    assert values(store, "n", "gust") == [(1, None), (2, 0.5), (3, 0.1)]


@pytest.mark.long
def test_a_compaction_between_staging_and_flush_keeps_what_the_table_has(make_store: MakeStore):
    store = make_store(INFERRED)
    for number in range(3):
        stage(store, "weather", batch(number))
        build(store)
    stage(store, "weather", batch(1 << 40, pa.int64(), gust=0.5))

    report = compact_fully(store, BuildOrder("weather", owner="the test"))

    assert (report.files, report.merged_files) == (3, 1)
    assert types_in_files(store, "n") == {"int32"}
    expected = [(0, None), (1, None), (1 << 40, 0.5), (2, None)]
    assert values(store, "n", "gust") == in_order(expected)
    build(store)
    assert types_in_files(store, "n") == {"int64"}
    assert values(store, "n", "gust") == in_order(expected)


@pytest.mark.long
@pytest.mark.parametrize(("point", "after"), [(CrashPoint.MANIFEST_WRITTEN, False), (CrashPoint.TABLE_SYNCED, True)])
def test_a_widening_that_dies_at_its_commit_is_all_there_or_not_at_all(
    make_store: MakeStore, point: CrashPoint, after: bool
):
    store = make_store(INFERRED)
    for day in range(2):
        stage(store, "weather", batch(day).set_column(0, "ts", pa.array([NEW_YEAR + timedelta(days=day)], TS)))
        build(store)
    stage(store, "weather", batch(1 << 40, pa.int64()))
    with dies_at(point):
        build(store)
    expected = [(0,), (1,), (1 << 40,)]
    assert values(store, "n") == expected
    settle_dead_builds(store, lambda owner: True)

    assert values(store, "n") == expected
    assert types_in_files(store, "n") == {"int64" if after else "int32"}
    if not after:
        build(store)
    assert values(store, "n") == expected
    assert types_in_files(store, "n") == {"int64"}
    assert audit_rows(store, "weather").wrong == ()

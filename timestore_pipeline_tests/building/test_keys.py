"""One row per key in a window: the same rows in every read, whatever is staged, published, late or built again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import BatchRejected, DatasetsFileError, DeclarationChanged, SegmentUnreadable
from timestore_pipeline.ledger.accounts import window_accounts
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.slices import unpublished_slices
from timestore_pipeline.model.columns import POSITION_COLUMN
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.staging.ingest import ingest_files
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import NEW_YEAR, build, in_order, ingest, parquet_bytes
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.deaths import dies_at

DATASETS = """
datasets:
  orders:
    columns: {ts: timestamptz, id: bigint, part: varchar, value: double, version: int}
    time: ts
    window: day
    key: {columns: [id, part]%s}
"""
LATEST = DATASETS % ""
HIGHEST = DATASETS % ", version: version"
Drop = Callable[..., Path]


def orders(*rows: tuple[Any, ...], at: datetime = NEW_YEAR) -> pa.Table:
    """Rows of (id, part, value, version), each a minute after the one before."""
    schema = pa.schema(
        [
            ("ts", pa.timestamp("us", "UTC")), ("id", pa.int64()), ("part", pa.string()), ("value", pa.float64()),
            ("version", pa.int32()),
        ]
    )  # fmt: skip
    padded = [(*row, *(None,) * (4 - len(row))) for row in rows]
    return pa.Table.from_pylist(
        [
            dict(zip(schema.names, (at + timedelta(minutes=number), *row), strict=True))
            for number, row in enumerate(padded)
        ],
        schema,
    )


def values(store: Store, where: str = "true") -> list[tuple[Any, ...]]:
    """(id, part, value) of every row as the read API has them."""
    rows = query_rows(store, f"SELECT id, part, value FROM orders WHERE {where}").to_arrow().to_pylist()
    return in_order(row.values() for row in rows)


def in_table(store: Store) -> list[tuple[Any, ...]]:
    """(id, part, value) of every row as another reader of the Delta table has them."""
    rows = DeltaTable(str(store.table("orders").root)).to_pyarrow_table().to_pylist()
    return in_order((row["id"], row["part"], row["value"]) for row in rows)


def flush(store: Store) -> None:
    build(store, "orders")


def test_the_row_that_was_staged_last_wins_in_every_read(make_store: MakeStore):
    store = make_store(LATEST)
    stage(store, "orders", orders((1, "a", 1.0), (2, "a", 2.0), (1, "a", 3.0)))
    assert values(store) == [(1, "a", 3.0), (2, "a", 2.0)]
    flush(store)
    assert values(store) == in_table(store) == [(1, "a", 3.0), (2, "a", 2.0)]

    stage(store, "orders", orders((2, "a", 4.0), (1, "b", 5.0)))
    expected = [(1, "a", 3.0), (1, "b", 5.0), (2, "a", 4.0)]
    assert values(store) == expected
    flush(store)

    assert values(store) == in_table(store) == expected
    assert audit_rows(store, "orders").wrong == ()
    with store.ledger.read() as tx:
        (account,) = window_accounts(tx, "orders").values()
    assert (account.staged, account.recorded, account.superseded) == (5, 3, 2)


def test_the_highest_version_wins_and_among_equal_ones_the_last(make_store: MakeStore):
    store = make_store(HIGHEST)
    stage(store, "orders", orders((1, "a", 1.0, 5), (2, "a", 2.0, None), (3, "a", 3.0, 1)))
    stage(store, "orders", orders((1, "a", 9.0, 4), (2, "a", 8.0, 0), (3, "a", 7.0, 1)))
    expected = [(1, "a", 1.0), (2, "a", 8.0), (3, "a", 7.0)]

    assert values(store) == expected
    flush(store)
    stage(store, "orders", orders((1, "a", 0.0, 5), (3, "a", 0.0, None)))
    flush(store)

    assert values(store) == in_table(store) == [(1, "a", 0.0), (2, "a", 8.0), (3, "a", 7.0)]


def test_the_same_key_in_another_window_is_another_row(make_store: MakeStore):
    store = make_store(LATEST)
    stage(store, "orders", orders((1, "a", 1.0)))
    flush(store)
    stage(store, "orders", orders((1, "a", 2.0), at=NEW_YEAR + timedelta(days=1)))

    assert values(store) == [(1, "a", 1.0), (1, "a", 2.0)]
    flush(store)
    assert values(store) == in_table(store) == [(1, "a", 1.0), (1, "a", 2.0)]


def test_a_row_that_is_asked_for_does_not_come_back_when_its_successor_is_not(make_store: MakeStore):
    store = make_store(LATEST)
    stage(store, "orders", orders((1, "a", 1.0), (2, "a", 2.0)))
    flush(store)
    stage(store, "orders", orders((1, "a", 100.0), at=NEW_YEAR + timedelta(hours=20)))

    assert values(store, "value < 50") == [(2, "a", 2.0)]
    assert values(store, "ts < TIMESTAMPTZ '2026-01-01 12:00:00Z'") == [(2, "a", 2.0)]
    assert values(store, "id = 1") == [(1, "a", 100.0)]
    assert values(store, "ts >= TIMESTAMPTZ '2026-01-02 00:00:00Z'") == []


def test_files_that_arrive_together_follow_one_another_whatever_their_format(make_store: MakeStore, drop: Drop):
    store = make_store(LATEST)
    names = ["1.csv", "2.parquet", "3.csv", "4.parquet"]
    for number, name in enumerate(names):
        table = orders((1, "a", float(number)))
        csv = f"ts,id,part,value,version\n2026-01-01T00:00:00Z,1,a,{float(number)},\n"
        drop(store, "orders", name, csv if name.endswith("csv") else parquet_bytes(table))

    report = ingest(store)["orders"]

    assert report.batches == 4
    assert values(store) == [(1, "a", 3.0)]


@pytest.mark.long
@pytest.mark.parametrize("built_first", [False, True])
def test_what_comes_back_late_does_not_take_the_place_of_newer_rows(make_store: MakeStore, built_first: bool):
    store = make_store(LATEST)
    old = stage(store, "orders", orders((1, "a", 1.0), (2, "a", 1.0)))
    path = store.settings.staging_path / "orders" / f"{old.segment_id}.duckdb"
    bytes_ = path.read_bytes()
    path.write_bytes(b"rubbish")
    for _ in range(store.settings.build_max_attempts):
        with suppress(SegmentUnreadable):
            flush_windows(store, BuildOrder("orders", owner="the test"))
    with store.ledger.read() as tx:
        assert unpublished_slices(tx) == []
    stage(store, "orders", orders((1, "a", 2.0)))
    if built_first:
        flush(store)
    path.write_bytes(bytes_)
    with store.ledger.read() as tx:
        (entry,) = open_entries(tx)

    assert retry_entry(store, entry.id, "the test").done

    assert values(store) == [(1, "a", 2.0), (2, "a", 1.0)]
    flush(store)
    assert values(store) == in_table(store) == [(1, "a", 2.0), (2, "a", 1.0)]
    assert audit_rows(store, "orders").wrong == ()


def test_a_row_without_its_key_is_set_aside_and_the_rest_goes_on(make_store: MakeStore):
    store = make_store(LATEST)
    receipt = stage(store, "orders", orders((1, "a", 1.0), (None, "a", 2.0), (2, None, 3.0)))

    assert (receipt.rows, receipt.quarantined_rows) == (1, 2)
    with store.ledger.read() as tx:
        (entry,) = open_entries(tx)
    assert entry.reason == "2 rows: a column of the key (id, part) is null"
    assert not retry_entry(store, entry.id, "the test").done
    assert values(store) == [(1, "a", 1.0)]


def test_rows_out_of_quarantine_keep_their_place(make_store: MakeStore):
    store = make_store(LATEST, staging_max_future_ms=0)
    later = NEW_YEAR.replace(year=2200)
    stage(store, "orders", orders((1, "a", 1.0), (2, "a", 1.0), at=later))
    with store.ledger.read() as tx:
        (entry,) = open_entries(tx)
    patient = make_store(LATEST, staging_max_future_ms=10**13)
    stage(patient, "orders", orders((1, "a", 2.0), at=later))
    flush(patient)

    retry_entry(patient, entry.id, "the test")

    assert values(patient) == [(1, "a", 2.0), (2, "a", 1.0)]
    flush(patient)
    assert in_table(patient) == [(1, "a", 2.0), (2, "a", 1.0)]


def test_positions_follow_acknowledgement_not_the_clock(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch):
    from timestore_pipeline.staging import receipts

    store = make_store(LATEST)
    stage(store, "orders", orders((1, "a", 1.0)))
    monkeypatch.setattr(receipts, "now_micros", lambda: 0)
    stage(store, "orders", orders((1, "a", 2.0)))

    assert values(store) == [(1, "a", 2.0)]
    flush(store)
    assert in_table(store) == [(1, "a", 2.0)]


@pytest.mark.long
def test_compaction_keeps_the_positions(make_store: MakeStore):
    store = make_store(LATEST)
    rows = [(number, "a", 0.0) for number in range(20_000)]
    stage(store, "orders", orders(*rows))
    flush_windows(store, BuildOrder("orders", owner="the test", target_file_bytes=50_000))
    files = len(DeltaTable(str(store.table("orders").root)).file_uris())
    assert files > 1

    report = compact_fully(store, BuildOrder("orders", owner="the test"))
    stage(store, "orders", orders((7, "a", 7.0)))
    flush(store)

    assert report.merged_files < files
    assert values(store, "id = 7") == [(7, "a", 7.0)]
    positions = DeltaTable(str(store.table("orders").root)).to_pyarrow_table()[POSITION_COLUMN].to_pylist()
    assert len(positions) == len(set(positions)) == 20_000
    assert audit_rows(store, "orders").wrong == ()


def test_a_build_that_failed_after_its_commit_counts_what_it_superseded_once(make_store: MakeStore):
    store = make_store(LATEST)
    stage(store, "orders", orders((1, "a", 1.0), (2, "a", 1.0)))
    flush(store)
    stage(store, "orders", orders((1, "a", 2.0), (1, "a", 3.0)))

    with dies_at(CrashPoint.MANIFEST_KEPT):
        flush_windows(store, BuildOrder("orders", owner="the test"))
    assert values(store) == [(1, "a", 3.0), (2, "a", 1.0)]
    settle_dead_builds(store, lambda owner: True)

    assert values(store) == in_table(store) == [(1, "a", 3.0), (2, "a", 1.0)]
    assert audit_rows(store, "orders").wrong == ()
    with store.ledger.read() as tx:
        assert unpublished_slices(tx) == []


@pytest.mark.long
def test_a_build_of_a_window_with_a_key_stays_within_its_memory(make_store: MakeStore):
    store = make_store(LATEST, duckdb_memory_limit="120MB", duckdb_threads=2)
    half = pa.table(
        {
            "ts": pa.array([NEW_YEAR] * 400_000, pa.timestamp("us", "UTC")), "id": list(range(400_000)),
            "part": [f"{number:032d}" for number in range(400_000)], "value": [1.0] * 400_000,
            "version": pa.nulls(400_000, pa.int32()),
        }
    )  # fmt: skip
    stage(store, "orders", half, batch_id="1")
    flush(store)
    stage(store, "orders", half, batch_id="2")

    flush(store)

    assert query_rows(store, "SELECT count(*) AS n, count(DISTINCT id) AS d FROM orders").to_arrow().to_pylist() == [
        {"n": 400_000, "d": 400_000}
    ]


def test_columns_grow_under_a_key(make_store: MakeStore):
    store = make_store("datasets: {orders: {time: ts, window: day, key: {columns: [id]}}}")
    first = orders((1, "a", 1.0), (2, "a", 1.0)).select(["ts", "id", "value"])
    stage(store, "orders", first.set_column(1, "id", first["id"].cast(pa.int32())))
    flush(store)
    stage(store, "orders", orders((1, "b", 2.0)).select(["ts", "id", "value", "part"]))

    assert values(store) == [(1, "b", 2.0), (2, None, 1.0)]
    flush(store)
    assert values(store) == in_table(store) == [(1, "b", 2.0), (2, None, 1.0)]
    with pytest.raises(BatchRejected, match="missing columns: 'id'"):
        stage(store, "orders", first.drop_columns(["id"]))


def test_a_key_is_fixed_once_rows_are_staged(make_store: MakeStore):
    make_store(LATEST)
    store = make_store(HIGHEST)
    stage(store, "orders", orders((1, "a", 1.0)))

    with pytest.raises(DeclarationChanged, match=r"key was .*version.* fixed once rows are staged"):
        stage(make_store(LATEST), "orders", orders((1, "a", 1.0)))
    assert values(make_store(HIGHEST)) == [(1, "a", 1.0)]


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("{columns: []}", "key.columns"),
        ("{columns: [nothing]}", "'nothing' is not among the columns"),
        ("{columns: [id, id]}", "twice"),
        ("{columns: [id], version: id}", "is in the key, so"),
        ("{columns: [id], version: newest}", "'newest' is not among the columns"),
        ("{columns: [_position]}", "'_position' is not among the columns"),
    ],
)
def test_a_key_that_cannot_be_is_refused(make_store: MakeStore, key: str, wrong: str):
    with pytest.raises(DatasetsFileError, match=wrong):
        make_store(f"datasets: {{o: {{columns: {{ts: timestamptz, id: int}}, time: ts, window: day, key: {key}}}}}")


def test_an_empty_ingest_of_a_keyed_dataset_is_nothing(make_store: MakeStore):
    store = make_store(LATEST)
    assert ingest_files(store, "orders", []).batches == 0
    assert values(store) == []


@pytest.mark.long
def test_a_rebuild_gives_the_same_rows_and_accounts(make_store: MakeStore):
    store = make_store(LATEST)
    for number in range(3):
        stage(store, "orders", orders((1, "a", float(number)), (number + 2, "a", 0.0)))
        flush(store)
    stage(store, "orders", orders((1, "a", 9.0)))
    before = values(store)

    rebuild_windows(store, BuildOrder("orders", owner="the test"))

    assert values(store) == in_table(store) == before == [(1, "a", 9.0), (2, "a", 0.0), (3, "a", 0.0), (4, "a", 0.0)]
    assert audit_rows(store, "orders").wrong == ()
    stage(store, "orders", orders((2, "a", 7.0)))
    flush(store)
    assert in_table(store) == [(1, "a", 9.0), (2, "a", 7.0), (3, "a", 0.0), (4, "a", 0.0)]
    assert audit_rows(store, "orders").wrong == ()

"""Rows that delete their key: queries have no row of it, whatever came before, comes late or is built in between."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.datasets import parse_datasets
from timestore_pipeline.errors import DatasetsFileError, DeclarationChanged
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.reading.rows import past_snapshots, query_rows
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import in_order
from timestore_pipeline_tests.building.test_keys import HIGHEST, LATEST, flush, orders, values
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.sampling import examples

DELETES = "\n    delete: {column: part, equals: gone}"
BY_ID = LATEST.replace("[id, part]", "[id]") + DELETES
BY_VERSION = HIGHEST.replace("[id, part]", "[id]") + DELETES


def test_a_key_whose_last_row_deletes_it_is_in_no_read_and_stays_in_the_table(make_store: MakeStore):
    store = make_store(BY_ID)
    stage(store, "orders", orders((1, "a", 1.0), (2, "a", 2.0)))
    flush(store)
    stage(store, "orders", orders((1, "gone", 0.0)))

    assert values(store) == [(2, "a", 2.0)]
    flush(store)
    assert values(store) == [(2, "a", 2.0)]
    assert values(store, "id = 1") == []
    assert DeltaTable(str(store.table("orders").root)).to_pyarrow_table().num_rows == 2
    assert audit_rows(store, "orders").wrong == ()


def test_a_later_row_brings_the_key_back(make_store: MakeStore):
    store = make_store(BY_ID)
    for row in ((1, "a", 1.0), (1, "gone", 0.0), (1, "b", 2.0)):
        stage(store, "orders", orders(row))
        flush(store)

    assert values(store) == [(1, "b", 2.0)]


def test_with_a_version_the_highest_decides_whenever_it_comes(make_store: MakeStore):
    store = make_store(BY_VERSION)
    stage(store, "orders", orders((1, "gone", 0.0, 5), (2, "gone", 0.0, 1)))
    flush(store)
    stage(store, "orders", orders((1, "late", 1.0, 4), (2, "new", 2.0, 2)))

    assert values(store) == [(2, "new", 2.0)]
    flush(store)
    assert values(store) == [(2, "new", 2.0)]


def test_the_past_had_the_key(make_store: MakeStore):
    store = make_store(BY_ID)
    stage(store, "orders", orders((1, "a", 1.0)))
    flush(store)
    before = DeltaTable(str(store.table("orders").root)).version()
    stage(store, "orders", orders((1, "gone", 0.0)))
    flush(store)

    then = query_rows(store, "FROM orders", lambda names: past_snapshots(store, names, before))
    assert then.to_arrow()["part"].to_pylist() == ["a"]


@pytest.mark.parametrize(
    ("type_", "says", "deletes", "stays"),
    [
        ("boolean", "true", True, False), ("int", "1", 1, 0), ("bigint", "-1", -1, None), ("varchar", "'1'", "1", "01"),
        ("varchar", "D", "D", "d"), ("varchar", "\"it's\"", "it's", None),
    ],
)  # fmt: skip
def test_a_value_of_any_such_type_deletes(make_store: MakeStore, type_: str, says: str, deletes: Any, stays: Any):
    store = make_store(
        f"datasets:\n  t:\n    columns: {{ts: timestamptz, id: int, op: {type_}}}\n    time: ts\n    window: day\n"
        f"    key: {{columns: [id]}}\n    delete: {{column: op, equals: {says}}}\n"
    )
    rows = [
        {"ts": "2026-01-01T00:00:00Z", "id": 1, "op": deletes},
        {"ts": "2026-01-01T00:00:00Z", "id": 2, "op": stays},
    ]
    stage(store, "t", pa.Table.from_pylist(rows))

    assert query_rows(store, "SELECT id FROM t").to_arrow()["id"].to_pylist() == [2]


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["stage", "stage", "stage", "flush", "compact", "rebuild"]), st.integers(0, 2),
              st.sampled_from(["a", "gone"]), st.none() | st.integers(0, 3)),
    min_size=1, max_size=12,
)  # fmt: skip
BUILDS = {"flush": flush_windows, "compact": compact_fully, "rebuild": rebuild_windows}


@hypothesis_settings(max_examples=examples(12), deadline=None)
@given(actions=ACTIONS, by_version=st.booleans())
def test_whatever_is_built_in_between_the_row_that_wins_decides(
    actions: list[tuple[str, int, str, int | None]], by_version: bool
):
    wins: dict[int, tuple[Any, tuple[Any, ...]]] = {}
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "datasets.yaml").write_text(BY_VERSION if by_version else BY_ID)
        with Store.open(Settings(home=Path(home), staging_min_free_disk_bytes=0)) as store:
            for number, (action, id_, part, version) in enumerate(actions):
                if action in BUILDS:
                    BUILDS[action](store, BuildOrder("orders", owner="the test"))
                else:
                    stage(store, "orders", orders((id_, part, float(number), version)))
                    rank = (version is not None, version or 0, number) if by_version else number
                    if id_ not in wins or wins[id_][0] < rank:
                        wins[id_] = rank, (id_, part, float(number))
                    assert values(store) == in_order(row for _, row in wins.values() if row[1] != "gone")


def declared(store_yaml: str) -> None:
    found = parse_datasets(store_yaml, Path("datasets.yaml"))
    if found.refused:
        raise next(iter(found.refused.values()))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("delete: {column: nowhere, equals: D}", "'nowhere' is not among the columns"),
        ("delete: {column: id, equals: D}", "is in the key"),
        ("delete: {column: value, equals: 1}", "has the type DOUBLE, which is never 1"),
        ("delete: {column: version, equals: D}", "has the type INTEGER, which is never 'D'"),
        ("delete: {column: part, equals: 1.5}", "delete.equals"),
        ("delete: {column: part}", "delete.equals"),
    ],
)
def test_a_declaration_that_could_never_delete_is_refused(line: str, complaint: str):
    with pytest.raises((DatasetsFileError, DeclarationChanged), match=complaint):
        declared(LATEST.replace("[id, part]", "[id]") + f"\n    {line}")


def test_only_a_key_can_be_deleted():
    with pytest.raises((DatasetsFileError, DeclarationChanged), match="only a dataset with a key"):
        declared("datasets:\n  t:\n    time: ts\n    window: day\n    delete: {column: op, equals: D}\n")


def test_what_deletes_is_fixed_with_the_first_batch(make_store: MakeStore):
    store = make_store(BY_ID)
    stage(store, "orders", orders((1, "a", 1.0)))
    store.close()

    changed: Store = make_store(LATEST.replace("[id, part]", "[id]"))
    assert "key was" in str(changed.datasets.refused["orders"])

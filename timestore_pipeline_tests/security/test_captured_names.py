"""A user's column or dataset may be called like anything of ours, of SQL or of DuckDB: no statement takes it for that.

Each story goes through every statement that names columns: formats, refused rows and their retry, builds, merges of
rows by key, wider types, compaction, rebuilds, damage, losses, pruning, and a ledger that is made again from files.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.damage import set_unreadable_aside, unreadable_slices
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.duck.sql import quote
from timestore_pipeline.errors import BatchRejected
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.slices import unclaimed_slices
from timestore_pipeline.model.columns import check_name
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.losses import accept_losses
from timestore_pipeline.operating.preview import preview
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline.reading.lineage import trace_window
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.restoring.ledger import rebuild_ledger
from timestore_pipeline.segments.slices import MOST_ATTACHED
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.staging.writer import Writer
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.timestore import Timestore
from timestore_pipeline_tests.builders import (
    arrow_bytes,
    build,
    flip_row,
    ingest,
    lose_ledger,
    parquet_bytes,
    published,
    readable,
    segment_file,
)
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.sampling import examples

OURS = [
    "rows", "segment", "scratch", "whole", "part", "described", "memory", "main", "temp", "piece", "row_value",
    "time", "previous", "problem", "_problem", "number", "window_start", "window", "ts", "low", "high", "keys",
    "kind", "sample", "json", "name", "names", "filename", "file_name", "file_row_number", "file_row_group",
    "incoming", "incoming_0", "arrow_0", "alone", "counts", "position", "batch", "ordinal", "key", "version", "value",
    "values", "columns", "column", "row", "struct", "rowid", "row_number", "window_key_", "staged", "published",
    "table", "dataset", "batch_id", "source", "min.ts", "max.ts", "min.x", "max.x", "path", "partition.window_key",
    "num_records", "size_bytes", "null_count.x", "partition", "__index_level_0__", "excluded", "old", "new", "this",
    "self", "stats", "add", "remove", "metaData", "commitInfo",
]  # fmt: skip
"""What statements of ours, files of ours and the reader of Delta tables call things."""

DAY = "2026-01-01"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@cache
def every_name() -> tuple[str, ...]:
    """Names that a column may have: ours, the keywords of SQL, and what DuckDB calls its functions, types, views."""
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT keyword_name FROM duckdb_keywords() UNION SELECT function_name FROM duckdb_functions() "
            "UNION SELECT type_name FROM duckdb_types() UNION SELECT view_name FROM duckdb_views()"
        ).fetchall()
    names: dict[str, str] = {}
    for name in [*OURS, *sorted(name for (name,) in found)]:
        try:
            names.setdefault(name.lower(), check_name(name))
        except ValueError:
            continue
    return tuple(names.values())


def declared(columns: Sequence[str], time: str, key: str | None = None, version: str | None = None) -> str:
    """A datasets file with one dataset of text columns, a time and perhaps a key."""
    types = {name: "bigint" if name == version else "varchar" for name in columns}
    one = {"columns": {time: "timestamptz", **types}, "time": time, "window": "day", "evolve": True}
    if key:
        one["key"] = {"columns": [key], "version": version} if version else [key]
    return json.dumps({"datasets": {"w": one}})


class Story:
    """One dataset with such columns, and the rows that it must have at every moment."""

    def __init__(self, store: Store, columns: Sequence[str], time: str, key: str | None, version: str | None) -> None:
        self.store = store
        self.columns = columns
        self.time = time
        self.key = key
        self.version = version
        self.rows = 0

    def table(self, count: int = 1, *, days: int = 1, wider: str | None = None) -> pa.Table:
        """The next rows: each value of text is its own, so rows that were mixed up would show."""
        numbers = range(self.rows, self.rows + count)
        self.rows += count
        start = int(NOON.timestamp() * 1_000_000)
        times = [start + 86_400_000_000 * (number % days) + number for number in numbers]
        columns = {self.time: pa.array(times, pa.timestamp("us", "UTC"))}
        for name in self.columns:
            if name == self.version:
                columns[name] = pa.array(list(numbers), pa.int64())
            else:
                columns[name] = pa.array([f"{number} {name}" for number in numbers], pa.string())
        if wider is not None:
            columns[wider] = pa.array([str(number) for number in numbers], pa.string())
        return pa.table(columns)

    def text(self, table: pa.Table) -> list[dict[str, object]]:
        """Rows as JSON has them."""
        return [
            {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
            for row in table.to_pylist()
        ]

    def look(self) -> None:
        """Every row is there once, with each value under its name, for whoever asks in whatever way."""
        found = readable(self.store, "w")
        assert len(found) == self.rows
        mine = f"SELECT * FROM w WHERE {quote(self.time)} >= TIMESTAMPTZ '2026-01-01' ORDER BY {quote(self.time)}"
        for row in query_rows(self.store, mine).to_arrow().to_pylist():
            for name in self.columns:
                assert name == self.version or row[name] is None or str(row[name]).endswith(f" {name}"), name
        timestore = Timestore(self.store)
        first = self.columns[0]
        assert timestore.read("w", "2026-01-01", "2027-01-01", [first], f"{quote(first)} IS NOT NULL").to_arrow()

    def audit(self) -> None:
        """The ledger, the table and its files agree."""
        assert audit_rows(self.store, "w").wrong == ()
        assert len(readable(self.store, "w")) == self.rows


def open_store(home: Path) -> Store:
    return Store.open(Settings(home=home, staging_min_free_disk_bytes=0, compaction_max_small_files=1))


def drop(store: Store, name: str, content: str | bytes) -> None:
    path = store.settings.landing_path / "w" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def tell(home: Path, columns: Sequence[str], time: str, key: str | None = None, version: str | None = None) -> None:
    """The whole way of rows with such columns."""
    (home / "datasets.yaml").write_text(declared(columns, time, key, version))
    store = open_store(home)
    story = Story(store, columns, time, key, version)
    # Every way in.
    drop(store, "a.jsonl", "".join(f"{json.dumps(row)}\n" for row in story.text(story.table(2))))
    rows = story.text(story.table(2))
    drop(store, "b.csv", "\n".join(",".join(map(str, line)) for line in [rows[0], *(row.values() for row in rows)]))
    drop(store, "c.parquet", parquet_bytes(story.table(2)))
    drop(store, "d.arrow", arrow_bytes(story.table(2)))
    report = ingest(store)["w"]
    assert [entry.reason for entry in report.quarantined] == []
    with Writer(store, "w") as writer:
        writer.write(story.table(2, days=2))
    refused = story.table(1)
    story.rows -= 1
    stage(store, "w", refused.set_column(0, time, pa.nulls(1, pa.timestamp("us", "UTC"))), batch_id="refused")
    story.look()
    # Out again, in one build, then a second one that meets the first one's rows, and a third with new columns.
    assert build(store, "w").rows == 10
    story.look()
    stage(store, "w", story.table(2, days=2))
    story.look()
    build(store, "w")
    stage(store, "w", story.table(2, days=2, wider="brought.later"))
    build(store, "w")
    story.audit()
    assert len(published(store, "w")) == story.rows
    assert trace_window(store, "w", DAY).published_rows > 0
    compact_fully(store, BuildOrder("w", owner="the test"))
    story.look()
    with store.ledger.read() as tx:
        entry = open_entries(tx, "w")[0]
    assert preview(store, entry).problem is None
    retry_entry(store, entry.id, "the test")
    rebuild_windows(store, BuildOrder("w", owner="the test"))
    story.audit()
    # A damaged segment is told from healthy ones.
    stage(store, "w", story.table(2))
    with store.ledger.read() as tx:
        pieces = unclaimed_slices(tx, "w")
    assert unreadable_slices(store, store.datasets["w"], pieces) == {}
    damaged = stage(store, "w", story.table(4_000))
    flip_row(store, segment_file(store, damaged.segment_id, "w"), 0, columns[0])
    assert [entry.rows for entry in set_unreadable_aside(store, "w")] == [4_000]
    story.rows -= 4_000
    story.look()
    build(store, "w")
    story.audit()
    # The ledger is made again from what the files say.
    lose_ledger(store)
    assert rebuild_ledger(store.settings, by="the test").complete
    again = story.store = open_store(home)
    story.look()
    # A file of the table is gone for good.
    again.table("w").delete(live_files(open_table(again.table("w"), "w"))[0].path)
    lost = story.rows - sum(each.table_rows for each in audit_rows(again, "w").windows)
    accept_losses(again, BuildOrder("w", owner="the test"), rows=lost, reason="the disk", by="the test")
    story.rows -= lost
    story.audit()
    again.close()


NAMES = st.one_of(st.sampled_from([name for name in every_name() if name in OURS]), st.sampled_from(every_name()))


@pytest.mark.long
@settings(max_examples=examples(8))
@given(names=st.lists(NAMES, min_size=8, max_size=40, unique_by=str.lower), keyed=st.booleans())
def test_a_column_of_any_name_is_only_ever_that_column(names: list[str], keyed: bool):
    time, key, version, *others = names
    with tempfile.TemporaryDirectory() as home:
        if keyed:
            tell(Path(home), [*others, key, version], time, key, version)
        else:
            tell(Path(home), [*others, key], time)


@pytest.mark.long
def test_a_column_called_like_a_row_does_not_hide_the_damage_of_others():
    with tempfile.TemporaryDirectory() as home:
        tell(Path(home), ["station", "piece", "row_value"], "rows")


def test_a_column_called_like_a_row_does_not_hide_which_batch_is_wrong(make_store: MakeStore):
    store = make_store(declared(["row_value", "number"], "ts", version="number"))
    ts = pa.array([NOON])
    good, bad = ({"ts": ts, "row_value": pa.array(["x"]), "number": pa.array([text])} for text in ("1", "no number"))

    with Writer(store, "w") as writer:
        answers = [writer.submit(pa.table(each), f"b{number}") for number, each in enumerate((good, bad, good))]

    assert [answer.exception() is None for answer in answers] == [True, False, True]
    assert isinstance(answers[1].exception(), BatchRejected)


@pytest.mark.matrix
@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    ["rows", "segment", "scratch", "main", "memory", "temp", "gathered", "select", "part", "information_schema"],
)
def test_a_dataset_of_any_name_is_only_ever_that_dataset(make_store: MakeStore, name: str):
    one = {"columns": {"ts": "timestamptz"}, "time": "ts", "window": "day"}
    store = make_store(json.dumps({"datasets": {name: one}}))
    row = pa.table({"ts": [NOON]})
    batches = MOST_ATTACHED + 1
    for number in range(batches):
        stage(store, name, row, batch_id=f"b{number}")

    assert query_rows(store, f'SELECT count(*) AS n FROM "{name}"').to_arrow().to_pydict() == {"n": [batches]}
    assert build(store, name).rows == batches
    stage(store, name, row, batch_id="later")
    assert len(readable(store, name)) == batches + 1
    assert audit_rows(store, name).wrong == ()

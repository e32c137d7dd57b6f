"""``stage()``: acknowledged once it returns, staged once however often it is called, refused with a reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import (
    BatchConflict,
    BatchRejected,
    ColumnsChanged,
    CommitUnknown,
    DiskFull,
    GuardrailExceeded,
    StagingQueueFull,
    TimestoreError,
)
from timestore_pipeline.ledger.counters import DROPPED_BATCHES, RETRIED_BATCHES
from timestore_pipeline.staging.frames import table_fingerprint
from timestore_pipeline.staging.stage import stage, stage_file
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    counted,
    declared,
    files_under,
    hourly,
    published,
    readable,
    rows_of,
    weather,
)
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.deaths import fails_at


def test_rows_are_readable_the_moment_stage_returns(store: Store):
    receipt = stage(store, "weather", hourly(30), source="a notebook")

    assert (receipt.rows, receipt.duplicate, receipt.source) == (30, False, "a notebook")
    assert [window.key for window in receipt.windows] == ["2026-01-01", "2026-01-02"]
    assert readable(store) == rows_of(hourly(30))
    assert published(store) == []


def test_columns_may_come_in_any_order_and_the_data_as_a_reader(store: Store):
    table = hourly(10)

    stage(store, "weather", table.select(["temp", "ts", "station"]).to_reader(max_chunksize=3))

    assert readable(store) == rows_of(table)


def test_a_repeated_batch_changes_nothing(store: Store):
    first = stage(store, "weather", hourly(3), batch_id="hour-1")
    second = stage(store, "weather", hourly(3), batch_id="hour-1")

    assert (first.duplicate, second.duplicate) == (False, True)
    assert (second.rows, second.segment_id) == (3, first.segment_id)
    assert readable(store) == rows_of(hourly(3))
    assert counted(store, RETRIED_BATCHES) == {"duplicate": 1}
    build(store)
    assert stage(store, "weather", hourly(3), batch_id="hour-1").duplicate
    assert readable(store) == rows_of(hourly(3))


def test_without_an_id_the_content_is_the_id(store: Store):
    assert not stage(store, "weather", hourly(3)).duplicate
    assert stage(store, "weather", hourly(3)).duplicate
    assert not stage(store, "weather", hourly(4)).duplicate
    assert len(readable(store)) == 7


def test_the_same_id_with_other_content_is_an_error_and_changes_nothing(store: Store, tmp_path: Path):
    stage(store, "weather", hourly(3), batch_id="hour-1")
    path = tmp_path / "other.csv"
    path.write_text("ts,station,temp\n2026-01-01,JFK,1\n")

    with pytest.raises(BatchConflict, match=r"'hour-1' is already in the ledger with other content"):
        stage(store, "weather", hourly(4), batch_id="hour-1")
    with pytest.raises(BatchConflict):
        stage_file(store, "weather", path, batch_id="hour-1")

    assert readable(store) == rows_of(hourly(3))


def test_a_batch_id_belongs_to_its_dataset(make_store: MakeStore):
    store = make_store(declared(one="", other=""))

    assert not stage(store, "one", hourly(3), batch_id="x").duplicate
    assert not stage(store, "other", hourly(4), batch_id="x").duplicate


@pytest.mark.parametrize("batch_id", ["a'b", 'a"b', "[1]*?", "é 😀", "a\nb", "; drop table batches", "x" * 255])
def test_a_batch_id_may_be_any_text(store: Store, batch_id: str):
    assert stage(store, "weather", weather((None, "BAD", 1.0), (NEW_YEAR, "JFK", 1.0)), batch_id=batch_id).rows == 1
    assert stage(store, "weather", weather((None, "BAD", 1.0), (NEW_YEAR, "JFK", 1.0)), batch_id=batch_id).duplicate


def test_an_empty_batch_is_acknowledged(store: Store):
    receipt = stage(store, "weather", hourly(0), batch_id="nothing")

    assert (receipt.rows, receipt.segment_id) == (0, None)
    assert stage(store, "weather", hourly(0), batch_id="nothing").duplicate
    assert readable(store) == []


REJECTED = {
    "missing": (hourly(1).drop_columns(["temp"]), "missing columns: 'temp'"),
    "unknown": (hourly(1).append_column("wind", pa.array([1])), "unknown columns: 'wind'"),
    "repeated": (hourly(1).append_column("temp", pa.array([1])), "repeated columns: 'temp'"),
    "no columns": (pa.table({}), "no columns"),
    "text": (hourly(1).set_column(2, "temp", pa.array(["warm"])), "warm"),
    "nested": (hourly(1).set_column(2, "temp", pa.array([{"c": 1}])), "STRUCT"),
    "list": (hourly(1).set_column(2, "temp", pa.array([[1.0]])), "temp"),
    "integer time": (hourly(1).set_column(0, "ts", pa.array([1])), "time.unit"),
    "float time": (hourly(1).set_column(0, "ts", pa.array([1.5])), "ts"),
    "unknown type": (hourly(1).set_column(2, "temp", pa.array([1], pa.duration("s"))), "temp"),
}  # fmt: skip


@pytest.mark.parametrize("what", REJECTED)
def test_a_batch_that_does_not_fit_is_refused_with_the_reason_and_nothing_is_kept(store: Store, what: str):
    table, reason = REJECTED[what]

    with pytest.raises(BatchRejected, match=r"dataset 'weather': the notebook cannot be staged") as caught:
        stage(store, "weather", table, source="the notebook")

    assert reason in caught.value.reason
    assert readable(store) == []
    assert files_under(store.settings.staging_path / "weather") == []
    assert stage(store, "weather", hourly(1)).rows == 1


def test_ignored_columns_are_left_out_of_inferred_ones(make_store: MakeStore):
    store = make_store("datasets: {weather: {time: ts, window: day, landing: {ignore_columns: [raw]}}}")

    stage(store, "weather", hourly(2).append_column("raw", pa.array([{"x": 1}, {"x": 2}])))

    assert readable(store) == rows_of(hourly(2))


def test_columns_of_the_first_batch_are_fixed_in_name_and_type(make_store: MakeStore):
    inferred = "datasets: {weather: {time: ts, window: day}}"
    store = make_store(inferred)
    stage(store, "weather", pa.table({"ts": [NEW_YEAR], "n": pa.array([1], pa.int32())}))

    with pytest.raises(BatchRejected, match="which would lose digits"):
        stage(store, "weather", pa.table({"ts": [NEW_YEAR], "n": [1.5]}))
    stage(make_store(inferred), "weather", pa.table({"ts": [NEW_YEAR], "n": pa.array([2], pa.int16())}))

    assert readable(store) == [(NEW_YEAR, 1), (NEW_YEAR, 2)]
    with pytest.raises(ColumnsChanged):
        stage(
            make_store("datasets: {weather: {time: ts, window: day, columns: {ts: timestamptz, n: smallint}}}"),
            "weather",
            hourly(1),
        )


REFUSED_FOR_NOW = pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"staging_max_pending": 1}, StagingQueueFull, "queue_full"),
        ({"staging_min_free_disk_bytes": 1 << 60}, DiskFull, "disk_full"),
        ({"staging_max_dataset_bytes": 1, "staging_guardrail_mode": "enforce"}, GuardrailExceeded, "guardrail"),
    ],
)
"""Settings by which the second batch is refused, how, and what it is counted as."""


@REFUSED_FOR_NOW
def test_a_batch_that_is_refused_for_now_is_counted_as_dropped(
    make_store: MakeStore, settings: dict[str, Any], error: type[TimestoreError], reason: str
):
    stage(make_store(), "weather", hourly(1))
    store = make_store(**settings)

    with pytest.raises(error):
        stage(store, "weather", hourly(2))

    assert counted(store, DROPPED_BATCHES) == {reason: 1}
    assert readable(store) == rows_of(hourly(1))
    assert stage(make_store(), "weather", hourly(2)).rows == 2


def test_a_full_queue_says_how_full_and_what_to_do(make_store: MakeStore):
    store = make_store(staging_max_pending=2)
    stage(store, "weather", hourly(1))
    stage(store, "weather", hourly(2))

    with pytest.raises(StagingQueueFull) as caught:
        stage(store, "weather", hourly(3))

    assert (caught.value.dataset, caught.value.depth, caught.value.limit) == ("weather", 2, 2)
    assert "timestore flush weather" in str(caught.value)
    assert stage(store, "weather", hourly(1)).duplicate
    build(store)
    assert stage(store, "weather", hourly(3)).rows == 3


def test_a_limit_of_its_own_goes_before_the_settings(make_store: MakeStore):
    store = make_store(declared(weather="limits: {max_pending: 0}"), staging_max_pending=1)

    for count in range(1, 5):
        stage(store, "weather", hourly(count))


def test_a_batch_whose_rows_span_windows_waits_for_the_last_of_them(make_store: MakeStore):
    store = make_store(staging_max_pending=1)
    stage(store, "weather", hourly(48))
    build(store, last="2026-01-01")

    with pytest.raises(StagingQueueFull):
        stage(store, "weather", hourly(1))

    build(store)
    stage(store, "weather", hourly(1))


def test_when_it_is_unknown_whether_the_ledger_committed_the_rows_are_kept(store: Store):
    lost = CommitUnknown("the connection was lost")
    with fails_at(CrashPoint.BATCHES_ACKNOWLEDGED, lost), pytest.raises(CommitUnknown):
        stage(store, "weather", hourly(2), batch_id="x")

    assert readable(store) == rows_of(hourly(2))
    assert stage(store, "weather", hourly(2), batch_id="x").duplicate


WRITES_LIMITED = """
import resource, signal, sys
from pathlib import Path
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging import load
from timestore_pipeline.staging.stage import stage, stage_file
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, readable

def limit_writes(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store.open(Settings(home=Path(sys.argv[1]), staging_min_free_disk_bytes=0))
acknowledge = load.acknowledge_segment
def unlimited(*args, **options):
    limit_writes(resource.RLIM_INFINITY)
    return acknowledge(*args, **options)
load.acknowledge_segment = unlimited
acked = refused = 0
for size in range(1_000, 60_000, 3_000):
    table = hourly(1 + size // 1_000, station=str(size))
    limit_writes(size)
    try:
        acked += stage(store, "weather", table).rows
    except TimestoreError as error:
        assert "could not be written" in str(error), error
        refused += 1
    limit_writes(resource.RLIM_INFINITY)
    assert len(readable(store)) == acked, (size, acked)
print(acked, refused)
"""


@pytest.mark.process
def test_a_disk_that_is_full_at_any_point_of_a_segment_acknowledges_nothing(store: Store, home: Path):
    """DuckDB writes its log, then the file when it is detached: rows must not be lost where only the first worked."""
    done = subprocess.run(
        [sys.executable, "-c", WRITES_LIMITED, str(home)], capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stderr
    acked, refused = map(int, done.stdout.split())
    assert acked > 0
    assert refused > 5


def same_content() -> Iterator[tuple[str, pa.Table, pa.Table]]:
    table = pa.table({"n": [1, None, 3], "s": ["a", None, "c"], "b": [True, None, False]})
    yield "chunks", table, pa.concat_tables([table.slice(0, 1), table.slice(1)])
    yield "slices", table, pa.concat_tables([table.slice(2), table, table.slice(0, 1)]).slice(1, 3)
    yield "metadata", table, table.replace_schema_metadata({"pandas": "{}"})
    mask = pa.py_buffer(bytes([0b101]))
    hidden = pa.Array.from_buffers(pa.int64(), 3, [mask, pa.array([1, 99, 3]).buffers()[1]])
    yield "values under nulls", table, table.set_column(0, "n", hidden)
    words = pa.DictionaryArray.from_arrays(pa.array([0, 1]), ["x", "y"])
    swapped = pa.DictionaryArray.from_arrays(pa.array([1, 0]), ["y", "x"])
    yield "dictionaries", pa.table({"s": words}), pa.table({"s": swapped})
    no_nulls = pa.table({"n": [1, 2], "b": [True, False]})
    yield "masks without nulls", no_nulls, pa.table({"n": [None, 1, 2], "b": [None, True, False]}).slice(1)


@pytest.mark.parametrize(("one", "other"), [pytest.param(a, b, id=name) for name, a, b in same_content()])
def test_a_fingerprint_is_of_the_values_however_they_lie_in_memory(one: pa.Table, other: pa.Table):
    assert one.to_pylist() == other.to_pylist()
    assert table_fingerprint(one) == table_fingerprint(other)


def other_content() -> Iterator[pa.Table]:
    yield pa.table({"a": [1, None], "b": [None, 1]})
    yield pa.table({"a": [None, 1], "b": [None, 1]})
    yield pa.table({"a": [1, None], "b": [1, None]})
    yield pa.table({"b": [1, None], "a": [None, 1]})
    yield pa.table({"a": [1, None], "b": [None, 2]})
    yield pa.table({"a": pa.array([1, None], pa.int32()), "b": [None, 1]})
    yield pa.table({"a": [1, None, None], "b": [None, 1, None]})
    yield pa.table({"a": [1, None]})
    yield pa.table({"a": pa.nulls(2, pa.int64()), "b": [1, 1]})
    yield pa.table({"a": pa.nulls(2), "b": [1, 1]})


def test_other_values_types_or_columns_have_other_fingerprints():
    tables = list(other_content())

    assert len({table_fingerprint(table) for table in tables}) == len(tables)


cells = st.one_of(st.none(), st.text("ab", max_size=2))


@given(st.lists(cells, max_size=6), st.lists(cells, max_size=6))
def test_fingerprints_are_equal_exactly_when_the_values_are(one: list[str | None], other: list[str | None]):
    fingerprints = [table_fingerprint(pa.table({"s": pa.array(values, pa.string())})) for values in (one, other)]

    assert (fingerprints[0] == fingerprints[1]) == (one == other)


def test_many_windows_and_batches_are_counted_exactly(store: Store):
    tables = [hourly(100, start=NEW_YEAR + timedelta(hours=7 * number), station=f"S{number}") for number in range(5)]
    for table in tables:
        stage(store, "weather", table)

    report = build(store)

    per_window: dict[str, int] = {}
    for row in rows_of(*tables):
        key = row[0].astimezone(UTC).strftime("%Y-%m-%d")
        per_window[key] = per_window.get(key, 0) + 1
    assert {window.window.key: window.rows for window in report.windows} == per_window
    assert report.batches == 5
    assert report.rows == 500


@pytest.mark.process
def test_times_are_utc_whatever_the_zone_of_the_host(store: Store, monkeypatch: pytest.MonkeyPatch, home: Path):
    script = (
        "import sys; from pathlib import Path; from timestore_pipeline.settings import Settings;"
        "from timestore_pipeline.store import Store; from timestore_pipeline.staging.stage import stage_file;"
        "store = Store.open(Settings(home=Path(sys.argv[1]), staging_min_free_disk_bytes=0));"
        "print([w.key for w in stage_file(store, 'weather', Path(sys.argv[2])).windows])"
    )
    path = home / "a.csv"
    path.write_text("ts,station,temp\n2026-01-01 23:30:00,NO ZONE,1\n2026-01-02T00:30:00+02:00,ZONE,1\n")
    monkeypatch.setenv("TZ", "America/New_York")

    done = subprocess.run(
        [sys.executable, "-c", script, str(home), str(path)], capture_output=True, text=True, check=True, timeout=240
    )

    assert done.stdout.strip() == "['2026-01-01']"
    assert {row[0] for row in readable(store)} == {
        datetime(2026, 1, 1, 23, 30, tzinfo=UTC),
        datetime(2026, 1, 1, 22, 30, tzinfo=UTC),
    }

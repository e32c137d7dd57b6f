"""Every kind of bad file: set aside with a clear reason and its bytes, nothing else lost or delayed (invariant 9)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timestore_pipeline.errors import BatchRejected, ColumnsChanged, UnknownDataset
from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.landing.found import LandingFile
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline.staging.ingest import ingest_files
from timestore_pipeline.staging.stage import stage, stage_file
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    arrow_bytes,
    build,
    hourly,
    ingest,
    parquet_bytes,
    published,
    readable,
    rows_of,
    unprivileged,
    weather,
    weather_csv,
)
from timestore_pipeline_tests.conftest import DATASETS_YAML, WEATHER_CSV, MakeStore

Drop = Callable[..., Path]

GOOD = weather_csv("2026-01-05T00:00:00Z,GOOD,1")
GOOD_ROW = (datetime(2026, 1, 5, tzinfo=UTC), "GOOD", 1.0)
BIG = parquet_bytes(hourly(5_000), compression="none", use_dictionary=False, write_statistics=False)
GZIP = gzip.compress(weather_csv(*(f"2026-01-01T00:00:00Z,S{n * 7919 % 1009},{n}" for n in range(5_000))).encode())
STREAM = arrow_bytes(hourly(5_000), stream=True)

BAD_FILES = {
    "empty.csv": (b"", "empty (0 bytes)"),
    "empty.parquet": (b"", "empty (0 bytes)"),
    "empty.jsonl": (b"", "empty (0 bytes)"),
    "empty.arrow": (b"", "empty (0 bytes)"),
    "blank.csv": (b"\n", "no header line"),
    "cut_row.csv": (WEATHER_CSV[:-6].rpartition(",")[0].encode(), "Line: 4"),
    "cut_quote.csv": (weather_csv('2026-01-01,"JF').rstrip().encode(), "quote"),
    "too_many_fields.csv": (weather_csv("2026-01-01,JFK,1,2").encode(), "Line: 2"),
    "text_in_number.csv": (weather_csv("2026-01-01,JFK,1", "2026-01-01,JFK,warm").encode(), "warm"),
    "no_time.csv": (weather_csv("yesterday,JFK,1").encode(), "yesterday"),
    "latin1.csv": ("ts,station,temp\n2026-01-01,Zürich,1\n".encode("latin-1"), "utf-8"),
    "utf16.csv": (GOOD.encode("utf-16"), "wrong columns"),
    "binary.csv": (bytes(range(256)) * 20, "columns"),
    "wrong_columns.csv": (b"when,where,what\n2026-01-01,JFK,1\n", "missing columns: 'ts', 'station', 'temp'"),
    "missing_column.csv": (b"ts,temp\n2026-01-01,1\n", "missing columns: 'station'"),
    "extra_column.csv": (b"ts,station,temp,wind\n2026-01-01,JFK,1,9\n", "unknown columns: 'wind'"),
    "repeated_column.csv": (b"ts,station,temp,temp\n2026-01-01,JFK,1,2\n", "repeated columns: 'temp'"),
    "other_case.csv": (b"TS,station,temp\n2026-01-01,JFK,1\n", "unknown columns: 'TS'"),
    "other_separator.csv": (b"ts;station;temp\n2026-01-01;JFK;1\n", "missing columns"),
    "cut.csv.gz": (GZIP[:-100], "gzip"),
    "cut_header.csv.gz": (GZIP[:12], "gzip"),
    "damaged.csv.gz": (GZIP[:10] + b"\xff" * 50, "gzip"),
    "not_packed.csv.gz": (b"ts,station,temp\n", "gzip"),
    "packed.csv": (GZIP, "columns"),
    "cut.jsonl": (b'{"ts": "2026-01-01", "station": "JFK", "temp": 1}\n{"ts": "2026-01-01", "stat', "JSON"),
    "cut.jsonl.gz": (gzip.compress(b'{"ts": "2026-01-01"}\n' * 5_000)[:-20], "gzip"),
    "not_json.jsonl": (b"neither this\n", "JSON"),
    "array.json": (b'[{"ts": "2026-01-01", "station": "JFK", "temp": 1}]', "ARRAY"),
    "scalars.jsonl": (b"1\n2\n", "OBJECT"),
    "bom_and_no_json.jsonl": (b'\xef\xbb\xbf{"ts": "2026-01-01"}\n{"ts":}\n', "line 2: it is no JSON"),
    "repeated_key.jsonl": (b'{"ts": "2026-01-01", "temp": 1, "temp": 2}\n', "temp"),
    "extra_key.jsonl": (b'{"ts": "2026-01-01"}\n{"ts": "2026-01-01", "wind": 1}\n', "unknown columns: 'wind'"),
    "text_in_number.jsonl": (b'{"ts": "2026-01-01", "temp": "warm"}\n', "warm"),
    "cut.parquet": (BIG[:-100], "Parquet"),
    "cut_to_nothing.parquet": (BIG[:3], "Parquet"),
    "not_parquet.parquet": (b"nor this, for want of a footer\n", "Parquet"),
    "damaged_data.parquet": (BIG[:4] + b"\xff" * (len(BIG) - 2_000) + BIG[-1_996:], ""),
    "missing_column.parquet": (parquet_bytes(hourly(2).drop_columns(["temp"])), "missing columns: 'temp'"),
    "extra_column.parquet": (
        parquet_bytes(hourly(2).append_column("wind", pa.array([1, 2]))), "unknown columns: 'wind'",
    ),
    "nested.parquet": (parquet_bytes(hourly(1).set_column(2, "temp", pa.array([{"c": 1.0}]))), "STRUCT"),
    "text_in_number.parquet": (parquet_bytes(hourly(1).set_column(2, "temp", pa.array(["warm"]))), "warm"),
    "integer_time.parquet": (parquet_bytes(hourly(1).set_column(0, "ts", pa.array([1]))), "time.unit"),
    "cut.arrow": (arrow_bytes(hourly(5_000))[:-1_000], "Arrow"),
    "cut.arrows": (STREAM[:-50_000], "Arrow"),
    "not_arrow.arrow": (b"nor this, for want of a schema\n", "Arrow"),
    "extra_column.arrow": (arrow_bytes(hourly(2).append_column("wind", pa.array([1, 2]))), "unknown columns: 'wind'"),
    "repeated_column.arrow": (arrow_bytes(hourly(2).append_column("ts", pa.array([1, 2]))), "repeated columns: 'ts'"),
    "text_in_number.arrow": (arrow_bytes(hourly(1).set_column(2, "temp", pa.array(["warm"]))), "warm"),
    "report.pdf": (b"%PDF-1.7", "does not tell its format"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_set_aside_with_its_reason_and_the_others_go_on(store: Store, drop: Drop, name: str):
    content, reason = BAD_FILES[name]
    drop(store, "weather", "1.csv", GOOD)
    landed = drop(store, "weather", name, content)
    drop(store, "weather", "2.parquet", parquet_bytes(weather((NEW_YEAR, "ALSO", 2.0))))

    report = ingest(store)["weather"]

    assert [receipt.rows for receipt in report.receipts] == [1, 1]
    assert readable(store) == [(NEW_YEAR, "ALSO", 2.0), GOOD_ROW]
    (entry,) = report.quarantined
    assert entry.kind is QuarantineKind.BATCH
    assert entry.source == name
    assert reason.lower() in entry.reason.lower()
    assert "\n" not in entry.reason
    assert entry.bytes == len(content)
    assert store.staging.fetch(entry.path).read_bytes() == content
    assert not landed.exists()
    assert scan_landing(store).files == ()
    assert ingest(store) == {}


@pytest.mark.long
def test_all_bad_files_at_once_hold_nothing_up(store: Store, drop: Drop):
    for number, (name, (content, _)) in enumerate(BAD_FILES.items()):
        drop(store, "weather", name, content)
        drop(store, "weather", f"good_{number}.csv", weather_csv(f"2026-01-05,GOOD,{number}"))

    report = ingest(store)["weather"]

    assert [row[2] for row in readable(store)] == sorted(map(float, range(len(BAD_FILES))), key=repr)
    # The four empty files are one content, so one entry.
    assert len({entry.batch_id for entry in report.quarantined}) == len(BAD_FILES) - 3
    assert {entry.source for entry in report.quarantined} | {"empty.parquet", "empty.jsonl", "empty.arrow"} >= set(
        BAD_FILES
    )
    assert scan_landing(store).files == ()


def test_a_bad_file_of_one_dataset_does_not_touch_another(store: Store, drop: Drop):
    drop(store, "weather", "bad.csv", b"rubbish")
    drop(store, "events", "good.csv", "at,n\n1767225600000,1\n")

    reports = ingest(store)

    assert reports["weather"].batches == 0
    assert reports["events"].rows == 1
    assert len(readable(store, "events")) == 1


def test_a_file_with_a_header_and_no_rows_is_acknowledged_and_archived(store: Store, drop: Drop):
    drop(store, "weather", "header.csv", weather_csv())
    drop(store, "weather", "none.parquet", parquet_bytes(hourly(0)))
    drop(store, "weather", "none.arrow", arrow_bytes(hourly(0)))

    report = ingest(store)["weather"]

    assert [receipt.rows for receipt in report.receipts] == [0, 0, 0]
    assert report.quarantined == ()
    assert report.segment_id is None
    assert readable(store) == []
    assert scan_landing(store).files == ()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("value", ["1.5", "-0.25", "1.50"])
def test_a_fraction_in_a_column_of_whole_numbers_is_not_rounded(
    make_store: MakeStore, drop: Drop, suffix: str, value: str
):
    store = make_store("datasets: {weather: {columns: {ts: timestamptz, n: bigint}, time: ts, window: day}}")
    drop(
        store,
        "weather",
        f"bad{suffix}",
        f"ts,n\n2026-01-01,{value}\n" if suffix == ".csv" else f'{{"ts": "2026-01-01", "n": {value}}}',
    )
    drop(store, "weather", "good.csv", "ts,n\n2026-01-01,2.0\n2026-01-01,9007199254740993\n2026-01-01,\n")

    report = ingest(store)["weather"]

    assert [row[1] for row in readable(store)] == [2, 9007199254740993, None]
    (entry,) = report.quarantined
    assert "'n'" in entry.reason
    assert value.rstrip("0") in entry.reason


@pytest.mark.parametrize(
    ("declared", "arrives"),
    [("bigint", pa.array([1.5])), ("integer", pa.array([2**40])), ("tinyint", pa.array([200])),
     ("date", pa.array([NEW_YEAR])), ("boolean", pa.array(["maybe"]))],
)  # fmt: skip
def test_a_value_that_its_column_cannot_hold_is_refused_rather_than_changed(
    make_store: MakeStore, drop: Drop, declared: str, arrives: pa.Array
):
    store = make_store(f"datasets: {{weather: {{columns: {{ts: timestamptz, n: {declared}}}, time: ts, window: day}}}}")
    table = pa.table({"ts": pa.array([NEW_YEAR]), "n": arrives})
    drop(store, "weather", "bad.parquet", parquet_bytes(table))
    drop(store, "weather", "bad.arrow", arrow_bytes(table))

    report = ingest(store)["weather"]

    assert readable(store) == []
    assert len(report.quarantined) == 2
    with pytest.raises(BatchRejected):
        stage(store, "weather", table)


PROBLEM_TIMES = {
    "null": ("", "the time is null"),
    "early": ("2019-12-31T23:59:59Z", "before the dataset's start, 2020-01-01"),
    "future": ("2999-01-01T00:00:00Z", "TIMESTORE_STAGING_MAX_FUTURE_MS"),
    "infinite": ("infinity", "the time is infinite"),
    "minus infinite": ("-infinity", "the time is infinite"),
}


@pytest.mark.parametrize("type_", ["timestamptz", "timestamp", "date"])
@pytest.mark.parametrize("problem", PROBLEM_TIMES)
def test_a_row_with_an_impossible_time_is_set_aside_and_its_neighbours_are_staged(
    make_store: MakeStore, drop: Drop, problem: str, type_: str
):
    store = make_store(f"datasets: {{weather: {{columns: {{ts: {type_}, n: bigint}}, time: ts, window: day}}}}")
    text, reason = PROBLEM_TIMES[problem]
    text = text.partition("T")[0] if type_ == "date" else text
    drop(store, "weather", "mixed.csv", f"ts,n\n2026-01-01,1\n{text},2\n2026-01-02,3\n{text},4\n")

    report = ingest(store)["weather"]

    assert [(receipt.rows, receipt.quarantined_rows) for receipt in report.receipts] == [(2, 2)]
    assert [row[1] for row in readable(store)] == [1, 3]
    (entry,) = report.quarantined
    assert entry.kind is QuarantineKind.ROWS
    assert entry.rows == 2
    assert reason in entry.reason
    assert sorted(pq.read_table(store.staging.fetch(entry.path))["n"].to_pylist()) == [2, 4]
    build(store)
    assert [row[1] for row in published(store)] == [1, 3]


def test_the_first_and_the_last_possible_moment_are_staged(make_store: MakeStore):
    store = make_store(staging_max_future_ms=3_600_000)
    now = datetime.now(UTC)
    start = datetime(2020, 1, 1, tzinfo=UTC)
    rows = [start, start - timedelta(microseconds=1), now + timedelta(minutes=59), now + timedelta(minutes=61)]

    receipt = stage(store, "weather", weather(*((moment, "JFK", 1.0) for moment in rows)))

    assert (receipt.rows, receipt.quarantined_rows) == (2, 2)
    assert [row[0] for row in readable(store)] == [start, rows[2]]


def test_any_distance_into_the_future_may_be_allowed(make_store: MakeStore):
    store = make_store(staging_max_future_ms=10**18)

    receipt = stage(store, "weather", weather((datetime(2999, 1, 1, tzinfo=UTC), "JFK", 1.0)))

    assert receipt.rows == 1
    build(store)
    assert len(readable(store)) == 1


def test_a_batch_of_impossible_rows_only_is_acknowledged_and_wholly_in_quarantine(store: Store, drop: Drop):
    drop(store, "weather", "bad.csv", weather_csv(",JFK,1", ",LGA,2"))

    first = ingest(store)["weather"]
    drop(store, "weather", "bad.csv", weather_csv(",JFK,1", ",LGA,2"))
    second = ingest(store)["weather"]

    assert [(receipt.rows, receipt.quarantined_rows) for receipt in first.receipts] == [(0, 2)]
    assert [receipt.duplicate for receipt in second.receipts] == [True]
    with store.ledger.read() as tx:
        (entry,) = open_entries(tx)
    assert entry.rows == 2
    assert readable(store) == []


def test_rows_of_several_batches_are_set_aside_each_under_its_own_batch(store: Store, drop: Drop):
    for number in range(3):
        drop(store, "weather", f"{number}.csv", weather_csv("2026-01-01,OK,1", *[f",BAD,{number}"] * (number + 1)))

    report = ingest(store)["weather"]

    assert {entry.source: entry.rows for entry in report.quarantined} == {"0.csv": 1, "1.csv": 2, "2.csv": 3}
    assert {entry.batch_id for entry in report.quarantined} == {receipt.batch_id for receipt in report.receipts}
    assert len(readable(store)) == 3


def test_the_same_bad_file_offered_again_is_one_entry(store: Store, drop: Drop):
    drop(store, "weather", "bad.csv", b"rubbish")
    ingest(store)
    again = drop(store, "weather", "renamed.csv", b"rubbish")

    ingest(store)

    with store.ledger.read() as tx:
        (entry,) = open_entries(tx)
    assert entry.source == "bad.csv"
    assert entry.reason.endswith("; the same file came as 'renamed.csv'")
    assert not again.exists()
    assert store.staging.fetch(entry.path).read_bytes() == b"rubbish"


def test_bad_files_of_one_content_are_all_named(store: Store, drop: Drop):
    for name in ("a.csv", "b.csv", "c.csv"):
        drop(store, "weather", name, b"rubbish")

    report = ingest(store)["weather"]
    drop(store, "weather", "b.csv", b"rubbish")
    (again,) = ingest(store)["weather"].quarantined
    assert not retry_entry(store, again.id, "me").done

    assert [entry.source for entry in report.quarantined] == ["a.csv", "b.csv", "c.csv"]
    assert {entry.id for entry in report.quarantined} == {again.id}
    assert again.source == "b.csv"
    with store.ledger.read() as tx:
        (entry,) = open_entries(tx)
    assert entry.source == "a.csv"
    assert entry.reason.endswith("; the same file came as 'b.csv' and 'c.csv'")


@pytest.mark.parametrize("name", ["x" * 251 + ".csv", "ü" * 125 + "x.csv", "😀" * 62 + ".csv"])
def test_a_bad_file_with_a_very_long_name_is_moved_to_quarantine(store: Store, drop: Drop, name: str):
    landed = drop(store, "weather", name, b"rubbish")

    (entry,) = ingest(store)["weather"].quarantined

    assert entry.source == name
    assert not landed.exists()
    kept = store.staging.fetch(entry.path)
    assert kept.read_bytes() == b"rubbish"
    assert kept.suffix == ".csv"


def test_a_very_long_name_that_is_in_the_archive_already_is_archived_too(store: Store, drop: Drop):
    name = "x" * 251 + ".csv"
    drop(store, "weather", name, GOOD)
    ingest(store)
    again = drop(store, "weather", name, WEATHER_CSV)

    ingest(store)

    assert not again.exists()
    assert sorted(path.read_text() for path in store.settings.archive_path.rglob("*.csv")) == sorted(
        [GOOD, WEATHER_CSV]
    )


MICROS = 1_767_225_600_000_000
UNNAMED = {
    "zoned seconds": ("ts", pa.array([MICROS], pa.timestamp("s", "UTC"))),
    "seconds beyond time": ("{column: ts, unit: s}", pa.array([2**62])),
    "text of another format": ("{column: ts, format: '%Y'}", pa.array(["then"])),
}


@pytest.mark.parametrize(("time", "moments"), UNNAMED.values(), ids=UNNAMED)
def test_a_value_that_cannot_be_converted_is_refused_with_its_column(
    make_store: MakeStore, time: str, moments: pa.Array
):
    columns = "columns: {n: bigint, ts: timestamp, temp: double}"
    store = make_store(f"datasets: {{weather: {{{columns}, time: {time}, window: day}}}}")

    with pytest.raises(BatchRejected, match="in column 'ts'"):
        stage(store, "weather", pa.table({"n": [1], "ts": moments, "temp": [1.0]}))


COLUMNS = "columns: {ts: timestamp, temp: double}, "


@pytest.mark.parametrize("columns", ["", COLUMNS, f"{COLUMNS}evolve: true, "], ids=["inferred", "declared", "evolving"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", '{"ts": "2026-01-01", "temp": 1, "": 1}\n'), ("a.csv", "ts,temp,\n2026-01-01,1,1\n")],
)
def test_a_column_without_a_name_is_refused_as_such(
    make_store: MakeStore, tmp_path: Path, columns: str, name: str, content: str
):
    store = make_store(f"datasets: {{weather: {{{columns}time: ts, window: day}}}}")
    (tmp_path / name).write_text(content)

    with pytest.raises(BatchRejected, match=r"column '': its name is empty|wrong columns; unknown columns: ''"):
        stage_file(store, "weather", tmp_path / name)


def test_an_undeclared_dataset_is_refused_by_name(store: Store, tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text(WEATHER_CSV)

    for refuse in (
        lambda: ingest_files(store, "wheather", []),
        lambda: stage(store, "wheather", hourly(1)),
        lambda: stage_file(store, "wheather", path),
    ):
        with pytest.raises(UnknownDataset, match=r"'wheather' is not declared.*weather.*datasets\.yaml"):
            refuse()


def test_other_columns_than_those_that_rows_were_staged_with_are_refused(make_store: MakeStore, drop: Drop):
    stage(make_store(), "weather", hourly(1))
    changed = make_store("datasets: {weather: {columns: {ts: timestamptz, wind: double}, time: ts, window: day}}")
    landed = drop(changed, "weather", "a.csv", b"ts,wind\n2026-01-01,1\n")

    with pytest.raises(ColumnsChanged, match=r"station VARCHAR.*wind DOUBLE"):
        ingest_files(changed, "weather", [LandingFile("weather", landed, landed.stat().st_size, 0)])
    assert ingest(changed) == {}

    assert landed.exists()


def read_denied(store: Store) -> tuple[list[str], tuple[str, ...], bool]:
    """Ingests a file that becomes unreadable after the scan, beside a good one."""
    folder = store.settings.landing_path / "weather"
    folder.mkdir()
    (folder / "good.csv").write_text(GOOD)
    (folder / "closed.csv").write_text(WEATHER_CSV)
    files = scan_landing(store).of("weather")
    (folder / "closed.csv").chmod(0)
    report = ingest_files(store, "weather", files)
    return [receipt.source for receipt in report.receipts], report.skipped, (folder / "closed.csv").exists()


@pytest.mark.process
def test_a_file_that_may_not_be_read_waits_and_the_others_are_staged():
    staged, skipped, still_there = unprivileged(read_denied, DATASETS_YAML)

    assert staged == ["good.csv"]
    assert len(skipped) == 1
    assert "closed.csv" in skipped[0]
    assert "permission denied" in skipped[0].lower()
    assert still_there


def nothing_can_be_moved(store: Store) -> tuple[int, int, list[str], int, int]:
    """Ingests twice from a landing folder that may not be written to."""
    folder = store.settings.landing_path / "weather"
    folder.mkdir()
    (folder / "good.csv").write_text(GOOD)
    (folder / "bad.csv").write_text("rubbish")
    folder.chmod(0o555)
    report = ingest(store)["weather"]
    again = scan_landing(store).files
    left = sorted(path.name for path in folder.iterdir())
    folder.chmod(0o755)
    return report.rows, len(report.quarantined), left, len(again), len(readable(store))


@pytest.mark.process
def test_files_that_may_not_be_moved_stay_and_are_not_taken_again():
    rows, quarantined, left, seen_again, in_all = unprivileged(nothing_can_be_moved, DATASETS_YAML)

    assert (rows, quarantined) == (1, 1)
    assert left == ["bad.csv", "good.csv"]
    assert seen_again == 0
    assert in_all == 1


@pytest.mark.long
def test_stage_file_refuses_with_the_reason_and_keeps_nothing(store: Store, tmp_path: Path):
    for number, (name, (content, reason)) in enumerate(BAD_FILES.items()):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(content)

        with pytest.raises(BatchRejected) as caught:
            stage_file(store, "weather", path)

        assert reason.lower() in caught.value.reason.lower()
        assert str(path) in str(caught.value)
        assert path.exists()
    with store.ledger.read() as tx:
        assert open_entries(tx) == []
    assert readable(store) == []


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_stage_file_says_what_is_wrong_with_a_path(store: Store, tmp_path: Path, what: str):
    path = tmp_path / what
    if what == "folder":
        path.mkdir()

    with pytest.raises(BatchRejected, match=r"cannot be read: (No such file|Is a directory)"):
        stage_file(store, "weather", path)


INFERRED = "datasets: {weather: {time: ts, window: day}}"


def test_a_first_file_without_rows_does_not_decide_the_columns(make_store: MakeStore, drop: Drop):
    store = make_store(INFERRED)
    drop(store, "weather", "0.csv", "ts,n\n")
    drop(store, "weather", "1.csv", "ts,n\n2026-01-01 00:00:00,1\n")

    report = ingest(store)["weather"]

    assert {column.name: column.type for column in report.columns} == {"ts": "TIMESTAMP", "n": "BIGINT"}
    assert [(receipt.source, receipt.rows) for receipt in report.receipts] == [("0.csv", 0), ("1.csv", 1)]


def test_without_any_rows_a_file_that_would_decide_the_columns_is_set_aside(make_store: MakeStore, drop: Drop):
    store = make_store(INFERRED)
    drop(store, "weather", "0.csv", "ts,n\n")

    (entry,) = ingest(store)["weather"].quarantined

    assert "no rows" in entry.reason
    assert "declare the columns" in entry.reason
    drop(store, "weather", "1.csv", "ts,n\n2026-01-01 00:00:00,1\n")
    assert ingest(store)["weather"].rows == 1


def test_the_first_readable_file_decides_the_columns_and_they_stay(make_store: MakeStore, drop: Drop):
    store = make_store(INFERRED)
    drop(store, "weather", "0.csv", "when,n\nrubbish,1\n")
    drop(store, "weather", "1.csv", "ts,n\n2026-01-01 00:00:00,1\n")
    drop(store, "weather", "2.csv", "ts,n\n2026-01-01 00:00:00,many\n")

    report = ingest(store)["weather"]

    assert {entry.source: entry.reason for entry in report.quarantined}.keys() == {"0.csv", "2.csv"}
    assert [row[1] for row in readable(store)] == [1]
    drop(store, "weather", "3.csv", "ts,wind\n2026-01-01 00:00:00,2\n")
    (entry,) = ingest(make_store(INFERRED))["weather"].quarantined
    assert "missing columns: 'n'; unknown columns: 'wind'" in entry.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("ts,_batch\n2026-01-01 00:00:00,1\n", "reserved"),
        ("ts,window_key\n2026-01-01 00:00:00,1\n", "reserved"),
        ("ts,a b\n2026-01-01 00:00:00,1\n", "not allowed"),
        ("ts,\n2026-01-01 00:00:00,1\n", "empty"),
        ("when,n\n2026-01-01 00:00:00,1\n", "time column 'ts' is missing"),
        ("ts,n\nyesterday,1\n", "time.format"),
        ("ts,n\n17,1\n", "time.unit"),
        (json.dumps({"ts": "2026-01-01 00:00:00", "n": {"deep": 1}}), "declare the column as varchar"),
    ],
)
def test_columns_that_no_dataset_can_have_are_refused_with_what_to_do(
    make_store: MakeStore, drop: Drop, content: str, reason: str
):
    store = make_store(INFERRED)
    drop(store, "weather", "a.jsonl" if content.startswith("{") else "a.csv", content)

    (entry,) = ingest(store)["weather"].quarantined

    assert reason in entry.reason


def test_rows_of_a_batch_stay_together_with_what_they_arrived_with(store: Store, drop: Drop):
    tables = [hourly(5, station=f"S{number}") for number in range(4)]
    for number, table in enumerate(tables):
        drop(store, "weather", f"{number}.parquet", parquet_bytes(table))
        drop(store, "weather", f"{number}.csv", b"rubbish %d" % number)

    ingest(store)

    assert readable(store) == rows_of(*tables)

"""Every format and option that a landing file may have, read through an ingest and back through a query."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from timestore_pipeline.datasets import FileFormat
from timestore_pipeline.rows.formats.known import FORMATS, MEDIA_TYPES
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    arrow_bytes,
    build,
    ingest,
    parquet_bytes,
    published,
    readable,
    weather,
    weather_csv,
)
from timestore_pipeline_tests.conftest import MakeStore

Drop = Callable[..., Path]

ROW = (NEW_YEAR, "JFK", 1.5)
CSV = weather_csv("2026-01-01T00:00:00Z,JFK,1.5")
NARROW = pa.schema([("ts", pa.timestamp("ms", "UTC")), ("station", pa.large_string()), ("temp", pa.float32())])
JSON = '{"ts": "2026-01-01T00:00:00Z", "station": "JFK", "temp": 1.5}\n'


def dataset(**keys: Any) -> str:
    """A datasets file with ``weather`` and these keys over its usual ones."""
    spec = {
        "columns": {"ts": "timestamptz", "station": "varchar", "temp": "double"},
        "time": "ts",
        "window": "day",
        **keys,
    }
    return json.dumps({"datasets": {"weather": {key: value for key, value in spec.items() if value is not None}}})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV.encode()),
        ("a.txt", CSV.encode()),
        ("A.CSV", CSV.encode()),
        ("a.csv.gz", gzip.compress(CSV.encode())),
        ("A.CSV.GZ", gzip.compress(CSV.encode())),
        ("bom.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("bom.csv.gz", gzip.compress(b"\xef\xbb\xbf" + CSV.encode())),
        ("bom_and_quotes.csv", b'\xef\xbb\xbf"ts","station","temp"\n"2026-01-01T00:00:00Z","JFK","1.5"\n'),
        ("bom.jsonl", b"\xef\xbb\xbf" + JSON.encode()),
        ("bom.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + JSON.encode())),
        ("crlf.csv", CSV.replace("\n", "\r\n").encode()),
        ("no_last_newline.csv", CSV.rstrip("\n").encode()),
        ("quoted.csv", b'"ts","station","temp"\n"2026-01-01T00:00:00Z","JFK","1.5"\n'),
        ("other_order.csv", b"temp,ts,station\n1.5,2026-01-01T00:00:00Z,JFK\n"),
        ("offset.csv", weather_csv("2026-01-01T02:00:00+02:00,JFK,1.5").encode()),
        ("no_zone_is_utc.csv", weather_csv("2026-01-01 00:00:00,JFK,1.5").encode()),
        ("a.jsonl", JSON.encode()),
        ("a.ndjson", JSON.encode()),
        ("a.json", JSON.encode()),
        ("a.jsonl.gz", gzip.compress(JSON.encode())),
        ("crlf.jsonl", JSON.replace("\n", "\r\n\r\n").encode()),
        ("a.parquet", parquet_bytes(weather(ROW))),
        ("narrow.parquet", parquet_bytes(weather(ROW).cast(NARROW))),
        ("int96.parquet", parquet_bytes(weather(ROW), use_deprecated_int96_timestamps=True)),
        ("zstd.parquet", parquet_bytes(weather(ROW), compression="zstd")),
        ("a.arrow", arrow_bytes(weather(ROW))),
        ("a.feather", arrow_bytes(weather(ROW))),
        ("a.ipc", arrow_bytes(weather(ROW), stream=True)),
        ("a.arrows", arrow_bytes(weather(ROW), stream=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_file_of_every_format_is_read(store: Store, drop: Drop, name: str, content: bytes):
    drop(store, "weather", name, content)

    report = ingest(store)["weather"]

    assert [receipt.rows for receipt in report.receipts] == [1]
    assert readable(store) == [ROW]


def test_files_of_all_formats_are_staged_together_in_one_segment(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", CSV)
    drop(store, "weather", "other_order.csv", "temp,ts,station\n2,2026-01-01,CSV\n")
    drop(store, "weather", "a.csv.gz", gzip.compress(weather_csv("2026-01-01,GZ,3").encode()))
    drop(store, "weather", "a.jsonl", '{"ts": "2026-01-01", "station": "JSON", "temp": 4}\n')
    drop(store, "weather", "b.jsonl", '{"temp": 5, "ts": "2026-01-01"}\n')
    drop(store, "weather", "a.parquet", parquet_bytes(weather((NEW_YEAR, "PARQUET", 6.0))))
    drop(store, "weather", "b.parquet", parquet_bytes(weather((NEW_YEAR, "NARROW", 7.0)).cast(NARROW)))
    drop(store, "weather", "a.arrow", arrow_bytes(weather((NEW_YEAR, "ARROW", 8.0))))
    drop(store, "weather", "b.arrow", arrow_bytes(weather((NEW_YEAR, "STREAM", 9.0)), stream=True))

    report = ingest(store)["weather"]

    assert report.batches == 9
    assert len({receipt.segment_id for receipt in report.receipts}) == 1
    assert [(row[1], row[2]) for row in readable(store)] == [
        ("ARROW", 8.0), ("CSV", 2.0), ("GZ", 3.0), ("JFK", 1.5), ("JSON", 4.0), ("NARROW", 7.0), ("PARQUET", 6.0),
        ("STREAM", 9.0), (None, 5.0),
    ]  # fmt: skip


def test_arrow_files_whose_types_differ_and_mean_the_same_are_read_together(store: Store, drop: Drop):
    zones = ("UTC", "Europe/Paris", "+02:00")
    texts = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))
    for number, (zone, text) in enumerate((zone, text) for zone in zones for text in texts):
        table = pa.table(
            {
                "ts": pa.array([NEW_YEAR], pa.timestamp("us", zone)),
                "station": pa.array([f"S{number:02d}"]).cast(text),
                "temp": [float(number)],
            }
        )
        drop(store, "weather", f"{number}.arrow", arrow_bytes(table))
    nullable = weather((NEW_YEAR, "S12", 12.0))
    required = nullable.cast(pa.schema([field.with_nullable(False) for field in nullable.schema]))
    drop(store, "weather", "required.arrow", arrow_bytes(required.replace_schema_metadata({"made": "by hand"})))

    report = ingest(store)["weather"]

    assert report.quarantined == ()
    assert readable(store) == [(NEW_YEAR, f"S{number:02d}", float(number)) for number in range(13)]


def test_dictionaries_that_differ_from_file_to_file_keep_their_meaning(store: Store, drop: Drop):
    for number, stations in enumerate((["A", "B", "A"], ["B", "C"], ["C", "A"])):
        table = weather(*((NEW_YEAR, station, float(number)) for station in stations))
        encoded = table.set_column(1, "station", table["station"].dictionary_encode())
        drop(store, "weather", f"{number}.arrow", arrow_bytes(encoded))
        drop(store, "weather", f"{number}.parquet", parquet_bytes(encoded.slice(0, 1)))

    ingest(store)

    assert [(row[1], row[2]) for row in readable(store)] == [
        ("A", 0.0), ("A", 0.0), ("A", 0.0), ("A", 2.0), ("B", 0.0), ("B", 1.0), ("B", 1.0), ("C", 1.0), ("C", 2.0),
        ("C", 2.0),
    ]  # fmt: skip


def test_csv_options_are_those_of_the_dataset(make_store: MakeStore, drop: Drop):
    csv = {"delimiter": ";", "quote": "'", "escape": "\\", "null": ["NA", "-"], "header": ["ts", "station", "temp"]}
    store = make_store(dataset(landing={"csv": csv}))
    drop(store, "weather", "a.csv", "2026-01-01;'it\\'s; here';NA\n2026-01-02;-;2.5\n2026-01-03;'';1\n")

    ingest(store)

    assert readable(store) == [
        (datetime(2026, 1, 1, tzinfo=UTC), "it's; here", None),
        (datetime(2026, 1, 2, tzinfo=UTC), None, 2.5),
        (datetime(2026, 1, 3, tzinfo=UTC), "", 1.0),
    ]


def test_a_tab_can_separate(make_store: MakeStore, drop: Drop):
    store = make_store(dataset(landing={"csv": {"delimiter": "\t"}}))
    drop(store, "weather", "a.tsv", "ts\tstation\ttemp\n2026-01-01\tJ,F\t1\n")

    ingest(store)

    assert readable(store) == [(NEW_YEAR, "J,F", 1.0)]


def test_quoted_fields_may_have_separators_quotes_and_lines(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", weather_csv('2026-01-01,"a ""b"", c\nd",1', "2026-01-01,,"))

    ingest(store)

    assert readable(store) == [(NEW_YEAR, 'a "b", c\nd', 1.0), (NEW_YEAR, None, None)]


def test_a_format_can_be_set_where_the_name_does_not_tell(make_store: MakeStore, drop: Drop):
    store = make_store(dataset(landing={"format": "csv"}))
    drop(store, "weather", "export.2026", CSV)
    drop(store, "weather", "no_extension", weather_csv("2026-01-02,LGA,2"))
    drop(store, "weather", "packed.gz", gzip.compress(weather_csv("2026-01-03,EWR,3").encode()))

    ingest(store)

    assert [row[1] for row in readable(store)] == ["JFK", "LGA", "EWR"]


def test_columns_that_are_known_and_not_wanted_are_left_out(make_store: MakeStore, drop: Drop):
    store = make_store(dataset(landing={"ignore_columns": ["note", "raw"]}))
    drop(store, "weather", "a.csv", "note,ts,station,temp\nhello,2026-01-01,CSV,1\n")
    drop(store, "weather", "a.jsonl", '{"ts": "2026-01-01", "station": "JSON", "temp": 1, "raw": {"deep": [1]}}\n')
    extra = weather((NEW_YEAR, "PARQUET", 1.0)).append_column("raw", pa.array([{"deep": [1]}]))
    drop(store, "weather", "a.parquet", parquet_bytes(extra))
    drop(store, "weather", "a.arrow", arrow_bytes(extra.set_column(1, "station", pa.array(["ARROW"]))))

    report = ingest(store)["weather"]

    assert report.quarantined == ()
    assert [row[1] for row in readable(store)] == ["ARROW", "CSV", "JSON", "PARQUET"]


def test_json_values_keep_their_meaning(make_store: MakeStore, drop: Drop):
    store = make_store(dataset(columns={"ts": "timestamptz", "text": "varchar", "n": "bigint", "ok": "boolean"}))
    lines = [
        {"ts": "2026-01-01T00:00:00Z", "text": {"nested": [1, {"deep": None}]}, "n": 2**53 + 1, "ok": True},
        {"ts": "2026-01-02T00:00:00.123456+01:00", "text": 'quote " and \u00e9 \U0001f600', "n": -1, "ok": False},
        {"ts": "2026-01-03T00:00:00Z", "text": None},
    ]
    drop(store, "weather", "a.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))

    ingest(store)

    first, second, third = readable(store)
    assert json.loads(first[1]) == {"nested": [1, {"deep": None}]}
    assert first[2:] == (2**53 + 1, True)
    assert second == (datetime(2026, 1, 1, 23, 0, 0, 123456, tzinfo=UTC), 'quote " and é 😀', -1, False)
    assert third == (datetime(2026, 1, 3, tzinfo=UTC), None, None, None)


EVERY_TYPE = {
    "ts": "timestamptz", "flag": "boolean", "tiny": "tinyint", "small": "smallint", "n": "integer", "big": "bigint",
    "f": "float", "d": "double", "text": "varchar", "raw": "blob", "day": "date", "local": "timestamp",
    "exact": "decimal(20,2)",
}  # fmt: skip


def every_type() -> pa.Table:
    return pa.table(
        {
            "ts": pa.array([NEW_YEAR, NEW_YEAR], pa.timestamp("us", "UTC")),
            "flag": [True, None],
            "tiny": pa.array([-128, None], pa.int8()),
            "small": pa.array([-32_768, None], pa.int16()),
            "n": pa.array([2**31 - 1, None], pa.int32()),
            "big": pa.array([2**63 - 1, None], pa.int64()),
            "f": pa.array([0.25, None], pa.float32()),
            "d": [0.1, None],
            "text": ["é ' \" \\ \n", None],
            "raw": [b"\x00\xff'", None],
            "day": [date(2026, 1, 1), None],
            "local": pa.array([datetime.fromisoformat("2026-01-01T01:02:03.456789"), None], pa.timestamp("us")),
            "exact": pa.array([Decimal("123456789012345678.25"), None], pa.decimal128(20, 2)),
        }
    )


@pytest.mark.parametrize(
    ("name", "content"), [("a.parquet", parquet_bytes(every_type())), ("a.arrow", arrow_bytes(every_type()))]
)
def test_every_type_comes_through_staging_and_building_unchanged(
    make_store: MakeStore, drop: Drop, name: str, content: bytes
):
    store = make_store(dataset(columns=EVERY_TYPE))
    drop(store, "weather", name, content)
    expected = sorted((tuple(row.values()) for row in every_type().to_pylist()), key=repr)

    ingest(store)
    assert readable(store) == expected

    build(store)
    assert readable(store) == expected
    assert published(store) == expected


def test_every_type_can_be_inferred(make_store: MakeStore, drop: Drop):
    store = make_store(dataset(columns=None))
    table = every_type().append_column("unsigned", pa.array([2**64 - 1, None], pa.uint64()))
    table = table.append_column("code", pa.array(["x", None]).dictionary_encode())
    table = table.append_column("nothing", pa.nulls(2))
    drop(store, "weather", "a.parquet", parquet_bytes(table))

    report = ingest(store)["weather"]

    kept = {column.name: column.type for column in report.columns}
    assert {name: kept[name] for name in ("ts", "flag", "tiny", "f", "raw", "exact")} == {
        "ts": "TIMESTAMP WITH TIME ZONE", "flag": "BOOLEAN", "tiny": "TINYINT", "f": "FLOAT", "raw": "BLOB",
        "exact": "DECIMAL(20,2)",
    }  # fmt: skip
    assert (kept["unsigned"], kept["code"]) == ("DECIMAL(20,0)", "VARCHAR")
    build(store)
    assert readable(store)[-1][-3:] == (Decimal(2**64 - 1), "x", None)


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        (pa.timestamp("s"), NEW_YEAR, NEW_YEAR),
        (pa.timestamp("ns"), NEW_YEAR + timedelta(microseconds=7), NEW_YEAR + timedelta(microseconds=7)),
        (pa.timestamp("ns", "UTC"), NEW_YEAR, NEW_YEAR),
        (pa.timestamp("us", "America/New_York"), NEW_YEAR, NEW_YEAR),
        (pa.date32(), date(2026, 1, 1), NEW_YEAR),
        (pa.date64(), date(2026, 1, 1), NEW_YEAR),
    ],
)
def test_a_time_may_arrive_in_any_time_type(store: Store, drop: Drop, type_: pa.DataType, value: Any, expected: Any):
    arriving = value.replace(tzinfo=None) if isinstance(value, datetime) and type_.tz is None else value
    table = pa.table({"ts": pa.array([arriving], type_), "station": ["JFK"], "temp": [1.0]})
    drop(store, "weather", "a.arrow", arrow_bytes(table))
    drop(store, "weather", "a.parquet", parquet_bytes(table.set_column(2, "temp", pa.array([2.0]))))

    report = ingest(store)["weather"]

    assert report.quarantined == ()
    assert readable(store) == [(expected, "JFK", 1.0), (expected, "JFK", 2.0)]


@pytest.mark.parametrize(
    ("time", "text", "expected"),
    [
        ({"column": "ts", "format": "%d.%m.%Y %H:%M"}, "31.12.2025 23:30", datetime(2025, 12, 31, 23, 30, tzinfo=UTC)),
        ({"column": "ts", "format": "%Y%m%dT%H%M%S%z"}, "20260101T010000+0200", datetime(2025, 12, 31, 23, tzinfo=UTC)),
        ({"column": "ts", "unit": "s"}, "1767225600", NEW_YEAR),
        ({"column": "ts", "unit": "ms"}, "1767225600001", NEW_YEAR + timedelta(milliseconds=1)),
        ({"column": "ts", "unit": "us"}, "1767225600000001", NEW_YEAR + timedelta(microseconds=1)),
        ({"column": "ts", "unit": "ns"}, "1767225600000001999", NEW_YEAR + timedelta(microseconds=1)),
    ],
)
@pytest.mark.parametrize("declared", [True, False])
def test_a_time_as_text_or_integer_is_read_as_the_dataset_says(
    make_store: MakeStore, drop: Drop, time: dict[str, str], text: str, expected: datetime, declared: bool
):
    store = make_store(dataset(time=time) if declared else dataset(time=time, columns=None))
    value: Any = int(text) if "unit" in time else text
    row = {"ts": value, "station": "x", "temp": 1.5}
    drop(store, "weather", "a.csv", weather_csv(f"{text},CSV,1.5"))
    drop(store, "weather", "a.jsonl", json.dumps({**row, "station": "JSON"}))
    drop(store, "weather", "a.parquet", parquet_bytes(pa.Table.from_pylist([{**row, "station": "PARQUET"}])))
    drop(store, "weather", "a.arrow", arrow_bytes(pa.Table.from_pylist([{**row, "station": "ARROW"}])))

    report = ingest(store)["weather"]

    assert report.quarantined == ()
    zone = UTC if declared else None
    assert readable(store) == [
        (expected.replace(tzinfo=zone), name, 1.5) for name in ("ARROW", "CSV", "JSON", "PARQUET")
    ]


@pytest.mark.parametrize("window", ["hour", "day", "month"])
@pytest.mark.parametrize("type_", ["date", "timestamp", "timestamptz"])
def test_a_time_column_of_any_type_goes_with_windows_of_any_length(
    make_store: MakeStore, drop: Drop, type_: str, window: str
):
    store = make_store(dataset(columns={"ts": type_, "n": "int"}, window=window))
    days = [date(2026, 1, 1), date(2026, 1, 2), date(2026, 2, 1)]
    drop(store, "weather", "a.csv", "ts,n\n" + "".join(f"{day},{number}\n" for number, day in enumerate(days)))

    ingest(store)
    assert [row[1] for row in readable(store)] == [0, 1, 2]

    build(store)
    assert [row[1] for row in readable(store)] == [0, 1, 2]
    assert [row[1] for row in published(store)] == [0, 1, 2]


AWKWARD_NAMES = [
    "with space.csv", "it's \"quoted\".csv", "[1]*?.csv", "{a,b}.csv", "é ü 日本 😀.csv", "two\nlines.csv", "tab\t.csv",
    "back\\slash.csv", "semi;colon.csv", "percent%41%.csv", "-leading.csv", "a" * 251 + ".csv", "ü" * 125 + ".csv",
    "$(touch x).csv", "x=1.csv", "%s.csv",
]  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD_NAMES)
def test_a_file_may_be_called_anything(store: Store, drop: Drop, name: str):
    drop(store, "weather", "1.csv", weather_csv("2026-01-01,ONE,1"))
    drop(store, "weather", "a.csv", weather_csv("2026-01-01,A,1"))
    landed = drop(store, "weather", name, CSV)

    report = ingest(store)["weather"]

    assert report.quarantined == ()
    assert [row[1] for row in readable(store)] == ["A", "JFK", "ONE"]
    assert not landed.exists()
    assert name in {receipt.source for receipt in report.receipts}
    (archived,) = [path for path in store.settings.archive_path.rglob("*") if path.name == name]
    assert archived.read_text() == CSV


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow", ".csv.gz"])
def test_an_awkward_name_is_read_in_every_format(store: Store, drop: Drop, suffix: str):
    content = {
        ".jsonl": JSON.encode(),
        ".parquet": parquet_bytes(weather(ROW)),
        ".arrow": arrow_bytes(weather(ROW)),
        ".csv.gz": gzip.compress(CSV.encode()),
    }[suffix]
    drop(store, "weather", f"é '[1]*?{{x}}\n\"{suffix}", content)

    assert ingest(store)["weather"].rows == 1
    assert readable(store) == [ROW]


def test_every_format_that_a_dataset_may_name_is_known_and_no_name_means_two():
    names = [format_.name for format_ in FORMATS if format_.name]
    endings = [ending for name in names for ending in name.endings]

    assert sorted(names) == sorted(set(FileFormat) - {FileFormat.AUTO})
    assert all(name.endings for name in names)
    assert len(set(endings)) == len(endings)
    assert len(MEDIA_TYPES) == sum(len(format_.media_types) for format_ in FORMATS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("1.csv", "ts,station,station\n2026-01-01,JFK,LGA\n"),
        ("1.jsonl", '{"ts": "2026-01-01", "station": "JFK", "STATION": "LGA"}\n'),
    ],
)
def test_a_first_file_with_a_column_twice_is_refused_and_spoils_no_other(
    make_store: MakeStore, drop: Drop, name: str, content: str
):
    store = make_store(dataset(columns=None))
    drop(store, "weather", name, content)
    drop(store, "weather", "2.csv", CSV)

    report = ingest(store)["weather"]

    assert [entry.source for entry in report.quarantined] == [name]
    assert "station" in report.quarantined[0].reason.lower()
    assert [row[1] for row in readable(store)] == ["JFK"]

"""JSON lines: numbers are taken as they are written, and a line that is no row is refused with its file."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from decimal import Decimal, localcontext
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from timestore_pipeline.cpu_time import CpuBudget
from timestore_pipeline.datasets import parse_datasets
from timestore_pipeline.http.bodies import Room
from timestore_pipeline.http.decoding import Reading, content_of, read_rows
from timestore_pipeline.http.problems import Problem
from timestore_pipeline.model.columns import Column
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.casts import cast_sql
from timestore_pipeline.rows.formats.format import File, Shape
from timestore_pipeline.rows.formats.json_lines import JsonLines
from timestore_pipeline.rows.formats.known import MEDIA_TYPES
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import ingest, readable
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.sampling import examples

Drop = Callable[[Store, str, str, str | bytes], Path]

PRICES = """
datasets:
  prices:
    columns: {ts: timestamp, price: "decimal(38,25)", id: bigint, note: varchar}
    time: ts
    window: day
"""
LONG = "0.1234567890123456789012345"
BOM = b"\xef\xbb\xbf"
LINES = f'{{"ts": "2026-01-01", "price": {LONG}, "id": 9007199254740993, "note": 1.10}}\n'

JSON_NUMBERS = st.builds(
    lambda sign, whole, part, exponent: sign + whole + part + exponent,
    st.sampled_from(["", "-"]),
    st.one_of(st.just("0"), st.integers(1, 10**22).map(str)),
    st.one_of(st.just(""), st.text("0123456789", min_size=1, max_size=30).map(lambda digits: f".{digits}")),
    st.one_of(st.just(""), st.integers(-25, 25).map(lambda power: f"e{power}")),
)


def read_body(store: Store, media_type: str, text: str | bytes) -> pa.Table:
    format_ = MEDIA_TYPES[media_type]
    body = text.encode() if isinstance(text, str) else text
    with Room(1 << 30).holding(None) as holding:
        reading = Reading(Bounds.of(store.settings), holding, CpuBudget.of(600))
        with content_of(store, format_, body, "", reading) as content:
            return read_rows(store, store.datasets["prices"], format_, content, reading)


@pytest.fixture
def prices(make_store: MakeStore) -> Store:
    return make_store(PRICES)


@pytest.mark.long
@pytest.mark.parametrize("type_", ["DECIMAL(38,20)", "DECIMAL(18,2)", "BIGINT"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(60))
@given(st.lists(JSON_NUMBERS, min_size=1, max_size=3))
@example([LONG])
@example(["9007199254740993.5"])
@example(["0.1000000000000000000000000000001"])
def test_a_number_is_kept_with_all_its_digits_or_refused(tmp_path: Path, type_: str, numbers: list[str]):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"v": {number}}}\n' for number in numbers))
    lines = JsonLines()
    rows = lines.reading_sql(parse_datasets(PRICES)["prices"], Shape(lines), [("v", "VARCHAR")], [File(file, lines)])
    with duckdb.connect() as connection, localcontext(prec=200):
        try:
            kept = connection.execute(f"SELECT {cast_sql(Column('v', type_), 'VARCHAR')} FROM {rows}").fetchall()
        except duckdb.Error:
            scale = int(type_.rstrip(")").rpartition(",")[2]) if "," in type_ else 0
            small = all("e" not in number and abs(Decimal(number)) < 10**15 for number in numbers)
            fits = all(Decimal(number) == Decimal(number).quantize(Decimal(1).scaleb(-scale)) for number in numbers)
            assert not (small and fits), "what fits was refused"
        else:
            assert [Decimal(value) for (value,) in kept] == [Decimal(number) for number in numbers]


def test_a_landing_file_and_a_body_keep_every_digit(prices: Store, drop: Drop):
    drop(prices, "prices", "a.jsonl", LINES)
    body = read_body(prices, "application/json", f"[{LINES}]")

    assert ingest(prices)["prices"].rows == 1
    expected = (Decimal(LONG), 9007199254740993, "1.10")
    ((_, *kept),) = readable(prices, "prices")
    assert tuple(kept) == expected
    ((_, *taken),) = (tuple(row.values()) for row in body.to_pylist())
    assert tuple(taken) == expected


def test_a_fraction_that_the_column_has_no_place_for_is_refused_and_named(prices: Store, drop: Drop):
    too_long = f"{LONG}9"
    drop(prices, "prices", "a.jsonl", LINES.replace(LONG, too_long))

    (entry,) = ingest(prices)["prices"].quarantined

    assert "price" in entry.reason
    assert too_long in entry.reason
    with pytest.raises(Problem, match="price"):
        read_body(prices, "application/x-ndjson", LINES.replace(LONG, too_long))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1, 2]", "no JSON object but ARRAY [1, 2]"),
        ("null", "no JSON object but NULL null"),
        ('{"ts": "2026-01-01", "price": 1, "price": 2}', "a key twice"),
        ('{"ts": "2026-01-01", "price": 1, "id": 2', "line 2: it is no JSON"),
    ],
)
def test_a_file_with_a_line_that_is_no_row_is_refused_and_the_others_go_on(
    prices: Store, drop: Drop, line: str, reason: str
):
    drop(prices, "prices", "bad.jsonl", f"{LINES}{line}\n")
    for number in range(3):
        drop(prices, "prices", f"good-{number}.jsonl", LINES.replace("1.10", f"{number}"))

    report = ingest(prices)["prices"]

    assert report.rows == 3
    (entry,) = report.quarantined
    assert entry.source == "bad.jsonl"
    assert reason in entry.reason


NO_UTF8 = [b'"\xff"', b'"\xed\xa0\x80"']
# A value of the column "note" as it is written, and whether it is JSON (RFC 8259).
VALUES = [
    (b'"a"', True), (b"1e5", True), (b"-0", True), (b"9" * 5_000, True), (b"true", True), (b"null", True),
    (b"[1, 2]", True), (b'{"a": 1}', True), (b'"NaN"', True), (b'": -inf, ]"', True), (b'"\\"", "id": 1', True),
    (b'"\\\\"', True), (b'[",]", ":NaN"]', True), (b'"\xe2\x80\xa8"', True),
    (b"NaN", False), (b"-NaN", False), (b"nan", False), (b"Infinity", False), (b"-Infinity", False), (b"inf", False),
    (b"[1, NaN]", False), (b"[inf]", False), (b'{"a": {"b": -inf}}', False), (b'": x", "id": NaN', False),
    (b"1,", False), (b"[1,]", False), (b"[1, ]", False), (b'{"a": 1,}', False), (b"[,]", False),
    (b"01", False), (b"+1", False), (b".5", False), (b"5.", False), (b"0x1F", False), (b"1e", False), (b"1_000", False),
    (b"True", False), (b"None", False), (b"'a'", False), (b"a", False), (b"1 /* one */", False), (b"", False),
    (b'"a\tb"', False), (b'"\\x"', False), (b'"\\u12"', False), (b'"\\ud800"', False), (b"\xef\xbb\xbf1", False),
    *((value, False) for value in NO_UTF8),
]  # fmt: skip


@pytest.mark.parametrize("first", [b"", BOM], ids=["plain", "bom"])
def test_every_way_in_takes_json_and_nothing_else(make_store: MakeStore, drop: Drop, first: bytes):
    prices = make_store(PRICES, duckdb_threads=2)
    good = b'{"ts": "2026-01-01", "note": "first"}'
    taken: dict[str, set[bytes]] = {"file": set(), "lines": set(), "array": set()}
    rows: dict[bytes, pa.Table] = {}
    refused_rows: dict[tuple[str, bytes], list[int]] = {}
    for number, (value, _) in enumerate(VALUES):
        bad = b'{"ts": "2026-01-01", "note": ' + value + b"}"
        lines, array = first + good + b"\n\n" + bad + b"\n", first + b"[" + good + b",\n" + bad + b"]"
        drop(prices, "prices", f"{number}.jsonl", lines)
        for way, media_type, body in (("lines", "application/x-ndjson", lines), ("array", "application/json", array)):
            try:
                table = read_body(prices, media_type, body)
            except Problem as problem:
                refused_rows[way, value] = [row["row"] for row in problem.more["rows"]]
            else:
                taken[way].add(value)
                assert rows.setdefault(value, table) == table

    report = ingest(prices)["prices"]

    refused = {entry.source: entry.reason for entry in report.quarantined}
    taken["file"] = {value for number, (value, _) in enumerate(VALUES) if f"{number}.jsonl" not in refused}
    json_values = {value for value, is_json in VALUES if is_json}
    assert taken == {"file": json_values, "lines": json_values, "array": json_values}
    # An array is decoded before its rows are told apart.
    assert {case for case, told in refused_rows.items() if told != [2]} == {("array", value) for value in NO_UTF8}
    assert all(reason.startswith("line 3: it is no JSON: ") for reason in refused.values()), refused


@pytest.mark.parametrize("evolves", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        b'{"ts": "2026-01-01", "v": 1}\n{"ts": "2026-01-02", "v": 2}\n',
        b'\r\n{"ts": "2026-01-01", "v": 1}\r\n  {"ts": "2026-01-02", "v": 2}',
        b'{"ts": "2026-01-01", "v": 1}{"ts": "2026-01-02", "v": 2}\n',
        b'{"ts": "2026-01-01", "v": 1}\n{"ts": "2026-01-02",\n"v": 2}\n',
        b'[{"ts": "2026-01-01", "v": 1}]\n',
    ],
    ids=["lines", "crlf", "two on a line", "one on two lines", "array"],
)
def test_a_byte_order_mark_changes_nothing(make_store: MakeStore, drop: Drop, text: bytes, evolves: bool):
    columns = "" if evolves else "columns: {ts: timestamp, v: bigint}, "
    names = [f"{kind}{packed}" for kind in ("plain", "marked") for packed in ("", "packed")]
    datasets = "\n".join(f"  {name}: {{{columns}time: ts, window: day}}" for name in names)
    store = make_store(f"datasets:\n{datasets}\n", duckdb_threads=2)
    for name in names:
        content = (BOM if "marked" in name else b"") + text
        is_packed = "packed" in name
        drop(store, name, "a.jsonl.gz" if is_packed else "a.jsonl", gzip.compress(content) if is_packed else content)

    reports = ingest(store)

    is_taken = reports["plain"].rows > 0
    assert {name: (report.rows, len(report.quarantined)) for name, report in reports.items()} == dict.fromkeys(
        names, (2, 0) if is_taken else (0, 1)
    )
    if is_taken:
        assert len({str(readable(store, name)) for name in names}) == 1

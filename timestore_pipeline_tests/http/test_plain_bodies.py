"""Small bodies are read in short where their values are plain: the rows and the refusals are those of the long way."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from timestore_pipeline.cpu_time import CpuBudget
from timestore_pipeline.http import decoding
from timestore_pipeline.http.bodies import Room
from timestore_pipeline.http.decoding import Reading, content_of, format_of, read_rows
from timestore_pipeline.http.problems import Problem
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.staging.frames import table_fingerprint
from timestore_pipeline.store import Store
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.sampling import examples

COLUMNS = {
    "ts": "timestamp",
    "id": "bigint",
    "small": "tinyint",
    "value": "double",
    "half": "float",
    "price": "decimal(8,2)",
    "count": "decimal(38,0)",
    "ok": "boolean",
    "day": "date",
    "at": "timestamptz",
    "raw": "blob",
    "a/b~c": "bigint",
    "json": "varchar",
    "0": "double",
}
SPEC = f"""
    columns: {json.dumps(COLUMNS)}
    time: ts
    window: day
    landing: {{ignore_columns: [passed_over, "is plain"]}}
"""
DATASETS = f"""
datasets:
  fixed: {SPEC}
  growing: {SPEC}
    evolve: true
  few:
    columns: {{ts: timestamp, id: bigint, value: double, price: "decimal(8,2)"}}
    time: ts
    window: day
  in_seconds:
    columns: {{ts: timestamp, value: double}}
    time: {{column: ts, unit: s}}
    window: day
"""
CSV, LINES, ARRAY = "text/csv", "application/x-ndjson", "application/json"

PLAIN = {
    "ts": ["2026-01-01", "2026-01-01 12:30:00.000001", "2026-01-01T12:30:00+02:00"],
    "id": ["0", "-7", "9223372036854775807", "1.0", "1e3"],
    "small": ["127", "-128"],
    "value": ["0.1", "-1.5e-300", "4503599627370497.5"],
    "half": ["0.1", "16777215"],
    "price": ["1", "1.5", "-999999.99", "1.500"],
    "count": ["12345678901234567890123456789012345678", "1.00"],
    "ok": ["true", "false", "1", "t"],
    "day": ["2026-01-01", "2026-01-01 00:00:00"],
    "at": ["2026-01-01 12:00:00+01:00", "2026-01-01"],
    "raw": ["abc", "\\x00"],
    "a/b~c": ["3"],
    "json": ["{}", "some text", "1.10"],
    "0": ["2.5"],
}
ODD = [
    *("", " ", " 7 ", "null", "NULL", "NaN", "-nan", "inf", "-Infinity", "1e400", "1e-400", "9007199254740993", "1e16"),
    *("9007199254740993.0", "16777217", "128", "1.005", "1.5", "1e-3", "1.50e1", "1_000", "1__0", "_1", "+1", "0x1F"),
    *("1e", ".5", "5.", "-", "--1", "٣", "1,5", "true", "yes", "2026-13-01", "2026-01-01 00:00:00.5", "24:00:00"),
    *("\\xZZ", "\x00", "é", "\ud83d\ude00", '"', "'", "a,b", "a\nb", "99999999999999999999999999999999999999999"),
]


def texts_of(column: str) -> st.SearchStrategy[str]:
    return st.one_of(*[st.sampled_from(PLAIN[column])] * 12, st.sampled_from(ODD), st.text(max_size=8))


PLAIN_ROW = st.fixed_dictionaries({name: st.sampled_from(PLAIN[name]) for name in COLUMNS})
# One value of it is anything: what is odd about it is not hidden by something else.
ROW = st.builds(
    lambda row, name, text: {**row, name: text},
    PLAIN_ROW,
    st.sampled_from([*COLUMNS]),
    st.one_of(st.sampled_from(ODD), st.text(max_size=8)),
)
ROWS = st.lists(st.one_of(PLAIN_ROW, ROW), min_size=0, max_size=4)


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store(DATASETS)


def answer(store: Store, dataset: str, media_type: str, body: bytes) -> Any:
    """The rows of a body, or all that its sender is told instead."""
    room = Room(1 << 30)
    bounds = Bounds.of(store.settings)
    with room.holding(None) as holding:
        reading = Reading(bounds, holding, CpuBudget.of(600))
        format_ = format_of(media_type)
        try:
            with content_of(store, format_, body, "", reading) as content:
                table = read_rows(store, store.datasets[dataset], format_, content, reading)
        except Problem as problem:
            return problem.status, problem.kind, problem.detail, problem.headers, problem.more
        assert holding.bytes >= table.nbytes
        return table


def check_same(store: Store, dataset: str, media_type: str, body: bytes) -> None:
    in_short = answer(store, dataset, media_type, body)
    with mock.patch.object(decoding, "MOST_PLAIN_BYTES", -1):
        in_full = answer(store, dataset, media_type, body)
    if isinstance(in_full, pa.Table) and isinstance(in_short, pa.Table):
        assert in_short.schema.equals(in_full.schema, check_metadata=True)
        assert table_fingerprint(in_short) == table_fingerprint(in_full)
    else:
        assert in_short == in_full


def csv_of(rows: Sequence[dict[str, str]], names: Sequence[str]) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([row.get(name, "1") for name in names] for row in rows)
    return sink.getvalue().encode("utf-8", "surrogatepass")


@pytest.mark.long
@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dataset=st.sampled_from(["fixed", "growing"]),
    rows=ROWS,
    names=st.one_of(
        *[st.just([*COLUMNS])] * 6,
        st.permutations([*COLUMNS]),
        st.lists(st.sampled_from([*COLUMNS, "passed_over", "new", "TS", "is plain"]), min_size=1, max_size=17),
    ),
    cut=st.one_of(*[st.none()] * 9, st.tuples(st.integers(0, 300), st.integers(0, 3), st.binary(max_size=3))),
)
def test_a_csv_body_is_read_as_in_full(
    store: Store,
    dataset: str,
    rows: list[dict[str, str]],
    names: list[str],
    cut: tuple[int, int, bytes] | None,
):
    check_same(store, dataset, CSV, mutated(csv_of(rows, names), cut))


def mutated(body: bytes, cut: tuple[int, int, bytes] | None) -> bytes:
    if cut is None:
        return body
    at, length, instead = cut
    return body[:at] + instead + body[at + length :]


JSON_ODD = ["null", "true", "[]", "[1, 2]", "{}", '{"a": 1}', '""', "01", "NaN", "1e5", "-0", "1E400", '"\\u0031"']


def json_row() -> st.SearchStrategy[str]:
    def value(column: str) -> st.SearchStrategy[str]:
        text = texts_of(column)
        bare = text.filter(lambda each: each.isascii() and each.replace(".", "", 1).lstrip("-").isdecimal())
        return st.one_of(*[text.map(json.dumps)] * 3, *[bare] * 3, st.sampled_from(JSON_ODD))

    members = st.fixed_dictionaries({}, optional={name: value(name) for name in COLUMNS})
    whole = st.fixed_dictionaries({name: st.sampled_from(PLAIN[name]).map(json.dumps) for name in COLUMNS})
    more = st.lists(
        st.tuples(st.sampled_from([*COLUMNS, "passed_over", "new", "TS", "is plain", "a"]), st.sampled_from(JSON_ODD)),
        max_size=1,
    )
    return st.builds(
        lambda row, more: "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in [*row.items(), *more]) + "}",
        st.one_of(*[whole] * 2, members),
        st.one_of(*[st.just([])] * 4, more),
    )


JSON_ROWS = st.lists(
    st.one_of(*[json_row()] * 12, st.sampled_from(["[1, 2]", "[]", "null", "1", "{}", '"a"', "{", "}", "", " "])),
    min_size=0,
    max_size=4,
)


@pytest.mark.long
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dataset=st.sampled_from(["fixed", "growing"]),
    media_type=st.sampled_from([LINES, ARRAY]),
    rows=JSON_ROWS,
    cut=st.one_of(*[st.none()] * 9, st.tuples(st.integers(0, 300), st.integers(0, 3), st.binary(max_size=3))),
)
@example("fixed", LINES, ['{"ts": "2026-01-01", "id": 1, "id": 1}'], None)
@example("fixed", LINES, ['{"ts": "2026-01-01", "i\\u0064": 1}'], None)
@example("fixed", LINES, ['{"ts": "2026-01-01", "new": 1}', '{"ts": "2026-01-01"}'], None)
@example("growing", LINES, ['{"ts": "2026-01-01", "new": 1}', '{"ts": "2026-01-01"}'], None)
@example("fixed", LINES, ["[1, 2]"], None)
@example("fixed", LINES, ["null"], None)
@example("fixed", LINES, ["{}"], None)
def test_a_json_body_is_read_as_in_full(
    store: Store, dataset: str, media_type: str, rows: list[str], cut: tuple[int, int, bytes] | None
):
    text = "[" + ", ".join(rows) + "]" if media_type == ARRAY else "\n".join(rows)
    check_same(store, dataset, media_type, mutated(text.encode("utf-8", "surrogatepass"), cut))


@pytest.mark.parametrize("moment", ["1767225600", "1767225600.0", "1.5", "x", "2026-01-01"])
def test_times_of_a_unit_are_read_as_in_full(store: Store, moment: str):
    check_same(store, "in_seconds", CSV, f"ts,value\n{moment},1.5\n".encode())
    check_same(store, "in_seconds", LINES, f'{{"ts": "{moment}", "value": 1.5}}\n'.encode())


@pytest.fixture
def planned() -> Iterator[mock.Mock]:
    """What is asked for a plan, which is the long way."""
    with mock.patch.object(decoding, "plan_reads", wraps=decoding.plan_reads) as planned:
        yield planned


@pytest.mark.parametrize("media_type", [CSV, LINES, ARRAY])
def test_plain_values_are_read_in_short(store: Store, planned: mock.Mock, media_type: str):
    rows = [{name: texts[number % len(texts)] for name, texts in PLAIN.items()} for number in range(4)]
    objects = [json.dumps({"passed_over": 1, **row}) for row in rows]
    body = {
        CSV: csv_of(rows, [*COLUMNS, "passed_over"]),
        LINES: "\n".join(objects).encode(),
        ARRAY: f"[{','.join(objects)}]".encode(),
    }[media_type]

    table = answer(store, "fixed", media_type, body)

    assert isinstance(table, pa.Table)
    assert table.num_rows == 4
    assert not planned.called


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        (CSV, "ts,id,value,price\n2026-01-01,1.5,1,1\n"),
        (CSV, "ts,id,value,price\n2026-01-01,1,9007199254740993,1\n"),
        (CSV, "ts,id,value,price\n2026-01-01,1,1,1.005\n"),
        (CSV, "ts,id,value\n2026-01-01,1,1\n"),
        (LINES, '{"ts": "2026-01-01", "id": 1, "id": 2}'),
        (LINES, '{"ts": "2026-01-01", "new": 2}'),
        (LINES, "[1]"),
        (LINES, "null"),
    ],
)
def test_what_is_not_plain_is_read_in_full(store: Store, planned: mock.Mock, media_type: str, body: str):
    told = answer(store, "few", media_type, body.encode())

    assert isinstance(told, tuple)
    assert told[0] == 422
    assert planned.called


def test_a_large_body_is_read_in_full_alone(store: Store, planned: mock.Mock):
    line = "2026-01-01,1,1.5,2\n"
    body = "ts,id,value,price\n" + line * (decoding.MOST_PLAIN_BYTES // len(line) + 1)

    with mock.patch.object(decoding, "plain_sql") as in_short:
        table = answer(store, "few", CSV, body.encode())

    assert isinstance(table, pa.Table)
    assert planned.called
    assert not in_short.called

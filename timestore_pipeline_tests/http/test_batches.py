"""Posting batches: every format, every answer, and that a receipt means that the rows are there."""

from __future__ import annotations

import gzip
import json
import uuid
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from timestore_pipeline_tests.builders import arrow_bytes, hourly, parquet_bytes
from timestore_pipeline_tests.conftest import WEATHER_CSV

ROWS = [
    {"ts": "2026-01-01T00:30:00Z", "station": "JFK", "temp": 1.5},
    {"ts": "2026-01-01T01:30:00Z", "station": None, "temp": 2.5},
    {"ts": "2026-01-02T00:30:00Z", "station": "JFK", "temp": None},
]
JSON, LINES, CSV = "application/json", "application/x-ndjson", "text/csv"
ARROW, ARROW_FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
PARQUET = "application/vnd.apache.parquet"


def new_key() -> str:
    return uuid.uuid4().hex


def post(client: httpx.Client, body: Any, media_type: str = JSON, *, dataset: str = "weather", **headers: str):
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    headers = {"Idempotency-Key": new_key(), **{name.replace("_", "-"): value for name, value in headers.items()}}
    return client.post(f"/datasets/{dataset}/batches", content=content, headers={"Content-Type": media_type, **headers})


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["type"] == f"urn:timestore:problem:{kind}"
    assert body["detail"]
    return body


@pytest.mark.parametrize(
    ("media_type", "body", "rows"),
    [
        (JSON, ROWS, 3),
        (JSON, json.dumps(ROWS, indent=2).replace("\n", "\r\n"), 3),
        (LINES, "".join(json.dumps(row) + "\n" for row in ROWS), 3),
        ("application/jsonl; charset=UTF-8", json.dumps(ROWS[0]), 1),
        (CSV, WEATHER_CSV, 3),
        (ARROW, arrow_bytes(hourly(30), stream=True), 30),
        (ARROW_FILE, arrow_bytes(hourly(30)), 30),
        (PARQUET, parquet_bytes(hourly(30)), 30),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_every_format_is_staged_once(client: httpx.Client, media_type: str, body: Any, rows: int, *, packed: bool):
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    headers = {"Idempotency-Key": new_key()}
    if packed:
        content, headers["Content-Encoding"] = gzip.compress(content), "gzip"

    first = post(client, content, media_type, **headers)
    second = post(client, content, media_type, **headers)

    assert first.status_code == 201, first.text
    receipt = first.json()
    assert (receipt["rows"], receipt["quarantined_rows"], receipt["duplicate"]) == (rows, 0, False)
    assert receipt["windows"][0] == "2026-01-01"
    assert second.status_code == 200
    assert second.json() == {**receipt, "duplicate": True}
    found = client.get(first.headers["location"]).json()
    assert (found["state"], found["rows"], found["source"]) == ("staged", rows, "HTTP")
    assert sum(window["rows"] for window in found["windows"]) == rows


def test_a_body_without_a_key_is_the_batch_of_its_content(client: httpx.Client):
    body = "ts,station,temp\n2026-03-01T00:00:00Z,KEYLESS,1\n"
    ask = {"content": body, "headers": {"Content-Type": CSV}}

    first = client.post("/datasets/weather/batches", **ask)
    second = client.post("/datasets/weather/batches", **ask)

    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["batch_id"] == second.json()["batch_id"]


def test_a_key_may_stand_in_quotes(client: httpx.Client):
    key = new_key()

    assert post(client, ROWS, Idempotency_Key=f'"{key}"').json()["batch_id"] == key


def test_the_same_key_with_other_content_is_a_conflict(client: httpx.Client):
    key = new_key()
    post(client, ROWS, Idempotency_Key=key)

    problem(post(client, ROWS[:1], Idempotency_Key=key), 409, "batch-conflict")


def test_a_repeat_is_one_even_when_it_would_not_fit_any_more(client: httpx.Client):
    # What is taken for a repeat is looked up before a body is refused for its rows: here they never fitted.
    key = new_key()
    post(client, ROWS, Idempotency_Key=key)

    problem(post(client, [{"no": 1}], Idempotency_Key=key), 409, "batch-conflict")


@pytest.mark.parametrize(
    ("media_type", "body", "rows"),
    [
        (JSON, [*ROWS, {**ROWS[0], "temp": "warm"}, ROWS[1], {**ROWS[0], "ts": "soon"}], [4, 6]),
        (LINES, "\n".join(json.dumps({**ROWS[0], "temp": n}) for n in (1, "x", 2, "y", 3)), [2, 4]),
        (CSV, WEATHER_CSV + "2026-01-02T00:30:00Z,JFK,warm\n" + "soon,JFK,1\n", [4, 5]),
        (ARROW, arrow_bytes(pa.table({"ts": ["2026-01-01", "soon"], "station": ["a", "b"], "temp": [1.0, 2.0]})), [2]),
        (
            PARQUET,
            parquet_bytes(pa.table({"ts": ["2026-01-01", "soon"], "station": ["a", "b"], "temp": [1.0, 2.0]})),
            [2],
        ),
        (JSON, '[{"ts": "2026-01-01", "station": "a", "temp": 1}, {"ts": ]', [2]),
        (JSON, "[1]", [1]),
        (JSON, '[{"ts": "2026-01-01", "station": "a", "temp": NaN}]', [1]),
        (LINES, '{"ts": "2026-01-01", "station": "a", "temp": 1}\n{"ts": \n', [2]),
        (CSV, "ts,station,temp\n2026-01-01T00:00:00Z,a,1\n2026-01-01T00:00:00Z,a\n", [2]),
    ],
)
def test_rows_that_do_not_fit_are_named_and_none_is_staged(
    client: httpx.Client, media_type: str, body: Any, rows: list[int]
):
    key = new_key()

    body = problem(post(client, body, media_type, Idempotency_Key=key), 422, "rows-rejected")

    assert [row["row"] for row in body["rows"]] == rows, body
    assert all(row["reason"] for row in body["rows"])
    assert not body["more_rows"]
    assert "http-" not in json.dumps(body)
    problem(client.get(f"/datasets/weather/batches/{key}"), 404, "unknown-batch")


def test_only_the_first_of_many_bad_rows_are_named(client: httpx.Client):
    body = problem(post(client, [{**ROWS[0], "temp": "warm"}] * 300), 422, "rows-rejected")

    assert [row["row"] for row in body["rows"]] == list(range(1, 21))
    assert body["more_rows"]


@pytest.mark.parametrize(
    ("media_type", "body", "says"),
    [
        (JSON, {"ts": 1}, "no JSON array"),
        (JSON, "[]", "no rows"),
        (JSON, "[{}] []", "something behind"),
        (JSON, b"\xff", "UTF-8"),
        (JSON, "", "empty"),
        (JSON, "[" * 100_000, "nested too deeply"),
        (JSON, [{"ts": "2026-01-01", "station": "a", "temp": 1, "wind": 3}], "unknown columns: 'wind'"),
        (CSV, "ts,temp\n", "missing columns: 'station'"),
        (ARROW, b"ARROW1\0\0 and nothing", "Arrow"),
        (ARROW, arrow_bytes(hourly(5), stream=True)[:-90], "Arrow"),
        (ARROW, arrow_bytes(hourly(3).select(["ts"])), "missing columns: 'station', 'temp'"),
        (PARQUET, b"PAR1 no", ""),
    ],
)
def test_a_body_that_cannot_be_read_says_why(client: httpx.Client, media_type: str, body: Any, says: str):
    found = problem(post(client, body, media_type), 422, "rows-rejected")

    assert says in found["detail"]
    assert "/tmp" not in found["detail"]


def test_rows_that_no_window_can_hold_are_set_aside_and_told(client: httpx.Client):
    answer = post(client, [*ROWS, {"ts": None, "station": "x", "temp": 1.0}])

    assert answer.status_code == 201
    assert (answer.json()["rows"], answer.json()["quarantined_rows"]) == (3, 1)
    found = client.get(answer.headers["location"]).json()
    assert found["quarantine"][0]["rows"] == 1


def test_a_number_of_many_digits_is_a_matter_of_its_column(client: httpx.Client):
    row = '{"ts": "2026-01-01T00:30:00Z", "station": "many", "temp": 1%s}' % ("0" * 5_000)

    array, lines = post(client, f"[{row}]", JSON), post(client, row, LINES)

    (of_array,), (of_lines,) = (problem(each, 422, "rows-rejected")["rows"] for each in (array, lines))
    assert of_array == of_lines
    assert "column 'temp' is kept as DOUBLE, and cannot hold 1000" in of_array["reason"]


def test_numbers_are_kept_as_they_are_written(make_server):
    columns = "{ts: timestamptz, big: bigint, price: 'decimal(38,20)'}"
    yaml = f"datasets: {{exact: {{columns: {columns}, time: ts, window: day}}}}"
    server = make_server(datasets_yaml=yaml)
    body = '[{"ts": "2026-01-01", "big": 9007199254740993, "price": "1.00000000000000000001"}]'

    with server.client() as client:
        assert post(client, body, dataset="exact").status_code == 201
        lossy = post(client, body.replace('01"', '011"'), dataset="exact")

    assert problem(lossy, 422, "rows-rejected")["rows"][0]["row"] == 1


def test_an_evolving_dataset_takes_up_what_a_body_brings(client: httpx.Client):
    first = [{"at": 1767225600000, "n": 1}]

    assert post(client, first, dataset="events").status_code == 201
    assert post(client, [{"at": 1767225600000, "n": 2, "who": "me"}], dataset="events").status_code == 201
    assert post(client, "at,n\n1767225600000,3000000000\n", CSV, dataset="events").status_code == 201

    listed = {each["name"]: each for each in client.get("/datasets").json()["datasets"]}
    assert set(listed["events"]["columns"]) == {"at", "n", "who"}
    assert listed["weather"]["window"] == "day"


def test_too_large_bodies_are_refused_by_bytes_and_rows(client: httpx.Client):
    problem(post(client, b" " * ((1 << 20) + 1)), 413, "too-large")
    problem(post(client, ROWS * 1_700), 413, "too-large")
    problem(post(client, "".join(json.dumps(ROWS[0]) + "\n" for _ in range(5_001)), LINES), 413, "too-large")
    problem(post(client, arrow_bytes(hourly(5_001), stream=True), ARROW), 413, "too-large")
    problem(post(client, parquet_bytes(hourly(5_001)), PARQUET), 413, "too-large")

    def endless():
        for _ in range(40):
            yield b" " * 65_536

    answer = client.post("/datasets/weather/batches", content=endless(), headers={"Content-Type": JSON})
    problem(answer, 413, "too-large")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(client: httpx.Client):
    packed = gzip.compress(b" " * (64 << 20))
    problem(post(client, packed, JSON, Content_Encoding="gzip"), 413, "too-large")
    assert client.get("/healthz").status_code == 200


def _bombs() -> list[tuple[str, bytes]]:
    long = "x" * 500_000
    many = pa.table(
        {
            "ts": pa.array([0] * 4_000, pa.timestamp("us", "UTC")),
            "station": pa.DictionaryArray.from_arrays(pa.array([0] * 4_000, pa.int16()), [long]),
            "temp": [1.0] * 4_000,
        }
    )
    plain = pa.table({"ts": many["ts"].slice(0, 50), "station": [long] * 50, "temp": [1.0] * 50})
    zstd = pa.BufferOutputStream()
    with pa.ipc.new_stream(zstd, plain.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(plain)
    packed = pa.BufferOutputStream()
    pq.write_table(many, packed, compression="zstd")
    paged = pa.BufferOutputStream()
    pq.write_table(plain, paged, compression="zstd", use_dictionary=False)
    return [
        (ARROW, zstd.getvalue().to_pybytes()),
        (ARROW, arrow_bytes(many, stream=True)),
        (ARROW_FILE, arrow_bytes(many)),
        (PARQUET, packed.getvalue().to_pybytes()),
        (PARQUET, paged.getvalue().to_pybytes()),
    ]


@pytest.mark.parametrize(("media_type", "body"), _bombs())
def test_a_bomb_in_a_binary_format_is_refused(client: httpx.Client, media_type: str, body: bytes):
    assert len(body) < 1 << 20

    problem(post(client, body, media_type), 413, "too-large")


@pytest.mark.parametrize("body", [b"", b"no gzip", gzip.compress(b"[]" * 1_000)[:-12]], ids=["empty", "none", "cut"])
def test_a_broken_gzip_is_refused(client: httpx.Client, body: bytes):
    problem(post(client, body, JSON, Content_Encoding="gzip"), 422, "rows-rejected")


def test_several_gzip_members_are_one_body(client: httpx.Client):
    text = json.dumps(ROWS).encode()

    answer = post(client, gzip.compress(text[:20]) + gzip.compress(text[20:]), JSON, Content_Encoding="gzip")

    assert answer.status_code == 201


def test_what_is_not_understood_is_refused(client: httpx.Client):
    problem(post(client, ROWS, "application/xml"), 415, "unknown-content-type")
    problem(post(client, ROWS, ""), 415, "unknown-content-type")
    problem(post(client, ROWS, "text/csv; charset=latin-1"), 415, "unknown-content-type")
    problem(post(client, ROWS, Content_Encoding="br"), 415, "unknown-encoding")
    problem(post(client, ROWS, Idempotency_Key="x" * 256), 400, "bad-key")
    problem(post(client, ROWS, Idempotency_Key='""'), 400, "bad-key")
    problem(post(client, ROWS, dataset="nothing"), 404, "unknown-dataset")
    problem(client.get("/datasets/nothing/batches/1"), 404, "unknown-dataset")
    problem(client.get("/elsewhere"), 404, "not-found")
    problem(client.delete("/datasets"), 405, "wrong-method")


def test_a_batch_id_may_have_any_characters(client: httpx.Client):
    key = "a/b c?d%2F#é"[:-1] + "e"

    answer = post(client, ROWS, Idempotency_Key=key)

    assert client.get(answer.headers["location"]).json()["batch_id"] == key


def test_the_server_counts_its_requests_by_what_became_of_them(client: httpx.Client):
    def counted() -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(client.get("/metrics").text)
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in families
            if family.name.startswith("timestore_http")
            for sample in family.samples
        }

    here, looks = "POST /datasets/{name}/batches", "GET /metrics"
    before = counted()
    assert post(client, ROWS, Idempotency_Key="counted").status_code == 201
    assert post(client, ROWS, Idempotency_Key="counted").status_code == 200
    problem(post(client, ROWS, dataset="nothing"), 404, "unknown-dataset")
    problem(client.get("/elsewhere"), 404, "not-found")

    after = counted()

    grown = {key: value - before.get(key, 0) for key, value in after.items()}
    requests = "timestore_http_requests_total"
    assert [grown[requests, here, status] for status in ("201", "200", "404")] == [1, 1, 1]
    assert grown[requests, "other", "404"] == 1
    assert grown[requests, looks, "200"] == 1
    assert grown["timestore_http_refused_requests_total", "unknown-dataset"] == 1
    assert grown["timestore_http_request_duration_seconds_count", here] == 3
    assert grown["timestore_http_request_duration_seconds_sum", here] > 0
    assert after["timestore_http_requests_in_flight",] == 1, "the one that asks"


def test_the_server_tells_its_metrics_and_health(client: httpx.Client):
    assert "timestore_" in client.get("/metrics").text
    assert client.get("/healthz").json() == {"ledger": "ok", "disk": "ok"}

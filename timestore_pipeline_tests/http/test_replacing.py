"""Bodies that replace a range of times: its rows are those of the last body, and of no earlier one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from timestore_pipeline.ledger.corrections import recorded_corrections
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    arrow_bytes,
    hourly,
    parquet_bytes,
    readable,
    rows_of,
    weather_csv,
)
from timestore_pipeline_tests.http.server import bearer, tokens_document
from timestore_pipeline_tests.http.test_batches import ARROW, ARROW_FILE, CSV, JSON, LINES, PARQUET, problem

DAY = {"replace_start": "2026-01-01T00:00:00Z", "replace_end": "2026-01-02"}
ROW = weather_csv("2026-01-01T{}:00:00Z,JFK,1")
LATER = hourly(3, start=NEW_YEAR + timedelta(days=1))


@pytest.fixture
def served(serving_in_process: Any) -> Iterator[tuple[httpx.Client, Store]]:
    with serving_in_process() as client, Store.open() as store:
        assert post(client, parquet_bytes(hourly(27)), PARQUET).status_code == 201
        yield client, store


def post(
    client: httpx.Client,
    body: str | bytes,
    media_type: str = CSV,
    replaces: Any = None,
    key: str | None = None,
    **headers: str,
) -> httpx.Response:
    headers = {"Content-Type": media_type, **({"Idempotency-Key": key} if key else {}), **headers}
    content = body if isinstance(body, bytes) else body.encode()
    return client.post("/datasets/weather/batches", content=content, headers=headers, params=replaces)


def hour(number: int) -> str:
    return ROW.format(f"{number:02}")


AS_JSON = [{"ts": time.isoformat(), "station": station, "temp": temp} for time, station, temp in rows_of(hourly(2))]
BODIES: dict[str, tuple[str, str | bytes, int]] = {
    "CSV": (CSV, hour(0), 1),
    "CSV, header alone": (CSV, weather_csv(), 0),
    "JSON": (JSON, json.dumps(AS_JSON), 2),
    "JSON, no row": (JSON, "[]", 0),
    "lines": (LINES, "\n".join(map(json.dumps, AS_JSON)), 2),
    "Arrow": (ARROW, arrow_bytes(hourly(2), stream=True), 2),
    "Arrow, no row": (ARROW, arrow_bytes(hourly(0), stream=True), 0),
    "Arrow file, no row": (ARROW_FILE, arrow_bytes(hourly(0)), 0),
    "Parquet": (PARQUET, parquet_bytes(hourly(2)), 2),
    "Parquet, no row": (PARQUET, parquet_bytes(hourly(0)), 0),
}


@pytest.mark.parametrize(("media_type", "body", "rows"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("key", [None, "mine"], ids=["no key", "key"])
def test_every_format_replaces_once(
    served: tuple[httpx.Client, Store], media_type: str, body: str | bytes, rows: int, key: str | None
):
    client, store = served

    first, again = (post(client, body, media_type, DAY, key) for _ in range(2))

    assert (first.status_code, again.status_code) == (201, 200), first.text
    assert again.json() == {**first.json(), "duplicate": True}
    assert first.json()["rows"] == rows
    assert len(readable(store)) == rows + 3
    assert readable(store)[-3:] == [(*row[:2], row[2] + 24) for row in rows_of(LATER)]
    assert client.get(first.headers["location"]).json()["rows"] == rows


def test_going_back_is_a_change_without_a_key_and_a_repeat_with_it(served: tuple[httpx.Client, Store]):
    client, store = served

    answers = [post(client, hour(number), replaces=DAY) for number in (1, 2, 1)]
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert [row[0].hour for row in readable(store)[:-3]] == [1]

    answers = [post(client, hour(number), replaces=DAY, key=f"of {number}") for number in (3, 4, 3)]
    assert [answer.status_code for answer in answers] == [201, 201, 200]
    assert [row[0].hour for row in readable(store)[:-3]] == [4]


def test_a_key_is_of_its_range_too(served: tuple[httpx.Client, Store]):
    client, _ = served
    assert post(client, hour(1), replaces=DAY, key="mine").status_code == 201

    for other in (None, {**DAY, "replace_end": "2026-01-03"}):
        problem(post(client, hour(1), replaces=other, key="mine"), 409, "batch-conflict")


def test_the_same_body_may_be_added_and_replace(served: tuple[httpx.Client, Store]):
    client, store = served

    answers = [post(client, hour(1), replaces=replaces) for replaces in (None, DAY, None)]

    assert [answer.status_code for answer in answers] == [201, 201, 200]
    assert [row[0].hour for row in readable(store)[:-3]] == [1]


@pytest.mark.parametrize(
    ("replaces", "said"),
    [
        ({"replace_start": "2026-01-01"}, "both replace_start and replace_end"),
        ({"replace_end": "2026-01-01"}, "both replace_start and replace_end"),
        ({"replace_start": ["2026-01-01", "2026-01-01"], "replace_end": "2026-01-02"}, "once each"),
        ({"replace_start": "yesterday", "replace_end": "2026-01-02"}, "ISO 8601"),
        ({"replace_start": "", "replace_end": "2026-01-02"}, "ISO 8601"),
        ({"replace_start": "2026-01-02", "replace_end": "2026-01-01"}, "not after its start"),
        ({"replace_start": "2026-01-01", "replace_end": "2026-01-01"}, "not after its start"),
        ({"replace_start": "0001-01-01T00:00+14:00", "replace_end": "2026-01-01"}, "no time of the years"),
    ],
)
def test_what_is_no_range_is_refused_in_words(served: tuple[httpx.Client, Store], replaces: Any, said: str):
    client, store = served

    assert said in problem(post(client, hour(1), replaces=replaces), 400, "bad-range")["detail"]

    assert len(readable(store)) == 27


def test_rows_outside_of_the_range_are_refused_in_words(served: tuple[httpx.Client, Store]):
    client, store = served
    offset = {"replace_start": "2026-01-01T00:00:00+02:00", "replace_end": "2026-01-01T00:00:00+00:00"}

    refused = post(client, hour(0), replaces=offset)

    assert "rows outside of it, at 2026-01-01T00:00:00+00:00" in problem(refused, 422, "rows-rejected")["detail"]
    assert len(readable(store)) == 27


def test_who_may_send_a_batch_may_replace_and_nobody_else(serving_in_process: Any):
    with serving_in_process(tokens_document()) as client, Store.open() as store:
        assert post(client, hour(1), **bearer("weather")).status_code == 201
        problem(post(client, hour(2), replaces=DAY, **bearer("reader")), 403, "forbidden")
        answers = [post(client, hour(2), replaces=DAY, key=key, **bearer("all")) for key in ("k", "k", None, None)]

        assert [answer.status_code for answer in answers] == [201, 200, 200, 200]
        assert len(readable(store)) == 1
        with store.ledger.read() as tx:
            (record,) = recorded_corrections(tx)
        assert (record.correction.source, record.correction.batch_id) == ("HTTP by all", "token/all/k")

"""Servers that share a ledger on PostgreSQL: any of them may be sent a batch, at the same moment too."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import readable
from timestore_pipeline_tests.http.server import Server, ServerProcess

pytestmark = [pytest.mark.server, pytest.mark.parametrize("ledger_kind", ["postgresql"], indirect=True)]

BATCHES = 12


def rows(number: int) -> list[dict]:
    return [
        {"ts": f"2026-01-01T00:{minute:02}:00Z", "station": f"S{number}", "temp": minute / 2} for minute in range(5)
    ]


def post(server: Server, number: int, key: str, **first: object) -> httpx.Response:
    with server.client() as client:
        body = [{**row, **first} for row in rows(number)]
        return client.post("/datasets/weather/batches", json=body, headers={"Idempotency-Key": key})


def test_a_batch_that_is_sent_to_two_servers_at_once_is_staged_once(ledger_kind: str, make_server, start_server):
    process: ServerProcess = start_server()
    servers: list[Server] = [process, make_server()]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda number: (number // 2, post(servers[number % 2], number // 2, f"key-{number // 2}")),
                range(2 * BATCHES),
            )
        )

    statuses: dict[int, list[int]] = {}
    for number, answer in answers:
        statuses.setdefault(number, []).append(answer.status_code)
    assert {number: sorted(found) for number, found in statuses.items()} == {key: [200, 201] for key in range(BATCHES)}
    assert post(servers[0], 0, "key-0", temp=-1.0).status_code == 409
    assert post(servers[1], 0, "key-0").status_code == 200
    with servers[1].client() as client:
        assert client.get("/datasets/weather/batches/key-0").json()["rows"] == 5
        assert client.get("/healthz").status_code == 200
    assert process.stop() == 0
    with Store.open() as store:
        assert store.ledger.location.startswith("postgresql")
        found = Counter(row[1] for row in readable(store))
    assert found == {f"S{number}": 5 for number in range(BATCHES)}

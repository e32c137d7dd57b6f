"""32 connections and a server that is killed again and again: every acknowledged row is there, exactly once."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import pytest

from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, published, readable
from timestore_pipeline_tests.crash.rows import DATASETS_YAML
from timestore_pipeline_tests.http.server import ServerProcess

CONNECTIONS = 32
BATCHES_EACH = 4
ROWS = 5
KILLS = 2
PATIENCE_SECONDS = 240


@dataclass
class Tally:
    """What clients were told."""

    acknowledged: list[str] = field(default_factory=list)
    repeated: int = 0
    lost_connections: int = 0


def send_until_acknowledged(url: str, key: str, rows: list[dict], tally: Tally, deadline: float) -> None:
    """Send a batch as a careful producer does: the same key again after whatever is no answer."""
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                answer = client.post("/datasets/readings/batches", json=rows, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                tally.lost_connections += 1
                time.sleep(random.uniform(0.01, 0.1))
                continue
            if answer.status_code in (200, 201):
                tally.acknowledged.append(key)
                tally.repeated += answer.status_code == 200
                return
            assert answer.status_code in (429, 503), answer.text
            time.sleep(0.05)
    raise AssertionError(f"{key} was not acknowledged in time")


@pytest.mark.crash
def test_what_was_acknowledged_is_there_once_however_often_the_server_is_killed(start_server):
    server: ServerProcess = start_server(datasets_yaml=DATASETS_YAML, staging_max_pending=0)
    tally = Tally()
    batches = {
        f"{connection}-{number}": [
            {"id": (connection * BATCHES_EACH + number) * ROWS + row, "at": f"2026-01-0{1 + row % 2}T00:00:{row:02}Z"}
            for row in range(ROWS)
        ]
        for connection in range(CONNECTIONS)
        for number in range(BATCHES_EACH)
    }
    deadline = time.monotonic() + PATIENCE_SECONDS
    url, begun = server.url, threading.Event()

    def connection(number: int) -> None:
        begun.wait()
        for key in (key for key in batches if key.startswith(f"{number}-")):
            send_until_acknowledged(url, key, batches[key], tally, deadline)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        clients = [pool.submit(connection, number) for number in range(CONNECTIONS)]
        begun.set()
        for kill in range(KILLS):
            # Each kill comes while requests are under way: some were answered since the last, many were not.
            wanted = len(batches) * (kill + 1) // (KILLS + 2)
            while len(tally.acknowledged) < wanted and time.monotonic() < deadline:
                time.sleep(0.002)
            server.kill()
            server = start_server(server.port, DATASETS_YAML, staging_max_pending=0)
        for client in clients:
            client.result()
    assert server.stop() == 0

    assert sorted(tally.acknowledged) == sorted(batches)
    assert tally.lost_connections > 0
    expected = Counter(row["id"] for rows in batches.values() for row in rows)
    with Store.open() as store:
        assert Counter(row[0] for row in readable(store, "readings")) == expected
        build(store, "readings")
        assert Counter(row[0] for row in published(store, "readings")) == expected

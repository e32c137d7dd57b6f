"""When it is too much: full queues, pauses, full disks, slow clients, too many at once, and a stop in the middle."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from timestore_pipeline.http.bodies import Room
from timestore_pipeline.http.problems import Problem
from timestore_pipeline.ledger.limits import Pause, pause_intake
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, parquet_bytes, readable
from timestore_pipeline_tests.http.test_batches import CSV, PARQUET, post, problem

ROW = "ts,station,temp\n2026-01-01T00:00:00Z,JFK,1\n"


def retry_after(answer: httpx.Response) -> int:
    return int(answer.headers["retry-after"])


def test_a_full_queue_says_when_to_come_back(make_server):
    server = make_server(staging_max_pending=1)
    with server.client() as client:
        assert post(client, ROW, CSV, Idempotency_Key="first").status_code == 201
        refused = post(client, ROW, CSV)
        problem(refused, 429, "queue-full")
        assert retry_after(refused) > 0
        assert post(client, ROW, CSV, Idempotency_Key="first").status_code == 200


def test_a_pause_is_no_fault_of_the_client(make_server):
    server = make_server()
    with Store.open() as store:
        store.ledger.transact(lambda tx: pause_intake(tx, Pause("weather", "me", now_micros(), "moving")))
    with server.client() as client:
        refused = post(client, ROW, CSV)
        assert "moving" in problem(refused, 503, "intake-paused")["detail"]
        assert retry_after(refused) > 0
        listed = {each["name"]: each["intake_paused"] for each in client.get("/datasets").json()["datasets"]}
        assert listed == {"weather": True, "events": False}


def test_a_full_disk_is_told_and_seen_in_the_health(make_server):
    server = make_server(staging_min_free_disk_bytes=1 << 60)
    with server.client() as client:
        problem(post(client, ROW, CSV), 503, "disk-full")
        problem(client.get("/healthz"), 503, "disk-full")


@pytest.mark.long
def test_a_ledger_that_is_away_is_told(make_server):
    server = make_server(ledger_busy_timeout_seconds=1)
    with server.client() as client:
        assert post(client, ROW, CSV, Idempotency_Key="before").status_code == 201
        with Store.open() as store, store.ledger.write():
            refused = post(client, ROW, CSV, Idempotency_Key="meanwhile")
        problem(refused, 503, "ledger-away")
        assert retry_after(refused) > 0
        assert post(client, ROW, CSV, Idempotency_Key="meanwhile").status_code == 201


def hung_up(connection: socket.socket) -> bool:
    connection.settimeout(240)
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.long
def test_a_client_that_dribbles_its_headers_is_hung_up_on(make_server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("timestore_pipeline.http.server.HEADER_SECONDS", 2.0)
    server = make_server()
    with socket.create_connection(("127.0.0.1", server.port)) as slow, server.client() as client:
        stop = threading.Event()

        def dribble() -> None:
            slow.sendall(b"POST /datasets/weather/batches HTTP/1.1\r\nHost: localhost\r\nX: ")
            while not stop.wait(0.3):
                try:
                    slow.sendall(b"x")
                except OSError:
                    return

        with ThreadPoolExecutor(1) as pool:
            dribbling = pool.submit(dribble)
            assert post(client, ROW, CSV).status_code == 201
            assert hung_up(slow)
            stop.set()
            dribbling.result()


@pytest.mark.long
def test_a_body_that_does_not_come_is_answered_and_hung_up_on(make_server):
    server = make_server(http_body_seconds=1)
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(
            b"POST /datasets/weather/batches HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/csv\r\n"
            b"Content-Length: 1000\r\n\r\nts,station,temp\n"
        )
        slow.settimeout(240)
        answer = b""
        while piece := slow.recv(65_536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"urn:timestore:problem:too-slow" in answer


def test_only_so_many_requests_go_on_at_the_same_time(make_server):
    server = make_server(http_max_requests=1, http_body_seconds=240)
    with socket.create_connection(("127.0.0.1", server.port)) as slow, server.client() as client:
        slow.sendall(
            b"POST /datasets/weather/batches HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/csv\r\n"
            + f"Content-Length: {len(ROW)}\r\n\r\n".encode()
        )
        deadline = time.monotonic() + 240
        while (refused := client.get("/datasets")).status_code != 503 and time.monotonic() < deadline:
            time.sleep(0.01)
        problem(refused, 503, "busy")
        slow.sendall(ROW.encode())
        assert slow.recv(65_536).startswith(b"HTTP/1.1 201 ")
        assert client.get("/datasets").status_code == 200


def test_requests_are_held_up_to_a_limit_and_one_always():
    room = Room(100)
    with room.holding(None) as one, room.holding(None) as other:
        one.take(400)
        one.take(100)
        with pytest.raises(Problem) as refused:
            other.take(1)
        assert refused.value.status == 503
    with room.holding(None) as one, room.holding(None) as other:
        one.take(60)
        other.take(40)


def test_one_token_holds_half_of_what_is_held_and_leaves_the_rest_to_others():
    room = Room(100)
    with room.holding("greedy") as one, room.holding("greedy") as more, room.holding("other") as other:
        one.take(40)
        more.take(10)
        with pytest.raises(Problem):
            more.take(1)
        other.take(50)
        one.give_back(40)
        more.take(40)


@pytest.mark.process
def test_a_server_that_is_stopped_answers_what_it_has_begun(start_server):
    server = start_server()
    body = parquet_bytes(hourly(2_000))
    answered: list[httpx.Response] = []
    begun = threading.Barrier(17)

    def one(number: int) -> None:
        with server.client() as client:
            client.get("/healthz")
            begun.wait()
            for turn in range(100):
                try:
                    answered.append(post(client, body, PARQUET, Idempotency_Key=f"{number}-{turn}"))
                except httpx.TransportError:
                    return  # it takes no new connections, and closed this one between two requests

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(one, number) for number in range(16)]
        begun.wait()
        deadline = time.monotonic() + 240
        while len(answered) < 8 and time.monotonic() < deadline:
            time.sleep(0.005)
        code = server.stop()
        for client in clients:
            client.result()

    assert code == 0
    assert {answer.status_code for answer in answered} <= {201}
    with Store.open() as store:
        assert len(readable(store)) == 2_000 * len(answered)

"""One client takes at most its share, and no body, header or connection costs the others more than its bounds."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from timestore_pipeline.http.shares import Slots, Turns
from timestore_pipeline_tests.http.server import Server, bearer, tokens_document
from timestore_pipeline_tests.http.test_batches import ARROW, CSV, JSON, LINES, PARQUET, post, problem
from timestore_pipeline_tests.http.test_pressure import ROW, hung_up
from timestore_pipeline_tests.rows.test_bounds import lying_parquet
from timestore_pipeline_tests.staging.test_poison import DEADLY, arrow_bytes

HEAD = b"POST /datasets/weather/batches HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/csv\r\n"


def answer_to(server: Server, *pieces: bytes) -> bytes:
    """What a connection hears that sends these pieces, until it is closed."""
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        heard = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            while piece := connection.recv(65_536):
                heard += piece
        except OSError:
            pass  # it was closed while we were still talking
        return heard


@pytest.fixture(scope="module")
def endless() -> list[bytes]:
    return [b"x" * 60_000] * 200


def test_headers_are_bounded_in_bytes(shared: Server, endless: list[bytes]):
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n"
    many = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"

    for pieces in ([whole], [many], [b"GET /" + b"x" * 60_000 + b" HTTP/1.1\r\n\r\n"]):
        assert answer_to(shared, *pieces).startswith(b"HTTP/1.1 431 ")
    for start in (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"GET /"):
        heard = answer_to(shared, start, *endless)
        assert not heard or heard.startswith(b"HTTP/1.1 431 ")
    with shared.client() as client:
        assert client.get("/healthz", headers={"X": "x" * 20_000}).status_code == 200


def test_what_comes_behind_a_body_in_pieces_is_bounded_too(shared: Server, endless: list[bytes]):
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: "

    heard = answer_to(shared, chunked, *endless)

    assert not heard or b" 431 " in heard.partition(b"\r\n")[0]


def test_who_sends_request_after_request_and_reads_no_answer_is_hung_up_on(shared: Server):
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"

    few = answer_to(shared, (ask + b"\r\n") * 4 + ask + b"Connection: close\r\n\r\n")
    many = answer_to(shared, (ask + b"\r\n") * 5_000)

    assert few.count(b"HTTP/1.1 200 ") == 5
    assert many.count(b"HTTP/1.1 ") < 100


def test_a_client_that_goes_away_while_it_is_answered_is_no_error(make_server, caplog: pytest.LogCaptureFixture):
    server = make_server()
    ask = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack:
        for count in (1, 8, 50) * 5:
            gone = stack.enter_context(socket.socket())
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_024)
            gone.connect(("127.0.0.1", server.port))
            gone.sendall(ask * count)
    with server.client() as client:
        assert client.get("/metrics").status_code == 200  # asked after them all, and answered one at a time

    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []


def test_a_body_in_tiny_pieces_is_put_together_once(shared: Server, monkeypatch: pytest.MonkeyPatch):
    passed_on = []
    pass_on = HttpToolsProtocol.on_body
    monkeypatch.setattr(HttpToolsProtocol, "on_body", lambda self, body: (passed_on.append(body), pass_on(self, body)))
    body = b"ts,station,temp\n" + b"2026-01-01T00:30:00Z,pieces,1.5\n" * 300
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in body)

    heard = answer_to(shared, HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + pieces + b"0\r\n\r\n")

    assert heard.startswith(b"HTTP/1.1 201 ")
    assert json.loads(heard.partition(b"\r\n\r\n")[2])["rows"] == 300
    assert b"".join(passed_on) == body
    assert len(passed_on) < len(body) / 100


def test_a_reason_is_no_longer_for_a_long_name(shared: Server):
    with shared.client() as client:
        refused = post(client, b'[{"%s": 1}]' % (b"k" * 1_000_000), JSON)

    said = problem(refused, 422, "rows-rejected")["detail"]
    assert len(said) < 10_000
    assert "unknown columns: 'kkk" in said
    assert "The dataset has ts TIMESTAMP" in said


def test_what_is_no_request_is_told_so(shared: Server):
    heard = answer_to(shared, b"\x16\x03\x01 hello\r\n\r\n")

    assert heard.startswith(b"HTTP/1.1 400 ")
    assert json.loads(heard.partition(b"\r\n\r\n")[2])["type"] == "urn:timestore:problem:no-request"


@pytest.mark.long
def test_the_health_is_told_however_many_requests_and_connections_there_are(make_server):
    server = make_server(http_max_requests=2, http_max_connections=20)
    with ExitStack() as stack:
        for _ in range(60):
            waiting = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            waiting.sendall(b"GET /")
        with ThreadPoolExecutor(16) as pool:
            ask = [pool.submit(httpx.get, f"{server.url}/healthz", timeout=60, trust_env=False) for _ in range(64)]
        assert {each.result().status_code for each in ask} == {200}


def test_the_connection_that_waits_longest_makes_room_for_a_new_one(make_server):
    server = make_server(http_max_connections=3)
    with ExitStack() as stack:
        first, *_ = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(4)]
        assert hung_up(first)


@contextmanager
def slow_bodies(server: Server, token: str, count: int) -> Iterator[None]:
    """So many requests of a token whose bodies do not come."""
    authorization = f"Authorization: {bearer(token)['Authorization']}\r\n".encode()
    with ExitStack() as stack:
        for _ in range(count):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            slow.sendall(HEAD + authorization + b"Content-Length: 1000\r\n\r\nts")
        yield


@pytest.mark.long
def test_one_token_takes_its_share_of_the_requests_and_the_others_go_on(make_server, tmp_path: Path):
    tokens = tmp_path / "tokens.json"
    tokens.write_text(tokens_document())
    tokens.chmod(0o600)
    server = make_server(http_tokens_file=tokens, http_max_requests=8, http_max_requests_per_token=3)
    with slow_bodies(server, "weather", 20), server.client() as client:
        deadline = time.monotonic() + 60
        while (refused := post(client, ROW, CSV, **bearer("weather"))).status_code == 201:
            assert time.monotonic() < deadline
        assert "token" in problem(refused, 503, "busy")["detail"]
        assert post(client, ROW, CSV, **bearer("all")).status_code == 201
        assert client.get("/healthz").status_code == 200


def test_slots_are_given_back():
    slots = Slots(3, 2)
    for _ in range(5):
        taken = [slots.slot() for _ in range(3)]
        for slot in taken[:2]:
            slot.of("one")
        for slot in taken:
            slot.give_back()
    assert slots.slot()


def test_a_client_takes_its_turns_and_leaves_the_others_theirs():
    import asyncio

    async def work() -> list[str]:
        turns, order, go = Turns(1), [], asyncio.Event()

        async def one(client: str | None) -> None:
            async with turns.of(client):
                order.append(client or "nobody")
                await go.wait()

        tasks = [asyncio.create_task(one(client)) for client in ("a", "a", "a", "b", None, None)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        begun = list(order)
        go.set()
        await asyncio.gather(*tasks)
        assert len(order) == 6
        return begun

    assert sorted(asyncio.run(work())) == ["a", "b", "nobody", "nobody"]


def keys(number: int) -> str:
    return "{" + ", ".join(f'"k{key}": 1' for key in range(number)) + ', "at": 1767225600000}'


COSTLY = {
    "a deadly time": (ARROW, arrow_bytes(DEADLY, stream=True), ""),
    "a lying footer": (PARQUET, lying_parquet(15_000_000), ""),
    "empty members": (CSV, gzip.compress(b"") * 40_000, "gzip"),
    "a wide header": (CSV, ",".join(f"c{number}" for number in range(40_000)).encode(), ""),
    "a wide line": (LINES, keys(40_000).encode(), ""),
    "a wide row": (JSON, f"[{keys(40_000)}]".encode(), ""),
    "many values": (JSON, gzip.compress(b'[{"n": [' + b"[]," * 1_000_000 + b"[]]}]"), "gzip"),
    "a long row": (JSON, gzip.compress(b'[{"n": "' + b"x" * 4_200_000 + b'"}]'), "gzip"),
    "an array that is cut": (JSON, b'[{"ts": "2026-01-01", "station": "a", "temp": 1},', ""),
}


@pytest.mark.matrix
@pytest.mark.parametrize("name", COSTLY)
@pytest.mark.parametrize("dataset", ["weather", "events"])
def test_a_body_that_would_cost_much_is_refused_and_the_next_one_is_taken(
    client: httpx.Client, name: str, dataset: str
):
    media_type, body, encoding = COSTLY[name]
    before = time.process_time()  # of the server too, which is in this process

    refused = post(client, body, media_type, dataset=dataset, **({"Content_Encoding": encoding} if encoding else {}))

    assert refused.status_code in (413, 422), refused.text
    assert len(refused.content) < 10_000
    assert time.process_time() - before < 10
    assert post(client, ROW, CSV).status_code == 201


def test_reading_has_its_time_and_memory(make_server):
    server = make_server(http_decode_seconds=0.001, http_max_decoded_bytes=1 << 24)
    body = "ts,station,temp\n" + "2026-01-01T00:00:00Z,JFK,1\n" * 100_000
    with server.client() as client:
        assert "processor time" in problem(post(client, body, CSV), 413, "too-large")["detail"]


@pytest.mark.long
def test_what_is_unpacked_and_read_counts_as_held(make_server):
    server = make_server(http_max_held_bytes=4 << 20, http_body_seconds=60)
    row = json.dumps({"ts": "2026-01-01T00:00:00Z", "station": "x" * 1_000, "temp": 1})
    body = gzip.compress(f"{row}\n".encode() * 3_000)
    holds = threading.Event()
    with socket.create_connection(("127.0.0.1", server.port)) as slow, server.client() as client:
        slow.sendall(HEAD + b"Content-Length: 3000000\r\n\r\n" + b"x" * 2_900_000)
        deadline = time.monotonic() + 60
        while not holds.is_set():
            answer = post(client, body, LINES, Content_Encoding="gzip")
            assert answer.status_code in (201, 503), answer.text
            if answer.status_code == 503:
                holds.set()
            assert time.monotonic() < deadline
        slow.close()
        while (answer := post(client, body, LINES, Content_Encoding="gzip")).status_code == 503:
            assert time.monotonic() < deadline
        assert answer.status_code == 201

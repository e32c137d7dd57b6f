"""Pushing: the whole picture each time, never out of order, and never at the cost of what is reported on."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager

import pytest

from timestore_pipeline.ledger.counters import DROPPED_BATCHES, count
from timestore_pipeline.ledger.leases import claim_lease, release_lease
from timestore_pipeline.metrics import PushResult, push_metrics
from timestore_pipeline.metrics.series import SERIES
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.store import Store
from timestore_pipeline_tests.conftest import MakeStore, find_program
from timestore_pipeline_tests.metrics.servers import Gateway, pushgateway
from timestore_pipeline_tests.metrics.work import short_processes
from timestore_pipeline_tests.stub_server import QuietHandler, answering_with

REASONS = next(each.values for each in SERIES if each.name == DROPPED_BATCHES)


@pytest.fixture(scope="module")
def running_gateway() -> Iterator[Gateway]:
    with pushgateway(find_program) as gateway:
        yield gateway


@pytest.fixture
def gateway(running_gateway: Gateway) -> Gateway:
    """A Pushgateway that holds nothing yet."""
    running_gateway.forget()
    return running_gateway


@contextmanager
def listening(answer: Callable[[socket.socket], None] | None) -> Iterator[str]:
    """A server that accepts connections and lets ``answer`` deal with each; None leaves them open, unanswered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                accepted.append(connection)
                if answer is not None:
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in accepted:
                connection.close()
            thread.join(10)


def drop_batches(store: Store, batches: int) -> None:
    with store.ledger.write() as tx:
        count(tx, DROPPED_BATCHES, "weather", "queue_full", batches)


def test_without_a_gateway_metrics_are_off(store: Store):
    result = push_metrics(store)

    assert result == PushResult(False, "off: TIMESTORE_PUSHGATEWAY_URL is not set")


@pytest.mark.server
def test_the_gateway_has_what_the_ledger_has(make_store: MakeStore, gateway: Gateway):
    store = make_store(pushgateway_url=gateway.url)
    drop_batches(store, 3)

    result = push_metrics(store)

    assert result == PushResult(True, f"pushed to {gateway.url}")
    dropped = {"dataset": "weather", "reason": "queue_full", "job": "timestore"}
    assert gateway.samples(DROPPED_BATCHES, **dropped) == [3]
    assert gateway.samples(DROPPED_BATCHES, dataset="events") == [0] * len(REASONS)


@pytest.mark.server
def test_the_job_is_the_group(make_store: MakeStore, gateway: Gateway):
    store = make_store(pushgateway_url=gateway.url, pushgateway_job="time/store of A & B")

    assert push_metrics(store).pushed

    assert len(gateway.samples(DROPPED_BATCHES, job="time/store of A & B")) == 2 * len(REASONS)


@pytest.mark.server
def test_a_push_replaces_its_own_group_and_no_other(make_store: MakeStore, gateway: Gateway):
    store = make_store(pushgateway_url=gateway.url)
    gateway.put("job/timestore", "old_series 1\n")
    gateway.put("job/other", "others_series 1\n")

    assert push_metrics(store).pushed

    assert gateway.samples("old_series") == []
    assert gateway.samples("others_series") == [1]


@pytest.mark.server
def test_a_dataset_that_was_removed_is_gone_from_the_gateway_with_the_next_push(
    make_store: MakeStore, gateway: Gateway
):
    drop_batches(make_store(pushgateway_url=gateway.url), 3)
    assert push_metrics(make_store(pushgateway_url=gateway.url)).pushed
    assert gateway.samples(DROPPED_BATCHES, dataset="weather", reason="queue_full") == [3]

    assert push_metrics(
        make_store("datasets: {events: {time: {column: at, unit: ms}, window: hour}}", pushgateway_url=gateway.url)
    ).pushed

    assert 'dataset="weather"' not in gateway.open("metrics")
    assert gateway.samples(DROPPED_BATCHES, dataset="events") == [0] * len(REASONS)


def drop_and_push(pushes: int) -> None:
    with Store.open() as store:
        for _ in range(pushes):
            drop_batches(store, 1)
            result = push_metrics(store)
            assert result.pushed, result.reason


@pytest.mark.server
def test_counters_never_go_down_whichever_process_pushes(
    store_environment: Callable[..., dict[str, str]], gateway: Gateway
):
    processes, pushes = 3, 10
    environment = store_environment(pushgateway_url=gateway.url, pushgateway_timeout_seconds=60)
    Store.open().close()

    seen: list[float] = []
    with short_processes(environment, processes) as pool:
        running = [pool.submit(drop_and_push, pushes) for _ in range(processes)]
        while not all(each.done() for each in running):
            seen += gateway.samples(DROPPED_BATCHES, dataset="weather", reason="queue_full")
            wait(running, 0.1)
        for each in running:
            each.result()
    seen += gateway.samples(DROPPED_BATCHES, dataset="weather", reason="queue_full")

    assert seen == sorted(seen)
    assert seen[-1] == processes * pushes


def test_a_gateway_that_is_down_is_a_warning(make_store: MakeStore, free_port: int, caplog: pytest.LogCaptureFixture):
    url = f"http://127.0.0.1:{free_port}"

    result = push_metrics(make_store(pushgateway_url=url))

    assert not result.pushed
    assert result.reason.startswith(f"metrics were not pushed to {url}: ")
    assert "refused" in result.reason
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def trickle(connection: socket.socket) -> None:
    """Send a header line for ever: each byte in time, the answer never."""

    def send() -> None:
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while True:
                connection.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize("answer", [None, trickle], ids=["never answers", "trickles"])
def test_a_gateway_that_hangs_is_given_up_in_time(
    answer: Callable[[socket.socket], None] | None, make_store: MakeStore
):
    with listening(answer) as url:
        store = make_store(pushgateway_url=url, pushgateway_timeout_seconds=0.5)

        # Either goes on for ever: that it returns at all is the promise.
        result = push_metrics(store)

    assert not result.pushed
    assert "0.5 s" in result.reason or "timed out" in result.reason


def reset(connection: socket.socket) -> None:
    connection.close()


def refuse(connection: socket.socket) -> None:
    connection.recv(65536)
    body = b"text format parsing error in line 7"
    connection.sendall(b"HTTP/1.0 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    connection.close()


def babble(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"220 mail.example.org ESMTP\r\n")
    connection.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(reset, "metrics were not pushed"), (refuse, "HTTP 400 Bad Request"), (babble, "220 mail")],
)
def test_a_gateway_that_answers_wrongly_is_a_warning(
    answer: Callable[[socket.socket], None], reason: str, make_store: MakeStore
):
    with listening(answer) as url:
        result = push_metrics(make_store(pushgateway_url=url, pushgateway_timeout_seconds=5))

    assert not result.pushed
    assert reason in result.reason


@pytest.mark.parametrize("url", ["gar bage", "http://[::1", "ftp://127.0.0.1/", "http://", "http://127.0.0.1:99999"])
def test_an_url_that_is_none_is_a_warning(url: str, make_store: MakeStore):
    result = push_metrics(make_store(pushgateway_url=url))

    assert not result.pushed
    assert result.reason.startswith("metrics were not pushed to ")


def test_a_ledger_that_cannot_be_used_is_a_warning(make_store: MakeStore, free_port: int, monkeypatch):
    store = make_store(pushgateway_url=f"http://127.0.0.1:{free_port}")

    def broken() -> None:
        raise RuntimeError("no ledger today")

    monkeypatch.setattr(type(store.ledger), "write", lambda _: broken())

    assert "no ledger today" in push_metrics(store).reason


def test_a_password_is_sent_and_never_shown(make_store: MakeStore, caplog: pytest.LogCaptureFixture):
    sent: list[str | None] = []

    class Handler(QuietHandler):
        def do_PUT(self) -> None:
            sent.append(self.headers["Authorization"])
            self.send_response(401)
            self.end_headers()

    with answering_with(Handler) as port:
        result = push_metrics(make_store(pushgateway_url=f"http://me:p%40ss@127.0.0.1:{port}"))

    assert sent == ["Basic " + base64.b64encode(b"me:p@ss").decode()]
    assert "HTTP 401" in result.reason
    assert "ss@" not in result.reason + caplog.text


def test_a_push_waits_its_turn_but_not_longer_than_its_timeout(make_store: MakeStore, free_port: int):
    store = make_store(pushgateway_url=f"http://127.0.0.1:{free_port}", pushgateway_timeout_seconds=0.3)
    now = now_micros()
    with store.ledger.write() as tx:
        assert claim_lease(tx, "metrics_push", "another", now=now, expires_at=now + 60_000_000)

    assert "other processes were pushing" in push_metrics(store).reason

    with store.ledger.write() as tx:
        release_lease(tx, "metrics_push", "another")
    assert "refused" in push_metrics(store).reason


def test_a_process_that_died_while_pushing_holds_nobody_up(make_store: MakeStore, free_port: int):
    store = make_store(pushgateway_url=f"http://127.0.0.1:{free_port}")
    now = now_micros()
    with store.ledger.write() as tx:
        assert claim_lease(tx, "metrics_push", "dead", now=now - 10, expires_at=now - 1)

    assert "refused" in push_metrics(store).reason

"""What can go wrong between a process and its object store, on request: a proxy in front of an S3 server.

It records every request that passes, so that tests can count them, and spoils those that a :class:`Fault` names.
"""

from __future__ import annotations

import http.client
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

# Of one connection only, so not passed on.
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "expect"}
_LOOK_SECONDS = 0.05
_ERROR = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{code}</Code><Message>{code}, as the test wants it</Message><Resource>/</Resource>\
<RequestId>0</RequestId></Error>"""


class Effect(Enum):
    """What becomes of a request."""

    ERROR = "answered with an error; the server does not get it"
    ERROR_AFTER = "answered with an error although the server carried it out"
    HANG = "never answered; the server does not get it"
    HANG_AFTER = "never answered although the server carried it out"
    DROP_BEFORE = "its connection is reset before the server gets it"
    DROP_AFTER = "its connection is reset after the server carried it out"
    TRICKLE = "answered a few bytes at a time"
    CUT = "its connection is reset in the middle of the answer's body"
    CALL = "passed on, after a function has been called"


@dataclass
class Request:
    """One request as it came in. ``operation`` is one of LIST, GET, HEAD, PUT, COPY, DELETE, DELETE_MANY, or a method.

    ``key`` is the object's, as text; of a listing it is the prefix. ``status`` is what the client was answered, 0 for
    nothing.
    """

    operation: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    status: int = 0


@dataclass
class Fault:
    """Which requests are spoilt, and how.

    Of those with ``operation`` (None: all) whose key matches ``key`` (a shell pattern, in which ``*`` takes in ``/``)
    the first ``skip`` pass, and of the next ``times`` (None: all) each is spoilt. ``hits`` counts them.
    """

    effect: Effect
    operation: str | None = None
    key: str = "*"
    skip: int = 0
    times: int | None = 1
    status: int = 500
    code: str = "InternalError"
    bytes_per_second: int = 10_000
    call: Callable[[Request], object] | None = None
    hits: int = 0
    _seen: int = field(default=0, repr=False)

    def takes(self, request: Request) -> bool:
        """Whether it spoils this request; counts it."""
        if self.operation not in {None, request.operation} or not fnmatchcase(request.key, self.key):
            return False
        self._seen += 1
        if self._seen <= self.skip or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


def slow_down(operation: str | None = None, **where: Any) -> Fault:
    """S3's 503 SlowDown, which it answers when there are too many requests."""
    return Fault(Effect.ERROR, operation, status=503, code="SlowDown", **where)


def denied(operation: str | None = None, **where: Any) -> Fault:
    """S3's 403 AccessDenied."""
    return Fault(Effect.ERROR, operation, status=403, code="AccessDenied", **where)


class FaultProxy:
    """A proxy on a port of its own in front of the server at ``host:port``; see :func:`fault_proxy`.

    ``page`` bounds how many keys one answer to a listing has, so that few objects are many pages.
    """

    def __init__(self, host: str, port: int, *, bind: str = "127.0.0.1", page: int | None = None) -> None:
        self.upstream = (host, port)
        self.page = page
        self.requests: list[Request] = []
        self.released = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = _Server((bind, 0), _Handler)
        self._server.proxy = self
        self.port: int = self._server.server_address[1]
        self.endpoint = f"http://{bind}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK_SECONDS,), daemon=True)

    def start(self) -> None:
        """Take connections."""
        self._thread.start()

    def close(self) -> None:
        """Take no more connections, and let go of those that hang."""
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, *faults: Fault) -> None:
        """Spoil what these name from now on; of several that name the same request the first does."""
        with self._lock:
            self._faults += faults

    @contextmanager
    def spoilt(self, *faults: Fault) -> Iterator[None]:
        """Spoil what these name while the block lasts."""
        self.add(*faults)
        try:
            yield
        finally:
            with self._lock:
                self._faults = [fault for fault in self._faults if fault not in faults]

    def heal(self) -> None:
        """Spoil nothing more."""
        with self._lock:
            self._faults.clear()

    def forget(self) -> None:
        """Forget the requests up to now."""
        with self._lock:
            self.requests.clear()

    def passed(self, operation: str | None = None, key: str = "*") -> list[Request]:
        """Return the requests up to now, spoilt ones included: of one operation, with keys that match a pattern."""
        with self._lock:
            return [
                request
                for request in self.requests
                if operation in {None, request.operation} and fnmatchcase(request.key, key)
            ]

    def enter(self, request: Request) -> Fault | None:
        """Record a request; return the fault that is to spoil it."""
        with self._lock:
            self.requests.append(request)
            return next((fault for fault in self._faults if fault.takes(request)), None)


@contextmanager
def fault_proxy(host: str, port: int, *, bind: str = "127.0.0.1", page: int | None = None) -> Iterator[FaultProxy]:
    """Give a proxy in front of the server at ``host:port`` while the block lasts."""
    proxy = FaultProxy(host, port, bind=bind, page=page)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients go away as they like, and so do we."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def _proxy(self) -> FaultProxy:
        assert isinstance(self.server, _Server)
        return self.server.proxy

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _carry_out(self) -> None:
        proxy = self._proxy
        request = _parse(
            self.command, self.path, self.headers, self.rfile.read(int(self.headers["Content-Length"] or 0))
        )
        fault = proxy.enter(request)
        effect = fault.effect if fault else None
        if fault and effect in (Effect.HANG, Effect.DROP_BEFORE, Effect.ERROR):
            return self._fail(request, fault)
        if fault and effect is Effect.CALL and fault.call:
            fault.call(request)
        answer, body = self._pass_on(request)
        if fault and effect in (Effect.HANG_AFTER, Effect.DROP_AFTER, Effect.ERROR_AFTER):
            return self._fail(request, fault)
        request.status = answer.status
        self._answer_head(answer, len(body))
        if effect is Effect.CUT:
            self.wfile.write(body[: len(body) // 2])
            return self._reset()
        if fault and effect is Effect.TRICKLE:
            return self._trickle(body, fault.bytes_per_second)
        self.wfile.write(body)
        return None

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _carry_out

    def _pass_on(self, request: Request) -> tuple[http.client.HTTPResponse, bytes]:
        path = self.path
        if self._proxy.page and request.operation == "LIST":
            path += f"&max-keys={self._proxy.page}"
        connection = http.client.HTTPConnection(*self._proxy.upstream, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        headers["Host"] = self.headers["Host"]
        body = request.body if request.body or self.command in {"PUT", "POST"} else None
        try:
            connection.request(self.command, path, body, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def _answer_head(self, answer: http.client.HTTPResponse, length: int) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        told = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(length)
        self.send_header("Content-Length", told)
        self.end_headers()

    def _fail(self, request: Request, fault: Fault) -> None:
        if fault.effect in (Effect.HANG, Effect.HANG_AFTER):
            self._hang()
        elif fault.effect in (Effect.DROP_BEFORE, Effect.DROP_AFTER):
            self._reset()
        else:
            self._refuse(request, fault)

    def _refuse(self, request: Request, fault: Fault) -> None:
        request.status = fault.status
        body = _ERROR.format(code=fault.code).encode()
        self.send_response_only(fault.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _trickle(self, body: bytes, bytes_per_second: int) -> None:
        step = max(1, int(bytes_per_second * _LOOK_SECONDS))
        for start in range(0, len(body), step):
            if self._proxy.released.wait(_LOOK_SECONDS):
                return self._reset()
            self.wfile.write(body[start : start + step])
        return None

    def _hang(self) -> None:
        """Wait until the client has had enough."""
        while not self._proxy.released.is_set():
            readable, _, _ = select.select([self.connection], [], [], _LOOK_SECONDS)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                break
            if readable:
                time.sleep(_LOOK_SECONDS)
        self._reset()

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _parse(method: str, target: str, headers: Any, body: bytes) -> Request:
    url = urlsplit(target)
    bucket, _, key = url.path.lstrip("/").partition("/")
    query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
    operation = method
    if method == "GET" and not key:
        operation, key = "LIST", query.get("prefix", "")
    elif method == "POST" and "delete" in query:
        operation = "DELETE_MANY"
    elif method == "PUT" and headers["x-amz-copy-source"]:
        operation = "COPY"
    plain = key if operation == "LIST" else unquote(key)
    return Request(operation, unquote(bucket), plain, query, {k.lower(): v for k, v in headers.items()}, body)

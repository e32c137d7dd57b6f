"""A process that serves: where it listens, how long it waits for a client, and how it ends."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from timestore_pipeline.errors import SettingsError, TimestoreError
from timestore_pipeline.http.app import LOOPBACK_NAMES, Api
from timestore_pipeline.http.problems import Problem
from timestore_pipeline.http.tokens import Tokens
from timestore_pipeline.inert import log_named
from timestore_pipeline.settings import Settings, load_settings, variable_name
from timestore_pipeline.timestore import Timestore

log = log_named(__name__)

HEADER_SECONDS = 10.0
"""How long a client may take from connecting, or from its first byte, to the end of its headers."""

_KEEP_ALIVE_SECONDS = 30

_MOST_PIPELINED = 8
"""Requests that a client may send before the first of them is answered. Each is held with its headers."""


class _IdleConnections:
    """Connections that wait for a client, the longest waiting first; with too many of them that one goes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._connections: dict[_Bounded, None] = {}
        self._open = 0

    def opened(self, connection: _Bounded) -> None:
        """Count a connection, which waits for its first request."""
        self._open += 1
        self.add(connection)
        if self._open > self._most:
            next(iter(self._connections)).hang_up()

    def closed(self, connection: _Bounded) -> None:
        """Count a connection no more."""
        self._open -= 1
        self.remove(connection)

    def add(self, connection: _Bounded) -> None:
        """The connection waits for its client."""
        self._connections.setdefault(connection)

    def remove(self, connection: _Bounded) -> None:
        """The connection is being answered."""
        self._connections.pop(connection, None)


class _HeadersTooLarge(Exception):
    """A request says more about itself than it may."""


class _TooManyPipelined(Exception):
    """A client sends request after request, and waits for no answer."""


class _Bounded(HttpToolsProtocol):
    """Hangs up on a client that does not come to the end of its headers, in time or in bytes.

    uvicorn would wait for ever, and keep all of them. What comes behind a body in pieces counts as headers too.
    """

    max_header_bytes: int
    waiting: _IdleConnections
    _timer: asyncio.TimerHandle | None = None
    _unread = 0
    _said = 0
    _too_many = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._body: list[bytes] = []
        self._unanswered: list[RequestResponseCycle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.waiting.opened(self)
        self._wait()

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        self._pass_body_on()
        if self.transport.is_closing():
            return
        if self._unread > self.max_header_bytes:
            self.send_400_response("")
        elif self._is_answering():
            self._wait_no_more()
        elif self._timer is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self.waiting.closed(self)
        # uvicorn tells it to the last one alone; what answers another would write to what is closed, and fail.
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._said = 0
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._too_many = True
            raise _TooManyPipelined
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._say(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._say(len(name) + len(": ") + len(value) + len("\r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unread = 0
        super().on_headers_complete()
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        # All that came at once is passed on at once: uvicorn would copy what is there for each piece of a chunked body.
        self._unread = 0
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        self._pass_body_on()
        super().on_message_complete()

    def _pass_body_on(self) -> None:
        if self._body:
            body, self._body = b"".join(self._body), []
            super().on_body(body)

    def on_response_complete(self) -> None:
        self._unanswered.pop(0)  # they are answered in their order
        super().on_response_complete()
        if not self._is_answering():
            self.waiting.add(self)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is none, or one with too large headers, and hang up."""
        if self._too_many:  # whatever is said here would be taken for the answer to the first of them
            self.transport.close()
            return
        if max(self._unread, self._said) > self.max_header_bytes:
            most = f"{self.max_header_bytes:,}"
            problem = Problem(431, "headers-too-large", f"the request's line and headers have more than {most} bytes")
        else:
            problem = Problem(400, "no-request", "this is no HTTP request")
        response = problem.response()
        self.transport.write(
            STATUS_LINE[problem.status]
            + b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
            + b"connection: close\r\n\r\n"
            + bytes(response.body)
        )
        self.transport.close()

    def hang_up(self) -> None:
        """Close the connection, unless a request is being answered."""
        if not self._is_answering():
            self.transport.close()

    def _say(self, size: int) -> None:
        self._said += size
        if self._said > self.max_header_bytes:
            raise _HeadersTooLarge

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self.waiting.add(self)
        self._timer = asyncio.get_running_loop().call_later(HEADER_SECONDS, self._out_of_time)

    def _wait_no_more(self) -> None:
        self.waiting.remove(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _out_of_time(self) -> None:
        self._timer = None
        self.hang_up()


def serve(settings: Settings | None, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; then take nothing more, and return once all that was begun is answered.

    Args:
        settings: the installation, by default what the environment describes.
        host: the address to listen at; others than this machine's need tokens.
        port: the port, 0 for any that is free.
        ready: is told the URL once it listens.

    Raises:
        SettingsError: the address is not this machine's and there are no tokens, or they are not usable.
        TimestoreError: it cannot listen there, or the installation is not usable.
    """
    with listening(settings or load_settings(), host, port) as server:
        # uvicorn sends itself the signal again once it has ended in order: that is no way to die.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        ready(server.url)
        server.run()


class HttpServer:
    """A server that listens; what is sent to it waits until it is run."""

    def __init__(self, server: uvicorn.Server, listener: socket.socket) -> None:
        self.url = _url(listener)
        self._server = server
        self._listener = listener

    def run(self) -> None:
        """Answer until SIGTERM or SIGINT reaches the main thread if this is it, or until :meth:`stop`."""
        self._server.run(sockets=[self._listener])

    def stop(self) -> None:
        """Take nothing more, and let :meth:`run` return once all that was begun is answered."""
        self._server.should_exit = True


@contextmanager
def listening(settings: Settings, host: str, port: int) -> Iterator[HttpServer]:
    """Open the installation and listen; see :func:`serve`, also for what is raised."""
    tokens = Tokens(settings)
    if not tokens.required and not is_loopback(host):
        raise SettingsError(
            f"without tokens anybody who reaches {host} could stage rows. Listen on 127.0.0.1, or set "
            f"{variable_name('http_tokens_file')} (docs/http.md, Tokens)."
        )
    with Timestore.open(settings) as timestore, _listening(host, port) as listener:
        config = uvicorn.Config(
            Api(timestore, tokens).application(),
            http=_protocol(settings),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.http_body_seconds + settings.http_request_seconds),
        )
        yield HttpServer(uvicorn.Server(config), listener)


def _protocol(settings: Settings) -> type[asyncio.Protocol]:
    return type(
        "Bounded",
        (_Bounded,),
        {
            "max_header_bytes": settings.http_max_header_bytes,
            "waiting": _IdleConnections(settings.http_max_connections),
        },
    )


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine only."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK_NAMES


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1_024)
    except OSError as error:
        raise TimestoreError(
            f"cannot listen on {host} port {port}: {error.strerror or error}. Choose another --host or --port."
        ) from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"

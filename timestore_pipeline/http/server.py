"""A process that serves: where it listens, how long it waits for a client, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from timestore_pipeline.errors import SettingsError, TimestoreError
from timestore_pipeline.http.app import LOOPBACK_NAMES, Api
from timestore_pipeline.http.tokens import Tokens
from timestore_pipeline.settings import Settings, load_settings, variable_name
from timestore_pipeline.timestore import Timestore

log = logging.getLogger(__name__)

HEADER_SECONDS = 10.0
"""How long a client may take from connecting, or from its first byte, to the end of its headers."""

_KEEP_ALIVE_SECONDS = 30

# One of two classes, by what is installed.
_Protocol: type[asyncio.Protocol] = AutoHTTPProtocol


class _Impatient(_Protocol):
    """Hangs up on a client that does not come to the end of its headers, for which uvicorn would wait for ever."""

    cycle: Any
    _waiting: asyncio.TimerHandle | None = None
    _connection: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connection = transport
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering():
            self._wait_no_more()
        elif self._waiting is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._waiting = asyncio.get_running_loop().call_later(HEADER_SECONDS, self._hang_up)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _hang_up(self) -> None:
        self._waiting = None
        if self._connection is not None and not self._is_answering():
            self._connection.close()


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
            http=_Impatient,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.http_body_seconds + settings.http_request_seconds),
        )
        yield HttpServer(uvicorn.Server(config), listener)


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

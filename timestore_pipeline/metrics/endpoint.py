"""Serves the picture to a Prometheus that scrapes, taken from the ledger anew for each scrape.

The store is opened for each scrape too (5 ms): so a dataset that is declared or removed meanwhile comes and goes
without a restart, and a ledger that comes back is found again.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Metric, make_wsgi_app
from prometheus_client.registry import Collector

from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.inert import log_named
from timestore_pipeline.metrics.projection import collect_metrics
from timestore_pipeline.settings import Settings
from timestore_pipeline.store import Store

log = log_named(__name__)

_CLIENT_SECONDS = 10


class MetricsServer:
    """Listens from its creation on; use it as a context manager or :meth:`close` it.

    Args:
        settings: the installation.
        host: the address to listen at.
        port: the port, 0 for any that is free.

    Raises:
        TimestoreError: it cannot listen there.
    """

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        self._look = _Look(settings)
        registry = CollectorRegistry()
        registry.register(self._look)
        self._scrape = make_wsgi_app(registry)
        server = type("_Server", (_Server,), {"address_family": _family(host)})
        try:
            self._server = make_server(host, port, self._answer, server, _Handler)
        except OSError as error:
            raise TimestoreError(
                f"cannot listen on {host} port {port}: {error.strerror or error}. Choose another --host or --port."
            ) from error

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = self._server.server_address[:2]
        return f"http://{f'[{host}]' if ':' in str(host) else host}:{port}/metrics"

    def serve(self) -> None:
        """Answer until :meth:`close` is called from elsewhere."""
        self._server.serve_forever()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] not in {"/", "/metrics"}:
            return _plain(start_response, "404 Not Found", "metrics are at /metrics")
        try:
            return self._scrape(environ, start_response)
        except TimestoreError as error:
            log.warning("a scrape was not answered: %s", error)
            return _plain(start_response, "503 Service Unavailable", str(error))


class _Look(Collector):
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        # Registering would else collect once to learn the names.
        return ()

    def collect(self) -> Iterable[Metric]:
        # One scrape at a time looks into the ledger, however many come.
        with self._turn, Store.open(self._settings) as store:
            return collect_metrics(store)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # WSGIServer would ask the name service for the name of its address, which can take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_SECONDS
    """A client that says nothing for so long is hung up on."""

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


def _family(host: str) -> socket.AddressFamily:
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise TimestoreError(f"cannot listen on {host!r}: {error.strerror or error}. Choose another --host.") from error


def _plain(start_response: Callable[..., Any], status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]

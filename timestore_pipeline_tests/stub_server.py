"""A server of a few lines, which stands for a gateway or a web server for as long as a test needs one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class QuietHandler(BaseHTTPRequestHandler):
    """Answers requests, and logs none."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def answering_with(handler: type[QuietHandler]) -> Iterator[int]:
    """Serve on a port of this host, which is yielded, while the block runs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()

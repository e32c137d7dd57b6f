"""The program of the S3 server that tests talk to: ``python -m timestore_pipeline_tests.s3_server HOST PORT``.

It is moto's server, which holds its objects in memory, with one thing added: requests are carried out one by one. moto
looks whether a key is there and then writes it, so that of two conditional puts at once both could succeed, which no
object store allows.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable
from threading import Lock, Thread
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def one_by_one(application: Application) -> Application:
    """Return an application that carries out one request at a time, each once its body has arrived whole."""
    lock = Lock()

    def carry_out(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not environ.get("wsgi.input_terminated"):
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        with lock:
            return list(application(environ, start_response))

    return carry_out


def main(host: str, port: int) -> None:
    """Serve until standard input ends: with the process that holds its other end, however that ends."""
    Thread(target=_end_with_standard_input, daemon=True).start()
    server = DomainDispatcherApplication(create_backend_app)
    run_simple(host, port, one_by_one(server), threaded=True, request_handler=MotoRequestHandler)


def _end_with_standard_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""Servers of one's own: a process as an operator starts it, and a thread of the test where that is not the point."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx

from timestore_pipeline.http.server import listening
from timestore_pipeline.settings import Settings

TOKENS = {"all": "token-of-all", "weather": "token-of-weather", "reader": "token-of-reader", "scraper": "of-scraper"}
"""Name → token, of :func:`tokens_document`."""


def tokens_document() -> str:
    """A tokens file with a token for everything, one for staging weather, one for reading it, one for metrics."""

    def entry(name: str, scopes: list[str], *datasets: str) -> dict[str, object]:
        digest = hashlib.sha256(TOKENS[name].encode()).hexdigest()
        return {"name": name, "sha256": digest, "scopes": scopes, "datasets": list(datasets)}

    entries = [
        entry("all", ["stage", "read", "metrics"], "*"),
        entry("weather", ["stage"], "weather"),
        entry("reader", ["read"], "weather"),
        entry("scraper", ["metrics"]),
    ]
    return json.dumps({"tokens": entries})


def bearer(name: str) -> dict[str, str]:
    """The header that shows a token."""
    return {"Authorization": f"Bearer {TOKENS[name]}"}


class Server:
    """A server at ``url``."""

    url: str

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def client(self, **headers: str) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.url, headers=headers, timeout=240, trust_env=False)


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[Server]:
    """Serve an installation in a thread of this process, to the end of the block."""
    with listening(settings, "127.0.0.1", 0) as listener:
        thread = Thread(target=listener.run)
        thread.start()
        server = Server()
        server.url = listener.url
        try:
            yield server
        finally:
            listener.stop()
            thread.join()


class ServerProcess(Server):
    """A ``timestore serve`` that has said where it listens."""

    def __init__(self, environment: dict[str, str], log: Path, port: int = 0) -> None:
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "timestore_pipeline.cli", "serve", "--port", str(port), "--verbose"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving at "), log.read_text()
        self.url = line.removeprefix("serving at ").strip()

    def kill(self) -> None:
        """End it as a power cut would."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(240)
        self._close()

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(240)
        self._close()
        return code

    def _close(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


@contextlib.contextmanager
def process_serving(environment: dict[str, str], log: Path, port: int = 0) -> Iterator[ServerProcess]:
    """Start a server process, and stop it at the end of the block."""
    server = ServerProcess(environment, log, port)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()

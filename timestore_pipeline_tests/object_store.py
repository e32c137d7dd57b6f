"""A real S3 server of the tests' own: one per test process, a bucket of its own for each test, faults on request.

The server is a process on a free loopback port that ends with the one that started it. What a test opens reaches it by
the environment, as in production, through a :class:`~timestore_pipeline_tests.fault_proxy.FaultProxy` of the test's
own. Use the fixture ``s3_bucket``, or :func:`running_server` and :func:`bucket` elsewhere.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from timestore_pipeline_tests.fault_proxy import FaultProxy, fault_proxy
from timestore_pipeline_tests.ports import unused_port
from timestore_pipeline_tests.processes import until_exit

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTSONLY",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-nothing-may-show",
    "AWS_REGION": "us-east-1",
}
"""Of the tests' server, which checks none; the secret must turn up in no message, log or ledger."""

_DEADLINE_SECONDS = 60
_names = itertools.count(1)


def require() -> None:
    """Skip the test where moto is not installed, or fail it where ``CI`` says that all must be there."""
    if any(find_spec(name) is None for name in ("moto", "flask_cors", "boto3")):
        complain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        complain("moto is not installed; 'pip install -e .[dev]' installs it")


@dataclass
class S3Server:
    """A server on ``host:port``; its buckets are gone when it ends."""

    host: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://{self.host}:{self.port}"

    @property
    def client(self) -> Any:
        """A boto3 client, so that tests look at buckets by other means than what they test."""
        return _client(self.endpoint)


@dataclass
class Bucket:
    """A bucket on the test server; ``proxy`` is between it and whatever reaches it by ``environment``."""

    name: str
    server: S3Server
    proxy: FaultProxy
    prefix: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The URL as settings take it."""
        return f"s3://{self.name}"

    def put(self, key: str, content: bytes | str) -> None:
        """Write an object, past the proxy."""
        body = content.encode() if isinstance(content, str) else content
        self.server.client.put_object(Bucket=self.name, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        """Read an object, past the proxy."""
        return self.server.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def delete(self, key: str) -> None:
        """Delete an object, past the proxy."""
        self.server.client.delete_object(Bucket=self.name, Key=key)

    def keys(self, prefix: str = "") -> list[str]:
        """List all keys but those of the marks of places, past the proxy, sorted."""
        pages = self.server.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        keys = (entry["Key"] for page in pages for entry in page.get("Contents", ()))
        return sorted(key for key in keys if not key.rpartition("/")[2].startswith(".timestore-"))


@contextmanager
def running_server(host: str = "127.0.0.1", port: int | None = None) -> Iterator[S3Server]:
    """Give a server of one's own while the block lasts; on another address it is reached from other namespaces too."""
    require()
    port = port or unused_port()
    with tempfile.TemporaryDirectory(prefix="timestore-s3-") as folder:
        log = Path(folder) / "log"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.s3_server", host, str(port)],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                cwd=folder,
                env=environment,
            )
        server = S3Server(host, port, process, log)
        try:
            _wait_for(server)
            yield server
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()


@cache
def shared_server() -> S3Server:
    """Return the server that the tests of this process share; it ends with the process."""
    return until_exit(running_server())


@contextmanager
def bucket(server: S3Server | None = None, *, page: int | None = None) -> Iterator[Bucket]:
    """Give a new bucket behind a proxy of its own; ``page`` bounds the keys that one answer to a listing has."""
    server = server or shared_server()
    name = f"test-{next(_names)}-{secrets.token_hex(4)}"
    server.client.create_bucket(Bucket=name)
    with fault_proxy(server.host, server.port, page=page) as proxy:
        yield Bucket(name, server, proxy, environment=access(proxy.endpoint))


def access(endpoint: str) -> dict[str, str]:
    """Return the environment by which delta-rs and obstore reach the server at ``endpoint``."""
    return {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"}


@cache
def _client(endpoint: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_REGION"],
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )


def _wait_for(server: S3Server) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        try:
            socket.create_connection((server.host, server.port), timeout=1).close()
        except OSError:
            said = server.log.read_text(errors="replace")[-2_000:]
            assert server.process.poll() is None, f"the S3 server ended: {said}"
            assert time.monotonic() < deadline, f"the S3 server did not start: {said}"
            time.sleep(0.02)
        else:
            return

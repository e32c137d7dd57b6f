"""A real Redis of the tests' own, in memory, on a free port."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from timestore_pipeline_tests.ports import unused_port
from timestore_pipeline_tests.processes import end_with_the_parent

if TYPE_CHECKING:
    import redis

_DEADLINE_SECONDS = 30


class RedisServer:
    """A server that keeps nothing on disk: once stopped, it has forgotten what it held."""

    def __init__(self, program: str, folder: Path, addresses: tuple[str, ...] = ("127.0.0.1",)) -> None:
        self.port = unused_port()
        self._address = addresses[0]
        self._log = folder / "redis.log"
        self._command = [
            *(program, "--port", str(self.port), "--bind", *addresses),
            *("--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", str(folder)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: int = 0) -> str:
        """The URL of one of its databases."""
        return f"redis://{self._address}:{self.port}/{database}"

    def client(self, database: int = 0) -> redis.Redis:
        """A client of one of its databases."""
        import redis

        return redis.Redis(host=self._address, port=self.port, db=database)

    def start(self) -> None:
        """Start it and wait until it answers. It ends with the thread that calls this."""
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_the_parent,  # noqa: PLW1509 - it takes no lock that another thread may hold
            )
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not self._answers():
            assert process.poll() is None, f"Redis ended: {self._log.read_text(errors='replace')[-2_000:]}"
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        """Kill it, and with it all that it held."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        import redis

        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@contextmanager
def running_redis(program: Callable[[str], str], folder: Path, *addresses: str) -> Iterator[RedisServer]:
    """Give a server that holds nothing yet; ``program`` is the fixture of that name."""
    server = RedisServer(program("redis-server"), folder, addresses or ("127.0.0.1",))
    try:
        server.start()
        yield server
    finally:
        server.stop()

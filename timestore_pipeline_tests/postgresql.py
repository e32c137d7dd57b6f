"""A real PostgreSQL of the tests' own: one server per test process, a database of its own for each test.

The server lives in a temporary folder and listens on a socket there and on a free loopback port. It ends with the
process that started it, however that ends. Without the program (Debian package ``postgresql``) its tests are skipped,
or fail where ``CI`` says that all must be there.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, NullPool, create_engine, text

from timestore_pipeline.ledger import Ledger
from timestore_pipeline_tests.ports import unused_port
from timestore_pipeline_tests.processes import end_with_the_parent, until_exit

LEDGERS = ("sqlite", "postgresql")
"""The databases that a ledger can be on."""

URL_VARIABLE = "TIMESTORE_LEDGER_URL"

ROW_LOCKS = frozenset({"AccessShareLock", "RowShareLock", "RowExclusiveLock"})
"""What a transaction of the ledger may hold on a table; the next stronger one would keep other writers out."""

_TEMPLATE = "empty_ledger"
# A test's rows need not outlive the machine, only the server: what is committed is in the kernel's hands.
_FAST = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}
_SETTINGS = {"shared_buffers": "32MB", "max_connections": "120", "logging_collector": "off", "timezone": "'UTC'"}
_DEADLINE_SECONDS = 60


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, the newest version first, or None where it is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        folders.append(Path(on_path).parent)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def require() -> Path:
    """Return :func:`programs`; without them skip the test, or fail where ``CI`` says that all must be there."""
    folder = programs()
    if folder is None:
        complain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        complain("PostgreSQL is not installed; .ci/install-servers installs it")
    return folder


class PostgresqlServer:
    """A server with its files in ``folder``; start it, and stop it in the manner that a test is about."""

    def __init__(self, folder: Path, settings: Mapping[str, str], network: str | None = None) -> None:
        self.port = unused_port()
        self.stops = 0
        self._folder = folder
        self._data = folder / "data"
        self._programs = require()
        self._log = folder / "log"
        self._engines: dict[str, Engine] = {}
        self._process: subprocess.Popen[str] | None = None
        self._names = itertools.count(1)
        # initdb and postgres refuse to run as root.
        self._identity: dict[str, Any] = {}
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._run("initdb", "--pgdata", self._data, "--username=timestore", "--auth=trust", "--encoding=UTF8",
                  "--locale=C", "--no-sync")  # fmt: skip
        lines = {
            **_SETTINGS,
            **settings,
            "unix_socket_directories": f"'{folder}'",
            "listen_addresses": "'*'" if network else "'127.0.0.1'",
        }
        with (self._data / "postgresql.auto.conf").open("a") as stream:
            stream.writelines(f"{name} = {value}\n" for name, value in lines.items())
        if network:
            with (self._data / "pg_hba.conf").open("a") as stream:
                stream.write(f"host all all {network} trust\n")

    def start(self) -> None:
        """Start it and wait until it takes connections. It ends with the thread that calls this."""
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", str(self._data), "-p", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                text=True,
                # It takes no lock that another thread may hold.
                preexec_fn=partial(end_with_the_parent, signal.SIGQUIT),  # noqa: PLW1509
                **self._identity,
            )
        deadline = time.monotonic() + _DEADLINE_SECONDS
        ready = [self._programs / "pg_isready", "--quiet", "--host", str(self._folder), "--port", str(self.port)]
        while subprocess.run(ready, check=False).returncode:
            assert process.poll() is None, f"PostgreSQL ended: {self._said()}"
            assert time.monotonic() < deadline, f"PostgreSQL did not start: {self._said()}"
            time.sleep(0.02)

    def stop(self, mode: str) -> None:
        """Stop it: ``fast`` ends transactions and syncs, ``immediate`` drops everything as a crash does."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])
            self._process.wait(_DEADLINE_SECONDS)
            self.stops += 1

    @property
    def folder(self) -> Path:
        """Where all its files are."""
        return self._folder

    def url(self, database: str, *, user: str = "timestore", socket: bool = True) -> str:
        """Return the SQLAlchemy URL of a database, through the socket or through TCP."""
        query = {"host": str(self._folder)} if socket else {}
        host = None if socket else "127.0.0.1"
        made = URL.create("postgresql+psycopg", user, host=host, port=self.port, database=database, query=query)
        return made.render_as_string(hide_password=False)

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run a statement outside of any transaction; return its rows."""
        engine = self._engines.get(database)
        if engine is None:
            engine = create_engine(self.url(database), isolation_level="AUTOCOMMIT", poolclass=NullPool)
            self._engines[database] = engine
        with engine.connect() as connection:
            result = connection.execute(text(statement))
            return list(result) if result.returns_rows else []

    def create_database(self) -> str:
        """Create a database and return its name."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def create_ledger_database(self) -> str:
        """Create a database with an empty ledger in it and return its name: migrated once, then copied."""
        if not self.execute(f"SELECT 1 FROM pg_database WHERE datname = '{_TEMPLATE}'"):
            self.execute(f"CREATE DATABASE {_TEMPLATE}")
            Ledger.open(self.url(_TEMPLATE)).close()
            # Each copy of it is another installation's.
            self.execute("DELETE FROM installation", _TEMPLATE)
        return self.copy_database(_TEMPLATE)

    def copy_database(self, source: str, name: str | None = None) -> str:
        """Create a copy of a database that nobody is connected to, by default with a new name; return its name."""
        name = name or f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {source}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _run(self, program: str, *arguments: object) -> None:
        finished = subprocess.run(
            [self._programs / program, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_DEADLINE_SECONDS,
            cwd=self._folder,
            text=True,
            check=False,
            **self._identity,
        )
        assert finished.returncode == 0, f"{program} failed: {finished.stdout}"

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-2_000:]


@contextmanager
def running_server(network: str | None = None, **settings: str) -> Iterator[PostgresqlServer]:
    """Give a server of one's own, with PostgreSQL's own settings of durability unless ``settings`` say otherwise.

    It takes connections of ``network`` (as in ``198.18.0.0/24``) too, on all addresses.
    """
    require()
    # Not below pytest's folder, which other users may not enter.
    folder = Path(tempfile.mkdtemp(prefix="timestore-pg-"))
    server = PostgresqlServer(folder, settings, network)
    try:
        server.start()
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


@cache
def shared_server() -> PostgresqlServer:
    """Return the server that the tests of this process share; it is stopped at the end of the process."""
    return until_exit(running_server(**_FAST))


@contextmanager
def fresh_ledger(kind: str) -> Iterator[None]:
    """Let the ledger of whatever is opened in the block be an empty one of ``kind``: by the environment, for children.

    On SQLite it is where it always is, in the staging directory.
    """
    if kind == "sqlite":
        yield
        return
    server = shared_server()
    name = server.create_ledger_database()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(URL_VARIABLE, server.url(name))
        yield
    server.drop_database(name)

"""PostgreSQL goes away: a server that restarts or crashes, a connection that breaks in the middle of a commit."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import make_url, text

from timestore_pipeline.building import publication, rebuild
from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.expire import expire_windows
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import CommitUnknown, LedgerError, LedgerInterrupted
from timestore_pipeline.ledger import Ledger
from timestore_pipeline.ledger.counters import count, counter_values
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, published, readable, rows_of
from timestore_pipeline_tests.conftest import DATASETS_YAML, MakeStore
from timestore_pipeline_tests.postgresql import PostgresqlServer, running_server, shared_server

pytestmark = [pytest.mark.only_on("postgresql"), pytest.mark.server]


class Line:
    """A network connection to the server that can be cut at a commit: before it arrives, or before its answer does."""

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut_at: int | None = None
        self.arrives = False
        self.commits = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server))
            for pair in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, to_server: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if to_server and b"COMMIT" in data.replace(b"READ COMMITTED", b""):
                    self.commits += 1
                    if self.commits == self.cut_at:
                        # The answer finds nobody: this end is shut before the commit goes on.
                        source.shutdown(socket.SHUT_RDWR)
                        if self.arrives:
                            target.sendall(data)
                        break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                # What was sent still arrives; closing alone would wake nobody who reads.
                end.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(store: Store) -> Iterator[Line]:
    opened = Line(shared_server().port)
    yield opened
    opened.close()


@pytest.fixture
def over(store: Store, make_store: MakeStore, line: Line) -> Callable[[], Store]:
    """Opens the store of the test over the line."""

    def open_it() -> Store:
        database = make_url(store.settings.resolved_ledger_url).database
        url = f"postgresql+psycopg://timestore@127.0.0.1:{line.port}/{database}"
        return make_store(ledger_url=SecretStr(url))

    return open_it


@pytest.mark.parametrize("arrives", [True, False], ids=["answer lost", "commit lost"])
def test_a_batch_whose_commit_breaks_is_staged_once(store: Store, over: Callable[[], Store], line: Line, arrives: bool):
    """At every commit in turn, that of the acknowledgement among them."""
    line.arrives = arrives
    remote = over()
    expected = []
    for commit in range(1, 50):
        line.commits, line.cut_at = 0, commit
        table = hourly(3, station=f"{commit}")
        try:
            receipt = stage(remote, "weather", table, batch_id=f"{commit}")
        except LedgerError:
            # Something that was only looked at: nothing is acknowledged, and it can be done again.
            assert line.commits >= commit
            line.cut_at = None
            receipt = stage(remote, "weather", table, batch_id=f"{commit}")
        assert receipt.rows == 3
        expected.append(table)
        assert readable(store) == rows_of(*expected)
        if line.commits < commit:
            break
    else:
        pytest.fail("staging commits without end")
    assert len(expected) >= 3


@pytest.mark.parametrize("arrives", [True, False], ids=["answer lost", "commit lost"])
def test_a_build_whose_commits_break_publishes_once(store: Store, over: Callable[[], Store], line: Line, arrives: bool):
    line.arrives = arrives
    remote = over()
    expected = []
    for commit in range(1, 60):
        table = hourly(3, station=f"{commit}")
        stage(store, "weather", table)
        expected.append(table)
        line.commits, line.cut_at = 0, commit
        try:
            flush_windows(remote, BuildOrder("weather", owner="over the line"))
        except LedgerError:
            assert line.commits >= commit
        done = line.commits < commit
        line.cut_at = None
        settle_dead_builds(store, owner_is_gone=lambda owner: True)
        assert readable(store) == rows_of(*expected)
        flush_windows(store, BuildOrder("weather", owner="here"))
        assert published(store) == rows_of(*expected)
        if done:
            break
    else:
        pytest.fail("a build commits without end")
    assert len(expected) >= 4


def _expire(store: Store) -> object:
    return expire_windows(store, BuildOrder("weather", owner="over the line"))


def _compact(store: Store) -> object:
    return compact_fully(store, BuildOrder("weather", owner="over the line"))


def _rebuild(store: Store) -> object:
    return rebuild_windows(store, BuildOrder("weather", owner="over the line"))


@pytest.mark.parametrize("arrives", [True, False], ids=["answer lost", "commit lost"])
@pytest.mark.parametrize(
    ("module", "entering", "job", "retention"),
    [
        (publication, "claim_build", _expire, 1),
        (publication, "claim_build", _compact, 0),
        (rebuild, "claim_build", _rebuild, 0),
    ],
    ids=["expiry", "compaction", "rebuild"],
)
def test_a_claim_whose_commit_breaks_is_made_once(
    module: ModuleType,
    entering: str,
    job: Callable[[Store], object],
    retention: int,
    arrives: bool,
    store: Store,
    make_store: MakeStore,
    line: Line,
    monkeypatch: pytest.MonkeyPatch,
):
    for station in ("JFK", "LGA"):
        stage(store, "weather", hourly(3, station=station))
        flush_windows(store, BuildOrder("weather", owner="here"))
    stage(store, "weather", hourly(3, station="EWR"))
    database = make_url(store.settings.resolved_ledger_url).database
    url = f"postgresql+psycopg://timestore@127.0.0.1:{line.port}/{database}"
    remote = make_store(ledger_url=SecretStr(url), table_retention_seconds=retention)
    claim = getattr(module, entering)
    attempts = []

    def cut(*arguments: Any, **named: Any) -> Any:
        # The next commit is that of the claim.
        attempts.append(1)
        line.arrives, line.commits, line.cut_at = arrives, 0, 1 if len(attempts) == 1 else None
        return claim(*arguments, **named)

    monkeypatch.setattr(module, entering, cut)

    job(remote)

    assert len(attempts) == 2
    staged = [] if job is _rebuild else [hourly(3, station="EWR")]
    built = [hourly(3, station=station) for station in ("JFK", "LGA", "EWR")]
    in_table = [] if job is _expire else built[: 3 - len(staged)]
    assert published(store) == rows_of(*in_table)
    assert readable(store) == rows_of(*in_table, *staged)
    with store.ledger.read() as tx:
        states = tx.execute(text("SELECT state, count(*) FROM builds GROUP BY state")).all()
    assert states == [("published", 3)]
    assert audit_rows(store, "weather").wrong == ()


def test_what_only_counts_is_not_done_twice(store: Store, over: Callable[[], Store], line: Line):
    remote = over()
    line.arrives, line.commits, line.cut_at = True, 0, 1

    with pytest.raises(CommitUnknown):
        remote.ledger.transact(lambda tx: count(tx, "a_metric", "weather", "x"), repeatable=False)

    remote.ledger.transact(lambda tx: count(tx, "a_metric", "weather", "x"), repeatable=False)
    deadline = time.monotonic() + 120
    while _counted(store) != 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # the first one's answer was lost; it may be on its way
    assert _counted(store) == 2


def _counted(store: Store) -> float:
    with store.ledger.read() as tx:
        return counter_values(tx).get(("a_metric", "weather", "x"), 0)


@pytest.fixture(scope="module")
def durable_server() -> Iterator[PostgresqlServer]:
    """A server that no other test needs, as durable as PostgreSQL is by itself."""
    with running_server() as started:
        yield started


@pytest.fixture
def server(durable_server: PostgresqlServer) -> Iterator[PostgresqlServer]:
    """The server, which the test may leave stopped."""
    yield durable_server
    durable_server.stop("fast")
    durable_server.start()


@pytest.fixture
def on_server(server: PostgresqlServer, home: Path) -> Iterator[Store]:
    (home / "datasets.yaml").write_text(DATASETS_YAML)
    url = server.url(server.create_database(), socket=False)
    fields = {"ledger_url": SecretStr(url), "staging_min_free_disk_bytes": 0}
    with Store.open(Settings(home=home, **fields)) as opened:
        yield opened


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_store_goes_on_after_its_server_was_restarted(server: PostgresqlServer, on_server: Store, mode: str):
    stage(on_server, "weather", hourly(3))

    server.stop(mode)
    server.start()

    stage(on_server, "weather", hourly(4))
    flush_windows(on_server, BuildOrder("weather", owner="the test"))
    assert published(on_server) == readable(on_server) == rows_of(hourly(3), hourly(4))


def test_work_that_comes_while_the_server_is_away_waits_for_it(server: PostgresqlServer, on_server: Store):
    server.stop("fast")
    with ThreadPoolExecutor(1) as pool:
        staging = pool.submit(stage, on_server, "weather", hourly(3))
        with pytest.raises(TimeoutError):
            staging.result(0.5)
        server.start()
        assert staging.result(120).rows == 3

    assert readable(on_server) == rows_of(hourly(3))


def test_a_transaction_in_the_middle_of_a_crash_is_done_again(server: PostgresqlServer, on_server: Store):
    attempts = []

    def work(tx) -> None:
        attempts.append(1)
        count(tx, "a_metric", "weather", "x")
        if len(attempts) == 1:
            server.stop("immediate")
            server.start()
        lock_dataset(tx, "weather")

    on_server.ledger.transact(work, repeatable=False)

    assert len(attempts) == 2
    assert _counted(on_server) == 1


def test_a_transaction_that_a_crash_ended_says_that_nothing_was_written(server: PostgresqlServer, on_server: Store):
    with pytest.raises(LedgerInterrupted, match="cannot be used"), on_server.ledger.write() as tx:  # noqa: PT012
        count(tx, "a_metric", "weather", "x")
        server.stop("immediate")
        server.start()
        lock_dataset(tx, "weather")

    assert _counted(on_server) == 0


def test_a_server_that_stays_away_is_a_clear_error(server: PostgresqlServer, on_server: Store, home: Path):
    url = on_server.settings.resolved_ledger_url
    impatient = Ledger.open(url, busy_timeout_seconds=0.3)
    server.stop("fast")

    with pytest.raises(LedgerError, match=r"the ledger postgresql\+psycopg://timestore.* cannot be used"):
        impatient.transact(lambda tx: lock_dataset(tx, "weather"))
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger.open(url, busy_timeout_seconds=0.3)
    impatient.close()


def test_a_build_outlives_a_restart_between_its_claim_and_its_end(server: PostgresqlServer, on_server: Store):
    def restart() -> None:
        server.stop("immediate")
        server.start()

    stage(on_server, "weather", hourly(3))

    with at(CrashPoint.TABLE_CHECKED, restart):
        report = flush_windows(on_server, BuildOrder("weather", owner="the test"))

    assert report is not None
    assert published(on_server) == rows_of(hourly(3))
    with on_server.ledger.read() as tx:
        assert tx.execute(text("SELECT state FROM builds")).scalar_one() == "published"


def test_acknowledged_means_on_disk_whatever_the_database_says(server: PostgresqlServer):
    name = server.create_database()
    server.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    strict = server.create_database()
    server.execute(f"ALTER DATABASE {strict} SET synchronous_commit = remote_apply")
    for database, expected in ((name, "on"), (strict, "remote_apply")):
        ledger = Ledger.open(server.url(database))
        with ledger.write() as tx:
            assert tx.execute(text("SHOW synchronous_commit")).scalar_one() == expected
            assert tx.execute(text("SHOW transaction_isolation")).scalar_one() == "read committed"
        with ledger.read() as tx:
            assert tx.execute(text("SHOW transaction_isolation")).scalar_one() == "repeatable read"
            assert tx.execute(text("SHOW transaction_read_only")).scalar_one() == "on"
        ledger.close()


def test_a_process_keeps_no_more_connections_than_it_may(store: Store, make_store: MakeStore):
    small = make_store(ledger_pool_size=1)
    database = make_url(store.settings.resolved_ledger_url).database

    def look() -> None:
        with small.ledger.read() as tx:
            tx.execute(text("SELECT pg_sleep(0.1)"))

    threads = [threading.Thread(target=look) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    store.ledger.close()
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND application_name = 'timestore'"
    deadline = time.monotonic() + 120
    while (kept := shared_server().execute(query)[0][0]) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert kept == 1

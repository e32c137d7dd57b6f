"""The ledger opens, migrates and refuses with a reason, and its transactions are all or nothing."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, make_url, text

from timestore_pipeline.errors import CommitUnknown, LedgerError
from timestore_pipeline.ledger import Ledger
from timestore_pipeline.ledger.counters import count, counter_values
from timestore_pipeline.ledger.database import HEAD_REVISION
from timestore_pipeline.ledger.datasets import known_datasets
from timestore_pipeline.ledger.schema import VERSION_TABLE, metadata
from timestore_pipeline.operating.backup import back_up_ledger
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, readable, rows_of
from timestore_pipeline_tests.conftest import DATASETS_YAML, MakeStore
from timestore_pipeline_tests.forks import CONTEXT, take_environment
from timestore_pipeline_tests.postgresql import URL_VARIABLE, shared_server

pytestmark = pytest.mark.both_ledgers


@pytest.fixture(autouse=True)
def shared_schema() -> None:
    """Each ledger is migrated here."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "ledger.sqlite"


@pytest.fixture
def url(path: Path, ledger_kind: str) -> str:
    return f"sqlite:///{path}" if ledger_kind == "sqlite" else os.environ[URL_VARIABLE]


@pytest.fixture
def ledger(url: str):
    opened = Ledger.open(url)
    yield opened
    opened.close()


def test_the_migrations_make_exactly_the_schema(ledger: Ledger, url: str):
    with create_engine(url).connect() as connection:
        options = {"compare_type": True, "compare_server_default": True, "version_table": VERSION_TABLE}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == HEAD_REVISION
        made = {
            (table, index["name"], tuple(index["column_names"]), index["unique"])
            for table in metadata.tables
            for index in inspect(connection).get_indexes(table)
            if "duplicates_constraint" not in index
        }
    declared = {
        (table.name, index.name, tuple(column.name for column in index.columns), int(index.unique))
        for table in metadata.tables.values()
        for index in table.indexes
    }
    assert {(table, name, columns, int(unique or 0)) for table, name, columns, unique in made} == declared


@pytest.mark.only_on("sqlite")
def test_partial_indexes_are_as_the_schema_says(ledger: Ledger, path: Path, tmp_path: Path):
    def definitions(file: Path) -> set[str]:
        with sqlite3.connect(file) as connection:
            rows = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
            return {" ".join(row[0].split()) for row in rows}

    engine = create_engine(f"sqlite:///{tmp_path / 'declared.sqlite'}")
    metadata.create_all(engine)
    engine.dispose()

    assert definitions(path) == definitions(tmp_path / "declared.sqlite")


@pytest.mark.only_on("postgresql")
def test_indexes_are_as_the_schema_says_on_postgresql_too(ledger: Ledger):
    def definitions(url: str) -> set[tuple[str, str]]:
        engine = create_engine(url)
        with engine.connect() as connection:
            found = connection.execute(text("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"))
            indexes = {(row[0], row[1]) for row in found if VERSION_TABLE not in row[1]}
        engine.dispose()
        return indexes

    declared = shared_server().url(shared_server().create_database())
    engine = create_engine(declared)
    metadata.create_all(engine)
    engine.dispose()

    assert definitions(os.environ[URL_VARIABLE]) == definitions(declared)


def test_an_open_ledger_opens_again_and_keeps_what_it_has(ledger: Ledger, url: str):
    with ledger.write() as tx:
        count(tx, "a_metric", "weather", "x")

    again = Ledger.open(url)

    with again.read() as tx:
        assert counter_values(tx) == {("a_metric", "weather", "x"): 1}
    again.close()


def test_a_ledger_of_a_newer_version_is_refused(ledger: Ledger, url: str):
    with ledger.write() as tx:
        tx.execute(text("UPDATE timestore_version SET version_num = '9999'"))

    with pytest.raises(LedgerError, match=r"was written by another version of timestore .*9999.*upgrade"):
        Ledger.open(url)


def test_a_ledger_keeps_the_identity_that_it_was_given_when_it_was_first_opened(ledger: Ledger, url: str):
    again = Ledger.open(url)

    assert re.fullmatch("[0-9a-f]{32}", ledger.identity)
    assert again.identity == ledger.identity
    again.close()


def test_two_ledgers_have_two_identities(tmp_path: Path):
    ledgers = [Ledger.open(f"sqlite:///{tmp_path / name}") for name in ("one.sqlite", "two.sqlite")]

    assert ledgers[0].identity != ledgers[1].identity
    for each in ledgers:
        each.close()


def test_processes_that_open_a_new_ledger_at_once_agree_on_its_identity(url: str):
    start = threading.Barrier(4)

    def identity_of_another(_: int) -> str:
        start.wait(240)
        opened = Ledger.open(url)
        opened.close()
        return opened.identity

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(identity_of_another, range(4)))) == 1


@pytest.mark.only_on("sqlite")
def test_a_new_ledger_of_which_another_connection_makes_the_log_is_waited_for(path: Path, url: str):
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="database is locked"):
        Ledger.open(url, busy_timeout_seconds=0)

    threading.Timer(0.2, other.rollback).start()

    Ledger.open(url, busy_timeout_seconds=240).close()
    other.close()


def test_a_ledger_of_the_version_before_is_given_an_identity(ledger: Ledger, url: str):
    with ledger.write() as tx:
        count(tx, "a_metric", "weather", "x")
        for table in (
            "installation", "places", "disk_use", "build_corrections", "corrected_windows", "corrections",
        ):  # fmt: skip
            tx.execute(text(f"DROP TABLE {table}"))
        added = {
            "datasets": ("table_id", "refusal_reason", "refusal", "refused_at", "time", "corrections"),
            "segments": ("after_correction",),
            "batches": ("after_correction",),
            "readings": ("alone",),
            "quarantine": ("tries", "try_again_at"),
        }
        for table, columns in added.items():
            for column in columns:
                tx.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        tx.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0001'"))

    upgraded = Ledger.open(url)

    assert re.fullmatch("[0-9a-f]{32}", upgraded.identity)
    with upgraded.read() as tx:
        assert counter_values(tx) == {("a_metric", "weather", "x"): 1}
    upgraded.close()


@pytest.mark.only_on("sqlite")
def test_a_backup_of_a_ledger_has_its_identity(make_store: MakeStore, tmp_path: Path):
    store = make_store()
    back_up_ledger(store.settings, tmp_path / "copy.sqlite")

    copy = Ledger.open(f"sqlite:///{tmp_path / 'copy.sqlite'}")

    assert copy.identity == store.ledger.identity
    copy.close()


@pytest.mark.only_on("sqlite")
def test_a_locked_ledger_is_waited_for_and_then_reported(ledger: Ledger, url: str):
    impatient = Ledger.open(url, busy_timeout_seconds=0.05)

    with ledger.write() as tx:
        count(tx, "a_metric", "weather", "x")
        with pytest.raises(LedgerError, match="database is locked") as caught, impatient.write():
            pass
        with impatient.read() as other:
            assert counter_values(other) == {}
    assert not isinstance(caught.value, CommitUnknown)
    impatient.close()


def test_a_writer_waits_for_another(ledger: Ledger, url: str):
    patient = Ledger.open(url, busy_timeout_seconds=240)
    held, tried = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger.write() as tx:
            count(tx, "a_metric", "weather", "x")
            held.set()
            tried.wait(600)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(600)
    threading.Timer(0.2, tried.set).start()
    with patient.write() as tx:
        count(tx, "a_metric", "weather", "x")
        assert counter_values(tx) == {("a_metric", "weather", "x"): 2}
    thread.join()
    patient.close()


def test_a_transaction_that_raises_changes_nothing(ledger: Ledger):
    with pytest.raises(ValueError, match="stop"), ledger.write() as tx:  # noqa: PT012
        count(tx, "a_metric", "weather", "x")
        raise ValueError("stop")

    with ledger.read() as tx:
        assert counter_values(tx) == {}


def test_a_failed_commit_says_that_nobody_knows(ledger: Ledger, path: Path):
    """A deferred foreign key is the way to make SQLite fail in the commit itself; elsewhere it is the network."""

    class Broken(Exception):
        pass

    from sqlalchemy import event

    @event.listens_for(ledger._engine, "commit")
    def lose_the_connection(connection: object) -> None:
        from sqlalchemy.exc import OperationalError

        raise OperationalError("COMMIT", {}, Broken("server closed the connection unexpectedly"))

    with pytest.raises(CommitUnknown, match="server closed the connection"), ledger.write() as tx:
        count(tx, "a_metric", "weather", "x")
    event.remove(ledger._engine, "commit", lose_the_connection)


def test_a_reader_sees_one_moment(ledger: Ledger):
    with ledger.read() as reader:
        assert counter_values(reader) == {}
        with ledger.write() as writer:
            count(writer, "a_metric", "weather", "x")
        assert counter_values(reader) == {}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("not a url", "TIMESTORE_LEDGER_URL is not usable"),
        ("nosuchdatabase://x", "TIMESTORE_LEDGER_URL is not usable"),
        ("sqlite:////proc/nowhere/ledger.sqlite", "cannot be opened"),
    ],
)
def test_a_url_that_is_no_ledger_is_refused(url: str, reason: str):
    with pytest.raises(LedgerError, match=reason):
        Ledger.open(url)


def test_a_password_is_in_no_message():
    with pytest.raises(LedgerError) as caught:
        Ledger.open("postgresql://me:s3cr3t@127.0.0.1:1/ledger", busy_timeout_seconds=0.1)

    assert "s3cr3t" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("damage", [b"this is not a database" * 100, b"SQLite format 3\0" + b"\xff" * 5_000])
def test_a_file_that_is_no_ledger_is_refused(path: Path, url: str, damage: bytes):
    path.parent.mkdir()
    path.write_bytes(damage)

    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger.open(url)


@pytest.mark.only_on("sqlite")
def test_a_ledger_that_is_damaged_while_it_is_open_is_reported(make_store: MakeStore):
    store = make_store()
    stage(store, "weather", hourly(3))
    store.close()
    path = store.settings.staging_path / "ledger.sqlite"
    store = make_store()
    with open(path, "r+b") as stream:
        stream.seek(4_096)
        stream.write(b"\xff" * (path.stat().st_size - 4_096))

    with pytest.raises(LedgerError):
        stage(store, "weather", hourly(4))


def test_a_dataset_that_is_not_declared_any_more_is_remembered(make_store: MakeStore):
    stage(make_store(), "weather", hourly(3))
    store = make_store("datasets: {events: {time: at, window: hour}}")

    with store.ledger.read() as tx:
        assert known_datasets(tx) == {"weather", "events"}
    assert readable(make_store()) == rows_of(hourly(3))


def open_with_others(home: Path, environment: dict[str, str], others: threading.Barrier) -> None:
    """Open the installation at the moment at which others do."""
    take_environment(environment)
    settings = Settings(home=home, staging_min_free_disk_bytes=0)
    others.wait(600)
    Store.open(settings).close()


@pytest.mark.process
def test_many_processes_may_open_a_new_installation_at_once(home: Path):
    (home / "datasets.yaml").write_text(DATASETS_YAML)
    if url := os.environ.get(URL_VARIABLE):
        # The one of the other tests has been migrated.
        empty = make_url(url).set(database=shared_server().create_database())
        os.environ[URL_VARIABLE] = empty.render_as_string(hide_password=False)
    barrier = CONTEXT.Barrier(4)
    processes = [
        CONTEXT.Process(target=open_with_others, args=(home, dict(os.environ), barrier)) for _ in range(barrier.parties)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)

    assert [process.exitcode for process in processes] == [0] * len(processes)

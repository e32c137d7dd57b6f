"""One batch that a library dies of, or that nobody foresaw, is refused alone: the others of its group are staged."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from timestore_pipeline.cpu_time import TookTooLong
from timestore_pipeline.duck.connections import ConnectionPool, connector
from timestore_pipeline.errors import BatchRejected, TimestoreError
from timestore_pipeline.rows.formats import arrow_files
from timestore_pipeline.staging import frame_rows
from timestore_pipeline.staging.file_rows import FileRows
from timestore_pipeline.staging.frame_rows import Incoming, stage_together
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import arrow_bytes, hourly, ingest, readable

# Microseconds that are labelled as seconds: DuckDB stumbles over them with an internal error, which ends the instance.
DEADLY = pa.table(
    {"ts": pa.array([1_767_225_600_000_000] * 3, pa.timestamp("s")), "station": ["x"] * 3, "temp": [1.0] * 3}
)
NO_TEXT = "Europe/Berl\udcff"


def zone_without_text() -> pa.Table:
    """A batch whose time zone is no UTF-8, as a stream from elsewhere may have it."""
    table = hourly(3).cast(pa.schema([("ts", pa.timestamp("us", "ZONE")), ("station", "string"), ("temp", "double")]))
    content = arrow_bytes(table, stream=True).replace(b"ZONE", b"ZO\xffE")
    return pa.ipc.open_stream(content).read_all()


def incoming(table: pa.Table, name: str) -> Incoming:
    return Incoming.of("weather", table, name, "the test")


@pytest.mark.long
def test_a_batch_that_ends_the_instance_is_refused_and_the_next_ones_are_staged(store: Store):
    for number in range(6):
        with pytest.raises(BatchRejected, match=r"INTERNAL.*in column 'ts'"):
            stage(store, "weather", DEADLY, f"bad {number}")
        assert stage(store, "weather", hourly(2), f"good {number}").rows == 2

    assert len(readable(store)) == 12


def test_a_batch_that_ends_the_instance_is_refused_alone_in_its_group(store: Store):
    group = [incoming(DEADLY if number % 3 == 0 else hourly(2), f"{number}") for number in range(9)]

    answers = stage_together(store, store.datasets["weather"], group).in_order

    refused = [number for number, answer in enumerate(answers) if isinstance(answer, TimestoreError)]
    assert refused == [0, 3, 6]
    assert all(isinstance(answers[number], BatchRejected) for number in refused)
    assert len(readable(store)) == 12


def test_a_landing_file_that_ends_the_instance_is_set_aside_and_the_others_are_staged(store: Store, drop):
    drop(store, "weather", "a.csv", "ts,station,temp\n2026-01-01T00:00:00Z,JFK,1\n")
    drop(store, "weather", "b.arrow", arrow_bytes(DEADLY))
    drop(store, "weather", "c.arrow", arrow_bytes(hourly(2)))

    report = ingest(store)["weather"]

    assert [entry.source for entry in report.quarantined] == ["b.arrow"]
    assert "in column 'ts'" in report.quarantined[0].reason
    assert {receipt.source for receipt in report.receipts} == {"a.csv", "c.arrow"}


def test_a_time_zone_that_is_no_text_is_refused_before_it_is_in_a_group(store: Store):
    with pytest.raises(BatchRejected, match="UTF-8"):
        stage(store, "weather", zone_without_text())


@pytest.mark.parametrize("error", [UnicodeDecodeError("utf-8", b"x", 0, 1, "no"), pa.ArrowInvalid("no")])
def test_what_nobody_foresaw_of_one_batch_is_the_matter_of_that_one(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    strange = hourly(2).replace_schema_metadata({"strange": "yes"})
    described = arrow_files.describe_arrow

    def fail_for_one(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> object:
        if schema.metadata:
            raise error
        return described(connection, schema)

    monkeypatch.setattr(arrow_files, "describe_arrow", fail_for_one)
    group = [incoming(strange if number == 1 else hourly(2), f"{number}") for number in range(3)]

    answers = stage_together(store, store.datasets["weather"], group).in_order

    assert [isinstance(answer, BatchRejected) for answer in answers] == [False, True, False]
    assert len(readable(store)) == 4


def test_a_fault_of_ours_is_no_fault_of_the_batch(store: Store, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(frame_rows.FrameRows, "plan", broken)

    answers = stage_together(
        store, store.datasets["weather"], [incoming(hourly(2), "a"), incoming(hourly(3), "b")]
    ).in_order

    assert not any(isinstance(answer, BatchRejected) for answer in answers)
    assert all(isinstance(answer, TimestoreError) for answer in answers)


def test_a_fault_of_ours_with_one_file_holds_no_other_up(store: Store, drop, monkeypatch: pytest.MonkeyPatch):
    drop(store, "weather", "strange.csv", "ts,station,temp\n2026-01-01T00:00:00Z,JFK,1\n")
    drop(store, "weather", "good.arrow", arrow_bytes(hourly(2)))
    plan = FileRows.plan

    def fail_for_one(self: FileRows, connection: duckdb.DuckDBPyConnection, schema: Any, numbers: Any) -> object:
        if any(self.paths[number].name == "strange.csv" for number in numbers):
            raise LookupError("a bug")
        return plan(self, connection, schema, numbers)

    with monkeypatch.context() as patched:
        patched.setattr(FileRows, "plan", fail_for_one)
        with pytest.raises(TimestoreError, match=r"strange\.csv could not be staged"):
            ingest(store)
    assert len(readable(store)) == 2

    report = ingest(store)["weather"]

    assert sorted((receipt.source, receipt.duplicate) for receipt in report.receipts) == [
        ("good.arrow", True),
        ("strange.csv", False),
    ]


@pytest.fixture
def pool(store: Store) -> ConnectionPool:
    return ConnectionPool(connector(store.settings), store.settings.home)


def instance_of(pool: ConnectionPool) -> None:
    with pool.connection(threads=1) as connection:
        assert connection.execute("SELECT 42").fetchall() == [(42,)]


def test_a_connection_in_an_aborted_transaction_goes_to_nobody_else(pool: ConnectionPool):
    with pool.connection(threads=1) as connection:
        connection.execute("BEGIN")
        with pytest.raises(duckdb.Error):
            connection.execute("SELECT error('no')").fetchall()
        with pytest.raises(duckdb.TransactionException):
            connection.execute("SELECT 1")

    instance_of(pool)


def test_a_user_goes_on_after_an_internal_error_with_another_instance(pool: ConnectionPool):
    with pool.connection(threads=1) as connection:
        for _ in range(3):
            connection.register("deadly", DEADLY)
            with pytest.raises(duckdb.InternalException):
                connection.execute("SELECT CAST(ts AS TIMESTAMP WITH TIME ZONE) FROM deadly").fetchall()
            assert connection.execute("SELECT 1").fetchall() == [(1,)]

    instance_of(pool)


ENDLESS = "SELECT sum(hash(a.range + b.range)) FROM range(100000000) a, range(100000000) b"


@pytest.mark.long
def test_a_statement_that_takes_too_long_is_ended_and_its_connection_goes_to_nobody_else(pool: ConnectionPool):
    with pytest.raises(TookTooLong), pool.connection(threads=1, cpu_seconds=0.1) as connection:
        connection.execute(ENDLESS).fetchall()
    with pool.connection(threads=1, cpu_seconds=0.1) as connection, pytest.raises(TookTooLong):
        connection.execute(ENDLESS).fetchall()

    instance_of(pool)


@pytest.mark.long
def test_one_that_has_no_limit_is_not_ended_by_the_limit_of_another(pool: ConnectionPool):
    done: Future[list[tuple[int]]] = Future()

    def work() -> None:
        with pool.connection(threads=1) as connection:
            done.set_result(connection.execute("SELECT sum(hash(range) % 7) > 0 FROM range(20000000)").fetchall())

    thread = threading.Thread(target=work)
    thread.start()
    with pytest.raises(TookTooLong), pool.connection(threads=1, cpu_seconds=0.05) as connection:
        connection.execute(ENDLESS).fetchall()
    thread.join()

    assert done.result() == [(True,)]

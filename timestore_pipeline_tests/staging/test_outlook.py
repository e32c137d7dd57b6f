"""A writer writes its next segment by what its last group found; whatever has changed meanwhile holds all the same."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from timestore_pipeline.errors import BatchConflict, IntakePaused, StagingQueueFull, TooManyIngests
from timestore_pipeline.ledger.leases import claim_slot
from timestore_pipeline.ledger.limits import LimitName, Pause, pause_intake, resume_intake
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.staging.turns import turns_of
from timestore_pipeline.staging.writer import Writer
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import files_under, hourly, readable, rows_of
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.staging.test_back_pressure import override
from timestore_pipeline_tests.statements import statements

INFERRED = "datasets: {weather: {time: ts, window: day}}"

MOST_STATEMENTS = 16
"""To acknowledge late batches of one window: one transaction, without what begins and ends it. Others need fewer."""


def batch(number: int) -> pa.Table:
    return hourly(2, station=f"S{number}")


@pytest.fixture
def writer(store: Store) -> Iterator[Writer]:
    """A writer that has brought the dataset its columns and written once more, and so knows its way."""
    with Writer(store, "weather") as opened:
        opened.write(batch(100))
        opened.write(batch(0))
        yield opened


def test_a_group_of_new_batches_costs_one_transaction_of_few_statements(writer: Writer):
    with statements() as found:
        writer.write(batch(1))

    asked = [each.text for each in found if not each.text.startswith(("BEGIN", "SELECT pg_", "SHOW", "SET"))]
    assert len(asked) <= MOST_STATEMENTS, "\n".join(asked)
    assert sum(statement.startswith("SELECT batches.batch_id") for statement in asked) == 1, "it asked before it wrote"


def test_a_batch_that_another_has_staged_since_is_a_repeat(store: Store, writer: Writer):
    stage(store, "weather", batch(1), batch_id="1")
    before = files_under(store.settings.staging_path / "weather")

    assert writer.write(batch(1), batch_id="1").duplicate
    assert files_under(store.settings.staging_path / "weather") == before, "a segment that nobody needs was left"
    with pytest.raises(BatchConflict):
        writer.write(batch(2), batch_id="1")
    assert readable(store) == rows_of(batch(100), batch(0), batch(1))


def test_columns_that_another_has_brought_since_are_taken_up(make_store: MakeStore):
    store = make_store(INFERRED)
    with Writer(store, "weather") as writer:
        for number in (0, 1):
            writer.write(batch(number))
        stage(store, "weather", batch(2).append_column("gust", pa.array([1.5, 2.5])))
        writer.write(batch(3))
        writer.write(batch(4))

    calm = pa.nulls(2, pa.float64())
    staged = [batch(number).append_column("gust", calm) for number in (0, 1, 3, 4)]
    assert readable(store) == rows_of(*staged, batch(2).append_column("gust", pa.array([1.5, 2.5])))


def test_a_limit_of_the_queue_that_was_set_since_holds(store: Store, writer: Writer):
    override(store, LimitName.MAX_PENDING, 3)

    writer.write(batch(1))
    with pytest.raises(StagingQueueFull):
        writer.write(batch(2))
    assert readable(store) == rows_of(batch(100), batch(0), batch(1))


def test_a_pause_since_holds_until_it_ends(store: Store, writer: Writer):
    with store.ledger.write() as tx:
        pause_intake(tx, Pause("weather", "the test", now_micros(), "because"))
    with pytest.raises(IntakePaused):
        writer.write(batch(1))
    with store.ledger.write() as tx:
        resume_intake(tx, "weather")
    writer.write(batch(1))
    assert readable(store) == rows_of(batch(100), batch(0), batch(1))


def test_turns_that_are_limited_since_are_waited_for(make_store: MakeStore):
    store = make_store(staging_turn_timeout_seconds=0.05)
    with Writer(store, "weather") as writer:
        writer.write(batch(100))
        writer.write(batch(0))
        override(store, LimitName.CONCURRENT_INGESTS, 1)
        now = now_micros()
        with store.ledger.write() as tx:
            assert claim_slot(tx, turns_of("weather"), 1, "other", now=now, lease_micros=60_000_000)
        with pytest.raises(TooManyIngests):
            writer.write(batch(1))

    assert readable(store) == rows_of(batch(100), batch(0))

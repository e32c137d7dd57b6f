"""What is asked of the ledger all the time must not cost more because time has passed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine

from timestore_pipeline.ledger.accounts import window_accounts
from timestore_pipeline.ledger.builds import NewBuild, mark_published
from timestore_pipeline.ledger.claims import Claim
from timestore_pipeline.ledger.windows import PublishedWindow, published_totals
from timestore_pipeline.store import Store
from timestore_pipeline_tests.bench.growth.history import BATCHES_PER_WINDOW, ROWS, Past, fill, name_of
from timestore_pipeline_tests.bench.growth.ledger import operations
from timestore_pipeline_tests.builders import claim_slices
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.postgresql import ROW_LOCKS
from timestore_pipeline_tests.statements import Statement, statements

PAST = Past(datasets=8, batches=1_600)

HISTORY = {
    "batches", "segments", "slices", "batch_slices", "builds", "windows", "replaced_windows", "corrected_windows",
    "build_corrections",
}  # fmt: skip
"""Tables that grow with time."""

NOW = {
    "ix_slices_queued",
    "ix_batches_queued",
    "ix_segments_on_disk",
    "uq_builds_in_flight",
    "ix_corrected_windows_pending",
    "ix_builds_ended_flushes",  # which is asked for its last entry
}
"""Indexes of what is staged, in flight or on disk, however long the past is."""


@pytest.fixture
def with_past(make_store: MakeStore) -> Store:
    declared = "".join(f"  {name}: {{time: time, window: hour, start: 2026-01-01}}\n" for name in PAST.names)
    store = make_store(f"datasets:\n{declared}")
    with store.ledger.write() as tx:
        fill(tx, PAST)
    return store


def test_the_past_that_benchmarks_measure_with_is_one_that_adds_up(with_past: Store) -> None:
    each = PAST.batches // PAST.datasets
    with with_past.ledger.read() as tx:
        accounts = window_accounts(tx, name_of(3))
        totals = published_totals(tx)
    assert sum(account.staged for account in accounts.values()) == (each + PAST.staged) * ROWS
    assert all(account.staged == account.published + account.queued for account in accounts.values())
    assert all(account.published == account.recorded for account in accounts.values())
    assert totals[name_of(3)][:2] == (each // BATCHES_PER_WINDOW, each * ROWS)


def test_no_tick_push_claim_publication_or_read_walks_through_the_past(with_past: Store, ledger_kind: str) -> None:
    work = operations(with_past, PAST)
    walks: dict[str, list[str]] = {}
    for name, act in work.items():
        with statements() as said:
            act(0)
        engine = create_engine(with_past.settings.resolved_ledger_url)
        with engine.connect() as connection:
            if ledger_kind == "postgresql":
                # Tables are small here, and then reading all of one is what the planner likes best.
                connection.exec_driver_sql("SET enable_seqscan = off")
                connection.exec_driver_sql("SET enable_bitmapscan = off")
            found = [walk for each in said if _is_looked_for(each) for walk in _walks(connection, each)]
        engine.dispose()
        if found:
            walks[name] = found
    assert not walks


def _is_looked_for(said: Statement) -> bool:
    """Whether it has a plan that finds rows."""
    return said.text.split(maxsplit=1)[0] in ("SELECT", "UPDATE", "DELETE") and not said.many


def _walks(connection: Connection, said: Statement) -> Iterator[str]:
    """Yield which tables of history a statement walks through, other than by an index of what is going on now."""
    statement, parameters = said.text, said.parameters
    if connection.dialect.name == "sqlite":
        for _, _, _, step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
            words = step.split()
            all_of_it = words[0] == "SCAN" or step.endswith("(dataset=?)")
            if all_of_it and words[1] in {*HISTORY, "piece"} and not NOW & set(words):
                yield f"{step}: {statement}"
        return
    if "FOR NO KEY UPDATE" in statement:
        return
    plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    waiting = [json.loads(plan)[0]["Plan"] if isinstance(plan, str) else plan[0]["Plan"]]
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", ())
        # How much of a dataset it reads is the planner's choice, by how much there is; SQLite's is by rules.
        walked = node["Node Type"].endswith("Scan") and not {"Index Cond", "TID Cond"} & node.keys()
        if walked and node.get("Relation Name") in HISTORY and node.get("Index Name") not in NOW:
            yield f"{node['Node Type']} of {node['Relation Name']} ({node.get('Index Name')}): {statement}"


def test_a_claim_is_few_round_trips_and_no_table_is_locked(with_past: Store, ledger_kind: str) -> None:
    def claim(tx: Connection) -> Claim | None:
        return claim_slices(tx, NewBuild(name_of(3), owner="me", trigger="age", lease_micros=1, now=1))

    with with_past.ledger.write() as tx:
        with statements() as said:
            claimed = claim(tx)
        assert claimed is not None
        assert 1 < len(said) <= 6, "each is a round trip to a server"
        rows = {piece.window_start: piece.rows for piece in claimed.slices}
        published = {start: PublishedWindow(start, count, 48 * count, 1) for start, count in rows.items()}
        mark_published(tx, claimed.build, table_version=10**6, published=published, now=2)
        if ledger_kind == "postgresql":
            mine = "SELECT DISTINCT mode FROM pg_locks WHERE locktype = 'relation' AND pid = pg_backend_pid()"
            held = set(tx.exec_driver_sql(mine).scalars())
            assert "RowExclusiveLock" in held
            assert held <= ROW_LOCKS, "others would wait at a table"

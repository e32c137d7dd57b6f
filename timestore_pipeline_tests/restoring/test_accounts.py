"""A ledger that was made again still adds up, window by window: with a key, after rows expired or were forgotten."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from deltalake import DeltaTable, write_deltalake

from timestore_pipeline.building.expire import expire_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.errors import RebuildRefused
from timestore_pipeline.ledger.accounts import WindowAccount, window_accounts
from timestore_pipeline.ledger.forgetting import prune_batches
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.restoring.ledger import Rebuilt, rebuild_ledger
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.arrangements import Arrange
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    hourly,
    in_order,
    lose_ledger,
    published,
    readable,
    rows_of,
)
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.crash.test_kills_of_replacements import (
    HIGHEST,
    KEYED_AND_WIDER,
    LATEST,
    Case,
    assert_all_adds_up,
)
from timestore_pipeline_tests.crash.test_kills_of_replacements import at_work as keyed_at_work
from timestore_pipeline_tests.crash.test_kills_of_replacements import published as keyed_rows

pytestmark = pytest.mark.only_on("sqlite")

FIRST_DAY = "2026-01-01"


def lost_and_rebuilt(store: Store) -> Rebuilt:
    lose_ledger(store)
    return rebuild_ledger(store.settings, by="ann@host")


def accounts(store: Store, dataset: str = "weather") -> dict[str, WindowAccount]:
    with store.ledger.read() as tx:
        found = window_accounts(tx, dataset)
    return {store.datasets[dataset].window_at(start).key: account for start, account in found.items()}


@pytest.mark.matrix
@pytest.mark.long
@pytest.mark.only_on("sqlite", "postgresql")
@pytest.mark.parametrize("retired", [False, True], ids=["retained", "unlinked"])
@pytest.mark.parametrize("case", [LATEST, HIGHEST, KEYED_AND_WIDER], ids=str)
def test_the_row_that_wins_is_the_same_and_the_next_one_wins_over_it(
    case: Case, retired: bool, arrange: Arrange, make_store: MakeStore
):
    store = keyed_at_work(arrange, case)
    if retired:
        assert unlink_published_segments(store, retention_micros=0).files == 2
    before = accounts(store, "readings")

    assert lost_and_rebuilt(store).complete
    again = make_store(case.datasets_yaml)

    assert accounts(again, "readings") == before
    assert sum(account.superseded for account in before.values()) > 0
    assert_all_adds_up(again, case)
    stage(again, "readings", case.table("e"), batch_id="e")
    assert_all_adds_up(again, case)
    build(again, "readings")
    assert_all_adds_up(again, case)
    assert keyed_rows(again) == case.expected(case.batches)
    if retired:
        with pytest.raises(RebuildRefused):
            rebuild_windows(again, BuildOrder("readings", owner="the test"))
    else:
        rebuild_windows(again, BuildOrder("readings", owner="the test"))
    assert_all_adds_up(again, case)
    assert keyed_rows(again) == case.expected(case.batches)


def expired(store: Store, make_store: MakeStore, **settings: Any) -> Store:
    """Two days are published, and all that is more than a day old is dropped."""
    stage(store, "weather", hourly(48), batch_id="old")
    build(store)
    short = make_store(table_retention_seconds=86_400, **settings)
    now = (NEW_YEAR + timedelta(days=2, hours=1)).timestamp()
    dropped = expire_windows(short, BuildOrder("weather", owner="the test"), now=int(now * 1e6))
    assert dropped.rows == 24
    return short


@pytest.mark.long
def test_windows_that_have_expired_are_known_to_have(store: Store, make_store: MakeStore):
    before = expired(store, make_store)

    assert lost_and_rebuilt(before).complete
    again = make_store(table_retention_seconds=86_400)

    account = accounts(again)[FIRST_DAY]
    assert (account.published, account.recorded, account.expired) == (24, 0, 24)
    assert audit_rows(again, "weather").wrong == ()
    stage(again, "weather", hourly(3, station="LATE"))
    build(again)
    assert audit_rows(again, "weather").wrong == ()
    assert lost_and_rebuilt(again).complete
    once_more = make_store(table_retention_seconds=86_400)
    assert audit_rows(once_more, "weather").wrong == ()
    assert readable(once_more) == in_order([*rows_of(hourly(48))[24:], *rows_of(hourly(3, station="LATE"))])


@pytest.mark.parametrize("how", ["forgotten", "forgotten and expired"])
def test_batches_that_the_ledger_had_forgotten_are_known_again_and_add_up(how: str, make_store: MakeStore):
    store = make_store(staging_retention_seconds=0)
    if "expired" in how:
        store = expired(store, make_store, staging_retention_seconds=0)
    else:
        stage(store, "weather", hourly(48), batch_id="old")
        build(store)
    before = readable(store)
    unlink_published_segments(store)
    with store.ledger.write() as tx:
        assert prune_batches(tx, "weather", now_micros() + 1, 100).batches == 1
    assert audit_rows(store, "weather").wrong == ()

    assert lost_and_rebuilt(store).complete
    again = make_store(staging_retention_seconds=0)

    assert audit_rows(again, "weather").wrong == ()
    assert stage(again, "weather", hourly(48), batch_id="old").duplicate
    assert readable(again) == before
    with again.ledger.write() as tx:
        assert prune_batches(tx, "weather", now_micros() + 1, 100).batches == 1
    assert audit_rows(again, "weather").wrong == ()


def test_rows_that_something_else_took_out_of_the_table_are_said(store: Store, make_store: MakeStore):
    stage(store, "weather", hourly(48))
    build(store)
    DeltaTable(str(store.table("weather").root)).delete(f"window_key = '{FIRST_DAY}'")

    (outcome,) = lost_and_rebuilt(store).datasets

    (problem,) = outcome.problems
    assert f"24 rows of window {FIRST_DAY} were published, are not in the table" in problem
    again = make_store()
    assert audit_rows(again, "weather").wrong == ()
    assert len(readable(again)) == len(published(again)) == 24


def test_rows_of_which_no_manifest_knows_are_said(store: Store, make_store: MakeStore):
    stage(store, "weather", hourly(3))
    build(store)
    path = str(store.table("weather").root)
    write_deltalake(path, DeltaTable(path).to_pyarrow_table(), mode="append")

    (outcome,) = lost_and_rebuilt(store).datasets

    (problem,) = outcome.problems
    assert f"the table has 3 rows of window {FIRST_DAY} of which no manifest knows" in problem
    assert len(readable(make_store())) == 6

"""Staging is cleared of what is published or nobody's; of the rest only where somebody says how much is lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from timestore_pipeline.errors import BuildInFlight, StagingNotEmpty, UnknownDataset
from timestore_pipeline.ledger.builds import NewBuild
from timestore_pipeline.ledger.counters import counter_values
from timestore_pipeline.ledger.quarantine import all_entries, open_entries
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating.drain import stop_intake
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.clearing import clear_staging
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    claim_slices,
    files_under,
    hourly,
    ingest,
    published,
    readable,
    rows_of,
    weather,
)
from timestore_pipeline_tests.conftest import MakeStore

Drop = Callable[..., Path]


def left(store: Store) -> list[str]:
    return [name for name in files_under(store.settings.staging_path) if not name.startswith("ledger.sqlite")]


def test_published_segments_go_before_their_retention_is_over(store: Store):
    stage(store, "weather", hourly(24))
    build(store)

    cleared = clear_staging(store, [], by="ann@host")

    assert (cleared.files, cleared.lost_rows) == (1, 0)
    assert left(store) == []
    assert readable(store) == rows_of(hourly(24))
    assert clear_staging(store, [], by="ann@host").files == 0


@pytest.mark.parametrize("said", [0, 23, 25])
def test_unpublished_rows_stay_unless_their_number_is_said(store: Store, said: int):
    stage(store, "weather", hourly(24))

    with pytest.raises(StagingNotEmpty, match="--lose-rows 24"):
        clear_staging(store, [], by="ann@host", lose_rows=said)

    assert len(readable(store)) == 24


def test_rows_and_files_that_are_given_up_are_gone_and_it_is_known_by_whom(store: Store, drop: Drop):
    stage(store, "weather", hourly(24), batch_id="gone")
    stage(store, "weather", weather((NEW_YEAR, "X", 1.0), (None, "X", 1.0)))
    drop(store, "weather", "bad.csv", "no,weather\n")
    ingest(store)
    with store.ledger.read() as tx:
        counters = counter_values(tx)

    with pytest.raises(StagingNotEmpty, match="26 unpublished rows and 1 quarantined files"):
        clear_staging(store, ["weather"], by="ann@host", lose_rows=26)
    cleared = clear_staging(store, ["weather"], by="ann@host", lose_rows=26, lose_files=1)

    assert (cleared.lost_rows, cleared.lost_files) == (26, 1)
    assert left(store) == []
    assert readable(store) == []
    with store.ledger.read() as tx:
        assert queue_states(tx) == {}
        assert open_entries(tx) == []
        assert {entry.resolved_by for entry in all_entries(tx)} == {"ann@host"}
        assert all(counter_values(tx).get(key, 0) >= value for key, value in counters.items())
    assert stage(store, "weather", hourly(24), batch_id="gone").duplicate
    stage(store, "weather", hourly(24), batch_id="again")
    build(store)
    assert published(store) == rows_of(hourly(24))


def test_a_segment_of_which_one_window_is_published_keeps_those_rows(store: Store):
    stage(store, "weather", hourly(48))
    build(store, first="2026-01-01", last="2026-01-01")

    clear_staging(store, [], by="ann@host", lose_rows=24)

    assert left(store) == []
    assert readable(store) == rows_of(hourly(24))


def test_only_the_datasets_that_are_named(store: Store, drop: Drop):
    stage(store, "weather", hourly(3))
    drop(store, "events", "a.csv", "at,kind\n1767225600000,start\n")
    ingest(store)

    clear_staging(store, ["weather"], by="ann@host", lose_rows=3)

    assert len(readable(store, "events")) == 1


def test_a_build_in_flight_may_be_reading(store: Store):
    stage(store, "weather", hourly(3))
    with store.ledger.write() as tx:
        claim_slices(
            tx, NewBuild("weather", owner="somebody", trigger="manual", lease_micros=60_000_000, now=now_micros())
        )

    with pytest.raises(BuildInFlight):
        clear_staging(store, [], by="ann@host", lose_rows=3)

    assert len(readable(store)) == 3


def test_young_orphans_go_only_while_intake_is_paused(store: Store):
    folder = store.settings.staging_path / "weather"
    folder.mkdir(parents=True)
    (folder / "young.duckdb.tmp").write_text("half a segment")

    assert clear_staging(store, [], by="ann@host").files == 0
    stop_intake(store, [], "ann@host", "clearing")
    assert clear_staging(store, [], by="ann@host").files == 1


def test_a_dataset_that_is_not_declared_any_more_and_one_that_nobody_knows(make_store: MakeStore):
    stage(make_store(), "weather", hourly(3))
    store = make_store("datasets:\n  events: {time: {column: at, unit: ms}, window: hour}\n")

    with pytest.raises(UnknownDataset):
        clear_staging(store, ["whether"], by="ann@host")
    assert clear_staging(store, ["weather"], by="ann@host", lose_rows=3).lost_rows == 3
    assert left(store) == []


def test_rows_that_are_staged_while_somebody_reads_the_number_are_not_lost(store: Store):
    stage(store, "weather", hourly(3))
    stage(store, "weather", hourly(3, start=NEW_YEAR + timedelta(days=9)))

    with pytest.raises(StagingNotEmpty):
        clear_staging(store, [], by="ann@host", lose_rows=3)

"""A dataset that is taken out of ``datasets.yaml`` can be removed: all of it, nothing else, and not by mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from sqlalchemy import select

from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.errors import DatasetRemoved, LedgerLost, RemovalRefused, TableError, UnknownDataset
from timestore_pipeline.ledger.builds import NewBuild, builds_in_flight
from timestore_pipeline.ledger.schema import metadata
from timestore_pipeline.model.windows import TimeRange
from timestore_pipeline.operating import removal as removal_module
from timestore_pipeline.operating.removal import plan_removal, remove_dataset
from timestore_pipeline.staging.stage import incoming_of, stage, stage_incoming
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.maintenance import maintain
from timestore_pipeline_tests.builders import (
    build,
    claim_slices,
    files_under,
    hourly,
    ingest,
    publish,
    readable,
    rows_of,
    weather,
)
from timestore_pipeline_tests.conftest import DATASETS_YAML, MakeStore
from timestore_pipeline_tests.installations import ledger_put_back

Drop = Callable[..., Path]

CLAIM: Any = {"trigger": Trigger.MANUAL, "lease_micros": 0, "now": 1}

WITHOUT = "datasets: {events: {time: {column: at, unit: ms}, window: hour}}"


@pytest.fixture
def taken_out(make_store: MakeStore, drop: Drop) -> Store:
    """``weather`` is out of the file: 3 rows are published, 4 staged, a row and a file set aside, a range emptied."""
    store = make_store()
    publish(store, hourly(3))
    stage(store, "weather", weather((None, "JFK", 1.0)))
    stage(store, "weather", hourly(4, station="LGA"))
    emptied = TimeRange.between("2026-01-08", "2026-01-09")
    stage_incoming(store, "weather", incoming_of(store, "weather", hourly(0), replaces=emptied))
    drop(store, "weather", "bad.csv", "nothing,of\nthe,kind\n")
    drop(store, "events", "good.csv", "at,v\n1767225600000,1\n")
    ingest(store)
    build(store, "events")
    drop(store, "weather", "waiting.csv", "ts,station,temp\n")
    return make_store(WITHOUT)


def files_of(store: Store, dataset: str) -> list[str]:
    staging = store.settings.staging_path
    folders = (staging / name / dataset for name in ("", "_quarantine", "_corrections"))
    return [name for folder in folders for name in files_under(folder)]


def ledger_rows(store: Store, dataset: str) -> dict[str, int]:
    with store.ledger.read() as tx:
        found = {
            table.name: len(tx.execute(select(table).where(table.c.dataset == dataset)).all())
            for table in metadata.sorted_tables
            if "dataset" in table.c
        }
        names = tx.execute(select(metadata.tables["datasets"].c.name)).scalars().all()
    return {name: count for name, count in {**found, "datasets": names.count(dataset)}.items() if count}


def remove(store: Store, *, with_table: bool = False) -> None:
    lost = plan_removal(store, "weather", with_table=with_table).lost_rows
    remove_dataset(store, "weather", with_table=with_table, lost_rows=lost, by="the test")


def test_a_dry_run_says_what_goes_and_changes_nothing(taken_out: Store):
    before = files_of(taken_out, "weather"), ledger_rows(taken_out, "weather")

    plan = plan_removal(taken_out, "weather", with_table=True)

    assert (plan.staged_rows, plan.quarantined_rows, plan.quarantined, plan.table_rows) == (4, 1, 2, 3)
    assert plan.lost_rows == 8
    assert plan.staging.files == len(before[0])
    assert plan.staying == ()
    assert (files_of(taken_out, "weather"), ledger_rows(taken_out, "weather")) == before


@pytest.mark.parametrize("with_table", [False, True])
def test_all_of_it_goes_and_nothing_else(taken_out: Store, with_table: bool):
    events = readable(taken_out, "events"), ledger_rows(taken_out, "events"), files_of(taken_out, "events")
    table = taken_out.table("weather").root

    remove(taken_out, with_table=with_table)

    assert files_of(taken_out, "weather") == []
    assert ledger_rows(taken_out, "weather") == {}
    assert table.exists() is not with_table
    if not with_table:
        assert DeltaTable(str(table)).to_pyarrow_table().num_rows == 3
    assert (taken_out.settings.landing_path / "weather" / "waiting.csv").exists()
    assert (readable(taken_out, "events"), ledger_rows(taken_out, "events"), files_of(taken_out, "events")) == events
    assert maintain(taken_out, owner="the test").problems == ()


@pytest.mark.long
@pytest.mark.parametrize("with_table", [False, True])
def test_nothing_goes_by_a_ledger_that_is_older_than_what_it_does_not_know_to_be_staged(
    store: Store, make_store: MakeStore, with_table: bool
):
    publish(store, hourly(1))
    with ledger_put_back(store):
        publish(store, hourly(1, station="LGA"))
        stage(store, "weather", hourly(1, station="EWR"))
    taken_out = make_store(WITHOUT)
    before = files_of(taken_out, "weather")

    with pytest.raises(TableError, match="ledger rebuild"):
        plan_removal(taken_out, "weather", with_table=with_table)
    with pytest.raises(TableError, match="ledger rebuild"):
        remove_dataset(taken_out, "weather", with_table=with_table, lost_rows=0, by="ann")

    assert files_of(taken_out, "weather") == before


def test_the_name_can_be_used_again(taken_out: Store, make_store: MakeStore):
    remove(taken_out, with_table=True)

    again = make_store(DATASETS_YAML.replace("temp: double", "wind: bigint"))
    rows = pa.table({"ts": hourly(2)["ts"], "station": ["a", "b"], "wind": [1, 2]})
    publish(again, rows)
    assert len(readable(again)) == 2


def test_a_table_that_was_left_keeps_the_name_from_being_used_again(taken_out: Store, make_store: MakeStore):
    remove(taken_out)

    again = make_store()
    with pytest.raises(LedgerLost, match="the table"):
        stage(again, "weather", hourly(1))
    assert len(readable(again, "events")) == 1


def test_it_is_refused_while_it_is_declared(taken_out: Store, make_store: MakeStore):
    store = make_store()

    with pytest.raises(RemovalRefused, match=r"datasets\.yaml declares it.*Take it out"):
        remove(store)
    assert readable(store) == rows_of(hourly(3), hourly(4, station="LGA"))


def test_it_is_refused_while_a_build_is_in_flight(taken_out: Store):
    with taken_out.ledger.write() as tx:
        claim_slices(tx, NewBuild("weather", **CLAIM, owner="somebody"))

    with pytest.raises(RemovalRefused, match="build 3 of somebody is in flight"):
        remove(taken_out)


def test_just_the_rows_that_were_said_are_given_up(taken_out: Store):
    with pytest.raises(RemovalRefused, match="5 rows of it would be nowhere any more, not 8"):
        remove_dataset(taken_out, "weather", with_table=False, lost_rows=8, by="the test")
    assert len(files_of(taken_out, "weather")) > 1


@pytest.mark.parametrize("name", ["nobody", "../weather", "timestore_validation_0a1b2c3d"])
def test_an_unknown_name_is_refused(taken_out: Store, name: str):
    with pytest.raises(UnknownDataset):
        plan_removal(taken_out, name, with_table=True)


def test_files_that_nobody_can_say_anything_about_stay_and_are_named(taken_out: Store):
    staging = taken_out.settings.staging_path
    mine = [staging / "weather" / "notes.txt", staging / "_quarantine" / "weather" / "my copy.csv"]
    other = staging / "weather" / "0123456789abcdef0123456789abcdef.duckdb"
    segment = next((staging / "events").glob("*.duckdb"))
    other.write_bytes(segment.read_bytes())
    inside = taken_out.table("weather").root / "README"
    for path in (*mine, inside):
        path.write_text("mine")

    plan = plan_removal(taken_out, "weather", with_table=True)
    remove(taken_out, with_table=True)

    assert set(plan.staying) == {str(path) for path in (*mine, other, inside)}
    assert all(path.exists() for path in (*mine, other, inside))


def test_a_segment_that_the_ledger_does_not_know_goes_if_it_says_that_it_is_the_datasets(taken_out: Store):
    staging = taken_out.settings.staging_path
    segment = next((staging / "weather").glob("*.duckdb"))
    (staging / "weather" / "0123456789abcdef0123456789abcdef.duckdb").write_bytes(segment.read_bytes())

    remove(taken_out)

    assert files_of(taken_out, "weather") == []


def test_somebody_elses_table_is_not_removed(taken_out: Store):
    remove(taken_out, with_table=True)
    place = taken_out.table("weather").location
    write_deltalake(place, pa.table({"a": [1], "window_key": ["x"]}), partition_by=["window_key"])

    with pytest.raises(TableError, match="nothing in the log"):
        plan_removal(taken_out, "weather", with_table=True)
    assert DeltaTable(place).to_pyarrow_table().num_rows == 1


def test_killed_in_the_middle_the_same_goes_on(taken_out: Store, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(removal_module, "forget_dataset", die)
        with pytest.raises(KeyboardInterrupt):
            remove(taken_out, with_table=True)

    assert ledger_rows(taken_out, "weather")["intake_pauses"] == 1
    remove(taken_out, with_table=True)
    assert ledger_rows(taken_out, "weather") == {}
    assert files_of(taken_out, "weather") == []


def test_a_process_with_the_old_file_puts_nothing_back(taken_out: Store, make_store: MakeStore):
    old = make_store()
    make_store(WITHOUT)
    remove(taken_out)

    with pytest.raises(DatasetRemoved):
        stage(old, "weather", hourly(1))
    assert ledger_rows(taken_out, "weather") == {}
    with old.ledger.read() as tx:
        assert builds_in_flight(tx) == []

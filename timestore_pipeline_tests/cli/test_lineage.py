"""``timestore lineage``: every row of a window is traced to its batch, its build and its file."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import delete, update

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.cli import ExitCode
from timestore_pipeline.ledger import schema
from timestore_pipeline.ledger.builds import NewBuild
from timestore_pipeline.model.windows import TimeRange
from timestore_pipeline.staging.stage import incoming_of, stage, stage_incoming
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import claim_slices, hourly, rows_of
from timestore_pipeline_tests.cli.conftest import Finished

Run = Callable[..., Finished]
Install = Callable[..., Store]


@pytest.fixture
def traced(installation: Install) -> tuple[Store, str]:
    """Two builds of 2026-01-01, one of a Dagster run, and rows that are staged; batches reach into the next day."""
    store, run_id = installation(), str(uuid.uuid4())
    stage(store, "weather", hourly(30, station="JFK"), batch_id="first")
    stage(store, "weather", hourly(2, station="LGA"), batch_id="second [bold]\x1b")
    flush_windows(store, BuildOrder("weather", owner=run_id))
    stage(store, "weather", hourly(5, station="EWR"), batch_id="third")
    flush_windows(store, BuildOrder("weather", owner="cli:host:1"))
    stage(store, "weather", hourly(1, station="BOS"), batch_id="waiting")
    return store, run_id


def test_every_row_is_traced_to_its_batch_its_build_and_its_file(traced: tuple[Store, str], timestore: Run):
    _, run_id = traced

    document = json.loads(timestore("lineage", "weather", "2026-01-01", "--json").out)

    assert (document["window"], document["published_rows"], document["forgotten_rows"]) == ("2026-01-01", 31, 0)
    assert document["from"].startswith("2026-01-01T00:00:00")
    assert document["until"].startswith("2026-01-02T00:00:00")
    first, second = document["builds"]
    assert (first["run_id"], first["rows"], first["state"], first["kind"]) == (run_id, 26, "published", "flush")
    assert (second["run_id"], second["owner"], second["rows"]) == (None, "cli:host:1", 5)
    batches = [
        {batch["batch_id"]: batch["rows"] for segment in build["segments"] for batch in segment["batches"]}
        for build in document["builds"]
    ]
    assert batches == [{"first": 24, "second [bold]\x1b": 2}, {"third": 5}]
    for build in document["builds"]:
        assert sum(file["rows"] for file in build["files"]) == build["rows"]
        assert all(file["path"].startswith("window_key=2026-01-01/") for file in build["files"])
        assert sum(segment["rows"] for segment in build["segments"]) == build["rows"]
    assert [batch["batch_id"] for segment in document["staged"] for batch in segment["batches"]] == ["waiting"]
    assert document["other_files"] == document["quarantined"] == []


@pytest.mark.long
def test_people_see_a_tree_whose_lines_are_whole(traced: tuple[Store, str], timestore: Run):
    _, run_id = traced

    shown = timestore("lineage", "weather", "2026-01-01").out

    lines = shown.splitlines()
    assert lines[0] == "weather 2026-01-01: 31 rows published, table version 2"
    assert any(run_id in line and line.endswith(": 26 rows") for line in lines)
    assert any("batch second [bold]\\x1b from" in line for line in lines), "as it is, and no cursor moves"
    assert sum("file window_key=2026-01-01/" in line for line in lines) == 2
    assert "staged, not published" in shown


@pytest.mark.long
def test_a_window_without_rows_and_one_that_is_none(traced: tuple[Store, str], timestore: Run):
    assert "nothing of it was ever staged" in timestore("lineage", "weather", "2025-12-31").out
    assert timestore("lineage", "weather", "yesterday").code is ExitCode.USAGE
    assert timestore("lineage", "nothing", "2026-01-01").code is ExitCode.USAGE


def test_an_installation_without_a_table_has_staged_rows_only(installation: Install, timestore: Run):
    store = installation()
    table = hourly(3)
    stage(store, "weather", table)
    with store.ledger.write() as tx:
        claim_slices(tx, NewBuild("weather", owner="o", trigger="manual", lease_micros=10**9, now=1))

    document = json.loads(timestore("lineage", "weather", "2026-01-01", "--json").out)

    assert document["table_version"] is None
    assert [(build["state"], build["rows"]) for build in document["builds"]] == [("claimed", len(rows_of(table)))]


@pytest.mark.long
def test_what_the_ledger_has_forgotten_is_said(traced: tuple[Store, str], timestore: Run):
    store, _ = traced
    with store.ledger.write() as tx:
        tx.execute(update(schema.windows).values(build_id=2))
        tx.execute(delete(schema.slices).where(schema.slices.c.build_id == 1))
        tx.execute(delete(schema.builds).where(schema.builds.c.id == 1))

    document = json.loads(timestore("lineage", "weather", "2026-01-01", "--json").out)
    shown = timestore("lineage", "weather", "2026-01-01").out

    assert (document["published_rows"], document["forgotten_rows"]) == (31, 26)
    assert sum(file["rows"] for file in document["other_files"]) == 26
    assert "26 rows of segments that the ledger knows no more" in shown
    assert "files of no build that the ledger knows" in shown


def test_what_was_replaced_is_named_with_its_rows(traced: tuple[Store, str], timestore: Run):
    store, _ = traced
    replaces = TimeRange.between("2026-01-01T03:00", "2026-01-01T05:00")
    stage_incoming(store, "weather", incoming_of(store, "weather", hourly(0), "corrected", replaces=replaces))
    (found,) = json.loads(timestore("lineage", "weather", "2026-01-01", "--json").out)["corrections"]
    assert (found["number"], found["batch_id"], found["rows"], found["pending"]) == (1, "corrected", 0, True)
    assert "weather: 1 published window to be corrected" in timestore("status").err
    assert json.loads(timestore("status", "weather", "--json").out)["datasets"][0]["to_correct"]["windows"] == 1

    done = timestore("build", "weather").out

    assert "1 row published" in done
    assert "4 rows left out that corrections took back" in done
    assert "by batch corrected" in (out := timestore("lineage", "weather", "2026-01-01").out)
    assert "4 rows taken back" in out

"""``timestore build`` and ``maintain``: what operators do by hand."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import hourly, published, rows_of
from timestore_pipeline_tests.cli.conftest import Finished, installation, timestore  # noqa: F401

Run = Callable[..., Finished]
Install = Callable[..., Store]


def flushed(store: Store) -> None:
    for number in range(3):
        stage(store, "weather", hourly(24, station=f"S{number}"), batch_id=f"b{number}")
        flush_windows(store, BuildOrder("weather", owner="the test"))


def files(store: Store) -> int:
    return len(live_files(open_table(store.table("weather"), "weather")))


@pytest.mark.long
def test_build_publishes_and_compacts(installation: Install, timestore: Run):  # noqa: F811
    store = installation()
    flushed(store)
    stage(store, "weather", hourly(24, station="NEW"))

    finished = timestore("build", "weather")

    assert finished.code == 0
    assert "24 rows published in 1 window" in finished.out
    assert "4 small files merged into 1" in finished.out
    assert files(store) == 1


def test_a_problem_of_maintenance_is_told_once(installation: Install, timestore: Run):  # noqa: F811
    store = installation()
    flushed(store)
    entry = sorted((store.table("weather").root / "_delta_log").glob("*.json"))[-1]
    entry.write_text("{")

    finished = timestore("maintain")

    assert finished.code == 1
    told = [line.removeprefix("timestore: ") for line in finished.err.splitlines()]
    assert told
    assert sorted(set(told)) == sorted(told)


@pytest.mark.long
def test_rebuild_names_what_is_missing(installation: Install, timestore: Run):  # noqa: F811
    store = installation(staging_retention_seconds=0)
    flushed(store)
    assert timestore("build", "weather", "--rebuild").code == 0
    assert published(store) == rows_of(*(hourly(24, station=f"S{number}") for number in range(3)))
    unlink_published_segments(store)

    finished = timestore("build", "weather", "--rebuild", "--first", "2026-01-01", "--last", "2026-01-01")

    assert finished.code != 0
    assert "batch b0" in finished.err


@pytest.mark.long
def test_maintain_tells_first_and_then_does(installation: Install, timestore: Run):  # noqa: F811
    store = installation(staging_retention_seconds=0)
    flushed(store)

    assert "would be" in timestore("maintain", "--dry-run").out
    assert files(store) == 3
    done = json.loads(timestore("maintain", "--json").out)

    assert done["segments"]["files"] == 3
    assert files(store) == 1
    assert timestore("maintain").out.strip() == "nothing to do"


@pytest.mark.long
def test_maintain_fails_where_something_could_not_be_done(installation: Install, timestore: Run):  # noqa: F811
    store = installation()
    flushed(store)
    sorted((store.table("weather").root / "_delta_log").glob("*.json"))[-1].write_text("{")

    finished = timestore("maintain")

    assert finished.code == 1
    assert "weather" in finished.err

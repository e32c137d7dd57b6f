"""``timestore limits`` and ``stage --wait``: limits that an operator sees and changes at run time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline.cli import ExitCode
from timestore_pipeline.errors import StagingQueueFull
from timestore_pipeline.ledger.counters import DROPPED_BATCHES, RETRIED_BATCHES
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import counted, hourly
from timestore_pipeline_tests.cli.conftest import Finished
from timestore_pipeline_tests.conftest import WEATHER_CSV

Run = Callable[..., Finished]
Install = Callable[..., Store]
MakeFile = Callable[[str, str], Path]


def limit(timestore: Run, name: str) -> dict[str, object]:
    shown = json.loads(timestore("limits", "show", "weather", "--json").out)
    return next(each for each in shown if each["limit"] == name)


def test_limits_say_how_much_is_used_and_where_they_come_from(timestore: Run, installation: Install):
    store = installation(staging_concurrent_ingests=2)
    stage(store, "weather", hourly(3))

    shown = timestore("limits", "show", "weather")

    lines = shown.out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["weather", "max_pending"],
        ["weather", "max_bytes"],
        ["weather", "max_windows"],
        ["weather", "concurrent_ingests"],
        ["weather", "concurrent_builds"],
    ]
    assert lines[1].split()[2:5] == ["1", "1,000", "environment"]
    assert lines[3].split()[2:5] == ["-", "1,000", "environment"]
    assert lines[4].split()[2:5] == ["0", "2", "environment"]
    assert lines[5].split()[2:5] == ["0", "1", "environment"]


@pytest.mark.parametrize("value", [0, 33])
def test_builds_at_once_are_one_at_least_and_not_too_many(timestore: Run, installation: Install, value: int):
    installation()

    refused = timestore("limits", "set", "weather", "concurrent_builds", str(value))

    assert refused.code is not ExitCode.DONE
    assert f"must be 1 or more and at most 32, not {value}" in refused.err
    timestore("limits", "set", "weather", "concurrent_builds", "2")
    assert limit(timestore, "concurrent_builds")["value"] == 2


@pytest.mark.process
def test_a_limit_that_another_process_sets_holds_here_at_once(timestore: Run, installation: Install):
    store = installation(staging_max_pending=1)
    stage(store, "weather", hourly(1))
    with pytest.raises(StagingQueueFull, match="timestore limits set weather max_pending N"):
        stage(store, "weather", hourly(2))

    command = [sys.executable, "-m", "timestore_pipeline.cli", "limits", "set", "weather", "max_pending", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout == "weather: max_pending is 2 now\n"
    assert stage(store, "weather", hourly(2)).rows == 2
    changed = limit(timestore, "max_pending")
    assert (changed["value"], changed["source"], changed["used"]) == (2, "override", 2)
    assert "@" in str(changed["set_by"])
    assert "2 / 2 (override)" in timestore("status", "weather").out


def test_a_cleared_limit_is_again_what_the_environment_says(timestore: Run, installation: Install):
    installation(staging_max_pending=5)
    assert timestore("limits", "set", "weather", "max_pending", 0).out == "weather: max_pending is no limit now\n"
    assert limit(timestore, "max_pending")["value"] == 0

    assert "no longer overridden" in timestore("limits", "clear", "weather", "max_pending").out

    assert limit(timestore, "max_pending")["value"] == 5
    assert "nothing to clear" in timestore("limits", "clear", "weather", "max_pending").out


@pytest.mark.parametrize(
    "arguments", [("wether", "max_pending", 1), ("weather", "max_rows", 1), ("weather", "max_pending", -1)]
)
def test_what_cannot_be_limited_is_a_usage_error(timestore: Run, installation: Install, arguments: tuple[object, ...]):
    installation()

    assert timestore("limits", "set", *arguments).code is ExitCode.USAGE


def test_stage_waits_as_long_as_it_is_told_to(timestore: Run, installation: Install, make_file: MakeFile):
    store = installation(staging_max_pending=1)
    stage(store, "weather", hourly(1))

    refused = timestore("stage", "weather", make_file("a.csv", WEATHER_CSV), "--wait", "0.3")

    assert refused.code is ExitCode.TRY_LATER
    assert counted(store, DROPPED_BATCHES) == {"queue_full": 1}
    assert counted(store, RETRIED_BATCHES)["queue_full"] >= 1

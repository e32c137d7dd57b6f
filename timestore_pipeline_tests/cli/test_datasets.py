"""Datasets that contradict the ledger, as an operator sees it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from timestore_pipeline.cli import ExitCode
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly
from timestore_pipeline_tests.cli.conftest import Finished
from timestore_pipeline_tests.conftest import DATASETS_YAML, WEATHER_CSV

Run = Callable[..., Finished]
Install = Callable[..., Store]

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
CHANGED = DATASETS_YAML.replace("window: day", "window: hour")
BOTH = DATASETS_YAML + DATASETS_YAML.split("datasets:")[1].split("  events:")[0].replace("weather", "observations")


def test_a_contradiction_is_said_by_every_command_and_the_others_are_done(
    timestore: Run, installation: Install, drop: Callable[..., Path]
):
    stage(installation(), "weather", hourly(3))
    store = installation(CHANGED)
    drop(store, "events", "a.csv", "at,kind\n1767225600000,start\n")
    drop(store, "weather", "a.csv", WEATHER_CSV)

    for command, done in (("ingest", "events: 1 batch staged"), ("flush --all", "events: 1 row of 1 batch published")):
        finished = timestore(*command.split())
        assert finished.code is ExitCode.FAILED
        assert done in finished.out
        assert "window was day and is hour" in finished.err
    assert timestore("flush", "events").code is ExitCode.DONE
    assert timestore("build", "--all").code is ExitCode.FAILED
    assert timestore("maintain").code is ExitCode.DONE
    assert timestore("metrics").code is ExitCode.DONE
    assert timestore("sql", "SELECT count(*) FROM events").code is ExitCode.DONE
    shown = {each["dataset"]: each for each in json.loads(timestore("status", "--json").out)["datasets"]}
    assert "window was day and is hour" in shown["weather"]["refused"]
    assert shown["weather"]["staged"]["rows"] == 3
    assert shown["events"]["refused"] is None
    for command in ("flush weather", "sql 'SELECT * FROM weather'", "schema weather", "loss show weather"):
        finished = timestore(*shlex.split(command))
        assert finished.code is ExitCode.FAILED, command
        assert "restore what it was" in finished.err
    assert timestore("quarantine", "list").out.count("\n") == 1
    examined = timestore("doctor")
    assert examined.code is ExitCode.FAILED
    assert re.search("dataset weather +error +.*window was day", examined.out)

    installation()
    assert timestore("flush", "--all").code is ExitCode.DONE
    assert timestore("sql", "SELECT count(*) AS n FROM weather", "--format", "csv").out == '"n"\n3\n'

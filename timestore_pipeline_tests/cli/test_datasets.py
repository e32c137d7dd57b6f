"""Datasets that contradict the ledger, are renamed or are removed, as an operator sees it and docs/datasets.md says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline.cli import ExitCode
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, hourly, readable, rows_of
from timestore_pipeline_tests.cli.conftest import Finished
from timestore_pipeline_tests.conftest import DATASETS_YAML, WEATHER_CSV

Run = Callable[..., Finished]
Install = Callable[..., Store]

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
CHANGED = DATASETS_YAML.replace("window: day", "window: hour")
BOTH = DATASETS_YAML + DATASETS_YAML.split("datasets:")[1].split("  events:")[0].replace("weather", "observations")


@pytest.mark.long
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


@pytest.mark.long
def test_a_rename_as_the_page_has_it(timestore: Run, installation: Install):
    store = installation()
    stage(store, "weather", hourly(30))
    build(store)
    stage(store, "weather", hourly(3, station="LGA"))
    expected = readable(store)
    page = PAGE.read_text(encoding="utf-8").split("## Renaming")[1].split("## Other programs")[0]
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    store = installation(BOTH)

    for language, text in blocks:
        if language == "python":
            for _ in range(2):
                exec(compile(text, str(PAGE), "exec", dont_inherit=True), {})
            continue
        if "dataset remove" in text:
            installation(BOTH.replace("  weather:", "  something_else:"))
        for line in text.splitlines():
            dry_run = timestore("dataset", "remove", "weather", "--table", "--dry-run", "--json")
            command = shlex.split(line)[1:]
            if "--lose-rows" in command:
                command[-1] = str(json.loads(dry_run.out)["lost_rows"])
                command.append("--yes")
            finished = timestore(*command)
            assert finished.code is ExitCode.DONE, f"{line}: {finished.err}"

    with Store.open() as again:
        assert readable(again, "observations") == expected
        assert not again.table("weather").root.exists()
    assert timestore("doctor").out.count(" weather ") == 0


def test_what_would_be_removed_is_shown_and_somebody_is_asked(timestore: Run, installation: Install):
    stage(installation(), "weather", hourly(3))
    installation(BOTH.replace("  weather:", "  something_else:"))

    shown = timestore("dataset", "remove", "weather", "--dry-run")
    assert shown.code is ExitCode.DONE
    assert "weather: would be removed: 3 unpublished rows" in shown.out
    assert "--lose-rows 3" in shown.out
    unasked = timestore("dataset", "remove", "weather", "--lose-rows", "3")
    assert unasked.code is ExitCode.USAGE
    assert "give --yes" in unasked.err
    wrong = timestore("dataset", "remove", "weather", "--lose-rows", "2", "--yes")
    assert wrong.code is ExitCode.FAILED
    assert "3 rows of it would be nowhere any more, not 2" in wrong.err
    assert readable(installation()) == rows_of(hourly(3))
    declared = timestore("dataset", "remove", "weather", "--lose-rows", "3", "--yes")
    assert declared.code is ExitCode.FAILED
    assert "datasets.yaml declares it" in declared.err


@pytest.mark.parametrize("name", ["nobody", "../x"])
def test_a_dataset_that_nobody_knows_is_a_usage_error(timestore: Run, installation: Install, name: str):
    installation()
    assert timestore("dataset", "remove", name, "--yes").code is ExitCode.USAGE

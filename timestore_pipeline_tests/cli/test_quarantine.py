"""``timestore quarantine show|retry|discard``: what an operator sees, decides, and what a script can tell from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline.cli import ExitCode, output
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import readable, weather_csv
from timestore_pipeline_tests.cli.conftest import Finished
from timestore_pipeline_tests.conftest import DATASETS_YAML

Run = Callable[..., Finished]
Install = Callable[..., Store]
Drop = Callable[..., Path]

NARROW_YAML = DATASETS_YAML.replace(", temp: double", "")


@pytest.fixture
def bad_file(timestore: Run, installation: Install, drop: Drop) -> Store:
    """An installation with one file in quarantine, under the id 1."""
    store = installation()
    drop(store, "weather", "a [b].csv", weather_csv("not a time,JFK,1"))
    timestore("ingest")
    return store


def the_entry(timestore: Run) -> dict:
    (entry,) = json.loads(timestore("quarantine", "list", "--all", "--json").out)
    return entry


def test_show_gives_the_reason_the_place_and_the_first_lines(timestore: Run, bad_file: Store):
    shown = timestore("quarantine", "show", 1)

    assert shown.code is ExitCode.DONE
    assert "not a time,JFK,1" in shown.out
    assert "a [b].csv" in shown.out
    assert the_entry(timestore)["path"] in shown.out
    assert the_entry(timestore)["reason"] in shown.out
    as_json = json.loads(timestore("quarantine", "show", 1, "--json").out)
    assert as_json["preview"]["lines"] == ["ts,station,temp", "not a time,JFK,1"]
    assert (as_json["state"], as_json["resolved_by"]) == ("open", None)


def test_show_gives_the_rows_that_no_window_can_hold(timestore: Run, installation: Install, drop: Drop):
    store = installation()
    drop(store, "weather", "a.csv", weather_csv("2026-01-01,JFK,1", ",LGA,2"))
    timestore("ingest")

    shown = timestore("quarantine", "show", 1)

    assert "_problem" in shown.out
    assert "LGA" in shown.out
    assert "JFK" not in shown.out


def test_retry_of_a_mended_file_stages_it(timestore: Run, bad_file: Store):
    Path(the_entry(timestore)["path"]).write_text(weather_csv("2026-01-01,JFK,1"))

    retried = timestore("quarantine", "retry", 1)

    assert (retried.code, retried.out) == (ExitCode.DONE, "1: retried, 1 row of a [b].csv staged\n")
    assert len(readable(bad_file)) == 1
    assert timestore("quarantine", "list").out.count("\n") == 1
    again = timestore("quarantine", "retry", 1)
    assert again.code is ExitCode.DONE
    assert "was retried before, by " in again.err


def test_retry_that_fails_says_why_and_the_others_go_on(timestore: Run, bad_file: Store, drop: Drop):
    drop(bad_file, "weather", "c.csv", "something else")
    timestore("ingest")
    entries = json.loads(timestore("quarantine", "list", "--json").out)
    Path(entries[1]["path"]).write_text(weather_csv("2026-01-01,JFK,1"))

    retried = timestore("quarantine", "retry", 1, 2)

    assert retried.code is ExitCode.FAILED
    assert "1: still in quarantine" in retried.out
    assert "2: retried, 1 row" in retried.out
    assert "entry 1: " in retried.err


def test_retry_while_the_queue_is_full_may_be_tried_later(
    timestore: Run, bad_file: Store, drop: Drop, monkeypatch: pytest.MonkeyPatch
):
    drop(bad_file, "weather", "good.csv", weather_csv("2026-01-01,JFK,1"))
    timestore("ingest")
    Path(the_entry(timestore)["path"]).write_text(weather_csv("2026-01-02,JFK,1"))
    monkeypatch.setenv("TIMESTORE_STAGING_MAX_PENDING", "1")

    assert timestore("quarantine", "retry", 1).code is ExitCode.TRY_LATER
    assert the_entry(timestore)["state"] == "open"


def test_discard_with_yes_removes_the_bytes_and_remembers_who(timestore: Run, bad_file: Store):
    path = Path(the_entry(timestore)["path"])

    discarded = timestore("quarantine", "discard", 1, "--yes")

    assert discarded.code is ExitCode.DONE
    assert discarded.out.startswith("1: discarded, ")
    assert not path.exists()
    entry = the_entry(timestore)
    assert entry["state"] == "discarded"
    assert "@" in entry["resolved_by"]
    assert entry["resolved_at"]
    assert timestore("quarantine", "discard", 1, "--yes").code is ExitCode.DONE
    assert timestore("quarantine", "retry", 1).code is ExitCode.FAILED


def test_discard_without_a_terminal_and_without_yes_does_nothing(timestore: Run, bad_file: Store):
    refused = timestore("quarantine", "discard", 1)

    assert refused.code is ExitCode.USAGE
    assert "--yes" in refused.err
    assert the_entry(timestore)["state"] == "open"


def test_discard_asks_and_takes_no_for_an_answer(timestore: Run, bad_file: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output, "can_ask", lambda: True)
    for answer, state in (("n\n", "open"), ("\n", "open"), ("y\n", "discarded")):
        monkeypatch.setattr("typer.confirm", lambda question, answer=answer, **_: answer.startswith("y"))

        asked = timestore("quarantine", "discard", 1)

        assert asked.code is (ExitCode.DONE if state == "discarded" else ExitCode.FAILED)
        assert "a [b].csv" in asked.err
        assert the_entry(timestore)["state"] == state


def test_an_entry_that_does_not_exist_is_a_wrong_call(timestore: Run, bad_file: Store):
    for command in (["show"], ["retry"], ["discard", "--yes"]):
        refused = timestore("quarantine", *command, 7)

        assert refused.code is ExitCode.USAGE, command
        assert "there is no quarantine entry 7. Open entries: 1." in refused.err

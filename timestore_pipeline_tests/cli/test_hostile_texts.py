"""Whatever files, batches, columns and cells are called: on a terminal they are text, and never move its cursor."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

import timestore_pipeline.cli
from timestore_pipeline.cli import ExitCode, output
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import FORGING, weather_csv
from timestore_pipeline_tests.cli.conftest import Finished

Run = Callable[..., Finished]

EVIL = "\x1b[2J\x9b1;1H\u202e\x07"
"""Clears a screen in two ways, turns the direction of writing around and rings the bell."""
NAME = f"a{EVIL}\nstatus: all is well\r[bold red].csv"

YAML = json.dumps(
    {
        "datasets": {
            "weather": {
                "columns": {"ts": "timestamptz", "station": "varchar", "temp": "double", "a\x9b2J": "varchar"},
                "optional": ["a\x9b2J"],
                "time": "ts",
                "window": "day",
            }
        }
    }
)

COMMANDS = [
    ["status"],
    ["status", EVIL],
    ["schema", "weather"],
    ["schema", "weather", "--json"],
    ["quarantine", "list"],
    ["quarantine", "list", "--json"],
    ["quarantine", "list", "--all"],
    ["quarantine", "show", "1"],
    ["quarantine", "show", "2"],
    ["quarantine", "show", "1", "--json"],
    ["quarantine", "discard", "1"],
    ["quarantine", "discard", EVIL],
    ["quarantine", "retry", "1", "2"],
    ["lineage", "weather", "2026-01-01"],
    ["lineage", "weather", "2026-01-01", "--json"],
    ["sql", "SELECT * FROM weather"],
    ["sql", "SELECT * FROM weather", "--format", "json"],
    ["sql", f"SELECT 1 AS \"{EVIL}\", '{EVIL}' AS b -- weather"],
    ["sql", f"SELECT '{EVIL}'::integer -- weather"],
    ["sql", f"SELEC {EVIL} \n timestore: all is well"],
    ["doctor"],
    ["ingest"],
    ["flush", "weather", "--first", EVIL],
    ["stage", "weather", f"/nowhere/{NAME}"],
    ["pause", "weather", "--reason", EVIL],
    ["status"],
    ["ingest"],
    ["limits", "show"],
    ["metrics"],
    ["loss", "show", "weather"],
    [EVIL],
    [f"--{EVIL}"],
]


@pytest.fixture
def hostile(installation, drop, timestore: Run) -> Store:
    """An installation with texts that would act, staged, refused and in quarantine, and one file still to come."""
    store = installation(YAML)
    drop(store, "weather", NAME, weather_csv(f"not {EVIL} a time,JFK,1"))
    timestore("ingest")
    table = pa.table({"ts": ["2026-01-01", None], "station": [EVIL, EVIL], "temp": [1.0, 2.0], "a\x9b2J": [EVIL, "\n"]})
    stage(store, "weather", table, batch_id=f"b{EVIL}", source=NAME)
    drop(store, "weather", f"2{NAME}", "#\n")
    return store


def is_inert(printed: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in printed)


@pytest.mark.long
@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_command_prints_is_text(timestore: Run, hostile: Store, monkeypatch: pytest.MonkeyPatch, terminal: bool):
    monkeypatch.setattr(output, "can_ask", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda question, **_: print(question, file=sys.stderr))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    if terminal:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for arguments in COMMANDS:
        finished = timestore(*arguments)

        assert is_inert(finished.out), (arguments, finished.out)
        assert is_inert(finished.err), (arguments, finished.err)
        said = (finished.out + finished.err).splitlines()
        assert not any(line.startswith("status: all is well") for line in said), arguments
        assert "timestore: all is well" not in said, arguments
        assert "Traceback" not in finished.err, arguments


def test_no_name_begins_a_line_on_a_terminal(timestore: Run, installation, drop):
    store = installation()
    drop(store, "weather", FORGING, weather_csv("2026-01-01,JFK,1"))
    drop(store, "weather", f"bad {FORGING}", "#\n")
    (store.archive.root / "weather").write_text("a file where a folder is to be")

    ingest, nothing = timestore("ingest"), timestore("stage", "weather", f"/nowhere/{FORGING}")

    assert "could not be cleared away" in ingest.err
    assert nothing.code is not ExitCode.DONE
    for printed in (ingest.out, ingest.err, nothing.err):
        assert not any(line.startswith("ERROR") for line in printed.splitlines()), printed


def test_no_text_of_others_is_in_a_metric(timestore: Run, hostile: Store):
    families = text_string_to_metric_families(timestore("metrics").out)

    values = {value for family in families for sample in family.samples for value in sample.labels.values()}
    assert {"weather"} < values
    assert all(re.fullmatch(r"[\w.:+-]*", value, re.ASCII) for value in values), values


def test_csv_is_as_it_is_for_a_program_and_visible_on_a_terminal(
    timestore: Run, hostile: Store, monkeypatch: pytest.MonkeyPatch
):
    query = ["sql", "SELECT station, temp FROM weather", "--format", "csv"]
    assert timestore(*query).out == f'"station","temp"\n"{EVIL}",1\n'

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = timestore(*query)

    assert shown.code is ExitCode.DONE
    assert shown.out == '"station","temp"\n"\\x1b[2J\\x9b1;1H\\u202e\\x07",1\n'


def test_json_means_the_same_though_it_is_escaped(timestore: Run, hostile: Store):
    (entry, rows) = json.loads(timestore("quarantine", "list", "--json").out)
    assert (entry["source"], rows["source"], rows["batch_id"]) == (NAME, NAME, f"b{EVIL}")
    (row,) = json.loads(timestore("sql", "SELECT station FROM weather", "--format", "json").out)
    assert row == {"station": EVIL}


@pytest.mark.parametrize(
    "path", sorted(Path(timestore_pipeline.cli.__file__).parent.glob("*.py")), ids=lambda p: p.name
)
def test_only_the_module_for_output_prints(path: Path):
    """Who prints by itself has to make text inert by itself, and sooner or later somebody does not."""
    allowed = {
        "output.py": {"print", "confirm", "Console"},
        "sql_command.py": {"print"},
        "serving_commands.py": {"echo"},
    }
    calls = {"print", "echo", "secho", "confirm", "prompt", "Console"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {each.id if isinstance(each, ast.Name) else getattr(each, "attr", "") for each in called}

    assert names & calls <= allowed.get(path.name, set())

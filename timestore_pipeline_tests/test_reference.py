"""The reference pages are current, and what they show works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.build import reference
from timestore_pipeline.cli import ExitCode
from timestore_pipeline.datasets import parse_datasets
from timestore_pipeline.ledger import counters
from timestore_pipeline.metrics.series import SERIES
from timestore_pipeline.settings import Settings, variable_name


def test_the_pages_are_current():
    assert reference.outdated() == [], "run 'make docs'"


def test_check_says_which_page_is_not_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(reference, "outdated", lambda: [tmp_path / "cli.md"])

    assert reference.main(["--check"]) == 1

    assert capsys.readouterr().err == f"{tmp_path}/cli.md is not current; run 'make docs'\n"


@pytest.mark.long
def test_a_page_that_is_written_is_current_until_it_is_changed(tmp_path: Path):
    folder = tmp_path / "docs"
    assert len(reference.outdated(folder)) == len(reference.pages())

    reference.write(folder)
    assert reference.outdated(folder) == []

    (folder / "cli.md").write_text("other")
    assert reference.outdated(folder) == [folder / "cli.md"]


def test_the_table_of_series_is_made_anew_within_a_page_that_people_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = reference.pages()["timestore-observability.md"]
    page = tmp_path / "timestore-observability.md"
    monkeypatch.setattr(reference, "DOCS", tmp_path)
    page.write_text(made.replace("| `timestore_ledger_bytes` | gauge |", "| an old row |"), encoding="utf-8")
    assert reference.pages()["timestore-observability.md"] == made

    page.write_text("What people wrote, without a place for the table.", encoding="utf-8")
    with pytest.raises(ValueError, match="no place for the table"):
        reference.pages()


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]):
    assert reference.main(["--chekc"]) == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.process
def test_pages_do_not_depend_on_the_process_that_makes_them():
    program = "from docs.build.reference import pages; import json; print(json.dumps(pages()))"
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7", "COLUMNS": "40", "PATH": ""}

    made = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)

    assert json.loads(made.stdout) == reference.pages()


def test_every_setting_is_on_its_page():
    page = reference.pages()["configuration.md"]

    assert [field for field in Settings.model_fields if page.count(f"| `{variable_name(field)}` |") != 1] == []


def test_every_series_and_counter_is_on_its_page():
    page = reference.pages()["timestore-observability.md"]
    counted = {counters.DROPPED_BATCHES, counters.RETRIED_BATCHES, counters.FLUSH_BATCHES, counters.FLUSH_ROWS}

    assert counted | {counters.FLUSH_DURATION} <= {each.name for each in SERIES}
    assert all(page.count(f"\n| `{each.name}` |") == 1 for each in SERIES)


@pytest.mark.long
def test_every_exit_code_is_on_its_page():
    assert all(f"| {int(code)} | " in reference.pages()["cli.md"] for code in ExitCode)


def test_the_example_is_a_datasets_file():
    assert set(parse_datasets(reference.EXAMPLE)) == {"weather", "clicks"}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (reference.EXAMPLE, True),
        ("datasets: {d: {time: ts, window: day}}", True),
        ("datasets: {d: {time: {column: ts, unit: ms}, window: hour}}", True),
        ("datasets: {d: {time: ts, window: day, flush: {max_rows: null}}}", True),
        ("datasets: {}", True),
        ("datasets: {d: {time: ts, window: day, name: d}}", False),
        ("datasets: {d: {time: ts, window: week}}", False),
        ("datasets: {d: {window: day}}", False),
        ("datasets: {D: {time: ts, window: day}}", False),
        ("datasets: {d: {time: ts, window: day, landing: {csv: {delimiter: '||'}}}}", False),
        ("datasets: {d: {time: ts, window: day, flush: {max_row: 1}}}", False),
        ("datasets: {d: {time: ts, window: day, flush: {max_rows: -1}}}", False),
        ("other: 1", False),
    ],
)
def test_the_schema_describes_the_file_that_people_write(text: str, fits: bool):
    schema = json.loads(reference.pages()["datasets.schema.json"])

    assert _fits(_as_an_editor_sees_it(yaml.safe_load(text)), schema, schema) == fits


def _as_an_editor_sees_it(value: Any) -> Any:
    """JSON has neither dates nor keys that are no text."""
    if isinstance(value, dict):
        return {"null" if key is None else str(key): _as_an_editor_sees_it(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_an_editor_sees_it(each) for each in value]
    return value.isoformat() if isinstance(value, date) else value


def _fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Judge by as much of JSON schema as ours uses."""
    if "$ref" in schema:
        return _fits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return any(_fits(value, option, root) for option in schema["anyOf"])
    types = {"object": dict, "array": list, "string": str, "integer": int, "null": type(None)}
    if not isinstance(value, types[schema["type"]]):
        return False
    if isinstance(value, dict):
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        more = schema.get("additionalProperties", True)
        for key, each in value.items():
            matching = [known[key]] if key in known else [s for p, s in patterns.items() if re.search(p, key)]
            if not matching and more is False:
                return False
            if not all(_fits(each, one, root) for one in matching or ([more] if isinstance(more, dict) else [])):
                return False
        return set(schema.get("required", ())) <= set(value)
    if isinstance(value, list):
        return all(_fits(each, schema["items"], root) for each in value)
    if isinstance(value, str):
        return (
            schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
            and value in schema.get("enum", [value])
            and bool(re.search(schema.get("pattern", ""), value))
        )
    return value is None or value >= schema.get("minimum", value)

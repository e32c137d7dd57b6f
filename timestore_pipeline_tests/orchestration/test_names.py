"""What is typed into the launchpad is a window or a number, and what producers call their files is shown as text."""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.metadata import normalize_metadata
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timestore_pipeline import orchestration
from timestore_pipeline.errors import BatchRejected, TableError
from timestore_pipeline.inert import as_code, as_entry, visible
from timestore_pipeline.orchestration.config import BuildConfig, checked
from timestore_pipeline.orchestration.logs import log_of
from timestore_pipeline.orchestration.metadata import built_window_metadata, ingest_metadata
from timestore_pipeline.orchestration.quarantine_check import look_into_quarantine
from timestore_pipeline.orchestration.table_checks import row_audit_result
from timestore_pipeline.policy import Policy
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import FORGING, build, hourly, ingest, weather_csv
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.orchestration.conftest import Location
from timestore_pipeline_tests.sampling import examples
from timestore_pipeline_tests.security.test_names import names


def _config(**fields: Any) -> BuildConfig | None:
    try:
        return BuildConfig(**fields)
    except ValueError:
        return None


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.one_of(st.none(), names), last=st.one_of(st.none(), names), number=st.integers(-(10**20), 10**20))
def test_run_config_is_windows_and_numbers_or_refused(
    make_store: MakeStore, first: str | None, last: str | None, number: int
):
    store = make_store()
    spec = store.datasets["weather"]
    config = _config(first_window=first, last_window=last, flush_max_rows=number)
    if config is None:
        return
    try:
        order = checked(config, spec, Policy.of(store.settings, spec).flush)
    except dg.Failure:
        return
    for given_key, window in ((first, order.windows.first), (last, order.windows.last)):
        assert (window.key if window else None) == given_key


HOSTILE = [
    "![](&#47;graphql?query=mutation{launchRun(x)}).csv",
    "![a](http://x.example/a.png)",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "[a](javascript:x)",
    "`a`",
    "www.x.example",
    "&#104;ttp://x.example",
    "ann@x.example",
    "a\n\n# b",
    "a\x1b[2Jb\u202e",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_comes_from_outside_is_in_no_kind_of_value_that_the_ui_interprets(
    make_store: MakeStore, drop, tmp_path: Path, name: str
):
    """Only Markdown and addresses are; texts, and the cells of tables, are shown as they are."""
    store = make_store(build_max_attempts=1)
    file_name = name.replace("/", "&#47;")
    drop(store, "weather", file_name + ".csv", weather_csv(f"{name},JFK,1") if "\n" not in name else "#")
    report = ingest(store)["weather"]
    skipped = replace(report, skipped=(f"weather: {name} keeps changing and was left",))
    stage(store, "weather", hourly(2), batch_id=f"b{name}", source=name)
    built = build(store)

    shown = [
        ingest_metadata(skipped),
        built_window_metadata(built, built.windows[0], None, 0),
        look_into_quarantine(store, store.datasets["weather"]).metadata,
    ]

    for metadata in shown:
        for value in normalize_metadata(metadata).values():
            assert not isinstance(value, dg.MarkdownMetadataValue | dg.UrlMetadataValue | dg.NotebookMetadataValue)
    (left,) = shown[0]["left_in_place"].records
    assert left.data == {"why": visible(f"weather: {name} keeps changing and was left")}
    (entry,) = shown[2]["newest"].records
    assert entry.data["source"] == visible(f"{file_name}.csv")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_description_has_what_comes_from_outside_as_code(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, name: str
):
    def refuse(*_: object) -> None:
        raise TableError(f"cannot read {name}")

    store = make_store()
    monkeypatch.setattr("timestore_pipeline.operating.audit.audit_rows", refuse)

    found = row_audit_result(store, store.datasets["weather"], None)

    assert found.description == f"the table or the ledger cannot be read: {as_code(as_entry(f'cannot read {name}'))}"


class ARun:
    """What has a log."""

    log = logging.getLogger("a run")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_line_of_a_log_is_text(name: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        log_of(ARun()).warning("%s: %s, https://x.example", "weather", BatchRejected("weather", name, "100 %s"))

    (record,) = caplog.records
    said = record.getMessage()
    assert all(char.isprintable() or char == "\n" for char in said)
    assert all(line.startswith(" ") for line in said.split("\n")[1:])
    assert "http://" not in said
    assert "https://" not in said
    assert "100 %s" in said


def test_no_name_begins_a_line_of_a_log(
    make_store: MakeStore,
    location: Callable[[Store], Location],
    drop: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
):
    """Neither of a run's, nor of the log of its process: there the ingest says that the archive is in the way."""
    store = make_store()
    drop(store, "weather", FORGING, weather_csv("2026-01-01,JFK,1"))
    drop(store, "weather", f"bad {FORGING}", "#\n")
    archive = store.archive.local
    assert archive is not None
    (archive / "weather").write_text("a file where a folder is to be")

    place = location(store)
    result = place.materialize("staging/weather")

    of_run = [entry.user_message for entry in place.instance.all_logs(result.run_id)]
    printed = capfd.readouterr()
    for log in ("\n".join(of_run), caplog.text, printed.out, printed.err):
        assert not any(line.startswith("ERROR") for line in log.splitlines()), log
    assert any("was quarantined" in said and "ERROR" in said for said in of_run)
    assert "could not be cleared away" in caplog.text
    assert "was quarantined" in printed.err


SAFE_IN_DESCRIPTIONS = {"spec.name", "spec.window", "spec.description", "self.dataset"}
"""Names that have a pattern, and Markdown that the operator wrote."""


def test_every_way_into_the_ui_makes_text_inert():
    """As far as the source shows it: nobody logs, fails, describes or writes Markdown past the functions for that."""
    for path in sorted(Path(orchestration.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if path.name != "logs.py":
                assert not is_call_of(node, "Failure"), f"{path.name}: use failure()"
                is_log = isinstance(node, ast.Attribute) and node.attr == "log" and isinstance(node.value, ast.Name)
                assert not is_log, f"{path.name}: use log_of()"
            assert not is_call_of(node, "md"), f"{path.name}: Markdown acts"
            if isinstance(node, ast.keyword) and node.arg == "description":
                for each in ast.walk(node.value):
                    if isinstance(each, ast.FormattedValue):
                        assert is_inert(each), (
                            f"{path.name}: {ast.unparse(each.value)} in a description, which is Markdown"
                        )


def is_call_of(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name


def is_inert(value: ast.FormattedValue) -> bool:
    source = ast.unparse(value.value)
    return source in SAFE_IN_DESCRIPTIONS or source.startswith("as_code(") or value.format_spec is not None

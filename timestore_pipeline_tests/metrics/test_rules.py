"""The alert rules: they fire when they must, are silent while all is well, and lead to what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.build.dashboard import queries
from docs.build.reference import DOCS
from timestore_pipeline.store import Store
from timestore_pipeline_tests.docs.test_dashboard import EMPTY_WHILE_ALL_IS_WELL, as_prometheus_gets_it
from timestore_pipeline_tests.metrics.promql import RULES_FOLDER, metrics_in, problems, rules
from timestore_pipeline_tests.metrics.simulated import STEP_SECONDS, ask, observe, promtool

ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
FIRED = 'count by (alertname) (ALERTS{alertstate="firing"})'


@pytest.mark.server
def test_the_rules_fire_and_are_silent_as_their_unit_tests_say(program: Callable[[str], str]):
    tested = promtool(program, "test", "rules", RULES_FOLDER / "timestore-rules-test.yml")

    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.server
def test_prometheus_takes_the_example_of_a_configuration(program: Callable[[str], str]):
    checked = promtool(program, "check", "config", RULES_FOLDER / "prometheus.yml")

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "SUCCESS: 1 rule files found" in checked.stdout


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_series_that_exist(rule: dict):
    assert list(problems(rule["expr"])) == []
    assert metrics_in(rule["expr"]) or rule["expr"].startswith("vector(")


def test_what_is_recorded_is_used():
    used = set().union(*(metrics_in(rule["expr"]) for rule in rules()))

    assert [rule["record"] for rule in rules() if "record" in rule and rule["record"] not in used] == []


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_and_where_to_read_what_to_do(alert: str):
    rule = ALERTS[alert]
    page, _, section = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (DOCS.parent / page).read_text(encoding="utf-8"), re.MULTILINE)

    assert rule["labels"]["severity"] in {"info", "warning", "page"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert section == alert.lower()
    assert alert in headings


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tested_both_ways(alert: str):
    assert {bool(case["exp_alerts"]) for case in unit_tests() if case["alertname"] == alert} == {True, False}


@cache
def unit_tests() -> list[dict[str, Any]]:
    text = (RULES_FOLDER / "timestore-rules-test.yml").read_text(encoding="utf-8")
    return [case for test in yaml.safe_load(text)["tests"] for case in test["alert_rule_test"]]


def test_the_table_of_alerts_names_them_all_with_their_severity():
    page = (DOCS / "timestore-observability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\(\S+\) \| (\w+) \|", page, re.MULTILINE)

    assert sorted(rows) == sorted((alert, rule["labels"]["severity"]) for alert, rule in ALERTS.items())


@pytest.mark.server
def test_an_installation_at_work_raises_no_alert_and_fills_the_dashboard(
    store: Store, program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """With default settings, while all is well."""
    steps = 90
    observed = observe(store, monkeypatch, steps)
    one = [{"labels": "{}", "value": 1}]
    silent = ((FIRED, f"{minute}m", []) for minute in minutes(steps))
    answered = (
        (f"clamp_max(count({as_prometheus_gets_it(query)}), 1) or vector(0)", "20m30s", one)
        for query in dict.fromkeys(queries())
        if not any(words in query for words in EMPTY_WHILE_ALL_IS_WELL)
    )

    tested = ask(program, tmp_path, observed, [*silent, *answered])

    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.server
def test_an_installation_with_default_settings_that_flushes_nothing_raises_one_alert(
    store: Store, program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    steps = 45
    observed = observe(store, monkeypatch, steps, flushing=False)
    late = [{"labels": '{alertname="TimestoreStagedRowsLate"}', "value": 1}]

    tested = ask(program, tmp_path, observed, ((FIRED, f"{minute}m", late) for minute in minutes(steps)))

    assert tested.returncode == 0, tested.stdout + tested.stderr


def minutes(steps: int) -> range:
    """Those in which what there is to alert of has lasted."""
    return range(5, steps * STEP_SECONDS // 60)

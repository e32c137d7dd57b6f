"""The alert rules: they fire when they must, are silent while all is well, and lead to what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from timestore_pipeline.reference import DOCS
from timestore_pipeline.store import Store
from timestore_pipeline_tests.metrics.promql import RULES_FOLDER, metrics_in, problems, rules
from timestore_pipeline_tests.metrics.simulated import STEP_SECONDS, ask, observe, promtool

ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
STEPS = 120


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
    text = (RULES_FOLDER / "timestore-rules-test.yml").read_text(encoding="utf-8")
    cases = [case for test in yaml.safe_load(text)["tests"] for case in test["alert_rule_test"]]

    assert {bool(case["exp_alerts"]) for case in cases if case["alertname"] == alert} == {True, False}


def test_the_table_of_alerts_names_them_all_with_their_severity():
    page = (DOCS / "timestore-observability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\(\S+\) \| (\w+) \|", page, re.MULTILINE)

    assert sorted(rows) == sorted((alert, rule["labels"]["severity"]) for alert, rule in ALERTS.items())


@pytest.mark.server
@pytest.mark.parametrize(("flushing", "firing"), [(True, set()), (False, {"TimestoreStagedRowsLate"})])
def test_an_installation_with_default_settings_alerts_only_when_something_is_wrong(
    store: Store,
    program: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flushing: bool,
    firing: set[str],
):
    observed = observe(store, monkeypatch, STEPS, flushing=flushing)
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(firing)]
    fired = 'count by (alertname) (ALERTS{alertstate="firing"})'
    minutes = range(5, STEPS * STEP_SECONDS // 60)

    tested = ask(program, tmp_path, observed, ((fired, f"{minute}m", expected) for minute in minutes))

    assert tested.returncode == 0, tested.stdout + tested.stderr

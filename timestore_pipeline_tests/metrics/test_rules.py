"""The alert rules: they fire when they must, are silent while all is well, and lead to what to do."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from timestore_pipeline.building.build import build_windows
from timestore_pipeline.building.plan import plan_flushes
from timestore_pipeline.lifecycle.retention import unlink_published_segments
from timestore_pipeline.metrics import collect_metrics
from timestore_pipeline.reference import DOCS
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly
from timestore_pipeline_tests.metrics.promql import RULES, RULES_FOLDER, metrics_in, problems, rules

ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
STEP_SECONDS = 15
STEPS = 160


def promtool(program: Callable[[str], str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [program("promtool"), *(str(each) for each in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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

    assert rule["labels"]["severity"] in {"warning", "page"}
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
    path = tmp_path / "observed.yml"
    path.write_text(_as_promtool_reads_it(_observe(store, monkeypatch, flushing), firing), encoding="utf-8")

    tested = promtool(program, "test", "rules", path)

    assert tested.returncode == 0, tested.stdout + tested.stderr


def _observe(store: Store, monkeypatch: pytest.MonkeyPatch, flushing: bool) -> dict[str, list[float]]:
    """What is exported, step by step, while a batch comes in at every step and the sensors do their work, or not.

    The clock is the test's own; times are exported as if it had started at 0, as promtool's does.
    """
    start = datetime(2026, 1, 2, tzinfo=UTC)
    clock = SimpleNamespace(now=start)
    nanoseconds = SimpleNamespace(time_ns=lambda: int(clock.now.timestamp()) * 1_000_000_000)
    monkeypatch.setattr("timestore_pipeline.clock.time", nanoseconds)
    observed: dict[str, list[float]] = defaultdict(list)
    for step in range(STEPS):
        clock.now = start + timedelta(seconds=STEP_SECONDS * step)
        if step:
            stage(store, "weather", hourly(20), batch_id=f"batch {step}")
        if flushing:
            for group in plan_flushes(store).groups:
                for request in group.requests:
                    build_windows(store, request.dataset, owner="sensor", trigger=request.trigger)
            unlink_published_segments(store)
        for family in collect_metrics(store):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in {"job": "timestore", **sample.labels}.items())
                is_time = sample.name.endswith("_timestamp_seconds") and sample.value
                value = sample.value - start.timestamp() if is_time else sample.value
                observed[f"{sample.name}{{{labels}}}"].append(value)
    return observed


def _as_promtool_reads_it(observed: dict[str, list[float]], firing: set[str]) -> str:
    series = [
        {"series": name, "values": " ".join(f"{value!r}" for value in values)} for name, values in observed.items()
    ]
    expression = 'count by (alertname) (ALERTS{alertstate="firing"})'
    minutes = STEP_SECONDS * STEPS // 60
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(firing)]
    looks = [{"expr": expression, "eval_time": f"{minute}m", "exp_samples": expected} for minute in range(5, minutes)]
    test = {"interval": f"{STEP_SECONDS}s", "input_series": series, "promql_expr_test": looks}
    return yaml.safe_dump(
        {"rule_files": [str(RULES)], "evaluation_interval": f"{STEP_SECONDS}s", "tests": [test]}, width=10**6
    )

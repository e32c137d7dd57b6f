"""The dashboard: every query can be asked of what is exported, and its rows answer in the promised order.

That each is answered for an installation at work is looked at where the alerts are, see ``metrics/test_rules.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.build.dashboard import dashboard, queries
from docs.build.reference import DOCS
from timestore_pipeline.metrics.series import (
    BUILD_AGE,
    BUILDS_IN_FLIGHT,
    CORRECTIONS_AGE,
    LANDING_AGE,
    OLDEST_AGE,
    SERIES,
    SERVER_SERIES,
)
from timestore_pipeline_tests.docs.pages import anchor, sections
from timestore_pipeline_tests.metrics.promql import exported_names, metrics_in, problems
from timestore_pipeline_tests.metrics.simulated import promtool

FOLDER = DOCS / "observability" / "grafana"
PANELS: list[dict[str, Any]] = dashboard()["panels"]
# What another series says better at query time.
NOT_SHOWN = {OLDEST_AGE, CORRECTIONS_AGE, BUILD_AGE, BUILDS_IN_FLIGHT, LANDING_AGE}
# No alert fires, no build is in flight, no file waits, and no server runs.
EMPTY_WHILE_ALL_IS_WELL = (
    "timestore_http_",
    "ALERTS{",
    "timestore_builds_in_flight",
    "timestore_corrections_pending_oldest_timestamp",
    "timestore_landing_backlog_oldest_timestamp",
)


def as_prometheus_gets_it(query: str, datasets: str = "weather|flights") -> str:
    return query.replace("$__rate_interval", "1m").replace("$dataset", datasets)


@pytest.mark.server
def test_every_query_can_be_parsed(program: Callable[[str], str], tmp_path: Path):
    rules = [
        {"record": f"query:number:{number}", "expr": as_prometheus_gets_it(query)}
        for number, query in enumerate(queries())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")

    checked = promtool(program, "check", "rules", path)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_series_that_exist(query: str):
    assert list(problems(query)) == []
    assert metrics_in(query) or query.startswith("ALERTS{")
    assert "$" not in as_prometheus_gets_it(query)


def test_every_series_is_shown():
    exported = exported_names()
    shown = {exported[name].name for query in queries() for name in metrics_in(query) if name in exported}

    left = {each.name for each in (*SERIES, *SERVER_SERIES)} - shown - NOT_SHOWN
    assert not left, f"give these a panel in docs/build/dashboard/panels.py, then 'make docs': {sorted(left)}"


def test_the_file_is_that_of_the_code():
    made = json.loads((FOLDER / "timestore-dashboard.json").read_text(encoding="utf-8"))

    assert made == json.loads(json.dumps(dashboard()))
    assert [target["expr"] for panel in made["panels"] for target in panel.get("targets", ())] == queries()


def test_its_rows_answer_in_the_order_in_which_people_ask():
    rows = [panel["title"] for panel in PANELS if panel["type"] == "row"]

    assert rows == ["Is anything lost or late?", "Which dataset?", "Why?", "What to do?"]


def test_data_source_and_dataset_can_be_chosen():
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    sources = [each["datasource"]["uid"] for panel in PANELS for each in (panel, *panel.get("targets", ())) if
               "datasource" in each]  # fmt: skip

    assert variables["datasource"]["type"] == "datasource"
    assert list(problems(variables["dataset"]["definition"])) == []
    assert set(sources) == {"${datasource}"}
    assert all('dataset=~"$dataset' in query for query in queries() if "timestore_staging" in query)


def test_panels_have_numbers_of_their_own_and_do_not_overlap():
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for one, other in combinations((panel["gridPos"] for panel in PANELS), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)


@pytest.mark.parametrize(
    ("title", "bound"),
    [
        ("Age of the oldest staged batch", "timestore_staging_flush_threshold"),
        ("Staged batches", "timestore_staging_limit"),
        ("Staged rows", "timestore_staging_flush_threshold"),
        ("Staged bytes", "timestore_staging_limit"),
        ("Duration of builds, 30 min", "timestore_slo_seconds"),
    ],
)
def test_what_bounds_a_series_is_drawn_beside_it(title: str, bound: str):
    panel = next(panel for panel in PANELS if panel["title"] == title)
    lines = [target["legendFormat"] for target in panel["targets"] if bound in target["expr"]]
    matchers = [override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]]

    assert lines
    assert all(any(re.search(matcher.strip("/"), line) for matcher in matchers) for line in lines)


def test_what_to_do_leads_to_the_runbook():
    text = next(panel for panel in PANELS if panel["type"] == "text")["options"]["content"]
    anchors = re.findall(r"\$\{runbook\}#([\w-]+)", text)
    runbook = (DOCS / "runbooks" / "timestore-staging-operations.md").read_text(encoding="utf-8")

    assert anchors
    assert set(anchors) <= {anchor(heading) for heading, _ in sections(runbook)}


@pytest.mark.parametrize("path", sorted((FOLDER / "provisioning").rglob("*.yml")), ids=lambda path: path.parent.name)
def test_the_examples_of_provisioning_are_what_grafana_reads(path: Path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))

    assert content["apiVersion"] == 1
    entry = content["datasources" if path.parent.name == "datasources" else "providers"][0]
    assert entry["type"] == ("prometheus" if path.parent.name == "datasources" else "file")

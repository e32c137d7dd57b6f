"""Panels as Grafana's JSON: their places, data sources, units, colours and lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from docs.build.dashboard.panels import ROWS, Kind, Panel

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
# Names of what is drawn as a line to stay below.
_BOUND = "/^(limit|threshold|SLO|late after)/"


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it from a file."""
    return {
        "uid": "timestore",
        "title": "Timestore",
        "description": "Is anything lost or late, which dataset, why, what to do.",
        "tags": ["timestore"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "links": [
            {"title": "Runbook", "type": "link", "url": "${runbook}", "icon": "doc", "targetBlank": True},
        ],
        "panels": list(_laid_out(ROWS)),
    }


def queries() -> list[str]:
    """Return every query of the dashboard."""
    return [query.expression for _, panels in ROWS for panel in panels for query in panel.queries]


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "dataset",
            "label": "Dataset",
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": "label_values(timestore_staging_queue_depth, dataset)", "refId": "dataset"},
            "definition": "label_values(timestore_staging_queue_depth, dataset)",
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
        {
            "name": "runbook",
            "label": "Runbook",
            "type": "constant",
            "hide": 2,
            "query": "docs/runbooks/timestore-staging-operations.md",
        },
    ]


def _laid_out(rows: Iterable[tuple[str, Sequence[Panel]]]) -> Iterator[dict[str, Any]]:
    """Yield rows and panels from left to right, each below what came before where it does not fit beside it."""
    number, top = 1, 0
    for title, panels in rows:
        grid = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": grid}
        number, top, left, height = number + 1, top + 1, 0, 0
        for panel in panels:
            if left + panel.width > _COLUMNS:
                top, left, height = top + height, 0, 0
            grid = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            yield {"id": number, "gridPos": grid, **_as_grafana_has_it(panel)}
            number, left, height = number + 1, left + panel.width, max(height, panel.height)
        top += height


def _as_grafana_has_it(panel: Panel) -> dict[str, Any]:
    made: dict[str, Any] = {"type": panel.kind.value, "title": panel.title, "description": panel.description}
    if panel.kind is Kind.TEXT:
        return {**made, "options": {"mode": "markdown", "content": panel.text}}
    instant = panel.kind is not Kind.GRAPH
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _DATASOURCE,
            "expr": query.expression,
            "legendFormat": query.legend,
            "instant": instant,
            "range": not instant,
            "format": "table" if panel.kind is Kind.TABLE else "time_series",
        }
        for index, query in enumerate(panel.queries)
    ]
    made |= {"datasource": _DATASOURCE, "targets": targets, "fieldConfig": _field_config(panel)}
    if panel.kind is Kind.STAT:
        made["options"] = {"colorMode": "background", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}}
    elif panel.kind is Kind.GRAPH:
        made["options"] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    elif len(panel.queries) > 1:
        names = {f"Value #{target['refId']}": target["legendFormat"] for target in targets}
        made["transformations"] = [
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names}},
        ]
    else:
        shown = {"Time": True, "Value": True, "__name__": True, "alertstate": True, "job": True, "instance": True}
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": shown}}]
    return made


def _field_config(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": "orange", "value": panel.warn}] if panel.warn is not None else []
    steps += [{"color": "red", "value": panel.alarm}] if panel.alarm is not None else []
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    overrides: list[dict[str, Any]] = [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]}
        for name, unit in panel.units_of_columns.items()
    ]
    if panel.kind is Kind.STAT:
        defaults["color"] = {"mode": "thresholds"}
    if panel.kind is Kind.GRAPH:
        custom: dict[str, Any] = {"fillOpacity": 30 if panel.stacked else 5, "showPoints": "never"}
        if panel.stacked:
            custom["stacking"] = {"mode": "normal", "group": "A"}
        if panel.warn is not None:
            custom["thresholdsStyle"] = {"mode": "line"}
        defaults["custom"] = custom
        overrides.append(
            {
                "matcher": {"id": "byRegexp", "options": _BOUND},
                "properties": [
                    {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
                    {"id": "custom.fillOpacity", "value": 0},
                    {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
                ],
            }
        )
    return {"defaults": defaults, "overrides": overrides}

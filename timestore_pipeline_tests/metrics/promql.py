"""What the tests of rules and dashboard need to know of PromQL: the series and labels that an expression names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from docs.build.reference import DOCS
from timestore_pipeline.metrics.series import SERIES, SERVER_SERIES, Series, SeriesType

RULES_FOLDER = DOCS / "observability" / "prometheus"
RULES = RULES_FOLDER / "timestore-rules.yml"

_METRIC = re.compile(r"(?<![\w:])(timestore_\w+)(?![\w:])\s*(?:\{([^}]*)\})?")
_RECORDED = re.compile(r"(?<![\w:])([a-z_]*:timestore_\w+:\w+|timestore:\w+:\w+)")
_MATCHER = re.compile(r'(\w+)\s*=~?\s*"([^"]*)"')


def rules(path: Path = RULES) -> list[dict[str, Any]]:
    """Every rule of a rules file."""
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def exported_names() -> dict[str, Series]:
    """Every name under which a sample is exported, with its series."""
    names = {}
    for each in (*SERIES, *SERVER_SERIES):
        suffixes = ("_bucket", "_count", "_sum") if each.type is SeriesType.HISTOGRAM else ("",)
        names |= {each.name + suffix: each for suffix in suffixes}
    return names


def problems(expression: str) -> Iterator[str]:
    """What an expression asks for that is neither exported nor recorded."""
    exported = exported_names()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for name, matchers in _METRIC.findall(expression):
        series = exported.get(name)
        if series is None:
            yield f"{name} is not exported"
            continue
        for label, value in _MATCHER.findall(matchers):
            if label not in (*series.labels, "job", "le"):
                yield f"{name} has no label {label}"
            elif label == series.label and value not in series.values:
                yield f"{name} has no {label} {value!r}"
    for name in _RECORDED.findall(expression):
        if name not in recorded:
            yield f"{name} is not recorded"


def metrics_in(expression: str) -> set[str]:
    """The exported or recorded names in an expression."""
    return {name for name, _ in _METRIC.findall(expression)} | set(_RECORDED.findall(expression))

"""An installation at work under a clock of its own, and promtool asked about what it exported meanwhile."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from timestore_pipeline.building.due import plan_flushes
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.metrics import collect_metrics
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import hourly
from timestore_pipeline_tests.metrics.promql import RULES

STEP_SECONDS = 15
Observed = dict[str, list[float]]


def promtool(program: Callable[[str], str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end."""
    command = [program("promtool"), *(str(each) for each in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def observe(store: Store, monkeypatch: pytest.MonkeyPatch, steps: int, *, flushing: bool = True) -> Observed:
    """What is exported, step by step, while a batch comes in at every step and the sensors do their work, or not.

    The clock is the test's own; times are exported as if it had started at 0, as promtool's does.
    """
    start = datetime(2026, 1, 2, tzinfo=UTC)
    clock = SimpleNamespace(now=start)
    nanoseconds = SimpleNamespace(time_ns=lambda: int(clock.now.timestamp()) * 1_000_000_000)
    monkeypatch.setattr("timestore_pipeline.model.clock.time", nanoseconds)
    observed: Observed = defaultdict(list)
    for step in range(steps):
        clock.now = start + timedelta(seconds=STEP_SECONDS * step)
        if step:
            stage(store, "weather", hourly(20), batch_id=f"batch {step}")
        if flushing:
            for group in plan_flushes(store).groups:
                for request in group.requests:
                    flush_windows(store, BuildOrder(request.dataset, owner="sensor", trigger=request.trigger))
            unlink_published_segments(store)
        for family in collect_metrics(store):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in {"job": "timestore", **sample.labels}.items())
                is_time = sample.name.endswith("_timestamp_seconds") and sample.value
                value = sample.value - start.timestamp() if is_time else sample.value
                observed[f"{sample.name}{{{labels}}}"].append(value)
    return observed


def ask(
    program: Callable[[str], str],
    folder: Path,
    observed: Observed,
    looks: Iterable[tuple[str, str, list[dict[str, Any]]]],
) -> subprocess.CompletedProcess[str]:
    """Let promtool evaluate expressions, each at a time and with the samples expected, over what was observed."""
    test = {
        "interval": f"{STEP_SECONDS}s",
        "input_series": [
            {"series": name, "values": " ".join(repr(value) for value in values)} for name, values in observed.items()
        ],
        "promql_expr_test": [
            {"expr": expression, "eval_time": when, "exp_samples": expected} for expression, when, expected in looks
        ],
    }
    tests = {"rule_files": [str(RULES)], "evaluation_interval": f"{STEP_SECONDS}s", "tests": [test]}
    path = folder / "observed.yml"
    path.write_text(yaml.safe_dump(tests, width=10**6), encoding="utf-8")
    return promtool(program, "test", "rules", path)

"""``timestore simulate``: what it prints, and the picture that it draws."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.cli import ExitCode
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly
from timestore_pipeline_tests.cli.conftest import Finished

Run = Callable[..., Finished]


@pytest.fixture
def busy(installation: Callable[..., Store]) -> Store:
    """An installation that has staged four batches of weather and published three of them."""
    store = installation()
    for number in range(3):
        stage(store, "weather", hourly(50), batch_id=str(number))
    flush_windows(store, BuildOrder("weather", owner="test"))
    stage(store, "weather", hourly(5), batch_id="left")
    return store


def test_both_sets_of_thresholds_stand_side_by_side(busy: Store, timestore: Run):
    finished = timestore("simulate", "weather", "--max-age", "15m", "--max-rows", 0)

    assert finished.code is ExitCode.DONE
    lines = {line.split("  ")[0]: line.split() for line in finished.out.splitlines()}
    assert finished.out.startswith("weather: 4 batches with 155 rows in ")
    assert lines["flush at rows"][-2:] == ["50,000", "off"]
    assert lines["flush at age"][-4:] == ["60", "s", "15.0", "min"]
    assert lines["flushes"][1] == "1"
    assert "4 batches would be staged still" in finished.out


def test_json_says_the_same(busy: Store, timestore: Run):
    document = json.loads(timestore("simulate", "weather", "--max-rows", 100, "--run-start", 0, "--json").out)

    assert document["batches"] == 4
    assert document["measured"]["flushes"] == 1
    assert document["proposed"]["thresholds"] == {"max_rows": 100, "max_bytes": 134_217_728, "max_age_ms": 60_000}
    assert document["current"]["thresholds"]["max_rows"] == 50_000
    assert document["measured"]["freshness_seconds"]["p50"] >= 0
    assert document["assumed"]


@pytest.mark.process  # the first one looks for the fonts of the system
@pytest.mark.matrix
@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_it_can_be_seen_as_a_picture(name: str, magic: bytes, busy: Store, timestore: Run, tmp_path: Path):
    finished = timestore("simulate", "weather", "--max-age", "15m", "--plot", tmp_path / name)

    assert finished.code is ExitCode.DONE, finished.err
    assert (tmp_path / name).read_bytes().startswith(magic)
    assert f"drawn into {tmp_path / name}" in finished.err


@pytest.mark.process  # the first one looks for the fonts of the system
def test_a_picture_that_cannot_be_drawn_is_told(
    busy: Store, timestore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert "ends in .png, .svg or .pdf" in timestore("simulate", "weather", "--plot", tmp_path / "a.doc").err
    assert "cannot be written" in timestore("simulate", "weather", "--plot", tmp_path / "missing" / "a.png").err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "timestore_pipeline.cli.plot", raising=False)
    refused = timestore("simulate", "weather", "--plot", tmp_path / "a.png")
    assert refused.code is ExitCode.FAILED
    assert "pip install 'timestore-pipeline[plot]'" in refused.err


def test_wrong_options_are_a_usage_error(installation: Callable[..., Store], timestore: Run):
    installation()
    for wrong in (("--max-age", "soon"), ("--max-rows", "-1"), ("--last", "ever")):
        assert timestore("simulate", "weather", *wrong).code is ExitCode.USAGE

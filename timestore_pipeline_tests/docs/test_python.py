"""The examples in docs/python.md and in the README run, and print what the page says that they print."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DATASETS = (ROOT / "datasets.yaml").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


def examples(page: str) -> list[tuple[str, str]]:
    """The Python blocks of a page, each with the text block that follows it, if one does."""
    return _BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def run(code: str, names: dict[str, Any], page: str) -> str:
    """Run one block as the next cell of a notebook would be; what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page, "exec", dont_inherit=True), names)
    return printed.getvalue()


@pytest.fixture
def names(store_environment: Callable[..., dict[str, str]]) -> Iterator[dict[str, Any]]:
    """What the examples have defined so far; an installation that they opened is closed at the end."""
    store_environment(DATASETS)
    found: dict[str, Any] = {"__name__": "__main__"}
    yield found
    if "timestore" in found:
        found["timestore"].close()


@pytest.mark.long
def test_the_page_on_python_is_true(names: dict[str, Any]):
    page = "docs/python.md"
    blocks = examples(page)
    assert len(blocks) >= 8

    for code, expected in blocks:
        printed = run(code, names, page)
        if expected:
            assert printed == expected, code

    import dagster as dg

    job = names["defs"].resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        for asset in (["stations", "weather"], ["warmest"]):
            result = job.execute_in_process(
                instance=instance, asset_selection=[dg.AssetKey(asset)], partition_key="2026-03-01"
            )
    assert result.asset_materializations_for_node("warmest")[0].metadata["warmest"].value == 30.0 + 59 * 24 + 23


def test_the_readme_is_true(names: dict[str, Any]):
    (code, _), *others = examples("README.md")
    assert not others

    assert "1 1 [(datetime.datetime(2026, 1, 1" in run(code, names, "README.md")

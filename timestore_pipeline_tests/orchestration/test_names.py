"""What is typed into the launchpad is a window or a number, and what producers call their files is shown as text."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timestore_pipeline.building.thresholds import effective_thresholds
from timestore_pipeline.orchestration.config import BuildConfig, checked
from timestore_pipeline.orchestration.metadata import table
from timestore_pipeline_tests.conftest import MakeStore
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
        order = checked(config, spec, effective_thresholds(store.settings, spec))
    except dg.Failure:
        return
    for given_key, window in ((first, order.first), (last, order.last)):
        assert (window.key if window else None) == given_key


@pytest.mark.parametrize(
    "name", ["![a](http://x.example/a.png)", "<img src=x onerror=alert(1)>", "a|b", "[a](javascript:x)", "`a`"]
)
def test_the_name_of_a_file_is_no_markup_in_the_ui(name: str):
    shown = str(table(("source",), [(name,)], 1).value).splitlines()[-1]

    unescaped = shown.strip("| ").replace("\\\\", "")
    for character in "[]<>|`":
        assert unescaped.count(character) == unescaped.count(f"\\{character}")

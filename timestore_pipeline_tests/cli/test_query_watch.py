"""``timestore sql`` ends and stays small where a function of the query hears of no bound."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

from timestore_pipeline.cli import ExitCode

ENDLESS = "select levenshtein(repeat('ab', 1000000), repeat('ba', 1000000))"


@pytest.mark.process
@pytest.mark.long
def test_a_query_that_is_deep_in_one_function_ends_with_its_process(store_environment: Callable[..., dict[str, str]]):
    environment = store_environment(query_max_seconds=0.5)

    ended = subprocess.run(
        [sys.executable, "-m", "timestore_pipeline.cli", "sql", ENDLESS],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert ended.returncode == ExitCode.FAILED
    assert ended.stdout == ""
    assert "longer than 0.5 s" in ended.stderr
    assert "TIMESTORE_QUERY_MAX_SECONDS" in ended.stderr


@pytest.mark.parametrize("value", ["length(repeat('a', 2000000000))", "length(format('{:>2000000000}', 'a'))"])
def test_a_value_that_is_too_large_for_the_process_is_refused(installation, timestore, value: str):
    installation(duckdb_memory_limit="64MiB")
    before = resource.getrlimit(resource.RLIMIT_DATA)

    done = timestore("sql", f"select {value}")

    assert done.code is ExitCode.FAILED
    assert "more memory than its process may have" in done.err
    assert "TIMESTORE_DUCKDB_MEMORY_LIMIT (64MiB)" in done.err
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.long
def test_a_query_that_spills_is_not_kept_from_it(installation, timestore):
    installation(duckdb_memory_limit="32MiB", duckdb_threads=1)
    rows = "select range, random() as r, uuid() as u, uuid() as v from range(600_000)"

    done = timestore("sql", f"select r from ({rows}) order by u", "--format", "csv")

    assert done.code is ExitCode.DONE, done.err
    assert len(done.out.splitlines()) == 600_001

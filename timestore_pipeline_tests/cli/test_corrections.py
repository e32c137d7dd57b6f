"""Files that replace a range of times, and the list of what was replaced."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    hourly,
    parquet_bytes,
    published,
    readable,
    rows_of,
    weather_csv,
)

DAY = ("--replace", "2026-01-01", "2026-01-02T00:00:00Z")
LATER = hourly(3, start=NEW_YEAR + timedelta(days=1), station="later")


@pytest.fixture
def store(timestore: Any, installation: Any, make_file: Any, tmp_path: Path) -> Store:
    """An installation with two days of weather, published."""
    store = installation()
    (tmp_path / "first.parquet").write_bytes(parquet_bytes(hourly(24)))
    (tmp_path / "later.parquet").write_bytes(parquet_bytes(LATER))
    timestore("stage", "weather", tmp_path / "first.parquet", tmp_path / "later.parquet")
    build(store)
    return store


@pytest.fixture
def corrected(tmp_path: Path) -> Path:
    path = tmp_path / "corrected.parquet"
    path.write_bytes(parquet_bytes(hourly(2, station="corrected")))
    return path


def test_a_file_replaces_a_range_and_is_listed(timestore: Any, store: Store, corrected: Path):
    finished = timestore("stage", "weather", corrected, *DAY)

    assert finished.code is ExitCode.DONE
    assert finished.out.startswith("corrected.parquet: staged, 2 rows in 1 window, batch replaced-")
    assert readable(store) == rows_of(hourly(2, station="corrected"), LATER)
    (listed,) = json.loads(timestore("corrections", "--json").out)
    assert listed["batch_id"] == finished.out.split()[-1]
    assert {name: listed[name] for name in listed if name not in ("batch_id", "at")} == {
        "dataset": "weather",
        "number": 1,
        "kind": "replacement",
        "from": "2026-01-01T00:00:00.000000+00:00",
        "until": "2026-01-02T00:00:00.000000+00:00",
        "source": "corrected.parquet",
        "rows_left_out": 0,
        "windows": 1,
        "pending_windows": 1,
    }

    build(store)

    assert published(store) == rows_of(hourly(2, station="corrected"), LATER)
    (listed,) = json.loads(timestore("corrections", "weather", "--json").out)
    assert (listed["rows_left_out"], listed["pending_windows"]) == (24, 0)


def test_the_same_again_changes_nothing_and_going_back_does(timestore: Any, store: Store, make_file: Any):
    files = [make_file(f"{station}.csv", weather_csv(f"2026-01-01T00:00:00Z,{station},1")) for station in "AB"]

    said = [timestore("stage", "weather", files[number], *DAY).out for number in (0, 0, 1, 0)]

    assert ["already staged" in line for line in said] == [False, True, False, False]
    assert [row[1] for row in readable(store)] == ["A", "later", "later", "later"]
    assert [each["number"] for each in json.loads(timestore("corrections", "--limit", "2", "--json").out)] == [3, 2]


def test_a_key_names_rows_and_range(timestore: Any, store: Store, corrected: Path):
    receipts = [
        json.loads(timestore("stage", "weather", corrected, *DAY, "--batch-id", "k", "--json").out) for _ in range(2)
    ]

    assert [(each["batch_id"], each["duplicate"]) for (each,) in receipts] == [("k", False), ("k", True)]
    other = timestore("stage", "weather", corrected, "--batch-id", "k", "--json")
    assert other.code is ExitCode.FAILED
    assert json.loads(other.out) == []
    assert "'k'" in other.err


def test_a_header_alone_empties_the_range(timestore: Any, store: Store, make_file: Any):
    finished = timestore("stage", "weather", make_file("none.csv", weather_csv()), *DAY)

    assert finished.code is ExitCode.DONE
    assert readable(store) == rows_of(LATER)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (("2026-01-02", "2026-01-01"), "not after its start"),
        (("yesterday", "2026-01-01"), "ISO 8601"),
        (("2026-01-01", ""), "ISO 8601"),
    ],
)
def test_what_is_no_range_is_a_wrong_argument(
    timestore: Any, store: Store, corrected: Path, ends: tuple[str, str], said: str
):
    finished = timestore("stage", "weather", corrected, "--replace", *ends)

    assert finished.code is ExitCode.USAGE
    assert said in finished.err
    assert len(readable(store)) == 27


def test_rows_outside_of_the_range_are_refused_in_words(timestore: Any, store: Store, corrected: Path):
    finished = timestore("stage", "weather", corrected, "--replace", "2026-01-01", "2026-01-01T01:00:00Z")

    assert finished.code is ExitCode.FAILED
    assert "rows outside of it, at 2026-01-01T01:00:00+00:00" in finished.err
    assert len(readable(store)) == 27


def test_several_files_cannot_take_one_place(timestore: Any, store: Store, corrected: Path):
    finished = timestore("stage", "weather", corrected, corrected, *DAY)

    assert finished.code is ExitCode.USAGE
    assert "give one" in finished.err
    assert len(readable(store)) == 27


def test_the_list_is_for_people_and_acts_on_nothing(timestore: Any, store: Store, tmp_path: Path):
    assert timestore("corrections").out == "nothing was corrected\n"
    hostile = tmp_path / "\x1b[31m.parquet"
    hostile.write_bytes(parquet_bytes(hourly(2)))
    timestore("stage", "weather", hostile, *DAY, "--batch-id", "two\nlines")

    heading, row = timestore("corrections").out.splitlines()

    headings = ("dataset", "number", "when", "kind", "range", "rows left out", "windows pending", "batch", "source")
    assert heading.split() == " ".join(headings).split()
    assert "2026-01-01T00:00:00+00:00 … 2026-01-02T00:00:00+00:00" in row
    assert "two\\nlines" in row
    assert "\x1b" not in row
    assert timestore("corrections", "events").out == "nothing was corrected\n"
    assert timestore("corrections", "nowhere").code is ExitCode.USAGE

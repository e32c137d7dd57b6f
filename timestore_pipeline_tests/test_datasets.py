"""``datasets.yaml``: what it may say, and that whatever else it says is refused by file, dataset and key."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.datasets import (
    Datasets,
    DatasetSpec,
    FileFormat,
    TimeUnit,
    load_datasets,
    parse_datasets,
)
from timestore_pipeline.errors import DatasetsFileError, UnknownDataset
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.durations import format_duration, parse_duration
from timestore_pipeline.model.windows import Granularity, Window, to_micros

FULL = """
start: 2013-01-01
datasets:
  weather:
    description: Hourly weather.
    owners: [team:weather, someone@example.org]
    columns: {ts: timestamptz, station: varchar, temp: "decimal(5,2)"}
    time: {column: ts, format: "%Y-%m-%d %H:%M"}
    window: day
    landing:
      pattern: "*.csv.gz"
      format: csv
      csv: {delimiter: ";", quote: "'", escape: "\\\\", null: ["", NA], header: [ts, station, temp, extra]}
      ignore_columns: [extra]
    lateness: 1d 12h
    freshness: 15m
    flush: {max_rows: 10, max_bytes: 0, max_age_ms: 5000}
    limits: {max_pending: 5, max_bytes: 1000}
  events:
    time: {column: at, unit: ms}
    window: hour
    start: 2014-02-03
  minimal:
    time: ts
    window: month
"""


def dataset(**keys: object) -> str:
    """The text of a file with one valid dataset ``d``, except for ``keys``."""
    return yaml.safe_dump({"datasets": {"d": {"time": "ts", "window": "day", **keys}}})


def problems_of(text: str) -> str:
    with pytest.raises(DatasetsFileError) as caught:
        parse_datasets(text)
    assert str(caught.value).startswith("datasets.yaml is not usable:\n  - ")
    return "\n".join(caught.value.problems)


def test_everything_that_can_be_said_is_understood():
    datasets = parse_datasets(FULL)

    assert list(datasets) == ["weather", "events", "minimal"]
    weather, events, minimal = datasets.values()
    assert weather.name == "weather"
    assert weather.declared_columns == (
        Column("ts", "TIMESTAMP WITH TIME ZONE"),
        Column("station", "VARCHAR"),
        Column("temp", "DECIMAL(5,2)"),
    )
    assert weather.time.format == "%Y-%m-%d %H:%M"
    assert weather.landing.format is FileFormat.CSV
    assert weather.landing.csv.delimiter == ";"
    assert weather.landing.csv.header == ("ts", "station", "temp", "extra")
    assert weather.landing.matches("a.csv.gz")
    assert not weather.landing.matches("A.CSV.GZ")
    assert weather.flush.max_bytes == 0
    assert weather.limits.max_pending == 5
    assert weather.lateness == timedelta(hours=36)
    assert weather.freshness == timedelta(minutes=15)
    assert (minimal.lateness, minimal.freshness) == (timedelta(days=1), None)
    assert weather.start == date(2013, 1, 1)
    assert events.time.unit is TimeUnit.MILLISECONDS
    assert events.declared_columns is None
    assert events.first_window == Window.from_key("2014-02-03T00", Granularity.HOUR)
    assert minimal.time.column == "ts"
    assert minimal.landing.matches("anything")
    assert minimal.flush.max_rows is None
    assert minimal.start == date(2013, 1, 1)


def test_datasets_of_one_granularity_share_a_start_unless_told_otherwise():
    assert parse_datasets(dataset())["d"].start == date(2020, 1, 1)


def test_a_month_window_starts_before_a_start_in_mid_month():
    spec = parse_datasets(dataset(window="month", start=date(2013, 1, 15)))["d"]

    assert spec.first_window.key == "2013-01"
    assert spec.window_from_key("2013-02").key == "2013-02"
    assert spec.window_at(spec.first_window.end_micros).key == "2013-02"


def test_a_file_may_declare_no_dataset_yet():
    assert len(parse_datasets("datasets: {}")) == 0


def test_an_unknown_dataset_is_named_with_those_that_there_are():
    datasets = parse_datasets(FULL)

    with pytest.raises(UnknownDataset, match=r"'wether' is not declared\. Declared datasets: events, minimal, weather"):
        datasets["wether"]
    assert "wether" not in datasets
    assert datasets.get("wether") is None


@pytest.mark.parametrize("name", ["Weather", "1weather", "_weather", "wea-ther", "wea ther", "", "x" * 64, "wétter"])
def test_a_name_that_is_not_allowed_is_refused_and_the_rule_is_told(name: str):
    text = yaml.safe_dump({"datasets": {name: {"time": "ts", "window": "day"}}}, allow_unicode=True)

    problems = problems_of(text)

    assert f"dataset {name!r}" in problems
    assert "a lower-case letter, then at most 62 of a-z, 0-9 and _" in problems


def test_the_longest_name_is_allowed():
    assert list(parse_datasets(yaml.safe_dump({"datasets": {"x" * 63: {"time": "ts", "window": "day"}}})))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"window": "week"}, "dataset 'd', key 'window': Input should be 'hour', 'day' or 'month'"),
        ({"colums": {}}, "dataset 'd', key 'colums': there is no such key; correct or remove it"),
        ({"flush": {"max_row": 1}}, "dataset 'd', key 'flush.max_row': there is no such key"),
        ({"flush": {"max_rows": -1}}, "dataset 'd', key 'flush.max_rows': Input should be greater than or equal to 0"),
        ({"limits": {"max_pending": "many"}}, "dataset 'd', key 'limits.max_pending': Input should be a valid integer"),
        ({"columns": {"ts": "time"}}, "dataset 'd', key 'columns': 'time' is no type that a dataset can hold"),
        ({"columns": {"ts": "timestamp", "a b": "int"}}, "dataset 'd', key 'columns': column name 'a b'"),
        ({"columns": {"ts": "timestamp", "_batch": "int"}}, "column name '_batch' is reserved"),
        ({"columns": {"other": "int"}}, "dataset 'd': time: column 'ts' is not among the columns"),
        ({"columns": {"ts": "varchar"}}, "say so with time.format or time.unit"),
        (
            {"time": {"column": "ts", "format": "%Y", "unit": "s"}},
            "dataset 'd', key 'time': format (for text) and unit",
        ),
        ({"time": {"format": "%Y"}}, "dataset 'd', key 'time.column': Field required"),
        ({"time": 5}, "dataset 'd', key 'time'"),
        ({"landing": {"pattern": "a/*.csv"}}, "dataset 'd', key 'landing.pattern': a pattern matches file names"),
        ({"landing": {"format": "xml"}}, "dataset 'd', key 'landing.format': Input should be 'auto', 'csv'"),
        ({"landing": {"csv": {"delimiter": "||"}}}, "dataset 'd', key 'landing.csv.delimiter'"),
        ({"start": "soon"}, "dataset 'd', key 'start'"),
        ({"owners": ["me"]}, "dataset 'd', key 'owners.0'"),
    ],
)
def test_what_is_wrong_is_told_by_dataset_and_key(keys: dict[str, object], problem: str):
    assert problem in problems_of(dataset(**keys))


def test_a_start_has_no_time_of_day():
    assert "without a time of day" in problems_of("datasets: {d: {time: t, window: day, start: 2013-01-01 05:00:00}}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be a mapping with the key 'datasets'"),
        ("- a", "must be a mapping with the key 'datasets'"),
        ("datasets: [a]", "key 'datasets': Input should be a valid dictionary"),
        ("datasets:", "key 'datasets': Input should be a valid dictionary"),
        ("other: 1", "key 'other': there is no such key"),
        ("datasets: {d: null}", "dataset 'd'"),
        ("datasets: {1: {time: t, window: day}}", "dataset '1'"),
        ("datasets: {d: {time: t, window: day}}\nstart: never", "key 'start'"),
        ("a: [", "it is not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "it is not valid YAML"),
        ("a: &a [*a]", "key 'datasets': Field required"),
        ("datasets:\n  d: {time: t, window: day}\n  d: {time: u, window: day}", "key 'd' occurs twice"),
        ("\x00", "it is not valid YAML"),
        ("? [a]\n: b", "it is not valid YAML"),
        ("a: 2013-13-45", "it is not valid YAML"),
    ],
)
def test_a_file_that_is_not_one_is_refused(text: str, problem: str):
    assert problem in problems_of(text)


def test_every_problem_is_told_at_once():
    text = yaml.safe_dump({"datasets": {"a": {"window": "week"}, "b": {"time": "t", "window": "day", "x": 1}}})

    problems = problems_of(text)

    assert "dataset 'a', key 'time'" in problems
    assert "dataset 'a', key 'window'" in problems
    assert "dataset 'b', key 'x'" in problems


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
known_keys = st.sampled_from([*DatasetSpec.model_fields, "colums"])


@given(st.text())
def test_any_text_is_a_datasets_file_or_refused(text: str):
    parse_or_refuse(text)


@given(st.text(alphabet="abd:{}[]\"'&*!?|>- \n#%@,\t0123.", max_size=60))
def test_any_yaml_is_a_datasets_file_or_refused(text: str):
    parse_or_refuse(text)
    parse_or_refuse("datasets:\n  d:\n    time: ts\n    window: day\n    " + text)


@given(st.dictionaries(known_keys, values, max_size=6))
def test_any_values_are_a_dataset_or_refused(keys: dict[str, object]):
    parse_or_refuse(dataset(**keys))


def parse_or_refuse(text: str) -> None:
    with contextlib.suppress(DatasetsFileError):
        assert isinstance(parse_datasets(text), Datasets)


def test_a_file_is_read_as_utf_8(tmp_path: Path):
    path = tmp_path / "datasets.yaml"
    path.write_text(dataset(description="Température"), encoding="utf-8")

    assert load_datasets(path)["d"].description == "Température"


def test_a_missing_file_is_told_by_its_path_and_how_to_set_it(tmp_path: Path):
    with pytest.raises(
        DatasetsFileError, match=r"nowhere\.yaml is not usable:\n  - there is no such file; set TIMESTORE_"
    ):
        load_datasets(tmp_path / "nowhere.yaml")


def test_a_file_that_cannot_be_read_is_told_by_its_path(tmp_path: Path):
    (tmp_path / "latin.yaml").write_bytes(b"description: Temp\xe9rature")

    with pytest.raises(DatasetsFileError, match=r"latin\.yaml is not usable:\n  - it cannot be read"):
        load_datasets(tmp_path / "latin.yaml")
    with pytest.raises(DatasetsFileError, match="it cannot be read"):
        load_datasets(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_told_by_its_path(tmp_path: Path):
    path = tmp_path / "datasets.yaml"
    path.touch(mode=0o000)

    with pytest.raises(DatasetsFileError, match="Permission denied"):
        load_datasets(path)


@given(st.timedeltas(min_value=timedelta(), max_value=timedelta(days=36_500)))
def test_a_duration_is_read_as_it_is_written(duration: timedelta):
    milliseconds = duration - duration % timedelta(milliseconds=1)

    assert parse_duration(format_duration(milliseconds)) == milliseconds


@pytest.mark.parametrize("written", ["", "7", 7, "-1d", "1.5h", "1y", "d", "1d!", True, None, "40000d", "7 days"])
def test_what_is_no_duration_is_refused(written: object):
    assert "lateness" in problems_of(dataset(lateness=written))


def test_a_freshness_is_a_minute_or_more_or_none():
    assert parse_datasets(dataset(freshness=0))["d"].freshness == timedelta()
    assert "at least 1m" in problems_of(dataset(freshness="59s"))


@given(
    st.sampled_from(list(Granularity)),
    st.integers(946_684_800, 4_102_444_800).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    st.timedeltas(min_value=timedelta(), max_value=timedelta(days=400)),
)
def test_a_window_closes_at_its_end_plus_the_lateness(granularity: Granularity, now: datetime, lateness: timedelta):
    spec = parse_datasets(dataset(window=str(granularity)))["d"].model_copy(update={"lateness": lateness})

    first_open = spec.first_open_window(to_micros(now))
    last_closed = Window.containing(first_open.start - timedelta(microseconds=1), granularity)

    assert last_closed.end + lateness <= now < first_open.end + lateness

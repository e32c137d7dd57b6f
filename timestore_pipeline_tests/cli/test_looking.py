"""``status``, ``sql``, ``quarantine list`` and ``metrics``: what they show."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from timestore_pipeline.cli import ExitCode
from timestore_pipeline.cli.sql_command import TABLE_ROWS
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import flip_row, hourly
from timestore_pipeline_tests.cli.conftest import Finished
from timestore_pipeline_tests.conftest import WEATHER_CSV

Run = Callable[..., Finished]
Install = Callable[..., Store]
MakeFile = Callable[[str, str], Path]
Drop = Callable[[Store, str, str, str | bytes], Path]


def table(finished: Finished) -> list[dict[str, str]]:
    """The rows of a plain table; its columns begin where the headings are separated by two spaces."""
    head, *rows = finished.out.splitlines()
    return [dict(zip(_cells(head), _cells(row), strict=False)) for row in rows]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_status_of_a_new_installation(timestore: Run, installation: Install):
    store = installation()
    store.settings.landing_path.mkdir(parents=True)

    finished = timestore("status")

    assert finished.code is ExitCode.DONE
    assert finished.err == ""
    assert [row["dataset"] for row in table(finished)] == ["weather", "events"]
    weather = table(finished)[0]
    assert weather["staged batches"] == "0 / 1,000"
    assert weather["staged rows"] == "0 / 50,000"
    assert weather["staged bytes"] == "0 B / 134.2 MB"
    assert weather["oldest"] == "- / 60 s"
    assert weather["due"] == "-"
    assert weather["last flush"] == "never"
    assert weather["quarantine"] == "-"
    assert weather["landing files"] == "0"


@pytest.mark.long
def test_status_follows_a_row_on_its_way(timestore: Run, installation: Install, make_file: MakeFile, drop: Drop):
    store = installation(staging_flush_max_rows=3)
    drop(store, "weather", "later.csv", WEATHER_CSV + "2026-01-02T01:30:00Z,EWR,1\n")
    drop(store, "events", "bad.csv", "what,ever\n1,2\n")
    timestore("ingest", "events")
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))

    weather, events = table(timestore("status"))
    assert weather["staged batches"] == "1 / 1,000"
    assert weather["staged rows"] == "3 / 3"
    assert weather["due"] == "rows"
    assert weather["published rows"] == "0"
    assert weather["landing files"] == "1"
    assert events["quarantine"] == "1 batch, 0 rows"

    timestore("flush", "weather")

    (weather,) = table(timestore("status", "weather"))
    assert weather["staged rows"] == "0 / 3"
    assert weather["due"] == "-"
    assert (weather["published rows"], weather["files"], weather["windows"]) == ("3", "2", "2")
    assert weather["last flush"].startswith("published 2")
    assert " by manual in " in weather["last flush"]


def test_status_shows_each_dataset_beside_its_own_thresholds(timestore: Run, installation: Install):
    installation(
        "datasets: {own: {time: ts, window: day, flush: {max_rows: 7, max_age_ms: 0}, limits: {max_pending: 0}}}",
        staging_flush_max_bytes=0,
    )

    (own,) = table(timestore("status"))

    assert own["staged batches"] == "0 / off"
    assert own["staged rows"] == "0 / 7"
    assert own["staged bytes"] == "0 B / off"
    assert own["oldest"] == "- / off"


def test_status_for_programs(timestore: Run, installation: Install, make_file: MakeFile):
    installation()
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))
    timestore("flush", "weather")
    timestore("stage", "weather", make_file("b.csv", "ts,station,temp\n2026-02-01T00:00:00Z,JFK,1\n"))

    finished = timestore("status", "weather", "--json")

    assert finished.err == ""
    (weather,) = json.loads(finished.out)["datasets"]
    assert weather["dataset"] == "weather"
    assert weather["staged"]["batches"] == 1
    assert weather["staged"]["rows"] == 1
    assert weather["staged"]["oldest_age_seconds"] > 0
    assert weather["limits"]["flush_max_age_ms"] == 60_000
    assert weather["published"]["rows"] == 3
    assert weather["last_flush"]["result"] == "published"
    assert weather["last_flush"]["rows"] == 3
    assert weather["in_flight"] is None
    assert weather["quarantine"] == {"batches": 0, "rows": 0, "segments": 0}


def test_a_query_sees_staged_and_published_rows(timestore: Run, installation: Install, make_file: MakeFile):
    installation()
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))
    timestore("flush", "weather")
    timestore("stage", "weather", make_file("b.csv", "ts,station,temp\n2026-02-01T00:00:00Z,EWR,9\n"))

    finished = timestore("sql", "select station, count(*) as n from weather group by all order by all")

    assert table(finished) == [
        {"station": "EWR", "n": "1"},
        {"station": "JFK", "n": "2"},
        {"station": "LGA", "n": "1"},
    ]


EVERYTHING = (
    "select 1 as i, 1.5::double as f, 'a,\"b\"\nc' as s, null as n, true as b, date '2026-01-02' as d, "
    "timestamptz '2026-01-02 03:04:05+00' as t, timestamp '2026-01-02 03:04:05.5' as u, 1.50::decimal(9,2) as x, "
    "[1, 2] as l, {'k': 'v'} as r, 'nan'::double as q, '\\x00\\xFF'::blob as z"
)


def test_every_type_as_csv(timestore: Run, installation: Install):
    installation()

    (row,) = csv.DictReader(io.StringIO(timestore("sql", EVERYTHING, "--format", "csv").out))

    assert row == {
        "i": "1",
        "f": "1.5",
        "s": 'a,"b"\nc',
        "n": "",
        "b": "true",
        "d": "2026-01-02",
        "t": "2026-01-02 03:04:05.000000Z",
        "u": "2026-01-02 03:04:05.500000",
        "x": "1.50",
        "l": "[1, 2]",
        "r": '{"k": "v"}',
        "q": "nan",
        "z": "00ff",
    }


def test_every_type_as_json(timestore: Run, installation: Install):
    installation()

    (row,) = json.loads(timestore("sql", EVERYTHING, "--format", "json").out)

    assert row == {
        "i": 1,
        "f": 1.5,
        "s": 'a,"b"\nc',
        "n": None,
        "b": True,
        "d": "2026-01-02",
        "t": "2026-01-02T03:04:05+00:00",
        "u": "2026-01-02T03:04:05.500000",
        "x": "1.50",
        "l": [1, 2],
        "r": {"k": "v"},
        "q": None,
        "z": "00ff",
    }


def test_a_table_keeps_a_row_on_its_line(timestore: Run, installation: Install):
    installation()

    assert len(timestore("sql", EVERYTHING).out.splitlines()) == 2


@pytest.mark.long
@pytest.mark.parametrize("rows", [0, 1, 120_001])
def test_csv_and_json_have_all_rows(rows: int, timestore: Run, installation: Install):
    installation()
    query = f"select * from range({rows}) as numbers(n)"

    assert timestore("sql", query, "--format", "csv").out.splitlines() == ['"n"', *map(str, range(rows))]
    assert [row["n"] for row in json.loads(timestore("sql", query, "--format", "json").out)] == list(range(rows))


def test_a_table_is_bounded_and_says_so(timestore: Run, installation: Install):
    installation()

    bounded = timestore("sql", "select * from range(1000)")
    assert len(bounded.out.splitlines()) == 1 + TABLE_ROWS
    assert bounded.err.startswith("timestore: only 50 rows shown; ")

    whole = timestore("sql", f"select * from range({TABLE_ROWS})")
    assert len(whole.out.splitlines()) == 1 + TABLE_ROWS
    assert whole.err == ""


@pytest.mark.long
def test_a_limit_holds_for_every_format(timestore: Run, installation: Install):
    installation()
    for limit in (0, 1, 3):
        query = ("sql", "select * from range(5)", "--limit", limit)
        assert len(timestore(*query).out.splitlines()) == 1 + limit
        assert len(timestore(*query, "--format", "csv").out.splitlines()) == 1 + limit
        assert len(json.loads(timestore(*query, "--format", "json").out)) == limit
    # One of several chunks of rows.
    many = timestore("sql", "select * from range(60001)", "--limit", 60_000, "--format", "csv")
    assert len(many.out.splitlines()) == 60_001


@pytest.mark.long
def test_a_query_that_cannot_be_run_is_told(timestore: Run, installation: Install):
    installation()
    for query in (
        "selec 1",
        "select nothing from weather",
        "select * from nowhere",
        "",
        "select 1/",
        "select 'x'::integer",
        "select error('at run time')",
    ):
        finished = timestore("sql", query)

        assert finished.code is ExitCode.FAILED, query
        assert finished.out == ""
        assert finished.err.startswith("timestore: ")
        assert "Traceback" not in finished.err


def test_a_query_of_a_damaged_segment_names_it(timestore: Run, installation: Install):
    store = installation()
    stage(store, "weather", hourly(30))
    (segment,) = store.settings.staging_path.rglob("*.duckdb")
    flip_row(store, segment, 17)

    told = timestore("sql", "SELECT * FROM weather")

    assert told.code is ExitCode.FAILED
    assert f"segment {segment} cannot be read" in told.err
    assert "Restore the file from a backup" in told.err


def test_a_dataset_without_columns_yet_is_told(timestore: Run, installation: Install):
    installation()

    finished = timestore("sql", "select * from events")

    assert finished.code is ExitCode.FAILED
    assert "Nothing was staged yet, and no columns are declared: events" in finished.err
    assert timestore("sql", "select count(*) as n from weather").out == "n\n0\n"


def test_what_a_query_does_not_ask_for_is_not_opened(timestore: Run, installation: Install, make_file: MakeFile):
    store = installation()
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))
    timestore("flush", "weather")
    (other,) = store.settings.home.rglob("window_key=2026-01-02/*.parquet")
    other.write_bytes(b"no Parquet")

    finished = timestore("sql", "select count(*) as n from weather where ts < '2026-01-02'")

    assert finished.out == "n\n2\n", finished.err


def test_datasets_can_be_listed(timestore: Run, installation: Install, make_file: MakeFile):
    installation()
    timestore("stage", "events", make_file("e.jsonl", '{"at": 1767225600000}\n'))

    assert timestore("sql", "show tables").out.split() == ["name", "events", "weather"]


def test_quarantine_is_listed_with_its_reason(timestore: Run, installation: Install, drop: Drop):
    store = installation()
    drop(store, "weather", "bad file.csv", "what,ever\n1,2\n")
    drop(store, "events", "rows.jsonl", '{"at": 1767225600000}\n{"at": null}\n')
    timestore("ingest")

    listed = timestore("quarantine", "list")
    assert listed.code is ExitCode.DONE
    assert len(listed.out.splitlines()) == 3
    assert "bad file.csv" in listed.out

    entries = json.loads(timestore("quarantine", "list", "--json").out)
    assert {(entry["dataset"], entry["kind"], entry["rows"]) for entry in entries} == {
        ("weather", "batch", None),
        ("events", "rows", 1),
    }
    for entry in entries:
        assert entry["reason"]
        assert Path(entry["path"]).is_file()
    (only,) = json.loads(timestore("quarantine", "list", "events", "--json").out)
    assert only["source"] == "rows.jsonl"


def test_metrics_are_printed_as_they_are_pushed(timestore: Run, installation: Install, make_file: MakeFile):
    installation()
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))

    families = text_string_to_metric_families(timestore("metrics").out)

    depth = {
        (sample.labels["dataset"], sample.labels["metric"]): sample.value
        for family in families
        if family.name == "timestore_staging_queue_depth"
        for sample in family.samples
    }
    assert depth["weather", "rows"] == 3
    assert depth["events", "rows"] == 0


def test_schema_shows_how_the_columns_came_about(timestore: Run, installation: Install, make_file: MakeFile):
    installation("datasets: {weather: {time: ts, window: day}}")
    assert json.loads(timestore("schema", "weather", "--json").out) == {
        "dataset": "weather",
        "columns": [],
        "history": [],
    }
    timestore("stage", "weather", make_file("first.csv", "ts,temp\n2026-01-01,1.5\n"))
    timestore("stage", "weather", make_file("second.csv", "ts,temp,gust\n2026-01-01,1.5,7\n"))

    first, second = table(timestore("schema", "weather"))
    document = json.loads(timestore("schema", "weather", "--json").out)

    assert (first["version"], first["brought by"]) == ("1", "first.csv")
    assert (second["version"], second["brought by"], second["changes"]) == ("2", "second.csv", "added gust BIGINT")
    assert [column["name"] for column in document["columns"]] == ["ts", "temp", "gust"]
    assert document["history"][1]["changes"] == ["added gust BIGINT"]
    assert timestore("schema", "wheather").code is not ExitCode.DONE

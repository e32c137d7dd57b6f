"""What is not opened has no rows that are asked for: random conditions over random files, against one plain table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timestore_pipeline import Settings, Timestore
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.model.columns import Column
from timestore_pipeline.reading.pruning import prune
from timestore_pipeline_tests.sampling import examples

DATASETS = """
datasets:
  ticks:
    columns: {ts: timestamptz, n: integer, x: double, s: varchar, d: date}
    time: ts
    window: day
  days:
    columns: {d: date, k: integer}
    time: d
    window: month
"""
START = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS = {
    "ticks": [
        Column("ts", "TIMESTAMP WITH TIME ZONE"),
        Column("n", "INTEGER"),
        Column("x", "DOUBLE"),
        Column("s", "VARCHAR"),
        Column("d", "DATE"),
    ],
    "days": [Column("d", "DATE"), Column("k", "INTEGER")],
}


def ticks(number: int) -> pa.Table:
    """Twelve rows in two windows, with nulls and numbers that have no order."""
    times = [START + timedelta(hours=12 * number + 2 * row) for row in range(12)]
    return pa.table(
        {
            "ts": pa.array(times, pa.timestamp("us", "UTC")),
            "n": pa.array([None if row % 5 == 4 else 10 * number + row for row in range(12)], pa.int32()),
            "x": [float("nan") if number == 3 and row == 0 else (number - 3) * 1.5 + row / 10 for row in range(12)],
            "s": pa.array([None if number == 2 else f"{'abcdefgh'[number]}{row}" for row in range(12)], pa.string()),
            "d": pa.array([time.date() for time in times], pa.date32()),
        }
    )


@pytest.fixture(scope="module")
def filled() -> Iterator[tuple[Timestore, duckdb.DuckDBPyConnection]]:
    """Two datasets, published in several files and staged in several segments, and the same rows in plain tables."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "datasets.yaml").write_text(DATASETS, encoding="utf-8")
        with Timestore.open(Settings(home=Path(folder), staging_min_free_disk_bytes=0)) as timestore:
            tables = [ticks(number) for number in range(8)]
            days = pa.table({"d": pa.array([START.date() + timedelta(days=n) for n in range(60)]), "k": range(60)})
            timestore.stage("days", days)
            for number, table in enumerate(tables):
                timestore.stage("ticks", table)
                if number in (1, 3, 5):
                    flush_windows(timestore.store, BuildOrder("ticks", owner="the test"))
                    flush_windows(timestore.store, BuildOrder("days", owner="the test"))
            with duckdb.connect() as plain:
                plain.execute("SET TimeZone = 'UTC'")
                for name, rows in (("ticks", pa.concat_tables(tables)), ("days", days)):
                    plain.register("incoming", rows)
                    plain.execute(f"CREATE TABLE {name} AS FROM incoming")
                yield timestore, plain


hours = st.integers(-5, 110).map(lambda hour: (START + timedelta(hours=hour)).isoformat(sep=" "))
times = st.one_of(
    hours.map(lambda text: f"'{text}'"),
    hours.map(lambda text: f"TIMESTAMPTZ '{text}'"),
    hours.map(lambda text: f"'{text}'::TIMESTAMPTZ + INTERVAL 3 HOURS"),
    st.integers(0, 5).map(lambda day: f"DATE '{(START + timedelta(days=day)).date()}'"),
)
numbers = st.integers(-5, 90).map(str) | st.floats(-8, 8).map(lambda value: f"{value:.3f}")
texts = st.tuples(st.sampled_from("abcdefghz"), st.integers(0, 11)).map(lambda pair: f"'{pair[0]}{pair[1]}'")
dates = st.integers(0, 6).map(lambda day: f"DATE '{(START + timedelta(days=day)).date()}'")
VALUES = {"ts": times, "n": numbers, "x": numbers | st.just("'nan'::DOUBLE"), "s": texts, "d": dates}


@st.composite
def comparisons(draw: st.DrawFn, prefix: str = "") -> str:
    name = draw(st.sampled_from(sorted(VALUES)))
    column, value = prefix + name, VALUES[name]
    match draw(st.integers(0, 5)):
        case 0:
            return f"{column} BETWEEN {draw(value)} AND {draw(value)}"
        case 1:
            return f"{column} IN ({', '.join(draw(st.lists(value, min_size=1, max_size=3)))})"
        case 2:
            return f"{draw(value)} {draw(st.sampled_from(['<', '<=', '=', '>', '>=', '<>']))} {column}"
        case 3:
            return draw(
                st.sampled_from([f"{column} IS NULL", f"NOT {column} > {draw(value)}", f"{column} IS NOT NULL"])
            )
    return f"{column} {draw(st.sampled_from(['<', '<=', '=', '>', '>=', '<>']))} {draw(value)}"


def conditions(prefix: str = "") -> st.SearchStrategy[str]:
    return st.recursive(
        comparisons(prefix),
        lambda inner: st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(lambda parts: f"({' '.join(parts)})"),
        max_leaves=5,
    )


QUERIES = [
    "WITH ticks AS (SELECT * FROM ticks WHERE {0}) SELECT count(*), sum(n) FROM ticks WHERE {1}",
    "SELECT count(*), sum(n) FROM ticks WHERE {0}",
    "SELECT count(*), sum(n) FROM (SELECT * FROM ticks WHERE {0}) WHERE {1}",
    "SELECT count(*) FROM ticks WHERE {0} UNION ALL SELECT sum(n) FROM ticks WHERE {1}",
    "WITH part AS (SELECT * FROM ticks WHERE {0}) SELECT count(*), (SELECT count(*) FROM ticks) FROM part",
    "SELECT count(*), count(k) FROM (SELECT * FROM ticks WHERE {0}) AS t LEFT JOIN days ON days.d = t.d",
    "SELECT count(*), count(ticks.n) FROM days LEFT JOIN ticks ON days.d = ticks.d WHERE k < 5",
    "SELECT count(*) FROM ticks WHERE {0} AND n IN (SELECT k FROM days WHERE d < '2026-01-20')",
    "SELECT count(*) FROM ticks AS one, ticks AS two WHERE one.n = two.n",
    "SELECT ts + INTERVAL 1 DAY AS ts, n FROM ticks WHERE {0} ORDER BY ALL",
    "SELECT max(n) FILTER (WHERE {0}), count(*) FROM ticks GROUP BY s HAVING count(*) > 0 ORDER BY ALL",
]


@pytest.mark.long
@given(st.sampled_from(QUERIES), conditions(), conditions())
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_row_is_missing_whatever_is_asked(filled, query: str, one: str, other: str):
    timestore, plain = filled
    sql = query.format(one, other)

    assert timestore.sql(sql).fetchall() == plain.sql(sql).fetchall(), sql


@pytest.mark.long
@given(conditions("t."), conditions("days."))
@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_row_is_missing_from_joins(filled, one: str, other: str):
    timestore, plain = filled
    other = other.replace("days.ts", "days.d").replace("days.n", "days.k").replace("days.x", "days.k")
    other = other.replace("days.s", "CAST(days.k AS VARCHAR)")
    for join in ("JOIN", "LEFT JOIN", "FULL JOIN", "RIGHT JOIN", "SEMI JOIN"):
        where = one if join == "SEMI JOIN" else f"{one} OR {other}"
        sql = f"SELECT count(*) FROM ticks AS t {join} days ON t.d = days.d WHERE {where}"
        assert timestore.sql(sql).fetchall() == plain.sql(sql).fetchall(), sql


UNDERSTOOD = {
    "ts >= '2026-01-01' AND lower(s) = 'x'": True,
    "ticks.ts >= '2026-01-01'": True,
    "ts > now() - INTERVAL 1 DAY": True,
    "ts > date_trunc('day', now())": True,
    "n = 1 OR n = 2": True,
    "ts < now()": False,
    "ts >= '2026-01-01' OR lower(s) = 'x'": False,
    "ts + INTERVAL 1 DAY > '2026-01-01'": False,
    "n > random()": False,
    "n > k": False,
}


@pytest.mark.parametrize(("condition", "understood"), UNDERSTOOD.items())
def test_what_is_understood_is_pruned_and_nothing_else(condition: str, understood: bool):
    with duckdb.connect() as connection:
        found = prune(connection, f"SELECT * FROM ticks WHERE {condition}", COLUMNS)

    assert ("ticks" in found.conditions) == understood


@pytest.mark.parametrize(
    "query",
    [
        "SUMMARIZE ticks",
        "DESCRIBE ticks",
        "SELECT * FROM query_table('ticks') WHERE n > 100",
        "SELECT * FROM ticks TABLESAMPLE 5 ROWS WHERE n > 100",
        "SELECT * FROM ticks AS t(n, ts) WHERE n > '2027-01-01'",
        "SELECT -n AS n FROM ticks WHERE n > 100",
        "SELECT * FROM days POSITIONAL JOIN ticks WHERE n > 100",
        "SELECT * FROM ticks WHERE n > 100 UNION ALL FROM ticks",
        "not SQL",
    ],
)
def test_where_it_cannot_be_told_everything_is_read(query: str):
    with duckdb.connect() as connection:
        assert "ticks" not in prune(connection, query, COLUMNS).conditions

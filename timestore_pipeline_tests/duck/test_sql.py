"""Fragments of SQL: what is quoted means itself, and times are UTC."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.duck.sql import column_definitions, file_literal, literal, quote, utc_timestamp_sql
from timestore_pipeline.model.columns import Column


@pytest.fixture
def connection():
    with duckdb.connect() as connection:
        yield connection


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_quoted_text_means_itself(text: str):
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE t ({column_definitions([Column(text, 'VARCHAR')])})")
        connection.execute(f"INSERT INTO t VALUES ({literal(text)})")

        result = connection.execute(f"SELECT {quote(text)} FROM t")
        assert [column[0] for column in result.description or []] == [text]
        assert result.fetchall() == [(text,)]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        ("TIMESTAMP", "2013-07-01 12:00:00", "2013-07-01 12:00:00"),
        ("DATE", "2013-07-01", "2013-07-01 00:00:00"),
        ("TIMESTAMP WITH TIME ZONE", "2013-07-01 12:00:00+02:00", "2013-07-01 10:00:00"),
    ],
)
def test_a_time_column_becomes_utc_whatever_the_time_zone_of_the_session(
    zone: str, type_: str, value: str, expected: str, connection: duckdb.DuckDBPyConnection
):
    connection.execute(f"SET TimeZone = '{zone}'")
    connection.execute(f'CREATE TABLE t AS SELECT {type_} {literal(value)} AS "the time"')

    in_utc = utc_timestamp_sql(Column("the time", type_))

    found = connection.execute(f"SELECT typeof({in_utc}), CAST({in_utc} AS VARCHAR) FROM t").fetchone()

    assert found == ("TIMESTAMP", expected)


@pytest.mark.parametrize("name", ["a'b.parquet", "[ab].parquet", "*.parquet", "?.parquet", 'a"b.parquet'])
def test_a_file_is_just_that_file(name: str, connection: duckdb.DuckDBPyConnection, tmp_path: Path):
    connection.execute(f"COPY (SELECT 1 AS other) TO {literal(str(tmp_path / 'a.parquet'))}")
    connection.execute(f"COPY (SELECT 2 AS meant) TO {literal(str(tmp_path / 'meant.parquet'))}")
    (tmp_path / "meant.parquet").rename(tmp_path / name)

    assert connection.execute(f"FROM read_parquet({file_literal(tmp_path / name)})").fetchall() == [(2,)]

"""Casts: a value arrives as what it was, or is refused by name; nothing is rounded, cut or wrapped on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal, localcontext
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from timestore_pipeline.duck.sql import literal
from timestore_pipeline.errors import BatchRejected
from timestore_pipeline.model.columns import Column
from timestore_pipeline.rows.casts import LossyCast, cast_sql, plain_cast_sql, plain_condition
from timestore_pipeline.staging.stage import stage
from timestore_pipeline_tests.builders import arrow_bytes, ingest, parquet_bytes, readable
from timestore_pipeline_tests.conftest import MakeStore

INTEGER_BITS = {"TINYINT": 8, "SMALLINT": 16, "INTEGER": 32, "BIGINT": 64}


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def cast(connection: duckdb.DuckDBPyConnection, value_sql: str, source: str, target: str) -> Any:
    """The value that arrives, or None where it is refused."""
    expression = cast_sql(Column("v", target), source)
    values = f"SELECT CAST(value AS {source}) AS v FROM (SELECT unnest([{value_sql}, {value_sql}]) AS value)"
    try:
        # Two rows: a constant would be computed by other code.
        rows = connection.execute(f"SELECT {expression} FROM ({values})").fetchall()
    except (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException):
        return None
    return rows[0][0]


def number_texts() -> st.SearchStrategy[str]:
    digits = st.text("0123456789", min_size=1, max_size=22)
    return st.builds(
        lambda sign, whole, part, exponent: sign + whole + part + exponent,
        st.sampled_from(["", "-", "+"]),
        digits,
        st.one_of(st.just(""), digits.map(lambda text: "." + text), st.sampled_from([".0", ".50", ".000"])),
        st.one_of(st.just(""), st.integers(-25, 25).map(lambda power: f"e{power}")),
    )


@given(number_texts(), st.sampled_from(["DECIMAL(4,2)", "DECIMAL(18,6)", "DECIMAL(38,0)", "DECIMAL(38,10)"]))
@example("1.005", "DECIMAL(4,2)")
@example("1e-3", "DECIMAL(4,2)")
@example("1.50e-1", "DECIMAL(4,2)")
def test_a_text_becomes_the_decimal_that_it_says_or_is_refused(
    connection: duckdb.DuckDBPyConnection, text: str, type_: str
):
    kept = cast(connection, literal(text), "VARCHAR", type_)

    scale = int(type_.partition(",")[2].rstrip(")"))
    digits = int(type_.partition("(")[2].partition(",")[0])
    with localcontext(prec=100):
        value = Decimal(text)
        fits = value == value.quantize(Decimal(1).scaleb(-scale)) and abs(value) < 10 ** (digits - scale)
        if kept is not None:
            assert kept == value
        elif "e" not in text:
            assert not fits


@given(
    st.one_of(number_texts(), st.text(" _+-.0123456789eEinfINFaA", max_size=8), st.sampled_from(["", "true", "f"])),
    st.sampled_from([*INTEGER_BITS, "FLOAT", "DOUBLE", "DECIMAL(4,2)", "DECIMAL(38,0)", "BOOLEAN"]),
)
@example("1.5", "BIGINT")
@example("1e-3", "BIGINT")
@example("9007199254740993", "DOUBLE")
@example("16777217", "FLOAT")
@example("1e400", "DOUBLE")
@example("nan", "DOUBLE")
@example("1.005", "DECIMAL(4,2)")
@example("1.50e-1", "DECIMAL(4,2)")
def test_a_plain_text_is_cast_in_short_to_the_same_value(connection: duckdb.DuckDBPyConnection, text: str, type_: str):
    column = Column("v", type_)
    condition = plain_condition([column]) or "true"
    values = f"(SELECT unnest([{literal(text)}, NULL]) AS v)"
    try:
        (kept, is_plain), of_null = connection.execute(
            f"SELECT {plain_cast_sql(column)}, ({condition}) IS NOT false FROM {values}"
        ).fetchall()
    except duckdb.Error:
        return  # then the exact cast is asked

    assert of_null == (None, True)
    if is_plain:
        (exactly,), _ = connection.execute(f"SELECT {cast_sql(column, 'VARCHAR')} FROM {values}").fetchall()
        assert exactly == kept


@given(number_texts(), st.sampled_from(list(INTEGER_BITS)))
@example("1.5", "BIGINT")
@example("15e-1", "BIGINT")
def test_a_text_becomes_the_whole_number_that_it_says_or_is_refused(
    connection: duckdb.DuckDBPyConnection, text: str, type_: str
):
    kept = cast(connection, literal(text), "VARCHAR", type_)

    with localcontext(prec=100):
        assert kept is None or kept == Decimal(text)


@given(number_texts(), st.sampled_from(["FLOAT", "DOUBLE"]))
@example("9007199254740993", "DOUBLE")
@example("16777217", "FLOAT")
@example("1e400", "DOUBLE")
@example("1" * 60, "DOUBLE")
def test_a_text_becomes_the_nearest_float_and_a_whole_number_no_other(
    connection: duckdb.DuckDBPyConnection, text: str, type_: str
):
    kept = cast(connection, literal(text), "VARCHAR", type_)

    with np.errstate(over="ignore"):
        nearest = float(np.float32(text)) if type_ == "FLOAT" else float(text)
    with localcontext(prec=100):
        exact = Decimal(nearest) == Decimal(text) if math.isfinite(nearest) else False
    is_whole = "." not in text and "e" not in text
    if kept is None:
        assert not exact
    else:
        assert math.isfinite(kept)
        assert kept == nearest
        assert exact or not is_whole


@given(
    st.sampled_from([*INTEGER_BITS, "UBIGINT", "HUGEINT"]).flatmap(
        lambda type_: st.tuples(
            st.just(type_),
            st.integers(-(1 << (INTEGER_BITS.get(type_, 127) - 1)), (1 << (INTEGER_BITS.get(type_, 127) - 1)) - 1)
            if type_ != "UBIGINT"
            else st.integers(0, (1 << 64) - 1),
        )
    ),
    st.sampled_from(["FLOAT", "DOUBLE", "BOOLEAN", "DECIMAL(10,2)", "DECIMAL(38,0)", *INTEGER_BITS]),
)
@example(("BIGINT", (1 << 53) + 1), "DOUBLE")
@example(("BIGINT", (1 << 63) - 1), "DOUBLE")
@example(("INTEGER", (1 << 24) + 1), "FLOAT")
@example(("INTEGER", 2), "BOOLEAN")
def test_a_whole_number_arrives_as_itself_or_is_refused(
    connection: duckdb.DuckDBPyConnection, number: tuple[str, int], target: str
):
    source, value = number

    kept = cast(connection, str(value), source, target)

    assert kept is None or int(kept) == value
    if target == "DOUBLE" and abs(value) <= 1 << 53:
        assert kept == value


@given(
    st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["FLOAT", "DECIMAL(18,6)", "BOOLEAN", "VARCHAR"])
)
@example(0.1, "FLOAT")
@example(1.0000005, "DECIMAL(18,6)")
@example(0.5, "BOOLEAN")
def test_a_double_comes_back_as_it_was_or_is_refused(connection: duckdb.DuckDBPyConnection, value: float, target: str):
    kept = cast(connection, f"'{value!r}'::DOUBLE", "DOUBLE", target)

    assert kept is None or float(kept) == value
    with np.errstate(over="ignore"):
        is_float = float(np.float32(value)) == value
    if target == "FLOAT" and is_float:
        assert kept == value


@given(
    st.decimals(-(10**20), 10**20, allow_nan=False, places=10),
    st.sampled_from(["DOUBLE", "FLOAT", "DECIMAL(38,2)", "DECIMAL(10,2)", "DECIMAL(38,17)"]),
)
@example(Decimal("123456789.1234567891"), "DOUBLE")
@example(Decimal("1.005"), "DECIMAL(38,2)")
@example(Decimal("0.1"), "DOUBLE")
def test_a_decimal_keeps_its_digits_or_is_refused(connection: duckdb.DuckDBPyConnection, value: Decimal, target: str):
    kept = cast(connection, f"'{value}'", "DECIMAL(38,10)", target)

    assert kept is None or Decimal(str(kept) if target != "FLOAT" else str(np.float32(kept))) == value


@pytest.mark.parametrize(
    ("text", "target", "kept"),
    [
        ("2026-01-01T10:00:00+02:00", "TIMESTAMP", datetime.fromisoformat("2026-01-01T08:00:00")),
        ("2026-01-01T10:00:00+02:00", "TIMESTAMP WITH TIME ZONE", datetime(2026, 1, 1, 8, tzinfo=UTC)),
        ("2026-01-01 10:00", "TIMESTAMP", datetime.fromisoformat("2026-01-01T10:00:00")),
        ("2026-01-01", "DATE", date(2026, 1, 1)),
        ("2026-01-01T00:00:00Z", "DATE", date(2026, 1, 1)),
        ("2026-01-01T10:00:00", "DATE", None),
        ("2026-01-01T00:00:00+02:00", "DATE", None),
        ("2", "BOOLEAN", None),
        ("true", "BOOLEAN", True),
    ],
)
def test_a_text_keeps_its_time_and_offset(connection: duckdb.DuckDBPyConnection, text: str, target: str, kept: object):
    found = cast(connection, literal(text), "VARCHAR", target)

    assert found == kept


@pytest.mark.parametrize("nanos", [1_767_225_600_123_456_789, -1, -999, -1_000, -1_001])
def test_nanoseconds_are_cut_and_never_rounded_up(connection: duckdb.DuckDBPyConnection, nanos: int):
    kept = cast(connection, f"make_timestamp_ns({nanos})", "TIMESTAMP_NS", "TIMESTAMP")

    assert np.datetime64(kept, "us").astype(np.int64) == nanos // 1_000


@pytest.mark.parametrize(
    ("source", "target"), [("TIMESTAMP", "DATE"), ("DOUBLE", "BIGINT"), ("DECIMAL(4,2)", "BIGINT")]
)
def test_types_that_cannot_but_lose_are_refused_whatever_the_values(source: str, target: str):
    with pytest.raises(LossyCast, match="would lose digits"):
        cast_sql(Column("v", target), source)


MONEY = """
datasets:
  money:
    columns: {ts: timestamptz, price: "decimal(10,2)", size: double, day: date, paid: boolean}
    time: ts
    window: day
"""
GOOD = {"price": "1.50", "size": "9007199254740992", "day": "2026-01-01", "paid": "true"}
LOSSY = [("price", "1.005"), ("size", "9007199254740993"), ("day", "2026-01-01T10:00:00"), ("paid", "2")]


def row(number: int, **values: str) -> dict[str, str]:
    return {"ts": f"2026-01-01T00:00:{number:02}Z", **GOOD, **values}


def as_csv(rows: list[dict[str, str]]) -> bytes:
    return "".join(",".join(line) + "\n" for line in [list(rows[0]), *(list(each.values()) for each in rows)]).encode()


def as_json(rows: list[dict[str, str]]) -> bytes:
    numbers = ("price", "size", "paid")
    lines = (
        ", ".join(f'"{name}": ' + (value if name in numbers else f'"{value}"') for name, value in each.items())
        for each in rows
    )
    return "".join(f"{{{line}}}\n" for line in lines).encode()


def as_table(rows: list[dict[str, str]]) -> pa.Table:
    return pa.Table.from_pylist(rows)


FORMATS = {
    "csv": as_csv,
    "jsonl": as_json,
    "parquet": lambda rows: parquet_bytes(as_table(rows)),
    "arrow": lambda rows: arrow_bytes(as_table(rows)),
}


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(("column", "value"), LOSSY)
def test_a_file_with_a_value_that_would_lose_something_is_quarantined_and_the_value_named(
    make_store: MakeStore, drop, ending: str, column: str, value: str
):
    store = make_store(MONEY)
    drop(store, "money", f"bad.{ending}", FORMATS[ending]([row(1), row(2, **{column: value})]))
    drop(store, "money", f"good.{ending}", FORMATS[ending]([row(3)]))

    report = ingest(store)["money"]

    assert [receipt.source for receipt in report.staged] == [f"good.{ending}"]
    (entry,) = report.quarantined
    assert f"column '{column}'" in entry.reason
    assert value in entry.reason
    (kept,) = readable(store, "money")
    assert kept[1:] == (Decimal("1.50"), 9007199254740992.0, date(2026, 1, 1), True)


def test_a_table_with_a_value_that_would_lose_something_is_refused(make_store: MakeStore):
    store = make_store(MONEY)
    exact = {"price": Decimal("1.50"), "size": 1 << 53, "day": date(2026, 1, 1), "paid": True}
    rows = [{"ts": datetime(2026, 1, 1, tzinfo=UTC), **exact}, {"ts": datetime(2026, 1, 1, 1, tzinfo=UTC), **exact}]
    rows[1]["size"] = (1 << 53) + 1

    with pytest.raises(BatchRejected, match="column 'size' is kept as DOUBLE, and cannot hold 9007199254740993"):
        stage(store, "money", pa.Table.from_pylist(rows))
    assert readable(store, "money") == []

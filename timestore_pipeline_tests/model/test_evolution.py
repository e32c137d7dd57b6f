"""How columns may change, decided without a row: what is a growth, and what is none."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.evolution import MAX_COLUMNS, changes, declared_growth, grown, widened, wider_type

TYPES = (
    "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "FLOAT", "DOUBLE", "VARCHAR", "BLOB", "DATE", "TIMESTAMP",
    "TIMESTAMP WITH TIME ZONE", "DECIMAL(6,2)", "DECIMAL(5,4)", "DECIMAL(18,0)", "DECIMAL(38,2)", "DECIMAL(38,38)",
)  # fmt: skip
types = st.sampled_from(TYPES)
# Of each type the values that a narrower one could not hold.
EXTREMES = {
    "TINYINT": ("-128", "127"), "SMALLINT": ("-32768", "32767"), "INTEGER": ("-2147483648", "2147483647"),
    "FLOAT": ("3.4028235e38", "1e-45", "'nan'", "'-infinity'"), "DATE": ("'0001-01-01'", "'9999-12-31'"),
    "DECIMAL(6,2)": ("9999.99", "-0.01"), "DECIMAL(5,4)": ("9.9999", "-0.0001"), "DECIMAL(18,0)": ("9" * 18,),
}  # fmt: skip


def columns(**types: str) -> tuple[Column, ...]:
    return tuple(Column(name, type_) for name, type_ in types.items())


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("TINYINT", "BIGINT", "BIGINT"),
        ("INTEGER", "SMALLINT", "INTEGER"),
        ("FLOAT", "DOUBLE", "DOUBLE"),
        ("DATE", "TIMESTAMP", "TIMESTAMP"),
        ("DECIMAL(6,2)", "DECIMAL(12,4)", "DECIMAL(12,4)"),
        ("DECIMAL(6,2)", "DECIMAL(5,4)", "DECIMAL(8,4)"),
        ("DECIMAL(38,2)", "DECIMAL(38,38)", None),
        ("INTEGER", "DOUBLE", None),
        ("BIGINT", "DECIMAL(20,0)", None),
        ("DATE", "TIMESTAMP WITH TIME ZONE", None),
        ("TIMESTAMP", "TIMESTAMP WITH TIME ZONE", None),
        ("VARCHAR", "INTEGER", None),
        ("BOOLEAN", "TINYINT", None),
    ],
)
def test_the_wider_type(one: str, other: str, both: str | None):
    assert wider_type(one, other) == both


@given(types, types, types)
def test_widening_has_an_order(one: str, other: str, third: str):
    both = wider_type(one, other)
    assert both == wider_type(other, one)
    assert wider_type(one, one) == one
    if both is not None:
        assert wider_type(both, one) == both
        all_three = wider_type(both, third)
        if all_three is not None:
            assert wider_type(one, third) is not None


@pytest.mark.parametrize("narrow", EXTREMES)
@pytest.mark.parametrize("found", TYPES)
def test_a_wider_type_has_every_value(narrow: str, found: str):
    wide = wider_type(narrow, found)
    if wide is None:
        return
    connection = duckdb.connect()
    for value in EXTREMES[narrow]:
        same = f"SELECT CAST(CAST(CAST({value} AS {narrow}) AS {wide}) AS {narrow}) IS NOT DISTINCT FROM "
        assert connection.execute(f"{same} CAST({value} AS {narrow})").fetchall() == [(True,)]


def test_new_columns_stand_at_the_end_and_known_ones_keep_their_place():
    had = columns(ts="TIMESTAMP", n="INTEGER")

    later = grown(had, columns(gust="DOUBLE", n="BIGINT", ts="VARCHAR"))

    assert later == columns(ts="TIMESTAMP", n="BIGINT", gust="DOUBLE")
    assert changes(had, later) == ("widened n: INTEGER to BIGINT", "added gust DOUBLE")
    assert widened(had, later) == {"n"}


def test_a_name_that_differs_only_in_case_is_no_new_column():
    with pytest.raises(ValueError, match=r"'Temp' is called as 'temp'"):
        grown(columns(temp="DOUBLE"), columns(Temp="DOUBLE"))
    with pytest.raises(ValueError, match="'B'"):
        grown(columns(temp="DOUBLE"), columns(b="DOUBLE", B="DOUBLE"))


def test_a_producer_that_puts_data_into_names_does_not_make_columns_without_end():
    names = (f"c{number}" for number in range(MAX_COLUMNS + 1))
    with pytest.raises(ValueError, match="1000 are the most"):
        grown(columns(ts="TIMESTAMP"), [Column(name, "DOUBLE") for name in names])


HISTORY = (
    columns(ts="TIMESTAMP", n="INTEGER"),
    columns(ts="TIMESTAMP", n="INTEGER", gust="FLOAT"),
    columns(ts="TIMESTAMP", n="BIGINT", gust="FLOAT"),
)


@pytest.mark.parametrize(
    ("declared", "becomes"),
    [
        ({"ts": "TIMESTAMP", "n": "INTEGER"}, HISTORY[-1]),
        ({"ts": "TIMESTAMP", "n": "BIGINT", "gust": "FLOAT"}, HISTORY[-1]),
        ({"ts": "TIMESTAMP", "n": "BIGINT", "new": "DATE"}, (*HISTORY[-1], Column("new", "DATE"))),
        ({"ts": "TIMESTAMP", "n": "BIGINT", "gust": "DOUBLE"}, columns(ts="TIMESTAMP", n="BIGINT", gust="DOUBLE")),
        ({"ts": "TIMESTAMP", "n": "SMALLINT"}, None),
        ({"ts": "TIMESTAMP", "n": "VARCHAR"}, None),
        ({"ts": "TIMESTAMP", "gust": "FLOAT"}, None),
        ({"ts": "TIMESTAMP", "n": "BIGINT", "Gust": "FLOAT"}, None),
    ],
)
def test_a_declaration_may_lag_behind_or_be_ahead_but_contradict_nothing(declared, becomes):
    assert declared_growth(HISTORY, columns(**declared)) == becomes

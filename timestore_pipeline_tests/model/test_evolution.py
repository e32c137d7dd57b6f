"""How columns may change, decided without a row: what is a growth, and what is none."""

from __future__ import annotations

from itertools import permutations

import pytest

from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.evolution import MAX_COLUMNS, changes, declared_growth, grown, oldest_first, widened


def columns(**types: str) -> tuple[Column, ...]:
    return tuple(Column(name, type_) for name, type_ in types.items())


def test_new_columns_stand_at_the_end_and_known_ones_keep_their_place():
    had = columns(ts="TIMESTAMP", n="INTEGER")

    later = grown(had, columns(gust="DOUBLE", n="BIGINT", ts="VARCHAR"))

    assert later == columns(ts="TIMESTAMP", n="BIGINT", gust="DOUBLE")
    assert changes(had, later) == ("widened n: INTEGER to BIGINT", "added gust DOUBLE")
    assert widened(had, later) == {"n"}


def test_versions_say_themselves_in_which_order_they_came():
    history = [
        columns(ts="TIMESTAMP", n="SMALLINT"),
        columns(ts="TIMESTAMP", n="INTEGER"),
        columns(ts="TIMESTAMP", n="INTEGER", d="DECIMAL(5,2)"),
        columns(ts="TIMESTAMP", n="BIGINT", d="DECIMAL(5,2)"),
        columns(ts="TIMESTAMP", n="BIGINT", d="DECIMAL(6,3)"),
    ]

    for versions in permutations(history):
        assert oldest_first(versions) == history


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

"""Columns: the names and types that a dataset may have, and which type is wider than which."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.model.columns import (
    RESERVED_NAMES,
    canonical_type,
    check_name,
    columns_from_mapping,
    delta_type,
    inferred_type,
    type_in_delta,
    wider_type,
)

ALLOWED = [
    "bool", "boolean", "tinyint", "smallint", "int", "integer", "bigint", "long", "real", "float", "double", "string",
    "text", "varchar", "blob", "binary", "date", "timestamp", "timestamptz", "timestamp with time zone",
    "decimal(18,3)", "numeric( 5 , 2 )",
]  # fmt: skip

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


@pytest.fixture
def connection():
    with duckdb.connect() as connection:
        yield connection


@pytest.mark.parametrize("declared", ALLOWED)
def test_an_allowed_type_is_one_of_duckdb_and_stays_what_it_is(declared: str, connection: duckdb.DuckDBPyConnection):
    canonical = canonical_type(declared)

    connection.execute(f"CREATE TABLE t (c {canonical})")
    assert connection.execute("SELECT column_type FROM (DESCRIBE t)").fetchone() == (canonical,)
    assert canonical_type(canonical) == canonical
    assert canonical_type(declared.upper()) == canonical
    assert inferred_type(canonical) == canonical


@pytest.mark.parametrize("declared", ["", "int[]", "struct(a int)", "decimal(39,0)", "decimal(3,4)", "decimal", "utf8"])
def test_another_type_is_refused_and_the_allowed_ones_are_named(declared: str):
    with pytest.raises(ValueError, match=r"types are .*bigint.*decimal\(p,s\).*timestamptz"):
        canonical_type(declared)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("255::UTINYINT", "SMALLINT"),
        ("65535::USMALLINT", "INTEGER"),
        ("4294967295::UINTEGER", "BIGINT"),
        ("18446744073709551615::UBIGINT", "DECIMAL(20,0)"),
        ("TIMESTAMP_NS '2013-01-01 00:00:00.123456'", "TIMESTAMP"),
        ("TIMESTAMP_S '2013-01-01 00:00:00'", "TIMESTAMP"),
        ("uuid()", "VARCHAR"),
        ("TIME '12:00'", "VARCHAR"),
        ("NULL", "VARCHAR"),
        ("'a'::ENUM('a', 'b')", "VARCHAR"),
    ],
)
def test_an_inferred_type_holds_the_values_that_it_was_inferred_from(
    value: str, kept: str, connection: duckdb.DuckDBPyConnection
):
    connection.execute(f"CREATE TABLE t AS SELECT {value} AS c")
    found = connection.execute("SELECT column_type FROM (DESCRIBE t)").fetchone()
    assert found is not None

    assert inferred_type(found[0]) == kept
    before = connection.execute("SELECT c::VARCHAR FROM t").fetchone()
    assert connection.execute(f"SELECT c::{kept}::VARCHAR FROM t").fetchone() == before


@pytest.mark.parametrize("value", ["[1, 2]", "{'a': 1}", "MAP {'a': 1}", "INTERVAL 1 DAY"])
def test_a_nested_type_is_refused_with_a_way_out(value: str, connection: duckdb.DuckDBPyConnection):
    found = connection.execute(f"SELECT column_type FROM (DESCRIBE SELECT {value} AS c)").fetchone()
    assert found is not None

    with pytest.raises(ValueError, match="declare the column as varchar"):
        inferred_type(found[0])


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a;b", "a{b", "a)b", "a=b", "a\nb", "a\tb", 'a"b', "x" * 256])
def test_a_name_that_a_table_cannot_have_is_refused(name: str):
    with pytest.raises(ValueError, match="is not allowed"):
        check_name(name)


@pytest.mark.parametrize("name", [name for known in sorted(RESERVED_NAMES) for name in (known, known.upper())])
def test_a_reserved_name_is_refused_in_any_case(name: str):
    with pytest.raises(ValueError, match="reserved"):
        check_name(name)


@pytest.mark.parametrize("name", ["temp", "größe", "日付", "select", "a'b", "a.b", "0", "x" * 255])
def test_other_names_are_fine(name: str):
    assert check_name(name) == name


def test_two_names_that_differ_only_in_case_are_refused():
    with pytest.raises(ValueError, match="'Temp' and 'temp' differ only in case"):
        columns_from_mapping({"Temp": "double", "temp": "double"})


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


@pytest.mark.parametrize("type_", TYPES)
def test_a_type_is_found_again_in_a_table(type_: str):
    assert type_in_delta(delta_type(type_)) == type_

"""Columns: the names and types that a dataset may have."""

from __future__ import annotations

import duckdb
import pytest

from timestore_pipeline.model.columns import (
    RESERVED_NAMES,
    canonical_type,
    check_name,
    columns_from_mapping,
    inferred_type,
)

ALLOWED = [
    "bool", "boolean", "tinyint", "smallint", "int", "integer", "bigint", "long", "real", "float", "double", "string",
    "text", "varchar", "blob", "binary", "date", "timestamp", "timestamptz", "timestamp with time zone",
    "decimal(18,3)", "numeric( 5 , 2 )",
]  # fmt: skip


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

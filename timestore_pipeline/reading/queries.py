"""Queries that only read: what a user's SQL may be, held against DuckDB's own parse of it.

DuckDB has no read-only mode for a connection that reads files, and a ``COPY … TO`` may hide in a WITH clause. So a
query is taken apart first, and everything in it must be known to read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import duckdb

from timestore_pipeline.errors import QueryError

_READING_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})

# Others read files, run SQL from a text, or reach into the process.
_TABLE_FUNCTIONS = frozenset(
    {
        "duckdb_columns", "duckdb_databases", "duckdb_functions", "duckdb_keywords", "duckdb_schemas", "duckdb_tables",
        "duckdb_types", "duckdb_views", "generate_series", "histogram", "histogram_values", "json_each", "json_tree",
        "pragma_show", "pragma_table_info", "pragma_version", "query_table", "range", "repeat", "repeat_row", "summary",
        "unnest",
    }
)  # fmt: skip

_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(?:ANALYZE\s+)?(?:\([^()]*\)\s*)?", re.IGNORECASE)


def select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """Return the relation that ``sql`` means, a SELECT or what DuckDB takes as one, or an EXPLAIN of one.

    Raises:
        QueryError: it is no SQL, or could do something else than read the datasets.
        duckdb.Error: it cannot be bound.
    """
    explained = _EXPLAIN.match(sql)
    _check(connection, sql[explained.end() :] if explained else sql)
    relation = connection.sql(sql)
    if relation is None:
        raise QueryError("the query returns no rows; use a SELECT")
    return relation


def _check(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    if "\0" in sql:
        raise QueryError("the query has a NUL character in it; remove it")
    statements = connection.extract_statements(sql)
    if not statements:
        raise QueryError("the query is empty; use a SELECT")
    if len(statements) > 1:
        raise QueryError(f"the query has {len(statements)} statements; give one at a time")
    serialized = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0]
    parsed = json.loads(serialized)
    if parsed["error"]:
        raise QueryError(
            "only queries can be run, which change nothing: a SELECT, SHOW, DESCRIBE or SUMMARIZE, or an EXPLAIN of "
            "one (a PIVOT stands in the FROM of a SELECT and names its values with IN)"
        )
    for part in json_objects(parsed):
        kind = part.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _READING_NODES:
            raise QueryError(f"only queries can be run, which change nothing; {_in_words(kind)} does more than read")
        if kind == "TABLE_FUNCTION":
            name = str(part["function"].get("function_name", ""))
            if name.lower() not in _TABLE_FUNCTIONS:
                raise QueryError(f"the function {name} cannot be used: a query reads the datasets and nothing else")


def json_objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a JSON document."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield found
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)


def _in_words(kind: str) -> str:
    return kind.removesuffix("_NODE").removesuffix("_QUERY").replace("_", " ")

"""Queries that only read: what a user's SQL may be, held against DuckDB's own parse of it.

DuckDB has no read-only mode for a connection that reads files, and a ``COPY … TO`` may hide in a WITH clause. So a
query is taken apart first, and everything in it must be known to read: a FROM the views of datasets, and no file or
database that happens to be in reach.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from shutil import disk_usage
from typing import Any

import duckdb

from timestore_pipeline.datasets import Datasets
from timestore_pipeline.duck.connections import StatementBounds
from timestore_pipeline.duck.remote_files import reason_of
from timestore_pipeline.durable_files import nearest_there
from timestore_pipeline.errors import QueryError
from timestore_pipeline.settings import Settings

_READING_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})

# Others read files, take a table's name as a text, run SQL from a text, show what is attached and under which paths, or
# reach into the process.
TABLE_FUNCTIONS = frozenset(
    {
        "duckdb_functions", "duckdb_keywords", "duckdb_types", "generate_series", "json_each", "json_tree",
        "pragma_version", "range", "repeat", "repeat_row", "summary", "unnest",
    }
)  # fmt: skip

# Of the many others none tells or changes anything that is not in the query. Macros look into the catalog, which has
# the paths of all files; settings and variables are the process's; sleep_ms hears of no deadline.
FUNCTIONS_REFUSED = frozenset(
    {
        "current_setting", "currval", "get_block_size", "getenv", "getvariable", "nextval", "pg_get_constraintdef",
        "pg_get_viewdef", "setval", "sleep_ms", "write_log",
    }
)  # fmt: skip

_OWN_CATALOGS, _OWN_SCHEMAS = frozenset({"", "memory"}), frozenset({"", "main"})
_RECURRING = "recurring"

# What no deadline or bound of ours would say in words that help.
_TOO_LONG = "exceeded maximum execution time"
_SPILLS_TOO_MUCH = "max_temp_directory_size"
_REFUSED_BY_THE_SYSTEM = ("bad allocation", "Allocation failure")

_MOST_NAMED = 20

_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(?:ANALYZE\s+)?(?:\([^()]*\)\s*)?", re.IGNORECASE)


def query_bounds(settings: Settings) -> StatementBounds:
    """Return what a query may take: time, and disk to spill to, so that enough is left for staging.

    It is half of what is free beyond the minimum, as another query may begin before this one has spilled anything.
    The folder to spill to need not be there: where the disk is not mounted that has it, what is read says so.
    """
    beyond = disk_usage(nearest_there(settings.temp_path)).free - settings.staging_min_free_disk_bytes
    spill = max(0, beyond // 2)
    if settings.query_max_spill_bytes:
        spill = min(spill, settings.query_max_spill_bytes)
    return StatementBounds(settings.query_max_seconds, spill)


def unfinished(error: Exception, settings: Settings) -> QueryError:
    """Return the error for a query that DuckDB, or Arrow while it fetched rows, could not finish."""
    reason = reason_of(error).strip()
    if _TOO_LONG in reason:
        return QueryError(
            f"the query took longer than {settings.query_max_seconds:g} s. Ask for less at a time, or raise "
            "TIMESTORE_QUERY_MAX_SECONDS"
        )
    if _SPILLS_TOO_MUCH in reason:
        return QueryError(
            f"the query needs more memory than TIMESTORE_DUCKDB_MEMORY_LIMIT ({settings.duckdb_memory_limit}) and more "
            f"disk in {settings.temp_path} than it may use (TIMESTORE_QUERY_MAX_SPILL_BYTES, and half of what is free "
            "beyond TIMESTORE_STAGING_MIN_FREE_DISK_BYTES). Ask for less at a time, free some space, or raise them"
        )
    if any(words in reason for words in _REFUSED_BY_THE_SYSTEM):
        return QueryError(
            "the query needs more memory than its process may have: one of its functions makes too large a value. Ask "
            "for less at a time; for 'timestore sql' TIMESTORE_DUCKDB_MEMORY_LIMIT "
            f"({settings.duckdb_memory_limit}) says how much that is"
        )
    return QueryError(reason)


def select(connection: duckdb.DuckDBPyConnection, sql: str, datasets: Datasets) -> duckdb.DuckDBPyRelation:
    """Return the relation that ``sql`` means, a SELECT or what DuckDB takes as one, or an EXPLAIN of one.

    Args:
        connection: one that has the views of datasets.
        sql: the query, of whoever.
        datasets: those that a FROM may name, besides what the query itself names in its WITH clauses.

    Raises:
        TimestoreError: it reads a dataset that is refused; says why that is.
        QueryError: it is no SQL, or could do something else than read the datasets.
        duckdb.Error: it cannot be bound.
    """
    explained = _EXPLAIN.match(sql)
    _check(connection, sql[explained.end() :] if explained else sql, datasets)
    relation = connection.sql(sql)
    if relation is None:
        raise QueryError("the query returns no rows; use a SELECT")
    return relation


def _check(connection: duckdb.DuckDBPyConnection, sql: str, datasets: Datasets) -> None:
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
    parts = list(json_objects(parsed))
    for part in parts:
        kind = part.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _READING_NODES:
            raise QueryError(f"only queries can be run, which change nothing; {_in_words(kind)} does more than read")
        if kind == "TABLE_FUNCTION":
            _check_function(part["function"], wanted=TABLE_FUNCTIONS)
        elif part.get("class") == "FUNCTION":
            _check_function(part, refused=FUNCTIONS_REFUSED)
    own = {name.lower() for part in parts for name in _names_given(part)}
    for part in parts:
        if part.get("type") == "BASE_TABLE":
            _check_table(part, own, datasets)
        elif part.get("type") == "SHOW_REF" and not (part["query"] or _shows_tables(part)):
            raise QueryError("only the datasets are shown: SHOW TABLES, DESCRIBE or SUMMARIZE of one")


def _check_function(
    function: dict[str, Any], *, wanted: Collection[str] | None = None, refused: Collection[str] = ()
) -> None:
    name = str(function.get("function_name", ""))
    if name.lower() in refused or (wanted is not None and name.lower() not in wanted):
        raise QueryError(f"the function {name} cannot be used: a query reads the datasets and nothing else")


def _check_table(table: dict[str, Any], own: Collection[str], datasets: Datasets) -> None:
    """Let only names of views through: DuckDB takes others for files, attached segments, or its catalog."""
    name, schema, catalog = (str(table[key]).lower() for key in ("table_name", "schema_name", "catalog_name"))
    if name in own and not catalog and schema in ("", _RECURRING):
        return
    if name not in datasets.declared or schema not in _OWN_SCHEMAS or catalog not in _OWN_CATALOGS:
        full = ".".join(str(table[key]) for key in ("catalog_name", "schema_name", "table_name") if table[key])
        known = ", ".join(sorted(datasets)[:_MOST_NAMED]) or "none"
        raise QueryError(f"the query reads {full!r}, which is no dataset; datasets are {known}")
    datasets[name]  # One that is refused has no view, and asking for it raises why.


def _names_given(part: dict[str, Any]) -> Iterator[str]:
    """Yield the names that a node's WITH clause gives.

    Raises:
        QueryError: one could be a file's: where it is not in scope, DuckDB would look for the file.
    """
    ctes = part.get("cte_map")
    for each in ctes.get("map", ()) if isinstance(ctes, dict) else ():
        name = str(each["key"])
        if not re.fullmatch(r"[\w$ -]+", name):
            raise QueryError(f"a WITH clause cannot give the name {name!r}; take one of letters, digits and _")
        yield name


def _shows_tables(part: dict[str, Any]) -> bool:
    return part["show_type"] == "SHOW_SPECIAL" and str(part["table_name"]).strip('"') == "tables"


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

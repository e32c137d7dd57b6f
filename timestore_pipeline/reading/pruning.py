"""Which files and slices a query can have rows of: found from its WHERE clauses and the bounds of each.

A clause is turned into one over bounds, ``ts >= x`` into ``max(ts) >= x``, and DuckDB evaluates it with its own types
and casts. Whatever is not understood counts as unknown, and what is unknown is read: a mistake here may cost time,
never a row.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from timestore_pipeline.duck.sql import quote
from timestore_pipeline.model.columns import Column, Kind, kind_of
from timestore_pipeline.reading.queries import json_objects

LOW, HIGH = "min.", "max."
"""Prefixes of the names under which bounds stand in a table of statistics, as delta-rs has them."""

_FLIPPED = {
    "COMPARE_EQUAL": "COMPARE_EQUAL",
    "COMPARE_LESSTHAN": "COMPARE_GREATERTHAN",
    "COMPARE_LESSTHANOREQUALTO": "COMPARE_GREATERTHANOREQUALTO",
    "COMPARE_GREATERTHAN": "COMPARE_LESSTHAN",
    "COMPARE_GREATERTHANOREQUALTO": "COMPARE_LESSTHANOREQUALTO",
}
_LOWER_BOUNDS = ("COMPARE_GREATERTHAN", "COMPARE_GREATERTHANOREQUALTO")
# Functions that give the same for the same constants, now and when the query runs.
_PURE = frozenset(
    {
        "+", "-", "*", "/", "trunc", "date_trunc", "epoch_ms", "make_date", "make_timestamp", "make_timestamptz",
        "to_timestamp", "to_microseconds", "to_milliseconds", "to_seconds", "to_minutes", "to_hours", "to_days",
        "to_weeks", "to_months", "to_quarters", "to_years", "strptime",
    }
)  # fmt: skip
_FLOAT_SLACK = 1e-6
_NOW = frozenset({"now", "get_current_timestamp", "current_timestamp", "transaction_timestamp"})
_BOTH_SIDES = frozenset({"INNER"})
_LEFT_SIDE = frozenset({"LEFT", "SEMI", "ANTI"})


@dataclass(frozen=True)
class Pruning:
    """For each dataset that a query restricts, SQL over its columns' bounds: false where no row can be asked for.

    A dataset that is not in it is read whole.
    """

    conditions: Mapping[str, str]

    def surviving(
        self,
        connection: duckdb.DuckDBPyConnection,
        dataset: str,
        columns: Sequence[Column],
        statistics: Sequence[pa.Table],
    ) -> list[list[int]] | None:
        """Return for each table of ``statistics`` the numbers of the rows that must be read, None for all of all.

        A table has a row per file or slice and, as far as they are known, columns ``min.<name>`` and ``max.<name>``.
        """
        condition = self.conditions.get(dataset)
        if condition is None:
            return None
        found: list[list[int]] = [[] for _ in statistics]
        tables = {f"_statistics_{part}": (part, table) for part, table in enumerate(statistics) if table.num_rows}
        if not tables:
            return found
        # One statement over all tables, and of the bounds that count only: it costs more to plan than to run.
        selects = " UNION ALL ".join(
            f"SELECT {part} AS part, row_number() OVER () - 1 AS number"
            f"{_bounds(condition, columns, table.column_names)} FROM {name}"
            for name, (part, table) in tables.items()
        )
        for name, (_, table) in tables.items():
            connection.register(name, table)
        try:
            rows = connection.execute(
                f"SELECT part, number FROM ({selects}) WHERE ({condition}) IS DISTINCT FROM false ORDER BY part, number"
            ).fetchall()
        except duckdb.Error:
            return None  # the query itself says better what is wrong with it, if anything is
        finally:
            for name in tables:
                connection.unregister(name)
        for part, number in rows:
            found[part].append(number)
        return found


READ_ALL = Pruning({})
"""Nothing is left out."""


def prune(connection: duckdb.DuckDBPyConnection, sql: str, columns: Mapping[str, Sequence[Column]]) -> Pruning:
    """Return what ``sql``, one SELECT, leaves out of each dataset.

    Args:
        connection: any; nothing is read from it.
        sql: the query.
        columns: dataset → the columns whose bounds may be held against it.
    """
    try:
        parsed = json.loads(connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0])
        if parsed["error"] or not _is_plain(parsed):
            return READ_ALL
        restricted: dict[int, list[dict[str, Any]]] = {}
        for node in json_objects(parsed):
            if node.get("type") == "SELECT_NODE":
                _restrict(node, columns, restricted)
        conditions: dict[str, list[Any]] = {}
        for table in _tables(parsed, columns):
            conditions.setdefault(_name(table), []).append(restricted.get(id(table)))
        return Pruning(
            {
                dataset: _deparsed(connection, parsed, _conjunction("CONJUNCTION_OR", each))
                for dataset, each in conditions.items()
                if all(each)
            }
        )
    except (duckdb.Error, LookupError, TypeError, AttributeError):
        return READ_ALL  # a shape of query that this version of DuckDB describes in other words


def _bounds(condition: str, columns: Sequence[Column], known: Sequence[str]) -> str:
    names = ((prefix + column.name, column.type) for column in columns for prefix in (LOW, HIGH))
    return "".join(f", {_bound(name, type_, known)}" for name, type_ in names if quote(name) in condition)


def _bound(name: str, type_: str, known: Sequence[str]) -> str:
    value = f"TRY_CAST({quote(name)} AS {type_})" if name in known else f"CAST(NULL AS {type_})"
    if kind_of(type_) is Kind.FLOATING:
        # The bound of a column that was FLOAT when the file was written is a decimal text, a little off the value.
        value += f" {'-' if name.startswith(LOW) else '+'} abs({value}) * {_FLOAT_SLACK}"
    return f"{value} AS {quote(name)}"


def _is_plain(parsed: dict[str, Any]) -> bool:
    """Whether a dataset can only be read under its own name, in a FROM."""
    for node in json_objects(parsed):
        if node.get("type") in ("SHOW_REF", "PIVOT"):
            return False
        if node.get("type") == "TABLE_FUNCTION" and str(node["function"]["function_name"]).startswith("query"):
            return False
    return True


def _restrict(
    node: dict[str, Any], columns: Mapping[str, Sequence[Column]], restricted: dict[int, list[dict[str, Any]]]
) -> None:
    """Note what the WHERE clause of one SELECT asks of the datasets in its FROM."""
    where = node.get("where_clause")
    if not where:
        return
    aliases = {str(item.get("alias", "")).lower() for item in node["select_list"]} - {""}
    for table in _restricted_by_where(node["from_table"]):
        known = columns.get(_name(table), ())
        if not known or table.get("sample") or table.get("column_name_alias") or table.get("at_clause"):
            continue
        # Without the name of a table in front, one that the SELECT list gives away may be meant.
        names = {column.name.lower(): column.name for column in known}
        scope = _Names(names, str(table.get("alias") or table["table_name"]).lower(), frozenset(aliases))
        condition = _over_bounds(where, scope)
        if condition is not None:
            restricted.setdefault(id(table), []).append(condition)


@dataclass(frozen=True)
class _Names:
    """What the names in a WHERE clause mean: columns by their names in lower case, of a table of some name."""

    columns: Mapping[str, str]
    table: str
    taken: frozenset[str]

    def column(self, expression: dict[str, Any]) -> str | None:
        """The column of the table that an expression is, if it is one."""
        if expression.get("class") != "COLUMN_REF":
            return None
        path = [part.lower() for part in expression["column_names"]]
        if len(path) == 2 and path[0] == self.table:
            return self.columns.get(path[1])
        return self.columns.get(path[0]) if len(path) == 1 and path[0] not in self.taken else None


def _restricted_by_where(from_table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the tables of a FROM whose rows all pass its WHERE clause under their own values."""
    if from_table["type"] == "BASE_TABLE":
        yield from_table
    elif from_table["type"] == "JOIN" and from_table["ref_type"] in ("REGULAR", "CROSS", "NATURAL"):
        kind = "INNER" if from_table["ref_type"] == "CROSS" else from_table["join_type"]
        if kind in _BOTH_SIDES | _LEFT_SIDE:
            yield from _restricted_by_where(from_table["left"])
        if kind in _BOTH_SIDES:
            yield from _restricted_by_where(from_table["right"])


def _over_bounds(expression: dict[str, Any], scope: _Names) -> dict[str, Any] | None:
    """Return the expression over bounds that is false wherever ``expression`` holds for no row, None if unknown."""
    kind = expression.get("type")
    if kind in ("CONJUNCTION_AND", "CONJUNCTION_OR"):
        parts = [_over_bounds(child, scope) for child in expression["children"]]
        if kind == "CONJUNCTION_OR" and None in parts:
            return None
        known = [part for part in parts if part is not None]
        return _conjunction(kind, known) if known else None
    if kind in _FLIPPED:
        left, right = expression["left"], expression["right"]
        column = scope.column(left)
        if column is None:
            column, right, kind = scope.column(right), left, _FLIPPED[kind]
        return None if column is None else _compared(kind, column, right)
    if kind == "COMPARE_BETWEEN":
        column = scope.column(expression["input"])
        if column is None:
            return None
        parts = [
            _compared("COMPARE_GREATERTHANOREQUALTO", column, expression["lower"]),
            _compared("COMPARE_LESSTHANOREQUALTO", column, expression["upper"]),
        ]
        known = [part for part in parts if part is not None]
        return _conjunction("CONJUNCTION_AND", known) if known else None
    if kind == "COMPARE_IN":
        column = scope.column(expression["children"][0])
        parts = [_compared("COMPARE_EQUAL", column, value) for value in expression["children"][1:] if column]
        return _conjunction("CONJUNCTION_OR", parts) if parts and None not in parts else None
    return None


def _compared(kind: str, column: str, value: dict[str, Any]) -> dict[str, Any] | None:
    if not (_is_constant(value) or (kind in _LOWER_BOUNDS and _is_moment(value))):
        return None
    if kind == "COMPARE_EQUAL":
        sides = [
            _comparison("COMPARE_LESSTHANOREQUALTO", LOW + column, value),
            _comparison("COMPARE_GREATERTHANOREQUALTO", HIGH + column, value),
        ]
        return _conjunction("CONJUNCTION_AND", sides)
    return _comparison(kind, (HIGH if kind in _LOWER_BOUNDS else LOW) + column, value)


def _is_constant(expression: dict[str, Any]) -> bool:
    match expression.get("class"):
        case "CONSTANT":
            return True
        case "CAST":
            return _is_constant(expression["child"])
        case "FUNCTION":
            arguments = [argument["expression"] for argument in expression["arguments"]]
            return expression["function_name"] in _PURE and all(map(_is_constant, arguments))
    return False


def _is_moment(expression: dict[str, Any]) -> bool:
    """Whether the expression is a time that is now or so far from now, so that it is never earlier when asked later."""
    if expression.get("class") == "CAST":
        return _is_moment(expression["child"])
    if expression.get("class") == "COLUMN_REF":
        return [name.lower() for name in expression["column_names"]] == ["current_timestamp"]
    if expression.get("class") != "FUNCTION":
        return False
    arguments = [argument["expression"] for argument in expression["arguments"]]
    if expression["function_name"] in _NOW:
        return True
    if expression["function_name"] in ("+", "-") and len(arguments) == 2:
        return _is_moment(arguments[0]) and _is_constant(arguments[1])
    return (
        expression["function_name"] == "date_trunc"
        and len(arguments) == 2
        and _is_constant(arguments[0])
        and _is_moment(arguments[1])
    )


def _comparison(kind: str, bound: str, value: dict[str, Any]) -> dict[str, Any]:
    reference = {**_PLACE, "class": "COLUMN_REF", "type": "COLUMN_REF", "column_names": [bound]}
    return {**_PLACE, "class": "COMPARISON", "type": kind, "left": reference, "right": value}


def _conjunction(kind: str, parts: Iterable[Any]) -> dict[str, Any]:
    # A list of lists where a table occurs more than once: what one occurrence asks for is all of its conditions.
    flat = [_conjunction("CONJUNCTION_AND", part) if isinstance(part, list) else part for part in parts]
    return flat[0] if len(flat) == 1 else {**_PLACE, "class": "CONJUNCTION", "type": kind, "children": flat}


_PLACE = {"alias": "", "query_location": 0, "query_location_length": 0}


def _deparsed(connection: duckdb.DuckDBPyConnection, parsed: dict[str, Any], condition: dict[str, Any]) -> str:
    """Return the SQL of a condition, by way of a SELECT that DuckDB itself described."""
    described = connection.execute("SELECT json_serialize_sql('SELECT 1')").fetchall()[0][0]
    document = json.loads(described)
    document["statements"][0]["node"]["select_list"] = [copy.deepcopy(condition)]
    sql = connection.execute("SELECT json_deserialize_sql(?)", [json.dumps(document)]).fetchall()[0][0]
    return sql.removeprefix("SELECT ").strip()


def _tables(parsed: dict[str, Any], columns: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    for node in json_objects(parsed):
        if node.get("type") == "BASE_TABLE" and _name(node) in columns:
            yield node


def _name(table: dict[str, Any]) -> str:
    return str(table["table_name"]).lower()

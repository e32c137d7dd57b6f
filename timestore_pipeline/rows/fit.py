"""Whether the columns of a batch fit the dataset, and the SQL that makes rows of the dataset of them.

A batch whose columns do not fit is refused; the reason says what is wrong column by column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import quote
from timestore_pipeline.model.columns import BATCH_COLUMN, Column
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.casts import LossyCast, cast_sql, plain_cast_sql, plain_condition, time_sql
from timestore_pipeline.rows.reasons import UnreadableFile

_UNKNOWN = "unknown columns"
_MOST_NAMED = 20


def select_rows(
    spec: DatasetSpec,
    schema: Schema,
    found: Sequence[tuple[str, str]],
    relation: str,
    ordinal: str,
    passed_over: Collection[str] = (),
) -> str:
    """Return SQL that casts ``relation``, whose columns are ``found`` (name, DuckDB type), to the dataset's columns.

    A column that may be missing is null where it is; those ``passed_over`` are not wanted.

    Raises:
        UnreadableFile: columns are missing, unknown, or of a type that would lose something: all of them are named.
    """
    casts = _casts(spec, schema, found, passed_over, _cast)
    return f"SELECT {casts}, CAST({ordinal} AS INTEGER) AS {BATCH_COLUMN} FROM {relation}"


def select_plain_rows(
    spec: DatasetSpec, schema: Schema, found: Sequence[tuple[str, str]], relation: str, condition: str
) -> str:
    """Return SQL as :func:`select_rows` does, for rows of plain text; behind the columns, whether a row is plain.

    Rows of which that is true are the same as those of :func:`select_rows`; of others nothing is known.

    Raises:
        UnreadableFile: as :func:`select_rows` raises.
    """
    types = dict(found)
    texts = [column for column in schema.columns if types.get(column.name) == "VARCHAR"]
    plain = {column: None for column in texts if column.name != spec.time.column}

    def plain_cast(spec: DatasetSpec, column: Column, source_type: str) -> str:
        return plain_cast_sql(column) if column in plain else _cast(spec, column, source_type)

    casts = _casts(spec, schema, found, (), plain_cast)
    conditions = " AND ".join(filter(None, [condition, plain_condition(plain)]))
    return f"SELECT {casts}, ({conditions}) IS NOT false FROM {relation}"


def _casts(
    spec: DatasetSpec,
    schema: Schema,
    found: Sequence[tuple[str, str]],
    passed_over: Collection[str],
    cast: Callable[[DatasetSpec, Column, str], str],
) -> str:
    types = dict(found)
    problems = wrong_names(spec, schema, [name for name, _ in found], passed_over)
    expressions = []
    for column in schema.columns:
        if column.name not in types:
            expressions.append(f"CAST(NULL AS {column.type}) AS {quote(column.name)}")
            continue
        try:
            expressions.append(f"{cast(spec, column, types[column.name])} AS {quote(column.name)}")
        except UnreadableFile as error:
            problems.append(str(error))
    if problems:
        raise WrongColumns(spec, schema.columns, problems)
    return ", ".join(expressions)


class WrongColumns(UnreadableFile):
    """The columns of a batch do not fit the dataset; says what is wrong with which, and what it has without them."""

    def __init__(self, spec: DatasetSpec, columns: Sequence[Column], problems: Sequence[str]) -> None:
        self.problems = problems
        has = ", ".join(f"{column.name} {column.type}" for column in columns) or "no columns yet"
        hint = (
            ""
            if spec.evolves or not any(problem.startswith(_UNKNOWN) for problem in problems)
            else ". To take new columns in, declare them or set evolve: true; to leave them out, landing.ignore_columns"
        )
        super().__init__(f"wrong columns; {'; '.join(problems)}. The dataset has {has}{hint}")


def wrong_names(
    spec: DatasetSpec, schema: Schema, names: Sequence[str], passed_over: Collection[str] = ()
) -> list[str]:
    """Return what is wrong with the names of a batch's columns, a phrase for each kind; empty where they fit."""
    expected = {column.name for column in schema.columns}
    known = expected.union(spec.landing.ignore_columns, passed_over)
    counts = Counter(names)
    missing = [column.name for column in schema.columns if column.name in schema.required and column.name not in counts]
    unknown = [name for name in names if name not in known]
    twice = sorted(name for name, count in counts.items() if count > 1)
    return [
        f"{label}: {', '.join(map(repr, found[:_MOST_NAMED]))}"
        for label, found in (("missing columns", missing), (_UNKNOWN, unknown), ("repeated columns", twice))
        if found
    ]


def _cast(spec: DatasetSpec, column: Column, source_type: str) -> str:
    try:
        if column.name == spec.time.column:
            return time_sql(column, spec.time, source_type)
        return cast_sql(column, source_type)
    except LossyCast as error:
        raise UnreadableFile(str(error)) from error

"""Which columns a dataset gets from its batches: those of the first one, and what later ones add or widen."""

from __future__ import annotations

from collections.abc import Sequence

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.ledger.schemas import required_columns
from timestore_pipeline.model.columns import TIME_TYPES, Column, check_name, inferred_type
from timestore_pipeline.model.evolution import Schema, grown
from timestore_pipeline.rows.fit import WrongColumns, wrong_names
from timestore_pipeline.rows.reasons import UnreadableFile


def first_schema(spec: DatasetSpec, found: Sequence[tuple[str, str]]) -> Schema:
    """Return the schema that a dataset gets whose first batch has the columns ``found`` (name, DuckDB type).

    Raises:
        UnreadableFile: a name or type cannot be kept, or the time column is missing or no time.
    """
    columns = []
    for name, type_ in found:
        if name in spec.landing.ignore_columns:
            continue
        try:
            kept = "TIMESTAMP" if _is_converted_time(spec, name) else inferred_type(type_)
            columns.append(Column(check_name(name), kept))
        except ValueError as error:
            raise UnreadableFile(f"column {name!r}: {error}") from error
    by_name = {column.name: column.type for column in columns}
    time_type = by_name.get(spec.time.column)
    if time_type is None:
        raise UnreadableFile(f"the time column {spec.time.column!r} is missing; the columns are {', '.join(by_name)}")
    if time_type not in TIME_TYPES:
        raise UnreadableFile(
            f"the time column {spec.time.column!r} has type {time_type}; "
            "set time.format (for text) or time.unit (for integers) of the dataset"
        )
    for name in spec.key.needed if spec.key else ():
        if name not in by_name:
            raise UnreadableFile(f"the key's column {name!r} is missing; the columns are {', '.join(by_name)}")
    return Schema(0, tuple(columns), required_columns(spec, columns))


def grow(
    spec: DatasetSpec, schema: Schema, names: Sequence[str], found: Sequence[tuple[str, str]]
) -> tuple[Schema, frozenset[str]]:
    """Return the schema with what a batch brings, and the new names that tell no type yet.

    ``names`` are those of all its columns, ``found`` (name, DuckDB type) those that may be new or wider. The schema is
    as it was where the dataset does not evolve; and where the batch lacks a column that it must have, as what looks new
    may be that one, renamed. A new column in which all is null is passed over until a batch has a value in it: its type
    would be a guess, and for ever.

    Raises:
        UnreadableFile: the dataset cannot have these columns.
    """
    if not spec.evolves:
        return schema, frozenset()
    brought, without_type = _brought(spec, schema, found)
    if any(name not in names for name in schema.required):
        return schema, without_type
    try:
        columns = grown(schema.columns, brought)
    except ValueError as error:
        raise WrongColumns(spec, schema.columns, [*wrong_names(spec, schema, names), str(error)]) from error
    return Schema(schema.version, columns, schema.required), without_type


def _brought(
    spec: DatasetSpec, schema: Schema, found: Sequence[tuple[str, str]]
) -> tuple[list[Column], frozenset[str]]:
    known = {column.name for column in schema.columns}
    brought, without_type = [], set()
    for name, type_ in found:
        if name in spec.landing.ignore_columns:
            continue
        if name not in known and type_.upper().strip('"') == "NULL":
            without_type.add(name)
            continue
        try:
            kept = inferred_type(type_)
            if name not in known:
                check_name(name)
        except ValueError as error:
            if name in known:
                continue  # the cast tells what is wrong with it
            raise UnreadableFile(f"column {name!r}: {error}") from error
        if not _is_converted_time(spec, name):
            brought.append(Column(name, kept))
    return brought, frozenset(without_type)


def _is_converted_time(spec: DatasetSpec, name: str) -> bool:
    return name == spec.time.column and bool(spec.time.format or spec.time.unit)

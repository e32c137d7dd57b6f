"""How DuckDB reads text files, CSV and JSON lines: the calls to its readers, with the dataset's options.

Its reader of JSON makes floats of fractions before any type is heard of. So JSON lines are read as they are written,
each value as text: what a column cannot hold is then seen by the casts, digit by digit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.duck.sql import list_of_files, literal
from timestore_pipeline.model.columns import ROW_COLUMN
from timestore_pipeline.rows.shapes import Shape, compression


def read_csv_sql(spec: DatasetSpec, shape: Shape, found: Sequence[tuple[str, str]], files: Iterable[Path]) -> str:
    """Return the call that reads CSV files with columns ``found`` (name, type)."""
    columns = ", ".join(f"{literal(name)}: {literal(type_)}" for name, type_ in found)
    return (
        f"read_csv({list_of_files(files)}, columns = {{{columns}}}, auto_detect = false, {_csv_options(spec, shape)})"
    )


def read_json_lines_sql(names: Sequence[str], shape: Shape, files: Iterable[Path]) -> str:
    """Return what follows FROM to read ``names`` of JSON lines, all as text, and ``file_index``.

    A name that a row lacks is null. That the lines are objects is for the caller to make sure of.
    """
    # A decimal among the types, which no row has, makes DuckDB leave all numbers as they are written.
    types = json.dumps({**dict.fromkeys(names, "VARCHAR"), ROW_COLUMN: "DECIMAL(1,0)"})
    return f"(SELECT file_index, unnest(json_transform(json, {literal(types)})) FROM {json_objects_sql(shape, files)})"


def json_objects_sql(shape: Shape, files: Iterable[Path]) -> str:
    """Return the call that reads JSON lines into the one column ``json``, and ``file_index``."""
    return f"read_ndjson_objects({list_of_files(files)}, compression = {compression(shape)})"


def inferring_sql(spec: DatasetSpec, shape: Shape, files: Sequence[Path]) -> str:
    """Return the call that reads text files and infers the types of their columns from all values."""
    if shape.format is FileFormat.JSON_LINES:
        return (
            f"read_json({list_of_files(files)}, format = 'newline_delimited', sample_size = -1, "
            f"maximum_sample_files = {len(files)}, compression = {compression(shape)})"
        )
    names = ", ".join(literal(name) for name in shape.names)
    return (
        f"read_csv({list_of_files(files)}, sample_size = -1, files_to_sniff = -1, names = [{names}], "
        f"{_csv_options(spec, shape)})"
    )


def _csv_options(spec: DatasetSpec, shape: Shape) -> str:
    options = spec.landing.csv
    nulls = "[" + ", ".join(literal(text) for text in options.null) + "]"
    return (
        f"header = {'false' if options.header else 'true'}, delim = {literal(options.delimiter)}, "
        f"quote = {literal(options.quote)}, escape = {literal(options.escape)}, nullstr = {nulls}, "
        f"compression = {compression(shape)}"
    )

"""Parquet: typed, and read by DuckDB. A footer is looked at before any library believes what it says."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.duck.sql import list_of_files
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.formats.format import (
    File,
    Format,
    Identified,
    NamesAndTypes,
    Reader,
    Relation,
    Shape,
    describe,
    each_alone,
)
from timestore_pipeline.rows.reasons import UnreadableFile, readable_reason

_END = struct.Struct("<I4s")
_MAGIC = b"PAR1"
# A list in a footer says how long it is before its entries come. Each is at least a byte, and takes some hundred.
_MOST_LISTED = 100_000


class Parquet(Format):
    """Files with a footer."""

    name = FileFormat.PARQUET
    media_types = ("application/vnd.apache.parquet",)
    may_repeat_values = True

    def identify(
        self, reader: Reader, known: Collection[str], contents: Mapping[int, Any]
    ) -> Mapping[int, Identified | str]:
        """Read all footers in one statement; those of files with nested columns, or beside a damaged one, alone."""
        del known
        checked = each_alone(contents, lambda file: check_parquet(file.path, reader.bounds))
        files = {number: contents[number] for number, reason in checked.items() if reason is None}
        flat = _flat_columns(reader.connection, list(files.values()))

        def identified(file: File) -> Identified:
            columns = flat.get(file.path) or _columns(reader, file)
            names, types = tuple(name for name, _ in columns), tuple(type_ for _, type_ in columns)
            return Identified(Shape(self, names, types), file)

        refused = {number: reason for number, reason in checked.items() if reason is not None}
        return {**refused, **each_alone(files, identified)}

    def describe(self, reader: Reader, content: Any) -> NamesAndTypes:
        """Read the footer."""
        check_parquet(content.path, reader.bounds)
        return _columns(reader, content)

    def relation(
        self, spec: DatasetSpec, shape: Shape, columns: NamesAndTypes, contents: Sequence[Any], first: int
    ) -> Relation:
        """Return the call of DuckDB's reader."""
        del spec, shape, columns
        return Relation(_call(contents), f"{first} + file_index")


def _call(files: Sequence[File]) -> str:
    return f"read_parquet({list_of_files(file.path for file in files)}, hive_partitioning = false)"


def _columns(reader: Reader, file: File) -> NamesAndTypes:
    try:
        return describe(reader.connection, _call([file]))
    except duckdb.Error as error:
        raise UnreadableFile(readable_reason(error)) from error


def _flat_columns(connection: duckdb.DuckDBPyConnection, files: Sequence[File]) -> Mapping[Path, NamesAndTypes]:
    """Read all footers in one statement; files with nested columns, and all of them if one is damaged, are left out."""
    if not files:
        return {}
    paths = list_of_files(file.path for file in files)
    try:
        rows = connection.execute(
            f"SELECT file_name, list(name ORDER BY column_id), list(duckdb_type ORDER BY column_id), "
            f"FROM parquet_schema({paths}) WHERE num_children IS NULL AND file_name NOT IN ("
            f"SELECT file_name FROM parquet_schema({paths}) WHERE num_children IS NOT NULL "
            f"GROUP BY file_name HAVING count(*) > 1) GROUP BY file_name"
        ).fetchall()
    except duckdb.Error:
        return {}
    return {Path(name): list(zip(names, types, strict=True)) for name, names, types in rows}


def check_parquet(path: Path, bounds: Bounds) -> None:
    """Look at what a Parquet file says of itself.

    Raises:
        UnreadableFile: it is no whole Parquet file, or says too much.
        OSError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.stat().st_size < _END.size + len(_MAGIC):
        raise UnreadableFile("it is too small for a Parquet file")
    with path.open("rb") as stream:
        stream.seek(-_END.size, 2)
        footer, magic = _END.unpack(stream.read(_END.size))
    if magic != _MAGIC:
        raise UnreadableFile("it is no whole Parquet file: its end is missing, or it is encrypted")
    bounds.check_metadata(footer, "footer")
    try:
        with pa.OSFile(str(path)) as source:
            found = pq.ParquetFile(
                source, thrift_string_size_limit=bounds.metadata_bytes, thrift_container_size_limit=_MOST_LISTED
            ).metadata
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnreadableFile(f"it is no whole Parquet file: {readable_reason(error)}") from error
    bounds.check_columns(found.num_columns)

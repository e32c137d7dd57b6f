"""A request's body → rows: read and cast just as a landing file of the same format is.

Text and Parquet go through a file of their own in DuckDB's temporary folder, which is gone when they are read; Arrow
is read in memory.
"""

from __future__ import annotations

import json
import re
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import duckdb
import pyarrow as pa

from timestore_pipeline.clock import now_micros
from timestore_pipeline.columns import glob_literal, literal, quote
from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.evolution import Schema
from timestore_pipeline.http.arrow import read_arrow_body
from timestore_pipeline.http.offending import bad_rows
from timestore_pipeline.http.problems import Problem, rejected, too_large
from timestore_pipeline.landing.inference import infer_columns, types_of_values
from timestore_pipeline.landing.readers import RowSource, plan_reads
from timestore_pipeline.landing.shapes import Shape, UnreadableFile, csv_header, readable_reason
from timestore_pipeline.landing.texts import list_of_files, read_csv_sql, read_json_lines_sql
from timestore_pipeline.ledger.schemas import dataset_schema, required_columns
from timestore_pipeline.store import Store

SPOOL_PREFIX = "http-"
"""How the names of the files begin that bodies are read from."""

_ROWS_AT_ONCE = 2_048

# The way without the copy of which DuckDB warns plans a query twice. For what a body may hold that costs more: half of
# the time that reading a thousand rows of text takes.
warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)

_LINE = re.compile(r"\b[Ll]ine:? (\d+)")


@dataclass(frozen=True)
class Format:
    """What a Content-Type means. ``is_array`` is the one JSON document that is no lines."""

    file: FileFormat
    ending: str
    is_array: bool = False


FORMATS: Mapping[str, Format] = {
    "application/json": Format(FileFormat.JSON_LINES, ".jsonl", is_array=True),
    "application/x-ndjson": Format(FileFormat.JSON_LINES, ".jsonl"),
    "application/jsonl": Format(FileFormat.JSON_LINES, ".jsonl"),
    "text/csv": Format(FileFormat.CSV, ".csv"),
    "application/vnd.apache.arrow.stream": Format(FileFormat.ARROW, ".arrows"),
    "application/vnd.apache.arrow.file": Format(FileFormat.ARROW, ".arrow"),
    "application/vnd.apache.parquet": Format(FileFormat.PARQUET, ".parquet"),
}
"""The Content-Types that are taken."""


@dataclass(frozen=True)
class Bounds:
    """How large a body may become."""

    bytes: int
    rows: int


def format_of(content_type: str) -> Format:
    """Return the format of a Content-Type.

    Raises:
        Problem: it is missing or not known (415).
    """
    media_type, *parameters = (part.strip().lower() for part in content_type.split(";"))
    found = FORMATS.get(media_type)
    charsets = [part.partition("=")[2].strip('" ') for part in parameters if part.startswith("charset=")]
    if found is None or any(charset not in ("utf-8", "utf8", "us-ascii") for charset in charsets):
        known = ", ".join(FORMATS)
        raise Problem(415, "unknown-content-type", f"send one of these Content-Types, text as UTF-8: {known}")
    return found


def read_rows(store: Store, spec: DatasetSpec, format_: Format, body: bytes, bounds: Bounds) -> pa.Table:
    """Return a body's rows.

    Raises:
        Problem: they do not fit the dataset (422), or are too many (413).
    """
    if not body:
        raise rejected("the body is empty")
    if format_.file is FileFormat.ARROW:
        return read_arrow_body(body, bounds.bytes, bounds.rows)
    if format_.is_array:
        body = lines_of_array(body, bounds.rows)
    as_file = spec.model_copy(update={"landing": spec.landing.model_copy(update={"format": format_.file})})
    with _spooled(store, body, format_.ending) as path, store.writers.connection() as connection:
        try:
            return _read_file(store, connection, as_file, path, bounds)
        except duckdb.OutOfMemoryException as error:
            raise too_large(
                "reading the body needs more memory than there is (TIMESTORE_DUCKDB_MEMORY_LIMIT); send fewer rows"
            ) from error


def sweep_spool(store: Store) -> None:
    """Remove what a process that was killed left behind. For the start: files of other servers are younger."""
    for path in store.settings.temp_path.glob(f"{SPOOL_PREFIX}*"):
        try:
            if path.stat().st_mtime < now_micros() / 1e6 - 3_600:
                path.unlink()
        except FileNotFoundError:
            continue


@contextmanager
def _spooled(store: Store, body: bytes, ending: str) -> Iterator[Path]:
    store.staging.require()  # its folder may be on the same disk
    path = store.settings.temp_path / f"{SPOOL_PREFIX}{uuid.uuid4().hex}{ending}"
    try:
        path.write_bytes(body)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _read_file(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, path: Path, bounds: Bounds
) -> pa.Table:
    schema = None
    try:
        schema = _schema(store, connection, spec, path)
        try:
            return _fetch(connection, _plan(connection, spec, schema, path), spec, bounds)
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error:
            wider = types_of_values(connection, spec, schema, path) if spec.evolves else ()
            if not wider:
                raise
            return _fetch(connection, _plan(connection, spec, schema, path, {path: wider}), spec, bounds)
    except duckdb.OutOfMemoryException:
        raise
    except UnreadableFile as error:
        reason = _named(str(error), path)
        raise rejected(f"dataset {spec.name!r}: {reason}; nothing was staged", _rows_in(spec, reason, path)) from error
    except duckdb.Error as error:
        reason = _named(readable_reason(error), path)
        _refuse_rows(connection, spec, schema, path, reason)


def _schema(store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, path: Path) -> Schema:
    with store.ledger.read() as tx:
        schema = dataset_schema(tx, spec)
    if schema is not None:
        return schema
    columns = infer_columns(connection, spec, path)
    return Schema(0, columns, required_columns(spec, columns))


def _plan(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, schema: Schema, path: Path, wider: Any = None
) -> RowSource:
    plan = plan_reads(connection, spec, schema, [path], wider)
    if path in plan.refused:
        raise UnreadableFile(plan.refused[path])
    return plan.sources[0]


def _fetch(connection: duckdb.DuckDBPyConnection, source: RowSource, spec: DatasetSpec, bounds: Bounds) -> pa.Table:
    """Read a source, in the order of the file, without the number of its batch."""
    if spec.landing.format is FileFormat.PARQUET:
        _check_texts(connection, source, bounds)
    reader = connection.execute(source.sql).to_arrow_reader(_ROWS_AT_ONCE)
    assert reader is not None
    batches, size, rows = [], 0, 0
    for batch in reader:
        size, rows = size + batch.nbytes, rows + batch.num_rows
        if rows > bounds.rows:
            raise too_large(f"the body has more than {bounds.rows:,} rows; send fewer in each request")
        if size > bounds.bytes:
            raise too_large(f"unpacked, the body has more than {bounds.bytes:,} bytes; send fewer rows")
        batches.append(batch)
    table = pa.Table.from_batches(batches, reader.schema)
    return table.drop_columns([table.column_names[-1]])


def _check_texts(connection: duckdb.DuckDBPyConnection, source: RowSource, bounds: Bounds) -> None:
    """Add up the texts of a Parquet file while DuckDB still shares those that are equal: few bytes may say a lot."""
    length = {"VARCHAR": "strlen", "BLOB": "octet_length"}
    columns = connection.execute(f"DESCRIBE {source.sql}").fetchall()
    lengths = " + ".join(
        f"coalesce(sum({length[type_]}({quote(name)}))::HUGEINT, 0)" for name, type_, *_ in columns if type_ in length
    )
    found = connection.execute(f"SELECT count(*), {lengths or '0'} FROM ({source.sql})").fetchone()
    assert found is not None
    if found[0] > bounds.rows or found[1] > bounds.bytes:
        raise too_large(
            f"the body has more than {bounds.rows:,} rows, or {bounds.bytes:,} bytes unpacked; send fewer rows"
        )


def _refuse_rows(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, schema: Schema | None, path: Path, reason: str
) -> NoReturn:
    """Find the rows for which a file cannot be read, by reading its values as they are.

    Raises:
        Problem: always.
    """
    if schema is not None:
        try:
            table = _as_it_is(connection, spec, schema, path)
        except (duckdb.Error, UnreadableFile):
            pass
        else:
            found = [(name, "VARCHAR") for name in table.column_names]
            if spec.landing.format is FileFormat.PARQUET:
                found = _described(connection, path)
            bad = bad_rows(connection, spec, schema, table, found)
            if bad.rows:
                raise rejected(
                    f"dataset {spec.name!r}: {bad.in_words}; nothing was staged", bad.rows, more_rows=bad.more
                )
    raise rejected(f"dataset {spec.name!r}: {reason}; nothing was staged", _rows_in(spec, reason, path))


def _described(connection: duckdb.DuckDBPyConnection, path: Path) -> list[tuple[str, str]]:
    rows = connection.execute(f"DESCRIBE SELECT * FROM read_parquet({literal(glob_literal(path))})").fetchall()
    return [(row[0], row[1]) for row in rows]


def _as_it_is(connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, schema: Schema, path: Path) -> pa.Table:
    kept = "*"
    match spec.landing.format:
        case FileFormat.PARQUET:
            relation = f"read_parquet({list_of_files([path])}, hive_partitioning = false)"
        case FileFormat.CSV:
            shape = Shape(FileFormat.CSV, csv_header(spec, path))
            relation = read_csv_sql(spec, shape, [(column, "VARCHAR") for column in shape.names], [path])
        case _:
            names = [column.name for column in schema.columns]
            relation = read_json_lines_sql(names, Shape(FileFormat.JSON_LINES), [path])
            kept = ", ".join(map(quote, names))
    return connection.execute(f"SELECT {kept} FROM {relation}").to_arrow_table()


def _rows_in(spec: DatasetSpec, reason: str, path: Path) -> list[dict[str, Any]]:
    """Return the row that the reader stumbled over, where it says which line that is."""
    if spec.landing.format is FileFormat.JSON_LINES:
        return _bad_lines(path)
    line = _LINE.search(reason)
    if line is None:
        return []
    has_header = spec.landing.format is FileFormat.CSV and not spec.landing.csv.header
    row = int(line[1]) - (1 if has_header else 0)
    return [{"row": row, "reason": reason}] if row > 0 else []


def _bad_lines(path: Path) -> list[dict[str, Any]]:
    number = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            number += 1
            try:
                if not isinstance(json.loads(line), dict):
                    return [{"row": number, "reason": "it is no JSON object"}]
            except ValueError as error:
                return [{"row": number, "reason": f"it is no JSON: {error}"}]
            except RecursionError:
                return [{"row": number, "reason": "it is nested too deeply"}]
    return []


def _named(reason: str, path: Path) -> str:
    """Return a reason without the name of a file that no client has heard of."""
    return reason.replace(str(path), "the body").replace(path.name, "the body")


def lines_of_array(body: bytes, max_rows: int) -> bytes:
    """Return the rows of a JSON array as JSON lines, each as it was written: no number is rounded on the way.

    Raises:
        Problem: it is no array of objects (422), or has too many (413).
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise rejected(f"the body is no UTF-8: {error.reason} at byte {error.start}") from error
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    lines: list[str] = []
    at = _after_space(text, 0)
    if not text.startswith("[", at):
        raise rejected("the body is no JSON array; send [{…}, …], or one object per line as application/x-ndjson")
    at = _after_space(text, at + 1)
    try:
        while not text.startswith("]", at):
            if lines:
                if not text.startswith(",", at):
                    raise ValueError("a comma is missing between two rows")
                at = _after_space(text, at + 1)
            row, end = decoder.raw_decode(text, at)
            if not isinstance(row, dict):
                raise ValueError("it is no JSON object")
            if len(lines) >= max_rows:
                raise too_large(f"the body has more than {max_rows:,} rows; send fewer in each request")
            # Outside of texts line breaks are only space, and within them JSON has none.
            lines.append(text[at:end].replace("\n", " ").replace("\r", " "))
            at = _after_space(text, end)
    except (ValueError, RecursionError) as error:
        number = len(lines) + 1
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise rejected(f"row {number}: {reason}; nothing was staged", [{"row": number, "reason": reason}]) from error
    if _after_space(text, at + 1) != len(text):
        raise rejected("the body has something behind its JSON array")
    if not lines:
        raise rejected("the JSON array has no rows")
    return "\n".join([*lines, ""]).encode()


_SPACE = re.compile(r"[ \t\r\n]*")


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")

"""A request's body → rows: read and cast just as a landing file of the same format is.

Text and Parquet go through a file of their own in DuckDB's temporary folder, which is gone when they are read; Arrow
is read in memory.
"""

from __future__ import annotations

import json
import re
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from blake3 import blake3

from timestore_pipeline.cpu_time import CpuBudget, TookTooLong
from timestore_pipeline.datasets import DatasetSpec, FileFormat
from timestore_pipeline.duck.sql import file_literal, list_of_files, quote
from timestore_pipeline.http.bodies import Holding, pieces_of
from timestore_pipeline.http.json_arrays import LONG_ROW, write_lines
from timestore_pipeline.http.offending import BadRows, bad_rows
from timestore_pipeline.http.problems import Problem, rejected, too_large
from timestore_pipeline.ledger.datasets import dataset_schema
from timestore_pipeline.ledger.schemas import required_columns
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.arrow import arrow_table
from timestore_pipeline.rows.bounds import MOST_ROW_BYTES, Bounds
from timestore_pipeline.rows.inference import infer_columns, types_of_values
from timestore_pipeline.rows.readers import RowSource, plan_reads
from timestore_pipeline.rows.reasons import TooLarge, UnreadableFile, readable_reason
from timestore_pipeline.rows.shapes import Shape, csv_header
from timestore_pipeline.rows.texts import read_csv_sql, read_json_lines_sql
from timestore_pipeline.store import Store

SPOOL_PREFIX = "http-"
"""How the names of the files begin that bodies are read from."""

ROWS_AT_ONCE = 2_048
"""So many rows are fetched, or looked at, together."""

# The way without the copy of which DuckDB warns plans a query twice. For what a body may hold that costs more: half of
# the time that reading a thousand rows of text takes.
warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)

# Arrow has its own for what goes wrong while it fetches the rows of a query.
_UNREADABLE = (duckdb.Error, pa.ArrowException)

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
class Content:
    """A body without its encoding: on the disk, or in memory where it is Arrow. ``fingerprint`` is its BLAKE3 hash."""

    size: int
    fingerprint: str
    path: Path | None = None
    in_memory: bytes = b""


@dataclass(frozen=True)
class Reading:
    """What reading one body may take, and what it holds."""

    bounds: Bounds
    holding: Holding
    budget: CpuBudget


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


@contextmanager
def content_of(store: Store, format_: Format, body: bytes, encoding: str, reading: Reading) -> Iterator[Content]:
    """Give a body without its encoding, for the time of the block; no more of it is in memory than a piece.

    Raises:
        Problem: as :func:`pieces_of`; or there is no room for it (503).
    """
    digest, size = blake3(), 0
    pieces = pieces_of(body, encoding, reading.bounds.bytes)
    if format_.file is FileFormat.ARROW:
        whole = body if encoding.strip().lower() in ("", "identity") else b"".join(_held(pieces, reading))
        yield Content(len(whole), blake3(whole).hexdigest(), in_memory=whole)
        return
    store.staging.require()  # its folder may be on the same disk
    path = store.settings.temp_path / f"{SPOOL_PREFIX}{uuid.uuid4().hex}{format_.ending}"
    try:
        with path.open("wb") as file:
            for piece in pieces:
                reading.budget.check()
                digest.update(piece)
                file.write(piece)
                size += len(piece)
        yield Content(size, digest.hexdigest(), path)
    except TookTooLong as error:
        raise _took_too_long(store) from error
    finally:
        path.unlink(missing_ok=True)


def _held(pieces: Iterable[bytes], reading: Reading) -> Iterator[bytes]:
    for piece in pieces:
        reading.budget.check()
        reading.holding.take(len(piece))
        yield piece


def reading_connection(store: Store, cpu_seconds: float) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """Return a connection that reads bodies: within a memory and a time of its own, in the calling thread alone."""
    limit = store.settings.http_decode_memory_limit
    return store.writers.connection(threads=1, memory_limit=limit, cpu_seconds=cpu_seconds)


def read_rows(store: Store, spec: DatasetSpec, format_: Format, content: Content, reading: Reading) -> pa.Table:
    """Return the rows of a body, whose bytes are counted as held.

    Raises:
        Problem: they do not fit the dataset (422), or are too many, or take too long (413).
    """
    if not content.size:
        raise rejected("the body is empty")
    try:
        if content.path is None:
            return _read_arrow(content, reading)
        as_file = spec.model_copy(update={"landing": spec.landing.model_copy(update={"format": format_.file})})
        with _as_lines(content.path, format_, reading) as path:
            return _read_file(store, as_file, path, reading)
    except TooLarge as error:
        raise too_large(f"the body: {error}") from error
    except duckdb.OutOfMemoryException as error:
        raise too_large(
            "reading the body needs more memory than there is (TIMESTORE_HTTP_DECODE_MEMORY_LIMIT); send fewer rows"
        ) from error
    except TookTooLong as error:
        raise _took_too_long(store) from error


def _took_too_long(store: Store) -> Problem:
    seconds = store.settings.http_decode_seconds
    return too_large(f"reading the body takes more than {seconds:g} s of processor time; send fewer rows or columns")


def _read_arrow(content: Content, reading: Reading) -> pa.Table:
    try:
        table = arrow_table(content.in_memory, reading.bounds)
    except TooLarge:
        raise
    except UnreadableFile as error:
        raise rejected(f"the body: {error}") from error
    # What was not packed lies in the body.
    reading.holding.take(max(0, table.nbytes - content.size))
    return table


@contextmanager
def _as_lines(path: Path, format_: Format, reading: Reading) -> Iterator[Path]:
    """Give a file that the readers of landing files take: a JSON array becomes lines."""
    if not format_.is_array:
        yield path
        return
    lines = path.with_name(f"{path.stem}-lines{path.suffix}")
    try:
        with path.open("rb") as array, lines.open("wb") as file:
            write_lines(array, file, reading.bounds, reading.budget)
        yield lines
    finally:
        lines.unlink(missing_ok=True)


def sweep_spool(store: Store) -> None:
    """Remove what a process that was killed left behind. For the start: files of other servers are younger."""
    for path in store.settings.temp_path.glob(f"{SPOOL_PREFIX}*"):
        try:
            if path.stat().st_mtime < now_micros() / 1e6 - 3_600:
                path.unlink()
        except FileNotFoundError:
            continue


def _read_file(store: Store, spec: DatasetSpec, path: Path, reading: Reading) -> pa.Table:
    schema, bounds = None, reading.bounds
    with reading_connection(store, reading.budget.left) as connection:
        try:
            schema = _schema(store, connection, spec, path, bounds)
            try:
                return _fetch(connection, _plan(connection, spec, schema, path, bounds), spec, reading)
            except duckdb.OutOfMemoryException:
                raise
            except _UNREADABLE:
                wider = types_of_values(connection, spec, schema, path, bounds) if spec.evolves else ()
                if not wider:
                    raise
                source = _plan(connection, spec, schema, path, bounds, {path: wider})
                return _fetch(connection, source, spec, reading)
        except (duckdb.OutOfMemoryException, TooLarge):
            raise
        except UnreadableFile as error:
            reason = _named(str(error), path)
            rows = _rows_in(spec, reason, path, reading.budget)
            raise rejected(f"dataset {spec.name!r}: {reason}; nothing was staged", rows) from error
        except _UNREADABLE as error:
            reason = _named(readable_reason(error), path)
    raise _refused_rows(store, spec, schema, path, reason, reading)


def _schema(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, path: Path, bounds: Bounds
) -> Schema:
    with store.ledger.read() as tx:
        schema = dataset_schema(tx, spec)
    if schema is not None:
        return schema
    columns = infer_columns(connection, spec, path, bounds)
    return Schema(0, columns, required_columns(spec, columns))


def _plan(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    schema: Schema,
    path: Path,
    bounds: Bounds,
    wider: Any = None,
) -> RowSource:
    plan = plan_reads(connection, spec, schema, [path], bounds, wider)
    if path in plan.refused:
        raise UnreadableFile(plan.refused[path])
    return plan.sources[0]


def _fetch(connection: duckdb.DuckDBPyConnection, source: RowSource, spec: DatasetSpec, reading: Reading) -> pa.Table:
    """Read a source, in the order of the file, without the number of its batch."""
    bounds = reading.bounds
    if spec.landing.format is FileFormat.PARQUET:
        _check_texts(connection, source, bounds)
    reader = connection.execute(source.sql).to_arrow_reader(ROWS_AT_ONCE)
    assert reader is not None
    batches, size, rows = [], 0, 0
    try:
        for batch in reader:
            size, rows = size + batch.nbytes, rows + batch.num_rows
            _check_size(rows, size, bounds)
            reading.budget.check()
            reading.holding.take(batch.nbytes)
            batches.append(batch)
    except BaseException:
        reading.holding.give_back(sum(batch.nbytes for batch in batches))
        # The reader's errors are not the connection's: only the next statement tells whether it is alive.
        with suppress(duckdb.Error):
            connection.execute("SELECT 1").fetchall()
        raise
    table = pa.Table.from_batches(batches, reader.schema)
    return table.drop_columns([table.column_names[-1]])


def _check_size(rows: int, size: int, bounds: Bounds) -> None:
    if bounds.rows is not None and rows > bounds.rows:
        raise too_large(f"the body has more than {bounds.rows:,} rows; send fewer in each request")
    if size > bounds.bytes:
        raise too_large(f"unpacked, the body has more than {bounds.bytes:,} bytes; send fewer rows")


def _check_texts(connection: duckdb.DuckDBPyConnection, source: RowSource, bounds: Bounds) -> None:
    """Add up the texts of a Parquet file while DuckDB still shares those that are equal: few bytes may say a lot."""
    length = {"VARCHAR": "strlen", "BLOB": "octet_length"}
    columns = connection.execute(f"DESCRIBE {source.sql}").fetchall()
    lengths = " + ".join(
        f"coalesce(sum({length[type_]}({quote(name)}))::HUGEINT, 0)" for name, type_, *_ in columns if type_ in length
    )
    found = connection.execute(f"SELECT count(*), {lengths or '0'} FROM ({source.sql})").fetchone()
    assert found is not None
    _check_size(found[0], found[1], bounds)


def _refused_rows(
    store: Store, spec: DatasetSpec, schema: Schema | None, path: Path, reason: str, reading: Reading
) -> Problem:
    """Return the answer to a file that cannot be read, with the rows that are why: its values are read as they are."""
    bad = BadRows([], more=False)
    if schema is not None:
        cpu_seconds = reading.budget.left
        with (
            suppress(*_UNREADABLE, UnreadableFile),
            reading_connection(store, cpu_seconds) as reads,
            reading_connection(store, cpu_seconds) as tries,
        ):
            parts = _as_it_is(reads, spec, schema, path, reading.bounds)
            found = [(name, "VARCHAR") for name in parts.schema.names]
            if spec.landing.format is FileFormat.PARQUET:
                found = _described(tries, path)
            bad = bad_rows(tries, spec, schema, (pa.Table.from_batches([part]) for part in parts), found)
    if bad.rows:
        return rejected(f"dataset {spec.name!r}: {bad.in_words}; nothing was staged", bad.rows, more_rows=bad.more)
    rows = _rows_in(spec, reason, path, reading.budget)
    return rejected(f"dataset {spec.name!r}: {reason}; nothing was staged", rows)


def _described(connection: duckdb.DuckDBPyConnection, path: Path) -> list[tuple[str, str]]:
    rows = connection.execute(f"DESCRIBE SELECT * FROM read_parquet({file_literal(path)})").fetchall()
    return [(row[0], row[1]) for row in rows]


def _as_it_is(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, schema: Schema, path: Path, bounds: Bounds
) -> pa.RecordBatchReader:
    kept = "*"
    match spec.landing.format:
        case FileFormat.PARQUET:
            relation = f"read_parquet({list_of_files([path])}, hive_partitioning = false)"
        case FileFormat.CSV:
            shape = Shape(FileFormat.CSV, csv_header(spec, path, bounds))
            relation = read_csv_sql(spec, shape, [(column, "VARCHAR") for column in shape.names], [path])
        case _:
            names = [column.name for column in schema.columns]
            relation = read_json_lines_sql(names, Shape(FileFormat.JSON_LINES), [path])
            kept = ", ".join(map(quote, names))
    reader = connection.execute(f"SELECT {kept} FROM {relation}").to_arrow_reader(ROWS_AT_ONCE)
    assert reader is not None
    return reader


def _rows_in(spec: DatasetSpec, reason: str, path: Path, budget: CpuBudget) -> list[dict[str, Any]]:
    """Return the row that the reader stumbled over, where it says which line that is."""
    if spec.landing.format is FileFormat.JSON_LINES:
        return _bad_lines(path, budget)
    line = _LINE.search(reason)
    if line is None:
        return []
    has_header = spec.landing.format is FileFormat.CSV and not spec.landing.csv.header
    row = int(line[1]) - (1 if has_header else 0)
    return [{"row": row, "reason": reason}] if row > 0 else []


def _bad_lines(path: Path, budget: CpuBudget) -> list[dict[str, Any]]:
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MOST_ROW_BYTES + 1):
            budget.check()
            if not line.strip():
                continue
            number += 1
            problem = _problem_of_line(line)
            if problem is not None:
                return [{"row": number, "reason": problem}]
    return []


def _problem_of_line(line: bytes) -> str | None:
    if len(line) > MOST_ROW_BYTES:
        return LONG_ROW
    try:
        return None if isinstance(json.loads(line), dict) else "it is no JSON object"
    except ValueError as error:
        return f"it is no JSON: {error}"
    except RecursionError:
        return "it is nested too deeply"


def _named(reason: str, path: Path) -> str:
    """Return a reason without the name of a file that no client has heard of."""
    return reason.replace(str(path), "the body").replace(path.name, "the body")

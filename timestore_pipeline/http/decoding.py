"""A request's body → rows: read and cast just as a landing file of the same format is.

Text and Parquet go through a file of their own in DuckDB's temporary folder, which is gone when they are read; Arrow
is read in memory.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from timestore_pipeline.cpu_time import CpuBudget, TookTooLong
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import quote
from timestore_pipeline.http.answers import BadRow
from timestore_pipeline.http.bodies import Holding, pieces_of
from timestore_pipeline.http.offending import BadRows, bad_rows
from timestore_pipeline.http.problems import Problem, rejected, too_large
from timestore_pipeline.ledger.datasets import dataset_schema
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.formats.arrow_files import arrow_table
from timestore_pipeline.rows.formats.format import File, Format, Reader
from timestore_pipeline.rows.formats.known import MEDIA_TYPES
from timestore_pipeline.rows.read_plan import (
    RowSource,
    plain_sql,
    plan_reads,
    read_as_written,
    schema_alone,
    wider_columns,
)
from timestore_pipeline.rows.reasons import TooLarge, UnreadableFile, UnreadableRow, readable_reason
from timestore_pipeline.store import Store

SPOOL_PREFIX = "http-"
"""How the names of the files begin that bodies are read from."""

ROWS_AT_ONCE = 2_048
"""So many rows are fetched, or looked at, together."""

MOST_PLAIN_BYTES = 1 << 20
"""Most bytes of a body that is read as if its values were plain, and once more where they are not."""

# The way without the copy of which DuckDB warns plans a query twice. For what a body may hold that costs more: half of
# the time that reading a thousand rows of text takes.
warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)

# Arrow has its own for what goes wrong while it fetches the rows of a query.
_UNREADABLE = (duckdb.Error, pa.ArrowException)


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
    found = MEDIA_TYPES.get(media_type)
    charsets = [part.partition("=")[2].strip('" ') for part in parameters if part.startswith("charset=")]
    if found is None or any(charset not in ("utf-8", "utf8", "us-ascii") for charset in charsets):
        known = ", ".join(MEDIA_TYPES)
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
    if format_.is_read_in_memory:
        whole = body if encoding.strip().lower() in ("", "identity") else b"".join(_held(pieces, reading))
        yield Content(len(whole), blake3(whole).hexdigest(), in_memory=whole)
        return
    store.staging.require()  # its folder may be on the same disk
    path = store.settings.temp_path / f"{SPOOL_PREFIX}{uuid.uuid4().hex}"
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
        with _rewritten(content.path, format_, reading) as file:
            return _read_file(store, spec, file, reading)
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
def _rewritten(path: Path, format_: Format, reading: Reading) -> Iterator[File]:
    """Give a body as a file that can be read."""
    if not format_.is_rewritten:
        yield File(path, format_)
        return
    file = File(path.with_name(f"{path.name}-lines"), format_)
    try:
        _rewrite(path, file, reading)
        yield file
    finally:
        file.path.unlink(missing_ok=True)


def _rewrite(path: Path, file: File, reading: Reading) -> None:
    def check(rows: int) -> None:
        reading.budget.check()
        _check_size(rows, 0, reading.bounds)

    try:
        with path.open("rb") as body, file.path.open("wb") as written:
            file.format.rewrite(body, written, reading.bounds, check)
    except TooLarge:
        raise
    except UnreadableRow as error:
        raise rejected(f"row {error.row}: {error}; nothing was staged", [BadRow.of(error)]) from error
    except UnreadableFile as error:
        raise rejected(str(error)) from error


def sweep_spool(store: Store) -> None:
    """Remove what a process that was killed left behind. For the start: files of other servers are younger."""
    for path in store.settings.temp_path.glob(f"{SPOOL_PREFIX}*"):
        try:
            if path.stat().st_mtime < now_micros() / 1e6 - 3_600:
                path.unlink()
        except FileNotFoundError:
            continue


def _read_file(store: Store, spec: DatasetSpec, file: File, reading: Reading) -> pa.Table:
    schema = None
    with reading_connection(store, reading.budget.left) as connection:
        reader = Reader(connection, spec, reading.bounds)
        try:
            schema = _schema(store, reader, file)
            plain = _fetch_plain(reader, schema, file, reading)
            if plain is not None:
                return plain
            try:
                return _fetch_source(reader, _plan(reader, schema, file), file.format, reading)
            except duckdb.OutOfMemoryException:
                raise
            except _UNREADABLE:
                wider = wider_columns(reader, schema, file) if spec.evolves else ()
                if not wider:
                    raise
                return _fetch_source(reader, _plan(reader, schema, file, wider), file.format, reading)
        except (duckdb.OutOfMemoryException, TooLarge):
            raise
        except UnreadableFile as error:
            reason = _named(str(error), file.path)
            rows = _rows_in(spec, reason, file, reading.budget)
            raise rejected(f"dataset {spec.name!r}: {reason}; nothing was staged", rows) from error
        except _UNREADABLE as error:
            reason = _named(readable_reason(error), file.path)
    raise _refused_rows(store, spec, schema, file, reason, reading)


def _schema(store: Store, reader: Reader, file: File) -> Schema:
    with store.ledger.read() as tx:
        return dataset_schema(tx, reader.spec) or schema_alone(reader, file)


def _plan(reader: Reader, schema: Schema, file: File, wider: Sequence[Column] = ()) -> RowSource:
    plan = plan_reads(reader, schema, {0: file}, {0: wider})
    if plan.refused:
        raise UnreadableFile(plan.refused[0])
    return plan.sources[0]


def _fetch_plain(reader: Reader, schema: Schema, file: File, reading: Reading) -> pa.Table | None:
    """Read a small body of plain values; None where it is another one, or anything is wrong with it."""
    try:
        sql = plain_sql(reader, schema, file) if file.path.stat().st_size <= MOST_PLAIN_BYTES else None
        if sql is None:
            return None
        table = _fetch(reader.connection, sql, reading)
    except (UnreadableFile, OSError, Problem, *_UNREADABLE):
        return None  # the plan finds out what it is, and says so
    *_, is_plain = table.columns
    if pc.call_function("all", [is_plain]).as_py() is not False:
        return table.drop_columns([table.column_names[-1]])
    reading.holding.give_back(table.nbytes)
    return None


def _fetch_source(reader: Reader, source: RowSource, format_: Format, reading: Reading) -> pa.Table:
    """Read a source, in the order of the file, without the number of its batch."""
    if format_.may_repeat_values:
        _check_texts(reader.connection, source, reading.bounds)
    table = _fetch(reader.connection, source.sql, reading)
    return table.drop_columns([table.column_names[-1]])


def _fetch(connection: duckdb.DuckDBPyConnection, sql: str, reading: Reading) -> pa.Table:
    """Return all rows of a statement, whose bytes are counted as held."""
    fetched = connection.execute(sql).to_arrow_reader(ROWS_AT_ONCE)
    assert fetched is not None
    batches, size, rows = [], 0, 0
    try:
        for batch in fetched:
            size, rows = size + batch.nbytes, rows + batch.num_rows
            _check_size(rows, size, reading.bounds)
            reading.budget.check()
            reading.holding.take(batch.nbytes)
            batches.append(batch)
    except BaseException:
        reading.holding.give_back(sum(batch.nbytes for batch in batches))
        # The reader's errors are not the connection's: only the next statement tells whether it is alive.
        with suppress(duckdb.Error):
            connection.execute("SELECT 1").fetchall()
        raise
    return pa.Table.from_batches(batches, fetched.schema)


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
    store: Store, spec: DatasetSpec, schema: Schema | None, file: File, reason: str, reading: Reading
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
            sql, columns = read_as_written(Reader(reads, spec, reading.bounds), schema, file)
            parts = reads.execute(sql).to_arrow_reader(ROWS_AT_ONCE)
            assert parts is not None
            bad = bad_rows(tries, spec, schema, (pa.Table.from_batches([part]) for part in parts), columns)
    if bad.rows:
        return rejected(f"dataset {spec.name!r}: {bad.in_words}; nothing was staged", bad.rows, more_rows=bad.more)
    rows = _rows_in(spec, reason, file, reading.budget)
    return rejected(f"dataset {spec.name!r}: {reason}; nothing was staged", rows)


def _rows_in(spec: DatasetSpec, reason: str, file: File, budget: CpuBudget) -> list[BadRow]:
    """Return the row that the reader stumbled over, where that can be told."""
    bad = file.format.bad_row(spec, file.path, reason, budget.check)
    return [] if bad is None else [BadRow.of(bad)]


def _named(reason: str, path: Path) -> str:
    """Return a reason without the name of a file that no client has heard of."""
    return reason.replace(str(path), "the body").replace(path.name, "the body")

"""``timestore sql``: a query over staged and published rows, as a table, CSV or JSON."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timestore_pipeline.cli.options import open_store
from timestore_pipeline.cli.output import Heading, print_table, warn
from timestore_pipeline.cli.wording import counted
from timestore_pipeline.inert import json_escaped, visible_lines

if TYPE_CHECKING:
    import pyarrow as pa

    from timestore_pipeline.cli.query_watch import QueryWatch
    from timestore_pipeline.store import Store

sql_app = typer.Typer(rich_markup_mode=None)


TABLE_ROWS = 50
"""How many rows a table shows where no limit is given."""

_BATCH_ROWS = 50_000


class OutputFormat(StrEnum):
    """How the rows of a query are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


@sql_app.command(short_help="Query the datasets.")
def sql(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help='SQL for DuckDB, such as "select count(*) from weather".')
    ],
    output_format: Annotated[OutputFormat, typer.Option("--format", help="How rows are printed.")] = OutputFormat.TABLE,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=0, metavar="N", help="Print at most N rows; by default 50 in a table, else all."),
    ] = None,
) -> None:
    """Query the datasets: each is a view over its staged and published rows, at one moment."""
    with open_store() as store:
        print_query(store, query, output_format, limit)


def print_query(store: Store, sql: str, output: OutputFormat, limit: int | None) -> None:
    """Run ``sql`` and print its rows; CSV and JSON are streamed, a table is bounded.

    Raises:
        QueryError: the query cannot be run.
    """
    from timestore_pipeline.cli.query_watch import watched
    from timestore_pipeline.reading.rows import query_rows

    with watched(store.settings) as watch:
        with watch.call():
            reader = query_rows(store, sql).to_reader(_BATCH_ROWS)
        batches = _fetched(reader, watch)
        if output is OutputFormat.TABLE:
            _print_table(reader.schema, batches, TABLE_ROWS if limit is None else limit)
        elif output is OutputFormat.CSV:
            _print_csv(reader.schema, _at_most(batches, limit))
        else:
            _print_json(_at_most(batches, limit))


def _fetched(reader: pa.RecordBatchReader, watch: QueryWatch) -> Iterator[pa.RecordBatch]:
    while True:
        with watch.call():
            batch = next(reader, None)
        if batch is None:
            return
        yield batch


def _at_most(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    left = math.inf if limit is None else limit
    for batch in batches:
        if left <= 0:
            return
        kept = batch if batch.num_rows <= left else batch.slice(0, int(left))
        left -= kept.num_rows
        yield kept


def _print_table(schema: pa.Schema, batches: Iterator[pa.RecordBatch], limit: int) -> None:
    # One more than is shown, to know whether there are more.
    rows: list[tuple[Any, ...]] = []
    for batch in _at_most(batches, limit + 1):
        rows.extend(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    headings = [Heading(field.name, right=_is_number(field.type)) for field in schema]
    print_table(headings, [[_as_text(value) for value in row] for row in rows[:limit]])
    if len(rows) > limit:
        warn(f"only {counted(limit, 'row')} shown; --limit shows more, --format csv or json all")


def _print_csv(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    import pyarrow as pa
    from pyarrow import csv

    plain = pa.schema([pa.field(field.name, _csv_type(field.type)) for field in schema])
    sys.stdout.flush()
    with _standard_output() as output, csv.CSVWriter(output, plain) as writer:
        for batch in batches:
            columns: Sequence[pa.Array] = [
                column if column.type == field.type else pa.array(map(_as_json_text, column.to_pylist()), pa.string())
                for column, field in zip(batch.columns, plain, strict=True)
            ]
            writer.write_batch(pa.record_batch(columns, schema=plain))
    sys.stdout.buffer.flush()


@contextmanager
def _standard_output() -> Iterator[Any]:
    """Give what takes bytes: for a program they are as they are, on a terminal they are made visible."""
    if not sys.stdout.isatty():
        yield sys.stdout.buffer
        return
    yield _Terminal()


class _Terminal(io.RawIOBase):
    """Bytes of UTF-8 text, shown on the terminal a line at a time."""

    def __init__(self) -> None:
        self._rest = b""

    def writable(self) -> bool:
        return True

    def write(self, text: Any) -> int:
        lines, _, self._rest = (self._rest + bytes(text)).rpartition(b"\n")
        if lines:
            print(visible_lines(lines.decode()))
        return len(text)


def _print_json(batches: Iterator[pa.RecordBatch]) -> None:
    """Print one JSON array, a row a line, so that both jq and a line-wise reader are served."""
    separator = "[\n"
    for batch in batches:
        for row in batch.to_pylist():
            sys.stdout.write(separator + json_escaped(json.dumps(_as_json(row), ensure_ascii=False)))
            separator = ",\n"
    sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")


def _is_number(type_: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)


def _csv_type(type_: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    types = pa.types
    written_as_is = (
        _is_number(type_)
        or types.is_boolean(type_)
        or types.is_null(type_)
        or types.is_string(type_)
        or types.is_large_string(type_)
        or types.is_timestamp(type_)
        or types.is_date(type_)
        or types.is_time(type_)
    )
    return type_ if written_as_is else pa.string()


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    return value if isinstance(value, str) else str(_as_json(value))


def _as_json_text(value: Any) -> str | None:
    plain = _as_json(value)
    return plain if plain is None or isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _as_json(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _as_json(each) for key, each in value.items()}
        case list() | tuple():
            return [_as_json(each) for each in value]
        case float() if not math.isfinite(value):
            return None  # JSON has no word for it
        case bytes():
            return value.hex()
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal() | timedelta():
            return str(value)
    return value

"""Which rows of a table cannot be cast to a dataset's columns, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import duckdb
import pyarrow as pa

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.http.answers import BadRow
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.culprits import find_culprits
from timestore_pipeline.rows.fit import select_rows
from timestore_pipeline.rows.read_plan import RowSource, read_through
from timestore_pipeline.rows.reasons import UnreadableFile

MOST_NAMED_ROWS = 20
"""So many rows are named in an answer."""


@dataclass(frozen=True)
class BadRows:
    """The first rows that do not fit (numbers from 1), and whether there are more."""

    rows: list[BadRow]
    more: bool

    @property
    def in_words(self) -> str:
        """How many rows do not fit, and the first of them."""
        count = f"more than {len(self.rows)} rows" if self.more else f"{len(self.rows)} row(s)"
        return f"{count} cannot be staged, the first is row {self.rows[0].row}: {self.rows[0].reason}"


def bad_rows(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    schema: Schema,
    parts: Iterable[pa.Table],
    found: Sequence[tuple[str, str]],
) -> BadRows:
    """Return the rows that do not fit ``schema``, in parts that follow one another; no more than one part is held.

    The columns of each are ``found`` (name, DuckDB type).
    """
    known = {column.name for column in schema.columns}
    passed_over = {name for name, _ in found} - known
    try:
        sql = select_rows(spec, schema, found, "looked_at", "0", passed_over)
    except UnreadableFile:
        return BadRows([], more=False)

    def found_rows() -> Iterator[BadRow]:
        first = 1
        for table in parts:
            for row, error in find_culprits(range(table.num_rows), partial(read_rows, table), UnreadableFile):
                yield BadRow(row=first + row, reason=str(error))
            first += table.num_rows

    def read_rows(table: pa.Table, rows: Sequence[int]) -> None:
        read_through(connection, RowSource(sql, {"looked_at": table.slice(rows[0], len(rows))}))

    named = list(islice(found_rows(), MOST_NAMED_ROWS + 1))
    return BadRows(named[:MOST_NAMED_ROWS], more=len(named) > MOST_NAMED_ROWS)

"""Rows that corrections take, as SQL (short, because builds and reads share it: both leave out the same rows)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import duckdb

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import time_range_sql
from timestore_pipeline.ledger.corrected_windows import Taken
from timestore_pipeline.ledger.corrections import Correction
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.windows import Window


def kept_rows(spec: DatasetSpec, columns: Sequence[Column], relation: str, corrections: Sequence[Correction]) -> str:
    """Return what follows FROM for the rows of ``relation`` (SQL, with ``columns``) that no correction takes."""
    if not corrections:
        return relation
    taken = " OR ".join(_takes(spec, columns, each) for each in corrections)
    return f"(SELECT * FROM {relation} WHERE NOT ({taken}))"


def count_taken(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    columns: Sequence[Column],
    relation: str,
    corrections: Sequence[Correction],
    window: Window,
) -> Taken:
    """Return how many rows of a window each correction takes; a row counts for the first one.

    Raises:
        duckdb.Error: the rows cannot be read.
    """
    if not corrections:
        return Counter()
    by_age = sorted(corrections, key=lambda each: each.number)
    cases = " ".join(f"WHEN {_takes(spec, columns, each)} THEN {each.number}" for each in by_age)
    inside = time_range_sql(spec.time_column(columns), window.start_micros, window.end_micros)
    query = f"SELECT CASE {cases} END AS number, count(*) FROM {relation} WHERE {inside} GROUP BY number"
    found = connection.execute(query).fetchall()
    return Counter({(window.start_micros, number): count for number, count in found if number is not None})


def _takes(spec: DatasetSpec, columns: Sequence[Column], correction: Correction) -> str:
    return f"({time_range_sql(spec.time_column(columns), correction.range_start, correction.range_end)})"

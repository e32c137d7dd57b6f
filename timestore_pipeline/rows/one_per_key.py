"""Which row of a key wins, as SQL (short, because builds and reads share it, so that both give the same rows)."""

from __future__ import annotations

from collections.abc import Sequence

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import column_list, literal, quote, utc_timestamp_sql
from timestore_pipeline.model.columns import POSITION_COLUMN, Column


def winning_rows(spec: DatasetSpec, columns: Sequence[Column], rows: str) -> str:
    """Return a SELECT of those ``rows`` (a SELECT with ``columns`` and the position) that win, one per window and key.

    The highest version wins, if the dataset names one, else and among equal ones the highest position. No two rows of
    a dataset have the same position, so there is always one winner, however often and in whatever order it is asked.
    DuckDB spills what it cannot keep in memory.
    """
    key = spec.key
    assert key is not None
    window = f"date_trunc('{spec.window}', {utc_timestamp_sql(spec.time_column(columns))})"
    names = ", ".join([window, *(quote(name) for name in key.columns)])
    version = "" if key.version is None else f"{quote(key.version)} DESC NULLS LAST, "
    return (
        f"SELECT * FROM ({rows}) "
        f"QUALIFY row_number() OVER (PARTITION BY {names} ORDER BY {version}{POSITION_COLUMN} DESC) = 1"
    )


def without_deleted(spec: DatasetSpec, columns: Sequence[Column], rows: str) -> str:
    """Return a SELECT of those ``rows`` (a SELECT of the rows that win, with ``columns``) that delete no key.

    Builds keep these rows, as they must go on winning over older ones that come later. So only reads leave them out.
    """
    named = [column for column in columns if spec.delete is not None and column.name == spec.delete.column]
    if not named or spec.delete is None:
        return rows
    equals = spec.delete.equals
    value = literal(str(equals).lower() if isinstance(equals, bool) else str(equals))
    deletes = f"{quote(named[0].name)} = TRY_CAST({value} AS {named[0].type})"
    return f"SELECT {column_list(columns)} FROM ({rows}) WHERE ({deletes}) IS NOT TRUE"

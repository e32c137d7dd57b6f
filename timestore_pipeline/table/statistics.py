"""Statistics of a Parquet file as Delta tables keep them, from what DuckDB found in its footer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from timestore_pipeline.duck.sql import quote
from timestore_pipeline.model.columns import TIME_TYPES, Column, Kind, kind_of

# Infinite times, and those before the year 1 and after 9999, have no form that every reader of Delta tables takes.
_WRITABLE_TIME = re.compile(r"^\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d(\.\d+)?(\+00)?)?$")
# Longer texts bloat the log more than they help to skip files.
_MAX_STATISTIC_LENGTH = 64


def delta_statistics(columns: Sequence[Column], rows: int, footer: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return Delta's per-file statistics from those that DuckDB's ``COPY … (RETURN_STATS)`` took from the footer.

    ``footer`` maps quoted column names to texts ``min``, ``max``, ``null_count`` and so on. A bound that is not exact,
    or not a number (NaN has no order), is left out: readers then do not skip the file by that column.
    """
    lowest: dict[str, Any] = {}
    highest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for column in columns:
        found = footer.get(quote(column.name))
        if found is None:
            continue
        if "null_count" in found:
            nulls[column.name] = int(found["null_count"])
        if found.get("has_nan") == "true" or "false" in (found.get("min_is_exact"), found.get("max_is_exact")):
            continue
        low, high = _bound(column, found.get("min")), _bound(column, found.get("max"))
        if low is not None and high is not None:
            lowest[column.name], highest[column.name] = low, high
    return {"numRecords": rows, "minValues": lowest, "maxValues": highest, "nullCount": nulls}


def _bound(column: Column, text: str | None) -> Any:
    if text is None:
        return None
    kind = kind_of(column.type)
    if kind is Kind.WHOLE:
        return int(text)
    if kind is Kind.FLOATING:
        value = float(text)
        return value if math.isfinite(value) else None
    if column.type in TIME_TYPES and not _WRITABLE_TIME.match(text):
        return None
    if column.type == "DATE":
        return text
    if column.type == "TIMESTAMP":
        return text.replace(" ", "T")
    if column.type == "TIMESTAMP WITH TIME ZONE":
        return text.replace(" ", "T").removesuffix("+00") + "Z"
    if column.type == "VARCHAR" and len(text) <= _MAX_STATISTIC_LENGTH:
        return text
    return None

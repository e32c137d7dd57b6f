"""Which rows are those of the partitions of a step (short, because inputs and outputs share it)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import dagster as dg

from timestore_pipeline.model.windows import utc_moment

Range = tuple[datetime, datetime]
"""The times from the first until before the second one, in UTC."""

_SHOWN = 10


def times_of(definition: dg.PartitionsDefinition, keys: Sequence[str]) -> list[Range] | None:
    """Return the times of partitions, after one another and apart; None where they are not of time."""
    if not isinstance(definition, dg.TimeWindowPartitionsDefinition | dg.MultiPartitionsDefinition):
        return None
    if isinstance(definition, dg.MultiPartitionsDefinition) and not definition.has_time_window_dimension:
        return None
    merged: list[Range] = []
    # In UTC: within a zone an hour that comes twice in autumn is one and the same.
    for start, end in sorted({_in_utc(definition.time_window_for_partition_key(key)) for key in keys}):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _in_utc(window: dg.TimeWindow) -> Range:
    return utc_moment(window.start, "the start of the partition"), utc_moment(window.end, "the end of the partition")


def in_words(ranges: Sequence[Range] | None) -> str:
    """Return which rows are those of such times."""
    if ranges is None:
        return "all rows"
    shown = [f"{start.isoformat()} … {end.isoformat()}" for start, end in ranges[:_SHOWN]]
    return "the rows of " + ", ".join(shown) + (" …" if len(ranges) > _SHOWN else "")

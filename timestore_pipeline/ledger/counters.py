"""Counters and histograms, written in the same transaction as the change that they count (invariant 7)."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnCollection, Connection, select

from timestore_pipeline.ledger.schema import counters, histograms
from timestore_pipeline.ledger.statements import upsert

LANDING_FAILED_LOOKS = "timestore_landing_failed_looks_total"
DROPPED_BATCHES = "timestore_staging_dropped_batches_total"
RETRIED_BATCHES = "timestore_staging_retried_batches_total"
GUARDRAIL_BREACHES = "timestore_staging_guardrail_breaches_total"
DIRECT_WRITE_BATCHES = "timestore_direct_write_batches_total"
CORRECTIONS = "timestore_corrections_total"
CORRECTED_ROWS = "timestore_corrected_rows_total"
LOST_ROWS = "timestore_lost_rows_total"
LATE_ROWS = "timestore_late_rows_total"
LATE_BATCHES = "timestore_late_batches_total"
FLUSH_BATCHES = "timestore_staging_flush_batches_total"
FLUSH_ROWS = "timestore_staging_flush_rows_total"
FLUSH_DURATION = "timestore_staging_flush_duration_seconds"
SEGMENT_BYTES = "timestore_staging_segment_bytes"
RETENTION_SEGMENTS = "timestore_retention_unlinked_segments_total"
RETENTION_BYTES = "timestore_retention_freed_bytes_total"
COMPACTION_DURATION = "timestore_compaction_duration_seconds"
COMPACTED_FILES = "timestore_compaction_merged_files_total"
EXPIRED_ROWS = "timestore_expired_rows_total"
VACUUMED_FILES = "timestore_vacuum_removed_files_total"
VACUUMED_BYTES = "timestore_vacuum_freed_bytes_total"
EXPIRED_WINDOWS = "timestore_expired_windows_total"

FLUSH_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
"""Upper bounds in seconds of the histograms of builds; stored by index, so new ones are only ever appended."""

_SEGMENT_BUCKETS = tuple(4**power * 1024 for power in range(2, 11))


def bucket_bounds(metric: str) -> tuple[float, ...]:
    """Return the upper bounds of a histogram's buckets, in its unit; the one above all of them is left out."""
    return _SEGMENT_BUCKETS if metric == SEGMENT_BYTES else FLUSH_BUCKETS


@dataclass(frozen=True)
class Histogram:
    """One histogram: how many observations fell in each bucket (not cumulated; the last is +Inf), and their sum."""

    counts: tuple[int, ...]
    sum: float


def count(tx: Connection, metric: str, dataset: str, label: str, amount: float = 1) -> None:
    """Add ``amount`` to a counter; ``label`` is the value of its one label besides ``dataset``."""
    if amount == 0:
        return
    upsert(tx, counters, {"metric": metric, "dataset": dataset, "label": label, "value": amount}, _counted)


def _counted(new: ColumnCollection[str, Any]) -> Mapping[str, Any]:
    return {"value": counters.c.value + new.value}


def observe(tx: Connection, metric: str, dataset: str, label: str, value: float) -> None:
    """Put one observation into the histogram ``metric``, whose bounds are those of :func:`bucket_bounds`."""
    bucket = bisect.bisect_left(bucket_bounds(metric), value)
    upsert(
        tx,
        histograms,
        {"metric": metric, "dataset": dataset, "label": label, "bucket": bucket, "count": 1, "sum": value},
        _observed,
    )


def _observed(new: ColumnCollection[str, Any]) -> Mapping[str, Any]:
    return {"count": histograms.c.count + new["count"], "sum": histograms.c.sum + new.sum}


def counter_values(tx: Connection) -> dict[tuple[str, str, str], float]:
    """Return every counter: (metric, dataset, label) → value."""
    rows = tx.execute(select(counters.c.metric, counters.c.dataset, counters.c.label, counters.c.value))
    return {(metric, dataset, label): value for metric, dataset, label, value in rows}


def histogram_values(tx: Connection) -> dict[tuple[str, str, str], Histogram]:
    """Return every histogram: (metric, dataset, label) → counts and sum."""
    rows = tx.execute(select(histograms))
    found: dict[tuple[str, str, str], tuple[list[int], float]] = {}
    for row in rows:
        nothing = ([0] * (len(bucket_bounds(row.metric)) + 1), 0.0)
        counts, total = found.get((row.metric, row.dataset, row.label), nothing)
        counts[row.bucket] += row.count
        found[row.metric, row.dataset, row.label] = (counts, total + row.sum)
    return {key: Histogram(tuple(counts), total) for key, (counts, total) in found.items()}

"""Reports of the library → the metadata that the Dagster UI shows and plots. Pure, and bounded in size.

The UI makes links, pictures and headings of Markdown, which opening a page is enough to load. So what comes from
outside is only ever in a kind of value that the UI shows as the text that it is: text, and the cells of a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from timestore_pipeline.inert import visible
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.windows import Window

if TYPE_CHECKING:
    from timestore_pipeline.building.report import BuildReport, BuiltWindow
    from timestore_pipeline.ledger.windows import WindowTotals
    from timestore_pipeline.staging.ingest import IngestReport

# The UI shows a table at its full length in the page.
MAX_LINES = 25
# Over all windows of one build: each of them is an event of its own in Dagster's event log.
_MAX_LINES_OF_BUILD = 5_000
_MIN_LINES_OF_WINDOW = 5

Metadata = dict[str, Any]


def column_schema(columns: Iterable[Column]) -> dg.TableSchema:
    """Return columns as the UI shows them."""
    return dg.TableSchema(columns=[dg.TableColumn(column.name, column.type) for column in columns])


def window_range(windows: Sequence[Window]) -> str:
    """Return ``"none"``, one key, or ``"first … last (n)"``."""
    if not windows:
        return "none"
    if len(windows) == 1:
        return windows[0].key
    return f"{min(windows).key} … {max(windows).key} ({len(windows):,})"


def ingest_metadata(report: IngestReport) -> Metadata:
    """Return what one ingest of one dataset did."""
    batches = sum(1 for receipt in report.receipts if not receipt.duplicate)
    lines = [
        (receipt.batch_id, receipt.source, f"{receipt.rows:,}", "duplicate" if receipt.duplicate else "staged")
        for receipt in report.receipts
    ]
    lines += [(entry.batch_id, entry.source, f"{entry.rows or 0:,}", entry.reason) for entry in report.quarantined]
    metadata: Metadata = {
        "rows": report.rows,
        "bytes": report.segment_bytes,
        "batches": batches,
        "duplicates": len(report.receipts) - batches,
        "quarantined": len(report.quarantined),
        "quarantined_rows": report.quarantined_rows,
        "dropped_late_rows": report.dropped_rows,
        "windows": window_range(report.windows),
        "window_count": len(report.windows),
        "duration_seconds": report.duration_seconds,
        "sources": table(("batch", "source", "rows", "outcome"), lines, MAX_LINES),
    }
    if report.segment_id is not None:
        metadata["segment"] = report.segment_id
    if report.skipped:
        metadata["left_in_place"] = table(("why",), [(sentence,) for sentence in report.skipped], MAX_LINES)
    return metadata


def lines_per_window(windows: int) -> int:
    """Return how many batches of each window to name, so that a build of many windows stays bounded."""
    return max(_MIN_LINES_OF_WINDOW, min(MAX_LINES, _MAX_LINES_OF_BUILD // max(1, windows)))


def built_window_metadata(
    report: BuildReport, built: BuiltWindow, totals: WindowTotals | None, now: int, max_lines: int = MAX_LINES
) -> Metadata:
    """Return what a build published in one window; ``now`` in microseconds since the epoch."""
    lines = [(batch.batch_id, batch.source, f"{batch.rows:,}") for batch in built.batches]
    return {
        "rows": built.rows,
        **({"rows_taken_back": built.taken} if built.taken else {}),
        "bytes": built.bytes,
        "files": built.files,
        "batches": len(built.batches),
        "min_time": dg.MetadataValue.timestamp(built.min_time),
        "max_time": dg.MetadataValue.timestamp(built.max_time),
        **published_totals(totals),
        **build_metadata(report, now),
        "sources": table(("batch", "source", "rows"), lines, max_lines),
    }


def untouched_window_metadata(totals: WindowTotals | None) -> Metadata:
    """Return what to say of a window that was asked for and had nothing staged."""
    return {"rows": 0, "bytes": 0, "files": 0, "batches": 0, **published_totals(totals)}


def published_totals(totals: WindowTotals | None) -> Metadata:
    """Return what is published in a window since the beginning."""
    return {
        "dagster/partition_row_count": totals.rows if totals else 0,
        "published_bytes": totals.bytes if totals else 0,
        "published_files": totals.files if totals else 0,
    }


def build_metadata(report: BuildReport, now: int) -> Metadata:
    """Return what is true of a build as a whole."""
    return {
        "build_id": report.build_id,
        "table_version": report.table_version,
        "trigger": str(report.trigger),
        "flush_seconds": report.duration_seconds,
        "freshness_seconds": max(0.0, (now - report.oldest_staged_at) / 1e6),
    }


def table(header: Sequence[str], lines: Sequence[Sequence[str]], limit: int) -> dg.TableMetadataValue:
    """Return lines as a table of at most ``limit`` lines, which says how many more there are; cells are plain text."""
    shown = [list(line) for line in lines[:limit]]
    if len(lines) > limit:
        shown.append([f"… and {len(lines) - limit:,} more; the ledger has them all", *[""] * (len(header) - 1)])
    records = [dg.TableRecord(dict(zip(header, map(visible, line), strict=True))) for line in shown]
    return dg.MetadataValue.table(records, dg.TableSchema([dg.TableColumn(name, "text") for name in header]))

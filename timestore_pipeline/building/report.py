"""What a build that publishes rows brought into the table, window by window."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from timestore_pipeline.building.completion import Committed, published_windows
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.ledger.claims import Claim
from timestore_pipeline.ledger.corrected_windows import Taken
from timestore_pipeline.ledger.lineage import WindowBatch
from timestore_pipeline.ledger.windows import PublishedWindow
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.windows import Window, from_micros


@dataclass(frozen=True)
class BuiltWindow:
    """What a build brought into one window: rows, their time range and where they came from; Parquet bytes and files.

    Where the window was written anew, bytes and files are those of the whole window. ``taken`` rows, staged or
    published before, were left out because corrections took them; they are not among ``rows``.
    """

    window: Window
    rows: int
    bytes: int
    files: int
    min_time: datetime
    max_time: datetime
    batches: tuple[WindowBatch, ...]
    taken: int = 0


@dataclass(frozen=True)
class BuildReport:
    """What a build published. ``oldest_staged_at`` is in microseconds since the epoch.

    ``rows`` are staged ones that it published, ``taken`` those that it left out because corrections took them.
    """

    dataset: str
    build_id: int
    sequence: int
    trigger: Trigger
    table_version: int
    windows: tuple[BuiltWindow, ...]
    rows: int
    bytes: int
    files: int
    batches: int
    duration_seconds: float
    oldest_staged_at: int
    columns: tuple[Column, ...]
    left_some: bool = False
    """Whether it left later windows to other builds."""
    taken: int = 0


def build_report(
    spec: DatasetSpec,
    columns: tuple[Column, ...],
    claim: Claim,
    committed: Committed,
    contributing: Sequence[WindowBatch],
    duration_seconds: float,
) -> BuildReport:
    """Return the report of a build that published the slices of ``claim``."""
    published = published_windows(spec.window, committed.files)
    batches: dict[int, list[WindowBatch]] = defaultdict(list)
    for batch in contributing:
        batches[batch.window_start].append(batch)
    windows = []
    of_slices, taken = _by_window(committed.left_out.of_slices), _by_window(committed.left_out.taken)
    staged = claim.by_window()
    for start in sorted({*staged, *claim.replaced}):
        window, pieces = published.get(start, PublishedWindow(start, 0, 0, 0)), staged.get(start, [])
        built = spec.window_at(start)
        windows.append(
            BuiltWindow(
                window=built,
                rows=sum(piece.rows for piece in pieces) - of_slices[start],
                bytes=window.bytes,
                files=window.files,
                min_time=from_micros(min((piece.min_time for piece in pieces), default=start)),
                max_time=from_micros(max((piece.max_time for piece in pieces), default=built.end_micros - 1)),
                batches=tuple(batches[start]),
                taken=taken[start],
            )
        )
    return BuildReport(
        dataset=spec.name,
        build_id=claim.build.id,
        sequence=claim.build.sequence,
        trigger=Trigger(claim.build.trigger),
        table_version=committed.table_version,
        windows=tuple(windows),
        rows=claim.build.rows - of_slices.total(),
        bytes=sum(window.bytes for window in windows),
        files=sum(window.files for window in windows),
        batches=claim.build.batches,
        duration_seconds=duration_seconds,
        oldest_staged_at=min((piece.staged_at for piece in claim.slices), default=claim.build.claimed_at),
        columns=columns,
        left_some=claim.left_some,
        taken=taken.total(),
    )


def _by_window(taken: Taken) -> Counter[int]:
    found: Counter[int] = Counter()
    for (start, _), rows in taken.items():
        found[start] += rows
    return found


def report_of_shares(reports: Sequence[BuildReport]) -> BuildReport | None:
    """Return one report of several builds of a dataset; its build and table version are the last one's."""
    if len(reports) < 2:
        return next(iter(reports), None)
    last = reports[-1]
    windows = tuple(window for report in reports for window in report.windows)
    return replace(
        last,
        windows=windows,
        rows=sum(report.rows for report in reports),
        bytes=sum(report.bytes for report in reports),
        files=sum(report.files for report in reports),
        taken=sum(report.taken for report in reports),
        batches=len({batch.batch_id for window in windows for batch in window.batches}),
        duration_seconds=sum(report.duration_seconds for report in reports),
        oldest_staged_at=min(report.oldest_staged_at for report in reports),
        left_some=False,
    )

"""One dataset's windows published by several workers at once: each takes a share, and then what is still to be had.

No worker is told what to do. Each claims windows in the ledger, as many as leave the other lanes theirs, until nothing
is left that no other one has; so workers may come and go at any time. With one lane it is one build.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from timestore_pipeline.building.build import BuildReport, build_windows
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.errors import BuildInFlight
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.lanes import staged_windows
from timestore_pipeline.model.windows import Window
from timestore_pipeline.store import Store


def build_in_shares(
    store: Store,
    dataset: str,
    first: Window | None = None,
    last: Window | None = None,
    *,
    owner: str,
    trigger: Trigger = Trigger.MANUAL,
    target_file_bytes: int | None = None,
) -> BuildReport | None:
    """Publish what is staged for the windows ``first … last`` (by default all), in one commit per share.

    Args are those of :func:`timestore_pipeline.building.build.build_windows`.

    Returns:
        What this worker published in all, or None where nothing was staged. Windows that another one has by then are
        its own to publish.

    Raises:
        BuildInFlight: nothing could be claimed, or no lane was left for windows that nobody has; try again later.
        TimestoreError: a build failed; the shares before it are published.
    """
    reports: list[BuildReport] = []
    while True:
        try:
            report = build_windows(
                store,
                dataset,
                first,
                last,
                owner=owner,
                trigger=trigger,
                target_file_bytes=target_file_bytes,
                leave_some=True,
            )
        except BuildInFlight:
            if not reports or _left(store, dataset, first, last):
                raise
            break
        if report is None:
            break
        reports.append(report)
        if not report.left_some:
            break
        # Later windows only: what is staged meanwhile is for the next build, or this one would never end.
        first = max(built.window for built in report.windows).next()
    return _together(reports)


def _left(store: Store, dataset: str, first: Window | None, last: Window | None) -> bool:
    """Whether anything is staged there that no build has, or is about to add to."""
    starts = first.start_micros if first else None, last.start_micros if last else None
    with store.ledger.read() as tx:
        return bool(staged_windows(tx, dataset, *starts, builds_in_flight(tx, dataset)))


def _together(reports: Sequence[BuildReport]) -> BuildReport | None:
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
        batches=len({batch.batch_id for window in windows for batch in window.batches}),
        duration_seconds=sum(report.duration_seconds for report in reports),
        oldest_staged_at=min(report.oldest_staged_at for report in reports),
        left_some=False,
    )

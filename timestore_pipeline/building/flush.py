"""Flushes: all that is staged for some windows becomes Parquet files, published in one commit.

Where a dataset may have several builds at once, workers share its windows. No worker is told what to do: each claims
windows in the ledger, as many as leave the other lanes theirs, until nothing is left that no other one has. So workers
may come and go at any time.
"""

from __future__ import annotations

import time
from dataclasses import replace

from sqlalchemy import Connection

from timestore_pipeline.building.damage import out_of_attempts, set_unreadable_aside
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.publication import columns_to_build, new_build, publishing
from timestore_pipeline.building.report import BuildReport, build_report, report_of_shares
from timestore_pipeline.building.writing import write_claim
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import BuildAborted, BuildInFlight, TimestoreError
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.claims import Claim, Wanted, claim_build
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.lanes import staged_windows
from timestore_pipeline.ledger.lineage import batches_of_build
from timestore_pipeline.ledger.states import BuildKind
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.windows import WindowRange
from timestore_pipeline.store import Store


def flush_windows(store: Store, order: BuildOrder) -> BuildReport | None:
    """Publish all that is staged for the windows of an order in one commit.

    Where the dataset may have several builds at once, windows that another one has are left to it.

    Returns:
        What was published, or None where nothing was staged there.

    Raises:
        BuildInFlight: as many builds of the dataset as may be have not ended, or others have all of these windows; try
            again later.
        BuildAborted: this build was taken for dead and fenced meanwhile; its slices are staged again.
        SegmentUnreadable, TableError, DiskFull, LedgerError: nothing was published, the slices are staged again.
        PlaceError: staging or tables are not there, or another installation's; nothing was claimed.

    After TIMESTORE_BUILD_MAX_ATTEMPTS failures in a row the segments that cannot be read are quarantined, and the rest
    is built. Failures of another cause (a full disk, a broken table) quarantine nothing.
    """
    return _flush(store, order, least_rows=None)


def flush_in_shares(store: Store, order: BuildOrder) -> BuildReport | None:
    """Publish what is staged for the windows of an order, in one commit per share.

    Returns:
        What this worker published in all, or None where nothing was staged. Windows that another one has by then are
        its own to publish.

    Raises:
        BuildInFlight: nothing could be claimed, or no lane was left for windows that nobody has; try again later.
        TimestoreError: a flush failed; the shares before it are published.
    """
    reports: list[BuildReport] = []
    while True:
        try:
            report = _flush(store, order, store.settings.build_least_shared_rows)
        except BuildInFlight:
            if not reports or _anything_is_free(store, order):
                raise
            break
        if report is None:
            break
        reports.append(report)
        if not report.left_some:
            break
        # Later windows only: what is staged meanwhile is for the next flush, or this one would never end.
        following = max(built.window for built in report.windows).next()
        if order.windows.last is not None and order.windows.last < following:
            break
        order = replace(order, windows=WindowRange(following, order.windows.last))
    return report_of_shares(reports)


def _flush(store: Store, order: BuildOrder, least_rows: int | None) -> BuildReport | None:
    """Publish in one commit what is staged, or of it a share of no less than ``least_rows``."""
    # Also before: a process that dies of a segment cannot look at it afterwards.
    looked = out_of_attempts(store, order.dataset)
    if looked:
        set_unreadable_aside(store, order.dataset)
    try:
        return _flush_once(store, order, least_rows)
    except (BuildInFlight, BuildAborted):
        raise
    except TimestoreError:
        if looked or not out_of_attempts(store, order.dataset) or not set_unreadable_aside(store, order.dataset):
            raise
    return _flush_once(store, order, least_rows)


def _flush_once(store: Store, order: BuildOrder, least_rows: int | None) -> BuildReport | None:
    started = time.perf_counter()
    spec = store.datasets[order.dataset]
    known = columns_to_build(store, spec)
    if known is None:
        return None  # nothing was ever staged
    wanted, now = Wanted(staged=order.windows.starts, least_rows=least_rows), now_micros()

    def claim_them(tx: Connection) -> tuple[Claim | None, tuple[Column, ...]]:
        claim = claim_build(tx, new_build(store, tx, order, BuildKind.FLUSH, now), wanted)
        # Only now: what is claimed may have come with new columns since the first look.
        columns = dataset_columns(tx, spec) or known
        reach(CrashPoint.SLICES_RECORDED)
        return claim, columns

    claim, columns = store.ledger.transact(claim_them)
    if claim is None:
        return None
    stored = spec.table_columns(columns)
    with publishing(store, claim.build, stored) as publication:
        publication.commit(write_claim(store, stored, claim, order.file_bytes(store.settings)))
    with store.ledger.read() as tx:
        contributing = batches_of_build(tx, claim.build.id)
    return build_report(spec, columns, claim, publication.committed, contributing, time.perf_counter() - started)


def _anything_is_free(store: Store, order: BuildOrder) -> bool:
    """Whether anything is staged there that no build has, or is about to add to."""
    with store.ledger.read() as tx:
        others = builds_in_flight(tx, order.dataset)
        return bool(staged_windows(tx, order.dataset, *order.windows.starts, others))

"""Retention of the table: windows that are older than the dataset keeps them are dropped, in one commit.

Their files stay until the vacuum, for readers that are at work. The ledger remembers how many rows expired, so that
the row audit still adds up.
"""

from __future__ import annotations

from dataclasses import dataclass

from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.publication import WrittenFiles, claim_published, publishing
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.states import BuildKind
from timestore_pipeline.ledger.windows import WindowTotals, window_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.policy import Policy
from timestore_pipeline.storage.table_folder import has_table
from timestore_pipeline.store import Store
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.replacement import read_for_replacement


@dataclass(frozen=True)
class ExpiredWindows:
    """What was dropped from the table of a dataset."""

    dataset: str
    windows: int = 0
    rows: int = 0
    files: int = 0
    bytes: int = 0


def expired_windows(store: Store, spec: DatasetSpec, now: int | None = None) -> list[WindowTotals]:
    """Return the published windows that have had their time; ``now`` in microseconds since the epoch."""
    now = now_micros() if now is None else now
    kept = Policy.of(store.settings, spec).table_retention_micros
    if not kept:
        return []
    before = now - kept
    with store.ledger.read() as tx:
        totals = window_totals(tx, spec.name)
    return [total for total in totals if spec.window_at(total.window_start).end_micros <= before]


def expire_windows(store: Store, order: BuildOrder, *, now: int | None = None) -> ExpiredWindows:
    """Drop those of the windows of an order that have had their time.

    Raises:
        BuildInFlight: another build of the dataset has not ended.
        BuildAborted, TableError, LedgerError: nothing was dropped.
    """
    dataset = order.dataset
    spec = store.datasets[dataset]
    expired = [each for each in expired_windows(store, spec, now) if spec.window_at(each.window_start) in order.windows]
    own = OwnTable(store, dataset)
    if not expired or not has_table(own.place):
        return ExpiredWindows(dataset)
    own.opened()
    keys = [spec.window_at(total.window_start).key for total in expired]
    with store.ledger.read() as tx:
        columns = dataset_columns(tx, spec) or ()
    starts, rows = [total.window_start for total in expired], sum(total.rows for total in expired)
    claimed = claim_published(store, order, BuildKind.EXPIRY, starts, rows)
    with publishing(store, claimed, columns) as publication:
        publication.commit(WrittenFiles((), read_for_replacement(own, claimed, keys)))
    return ExpiredWindows(
        dataset,
        windows=len(expired),
        rows=rows,
        files=sum(total.files for total in expired),
        bytes=sum(total.bytes for total in expired),
    )

"""Rebuilds: windows derived again from retained segments, and swapped in one commit.

What is staged for them is published with it. A rebuild that could lose a row is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from sqlalchemy import Connection

from timestore_pipeline.building.damage import unreadable_slices
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.publication import columns_to_build, new_build, publishing
from timestore_pipeline.building.report import BuildReport, build_report
from timestore_pipeline.building.writing import write_claim
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import BuildAborted, RebuildRefused, TimestoreError
from timestore_pipeline.ledger.claims import Claim, Wanted, claim_build
from timestore_pipeline.ledger.datasets import dataset_columns, lock_dataset
from timestore_pipeline.ledger.lineage import (
    Coverage,
    WindowBatch,
    batches_of_slice,
    published_batches,
    published_coverage,
)
from timestore_pipeline.ledger.slices import Slice
from timestore_pipeline.ledger.states import BuildKind
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.store import Store


def rebuild_windows(store: Store, order: BuildOrder) -> BuildReport | None:
    """Derive the windows of an order again from segments, and replace them in one commit.

    Returns:
        What was published, or None where nothing was ever published or staged there.

    Raises:
        RebuildRefused: a segment with published rows of these windows is gone or damaged; names their batches.
        BuildInFlight, BuildAborted, TableError, DiskFull, LedgerError: nothing was changed.
        PlaceError: staging or tables are not there, or another installation's; nothing was changed.
    """
    started = time.perf_counter()
    spec = store.datasets[order.dataset]
    known = columns_to_build(store, spec)
    if known is None:
        return None  # nothing was ever staged
    now = now_micros()

    def claim_them(tx: Connection) -> tuple[Claim | None, tuple[Slice, ...], tuple[Column, ...]]:
        lock_dataset(tx, order.dataset)
        coverage = published_coverage(tx, order.dataset, *order.windows.starts)
        rows = sum(piece.rows for piece in coverage.slices)
        # What was staged since an earlier attempt is for the next build: this one does not replace its window.
        wanted = Wanted(staged=order.windows.starts, windows=coverage.windows, rows=rows)
        claim = claim_build(tx, new_build(store, tx, order, BuildKind.REBUILD, now), wanted)
        missing = _missing(spec, coverage)
        if missing and claim is not None:
            raise RebuildRefused(order.dataset, _named(spec, claim.replaced), missing)
        return claim, coverage.slices, dataset_columns(tx, spec) or known

    claimed, published, columns = store.ledger.transact(claim_them)
    if claimed is None:
        return None
    pieces = sorted(
        (*published, *claimed.slices), key=lambda piece: (piece.window_start, piece.min_time, piece.segment_id)
    )
    claim, stored = replace(claimed, slices=tuple(pieces)), spec.table_columns(columns)
    try:
        with publishing(store, claim.build, stored) as publication:
            publication.commit(write_claim(store, stored, claim, order.file_bytes(store.settings)))
    except BuildAborted:
        raise
    except TimestoreError as error:
        damaged = _damaged(store, spec, published)
        if not damaged:
            raise
        raise RebuildRefused(order.dataset, _named(spec, claim.replaced), damaged) from error
    with store.ledger.read() as tx:
        contributing = published_batches(tx, order.dataset, *order.windows.starts)
    return build_report(spec, columns, claim, publication.committed, contributing, time.perf_counter() - started)


def _missing(spec: DatasetSpec, coverage: Coverage) -> list[str]:
    return [
        *(_batch_in_words(spec, batch, "its segment was unlinked after retention") for batch in coverage.missing),
        *(
            f"{rows:,} rows of window {spec.window_at(start).key}, of batches that the ledger has forgotten"
            for start, rows in sorted(coverage.forgotten.items())
        ),
    ]


def _damaged(store: Store, spec: DatasetSpec, slices: Iterable[Slice]) -> list[str]:
    """Return the batches in published slices that cannot be read, in words."""
    found = []
    for damaged in unreadable_slices(store, spec, slices).values():
        for piece, reason in damaged.items():
            with store.ledger.read() as tx:
                batches = batches_of_slice(tx, piece)
            found += [
                _batch_in_words(spec, batch, f"segment {store.staging.shown(piece.path)} is damaged: {reason}")
                for batch in batches
            ]
    return found


def _batch_in_words(spec: DatasetSpec, batch: WindowBatch, why: str) -> str:
    return (
        f"batch {batch.batch_id} ({batch.source}) with {batch.rows:,} rows in window "
        f"{spec.window_at(batch.window_start).key}: {why}"
    )


def _named(spec: DatasetSpec, starts: Iterable[int]) -> str:
    keys = [spec.window_at(start).key for start in sorted(starts)]
    if len(keys) == 1:
        return f"window {keys[0]}"
    return f"{len(keys):,} windows from {keys[0]} to {keys[-1]}"

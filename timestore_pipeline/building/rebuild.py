"""Rebuilds: windows derived again from retained segments, and swapped in one commit.

What is staged for them is published with it. A rebuild that could lose a row is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection

from timestore_pipeline.building.damage import unreadable_slices
from timestore_pipeline.building.lost_table import prepare_table
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.publication import WrittenFiles, lease_micros, publish
from timestore_pipeline.building.report import BuildReport, build_report
from timestore_pipeline.building.writing import columns_now, write_claim
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import BuildAborted, RebuildRefused, TimestoreError
from timestore_pipeline.ledger.builds import NewBuild
from timestore_pipeline.ledger.claims import Claim, claim_build
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.lanes import claimed_already, find_lane, staged_slices
from timestore_pipeline.ledger.lineage import (
    Coverage,
    WindowBatch,
    batches_of_slice,
    published_batches,
    published_coverage,
)
from timestore_pipeline.ledger.slices import Slice, slices_of_build
from timestore_pipeline.ledger.states import BuildKind
from timestore_pipeline.ledger.windows import windows_replaced_by
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.staging.room import check_disk
from timestore_pipeline.store import Store


@dataclass(frozen=True)
class _RebuildClaim:
    """What a rebuild claims of the queue, the published slices that it builds again, and the windows it replaces."""

    staged: Claim
    published: tuple[Slice, ...]
    starts: frozenset[int]
    columns: tuple[Column, ...]
    evolved: bool

    @property
    def whole(self) -> Claim:
        """All slices of the windows, as if they were staged."""
        pieces = (*self.published, *self.staged.slices)
        in_order = sorted(pieces, key=lambda piece: (piece.window_start, piece.min_time, piece.segment_id))
        return Claim(self.staged.build, tuple(in_order))


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
    dataset = order.dataset
    spec = store.datasets[dataset]
    with store.ledger.read() as tx:
        columns = dataset_columns(tx, spec)
    if columns is None:
        return None
    store.places.require_segments(dataset)
    prepare_table(store, spec, columns)
    check_disk(store, store.table(dataset).root)
    from_start, to_start = order.windows.starts
    now = now_micros()

    def claim_them(tx: Connection) -> _RebuildClaim | None:
        new = NewBuild(
            dataset,
            kind=BuildKind.REBUILD,
            owner=order.owner,
            trigger=order.trigger,
            now=now,
            lease_micros=lease_micros(store),
            lanes=store.policy(tx, spec).limits.concurrent_builds,
        )
        mine, in_flight = claimed_already(tx, new)
        coverage = published_coverage(tx, dataset, from_start, to_start)
        # What was staged since an earlier attempt is for the next build: this one does not replace its window.
        if mine is not None:
            pieces: tuple[Slice, ...] = tuple(slices_of_build(tx, mine.id))
            starts = windows_replaced_by(tx, mine.id)
        else:
            pieces = staged_slices(tx, dataset, from_start, to_start)
            starts = coverage.windows | {piece.window_start for piece in pieces}
        lane = find_lane(tx, new, in_flight, starts) if mine is None else None
        missing = _missing(spec, coverage)
        if missing:
            raise RebuildRefused(dataset, _named(spec, starts), missing)
        if not starts:
            return None
        if mine is None:
            assert lane is not None
            mine = claim_build(tx, new, lane, starts, pieces, rows=sum(piece.rows for piece in coverage.slices))
        staged = Claim(mine, pieces)
        return _RebuildClaim(staged, coverage.slices, frozenset(starts), *columns_now(tx, spec, columns))

    claimed = store.ledger.transact(claim_them)
    if claimed is None:
        return None
    claim = claimed.whole
    stored = spec.table_columns(claimed.columns)
    windows = [spec.window_at(start) for start in claimed.starts]

    def write() -> WrittenFiles:
        target = order.file_bytes(store.settings)
        return write_claim(store, spec, stored, claim, target, evolved=claimed.evolved, rebuilt=windows)

    try:
        publication = publish(store, claim.build, stored, write)
    except BuildAborted:
        raise
    except TimestoreError as error:
        damaged = _damaged(store, spec, claimed.published)
        if not damaged:
            raise
        raise RebuildRefused(dataset, _named(spec, claimed.starts), damaged) from error
    with store.ledger.read() as tx:
        contributing = published_batches(tx, dataset, from_start, to_start)
    return build_report(spec, columns, claim, order.trigger, publication, contributing, time.perf_counter() - started)


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

"""One partition build: claim slices, write Parquet, commit to the table, mark published."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import duckdb
from sqlalchemy import Connection

from timestore_pipeline.building.completion import published_windows
from timestore_pipeline.building.damage import out_of_attempts, set_unreadable_aside
from timestore_pipeline.building.lost_table import prepare_table
from timestore_pipeline.building.publication import Publication, WrittenFiles, lease_micros, publish
from timestore_pipeline.building.rewriting import narrow_windows, rewritten_source
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import literal
from timestore_pipeline.durable_files import TEMPORARY_SUFFIX
from timestore_pipeline.errors import BuildAborted, BuildInFlight, TimestoreError
from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.ledger.claims import Claim, claim_slices, replace_also
from timestore_pipeline.ledger.datasets import dataset_columns, dataset_schema
from timestore_pipeline.ledger.lineage import WindowBatch, batches_of_build
from timestore_pipeline.ledger.slices import Slice
from timestore_pipeline.ledger.windows import PublishedWindow
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.windows import Window, from_micros
from timestore_pipeline.segments.description import SEGMENT_TABLE
from timestore_pipeline.segments.slices import (
    MOST_ATTACHED,
    attach_segment,
    bring_segments,
    detach_segment,
    gather_slices,
    rows_of_segment,
)
from timestore_pipeline.staging.room import check_disk
from timestore_pipeline.store import Store
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.parquet import slices_as_source, window_folders, write_window
from timestore_pipeline.table.table import ParquetFile, TableFile, declare_types, open_table, read_for_replacement

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltWindow:
    """What a build brought into one window: rows, their time range and where they came from; Parquet bytes and files.

    Where the window was written anew, bytes and files are those of the whole window.
    """

    window: Window
    rows: int
    bytes: int
    files: int
    min_time: datetime
    max_time: datetime
    batches: tuple[WindowBatch, ...]


@dataclass(frozen=True)
class BuildReport:
    """What a build published. ``oldest_staged_at`` is in microseconds since the epoch."""

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


def build_windows(
    store: Store,
    dataset: str,
    first: Window | None = None,
    last: Window | None = None,
    *,
    owner: str,
    trigger: Trigger = Trigger.MANUAL,
    target_file_bytes: int | None = None,
    leave_some: bool = False,
) -> BuildReport | None:
    """Publish all that is staged for the windows ``first … last`` (by default all) in one commit.

    Where the dataset may have several builds at once, windows that another one has are left to it.

    Args:
        store: the installation.
        dataset: a declared dataset.
        first: the first window, inclusive.
        last: the last window, inclusive.
        owner: who builds: a Dagster run id, or host and process; a recovery asks whether it still lives.
        trigger: why.
        target_file_bytes: size at which the next Parquet file of a window starts, by default the settings'.
        leave_some: take only this build's share of the windows, if more of the dataset may run beside it and it pays.

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
    options = (store, dataset, first, last, owner, trigger, target_file_bytes, leave_some)
    # Also before: a process that dies of a segment cannot look at it afterwards.
    looked = out_of_attempts(store, dataset)
    if looked:
        set_unreadable_aside(store, dataset)
    try:
        return _build_once(*options)
    except (BuildInFlight, BuildAborted):
        raise
    except TimestoreError:
        if looked or not out_of_attempts(store, dataset) or not set_unreadable_aside(store, dataset):
            raise
    return _build_once(*options)


def _build_once(
    store: Store,
    dataset: str,
    first: Window | None,
    last: Window | None,
    owner: str,
    trigger: Trigger,
    target_file_bytes: int | None,
    leave_some: bool,
) -> BuildReport | None:
    started = time.perf_counter()
    spec = store.datasets[dataset]
    with store.ledger.read() as tx:
        known = dataset_columns(tx, spec)
    if known is None:
        return None  # nothing was ever staged
    # Both before anything is claimed: what is not mounted costs no attempt.
    store.places.require_segments(dataset)
    prepare_table(store, spec, known)
    check_disk(store, store.table(dataset).root)
    now = now_micros()

    def claim_them(tx: Connection) -> tuple[Claim | None, tuple[Column, ...], bool]:
        claim = claim_slices(
            tx,
            dataset,
            owner=owner,
            trigger=trigger,
            first_window=first.start_micros if first else None,
            last_window=last.start_micros if last else None,
            lease_micros=lease_micros(store),
            now=now,
            replaces=spec.key is not None,
            lanes=store.policy(tx, spec).limits.concurrent_builds,
            least_rows=store.settings.build_least_shared_rows if leave_some else None,
        )
        # Only now: what is claimed may have come with new columns since the first look.
        found = columns_now(tx, spec, known)
        reach(CrashPoint.SLICES_RECORDED)
        return claim, *found

    claim, columns, evolved = store.ledger.transact(claim_them)
    if claim is None:
        return None
    publication = publish(
        store,
        claim.build,
        spec.table_columns(columns),
        lambda: write_claim(store, spec, spec.table_columns(columns), claim, target_file_bytes, evolved=evolved),
    )
    with store.ledger.read() as tx:
        contributing = batches_of_build(tx, claim.build.id)
    return build_report(spec, columns, claim, trigger, publication, contributing, time.perf_counter() - started)


def columns_now(tx: Connection, spec: DatasetSpec, columns: tuple[Column, ...]) -> tuple[tuple[Column, ...], bool]:
    """Return the dataset's columns, and whether they are others than in its beginning."""
    schema = dataset_schema(tx, spec)
    return (columns, False) if schema is None else (schema.columns, schema.version > 1)


def write_claim(
    store: Store,
    spec: DatasetSpec,
    columns: Sequence[Column],
    claim: Claim,
    target_file_bytes: int | None,
    *,
    evolved: bool,
    rebuilt: Collection[Window] = (),
) -> WrittenFiles:
    """Write the files of all claimed windows, and of those that the commit has to replace besides.

    Args:
        store: the installation.
        spec: the dataset.
        columns: those of its table.
        claim: the slices that are published.
        target_file_bytes: see :func:`build_windows`.
        evolved: whether the columns are others than in the dataset's beginning.
        rebuilt: windows of which all rows are in the claim, so that nothing is taken over from their files.

    Raises:
        SegmentUnreadable, TableError, DiskFull: as they say.
        duckdb.Error: the files cannot be written.
    """
    place = store.table(spec.name)
    target = target_file_bytes or store.settings.build_target_file_bytes
    claimed = {spec.window_at(piece.window_start) for piece in claim.slices}
    rebuilt = set(rebuilt)
    replaced = claimed | rebuilt if spec.key else set(rebuilt)
    files: list[ParquetFile] = []
    with (
        store.connect(place, *store.segment_folders(spec.name)) as connection,
        window_folders(store, claim.build) as folders,
    ):
        if evolved:
            declare_types(OwnTable(store, spec.name), columns)
            replaced |= _narrow_windows(store, connection, spec, columns, claim)
        replacement = None
        live: dict[str | None, list[TableFile]] = defaultdict(list)
        if replaced:
            keys = [window.key for window in replaced]
            replacement = read_for_replacement(OwnTable(store, spec.name), claim.build, keys)
            for file in replacement.files:
                live[file.window_key].append(file)

        def write(window: Window, pieces: Sequence[Slice], tables: Sequence[str]) -> None:
            check_disk(store, place.root)
            if replacement is not None and window in replaced:
                kept = () if window in rebuilt else live[window.key]
                source = rewritten_source(store, connection, spec, columns, window, pieces, tables, kept)
            else:
                source = slices_as_source(store, pieces, tables)
            files.extend(write_window(folders, connection, spec, columns, claim.build, window, source, target))

        if claim.slices:
            for window, pieces, tables in _windows_with_tables(store, connection, spec, columns, claim):
                write(window, pieces, tables)
        for window in sorted(replaced - claimed - rebuilt):
            write(window, (), ())
    return WrittenFiles(files, replacement)


def _narrow_windows(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, columns: Sequence[Column], claim: Claim
) -> set[Window]:
    """Return the windows whose files must be written anew because a column is wider now; the ledger knows of them."""
    table = open_table(store.table(spec.name), spec.name)
    keys = narrow_windows(store, connection, spec, columns, table)
    found = {window for key in keys if (window := spec.window_of_partition(key)) is not None}
    if found:
        log.warning("%s: a column has a wider type now; %d windows are written anew for it", spec.name, len(found))
        starts = [window.start_micros for window in found]
        store.ledger.transact(lambda tx: replace_also(tx, claim.build, starts))
        reach(CrashPoint.WINDOWS_ADDED)
    return found


def _windows_with_tables(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, columns: Sequence[Column], claim: Claim
) -> Iterator[tuple[Window, list[Slice], list[str]]]:
    """Yield each window with its slices and the tables that hold their rows while it is written."""
    by_window = _slices_by_window(claim)
    if max(len(pieces) for pieces in by_window.values()) > MOST_ATTACHED:
        with _scratch_file(store, connection, claim.build) as scratch:
            table = f"{scratch}.{SEGMENT_TABLE}"
            gather_slices(store, connection, spec, columns, claim.slices, table)
            for window_start, pieces in by_window.items():
                yield spec.window_at(window_start), pieces, [table]
        return
    last_use = {piece.segment_id: window for window, pieces in by_window.items() for piece in pieces}
    attached: set[str] = set()
    for window_start, pieces in by_window.items():
        bring_segments(store, (piece for piece in pieces if piece.segment_id not in attached))
        for piece in pieces:
            if piece.segment_id not in attached:
                attach_segment(store, connection, piece)
                attached.add(piece.segment_id)
        yield spec.window_at(window_start), pieces, [rows_of_segment(columns, piece) for piece in pieces]
        for segment_id in [name for name in attached if last_use[name] == window_start]:
            detach_segment(connection, segment_id)
            attached.remove(segment_id)


@contextmanager
def _scratch_file(store: Store, connection: duckdb.DuckDBPyConnection, build: Build) -> Iterator[str]:
    """Attach an empty DuckDB file for the time of a build: what is gathered there may be larger than memory."""
    path = store.settings.temp_path / f"{build.dataset}-{build.sequence}.duckdb{TEMPORARY_SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    connection.execute(f"ATTACH {literal(str(path))} AS scratch")
    try:
        yield "scratch"
    finally:
        connection.execute("DETACH scratch")
        path.unlink(missing_ok=True)


def _slices_by_window(claim: Claim) -> dict[int, list[Slice]]:
    """Group a claim's slices by the start of their window, windows in time order."""
    found: dict[int, list[Slice]] = defaultdict(list)
    for piece in claim.slices:
        found[piece.window_start].append(piece)
    return found


def build_report(
    spec: DatasetSpec,
    columns: tuple[Column, ...],
    claim: Claim,
    trigger: Trigger,
    publication: Publication,
    contributing: Sequence[WindowBatch],
    duration_seconds: float,
) -> BuildReport:
    """Return the report of a build that published the slices of ``claim``."""
    published = published_windows(spec, publication.files)
    batches: dict[int, list[WindowBatch]] = defaultdict(list)
    for batch in contributing:
        batches[batch.window_start].append(batch)
    windows = []
    for start, pieces in _slices_by_window(claim).items():
        window = published.get(start, PublishedWindow(start, 0, 0, 0))
        windows.append(
            BuiltWindow(
                window=spec.window_at(start),
                rows=sum(piece.rows for piece in pieces),
                bytes=window.bytes,
                files=window.files,
                min_time=from_micros(min(piece.min_time for piece in pieces)),
                max_time=from_micros(max(piece.max_time for piece in pieces)),
                batches=tuple(batches[start]),
            )
        )
    return BuildReport(
        dataset=spec.name,
        build_id=claim.build.id,
        sequence=claim.build.sequence,
        trigger=trigger,
        table_version=publication.table_version,
        windows=tuple(windows),
        rows=claim.build.rows,
        bytes=sum(window.bytes for window in windows),
        files=sum(window.files for window in windows),
        batches=claim.build.batches,
        duration_seconds=duration_seconds,
        oldest_staged_at=min(piece.staged_at for piece in claim.slices),
        columns=columns,
        left_some=claim.left_some,
    )

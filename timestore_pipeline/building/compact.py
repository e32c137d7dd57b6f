"""Compaction: the small files of a window become few of the target size, in time order, and no row changes.

An open window is compacted when it has too many small files; a closed one (its end plus the dataset's lateness has
passed) until its files have the target size, or are as few and as even as its bytes let them be. A compaction is a
build: it claims, commits and is settled as one, and while it is in flight nothing else of its windows is built, nor of
its lane. So each is bounded, and a flush that is due goes first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.publication import WrittenFiles, claim_published, publishing
from timestore_pipeline.building.thresholds import due_trigger
from timestore_pipeline.building.writing import published_columns
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.connections import AS_SET, Share
from timestore_pipeline.errors import CorrectionPending, TableError
from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.ledger.corrected_windows import pending_corrections
from timestore_pipeline.ledger.lanes import windows_in_flight
from timestore_pipeline.ledger.queue import queue_of
from timestore_pipeline.ledger.states import BuildKind
from timestore_pipeline.ledger.windows import window_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.windows import Window, WindowRange
from timestore_pipeline.policy import Policy
from timestore_pipeline.staging.room import check_disk
from timestore_pipeline.storage.table_folder import has_table
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import ParquetFile, TableFile, has_columns, live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.parquet import WindowSource, even_split, parquet_relation, window_folders, write_window
from timestore_pipeline.table.replacement import read_for_replacement

# In an open window a file of at least this share of the target size is not small: it is written once more at the end.
_LARGE_ENOUGH = 0.5
# In a closed window a file of at least this share has the target size; for good, so it must be near.
_FULL = 0.7
# So many times the target size fit into one file: better one a little larger than two half empty ones.
_FITS = 1.15
# Files of more than this many times the target size stay as they are; splitting them makes no reader faster.
_OVERSIZE = 1.5
# So many full files are written again at most for the sake of small ones beside them.
_MOST_FULL = 8
# Files of one size are those of which none has fewer rows than this share of the mean.
_EVEN = 0.8
# A file of up to this many times the size of all smaller ones is merged with them: so sizes grow by steps, and a window
# that is flushed a thousand times is not written anew each time.
_SIZE_RATIO = 2


@dataclass(frozen=True)
class CompactionRules:
    """Files below half of ``target_file_bytes`` are small; an open window may have ``max_small_files`` of them.

    In a closed one files are small that are below 0.7 of it, and there may be none that could be had fuller.

    With 0 an open window is never compacted.
    """

    target_file_bytes: int
    max_small_files: int


@dataclass(frozen=True)
class CompactionReport:
    """What compactions of a dataset merged: ``files`` became ``merged_files``."""

    dataset: str
    windows: int = 0
    rows: int = 0
    bytes: int = 0
    files: int = 0
    merged_files: int = 0
    merged_bytes: int = 0
    builds: int = 0
    duration_seconds: float = 0.0
    stopped: str = ""
    """Why windows are left that could be compacted; empty where none is."""


def effective_rules(store: Store, spec: DatasetSpec, target_file_bytes: int | None = None) -> CompactionRules:
    """Return the rules of a dataset: its own, else the environment's."""
    return CompactionRules(
        target_file_bytes=target_file_bytes or store.settings.build_target_file_bytes,
        max_small_files=Policy.of(store.settings, spec).max_small_files,
    )


def files_to_merge(files: Sequence[TableFile], rules: CompactionRules, *, closed: bool) -> list[TableFile]:
    """Return which files of one window are to be merged, none where it is well as it is."""
    by_size = sorted(files, key=lambda file: (file.bytes, file.path))
    if closed:
        return _to_make_even(by_size, rules.target_file_bytes)
    small = [file for file in by_size if file.bytes < rules.target_file_bytes * _LARGE_ENOUGH]
    if not rules.max_small_files or len(small) <= rules.max_small_files:
        return []
    chosen = small[: _alike(small)]
    return chosen if merged_count(chosen, rules.target_file_bytes) < len(chosen) else []


def merged_count(files: Sequence[TableFile], target_file_bytes: int) -> int:
    """Return how many files of about the target size these make; as few as fit."""
    return max(1, math.ceil(sum(file.bytes for file in files) / (_FITS * target_file_bytes)))


def _to_make_even(by_size: Sequence[TableFile], target_file_bytes: int) -> list[TableFile]:
    """Return which files of a closed window are written anew: small ones, and full ones that take them in.

    Each time there are fewer files, or as many with more even rows; so it comes to an end.
    """
    small = [file for file in by_size if file.bytes < target_file_bytes * _FULL]
    if not small:
        return []
    full = [file for file in by_size if _FULL <= file.bytes / target_file_bytes <= _OVERSIZE]
    choices = [small + full[:number] for number in range(min(len(full), _MOST_FULL) + 1)]
    worth = [files for files in choices if _is_worth_it(files, merged_count(files, target_file_bytes))]
    enough = (files for files in worth if _mean(files, target_file_bytes) >= target_file_bytes * _FULL)
    return next(enough, max(worth, key=lambda files: _mean(files, target_file_bytes), default=[]))


def _mean(files: Sequence[TableFile], target_file_bytes: int) -> float:
    return sum(file.bytes for file in files) / merged_count(files, target_file_bytes)


def _is_worth_it(files: Sequence[TableFile], count: int) -> bool:
    if count != len(files):
        return count < len(files)
    rows = sum(file.rows for file in files)
    split = even_split(rows, count)
    enough = rows / count * _EVEN
    return min(file.rows for file in files) < enough <= rows - (split.files(rows) - 1) * split.rows_per_file


def compact_windows(
    store: Store,
    order: BuildOrder,
    *,
    max_bytes: int | None = None,
    now: int | None = None,
) -> CompactionReport:
    """Compact the windows of an order, oldest first, in builds of bounded size; a flush that is due goes first.

    Args:
        store: the installation.
        order: what to compact; the size of files in it is that of merged ones.
        max_bytes: stop after about so many bytes; by default the end of what there is.
        now: microseconds since the epoch, by default the clock's.

    Returns:
        What was merged.

    Raises:
        BuildInFlight: another build of the dataset has not ended.
        BuildAborted, TableError, DiskFull, LedgerError: the last build was not published; those before it are.
    """
    spec = store.datasets[order.dataset]
    open_from = spec.first_open_window(now_micros() if now is None else now)
    most = math.inf if max_bytes is None else max_bytes
    return _compact(store, order, open_from, most, lambda: _flush_is_due(store, spec))


def compact_fully(store: Store, order: BuildOrder) -> CompactionReport:
    """Compact the windows of an order as if all of them had closed, to the end; for whoever asks for these windows.

    Returns and raises what :func:`compact_windows` does.
    """
    return _compact(store, order, None, math.inf, lambda: False)


def _compact(
    store: Store, order: BuildOrder, open_from: Window | None, most_bytes: float, gives_way: Callable[[], bool]
) -> CompactionReport:
    """Compact until nothing is left, ``most_bytes`` are merged, or something else goes first after a build."""
    started = time.perf_counter()
    spec = store.datasets[order.dataset]
    rules = effective_rules(store, spec, order.target_file_bytes)
    report = CompactionReport(order.dataset)
    left = most_bytes
    while True:
        plan = plan_compaction(store, spec, rules, order.windows, open_from)
        stopped = ""
        if plan and left <= 0:
            stopped = "the bound of one run is reached"
        elif plan and report.builds and gives_way():
            stopped = "a flush is due and goes first"
        if not plan or stopped:
            duration = time.perf_counter() - started
            return _plus(report, CompactionReport(order.dataset, duration_seconds=duration, stopped=stopped))
        share = dict(_first_bytes(plan, min(left, store.settings.compaction_max_bytes_per_build)))
        try:
            done = _compact_once(store, order, rules, share)
        except CorrectionPending:
            continue  # acknowledged since the plan was made; the next one leaves its windows alone
        report = _plus(report, done)
        left -= done.bytes


def plan_compaction(
    store: Store,
    spec: DatasetSpec,
    rules: CompactionRules,
    windows: WindowRange,
    open_from: Window | None,
) -> dict[Window, list[TableFile]]:
    """Return which files of which windows are to be merged, in time order; opens the table only if any may be.

    Windows before ``open_from`` are closed; all are where it is None.
    """
    with store.ledger.read() as tx:
        totals = window_totals(tx, spec.name)
        # With one lane, whoever has it says that nothing can be compacted just now.
        taken = windows_in_flight(tx, spec.name) if store.policy(tx, spec).limits.concurrent_builds > 1 else set()
        taken |= pending_corrections(tx, spec.name).keys()  # they are written anew by their flush
    closed = {}
    for total in totals:
        window = spec.window_at(total.window_start)
        if window not in windows or total.window_start in taken:
            continue
        is_closed = open_from is None or window < open_from
        least = 1 if is_closed else rules.max_small_files
        if least and total.files > least:
            closed[window] = is_closed
    place = store.table(spec.name)
    if not closed or not has_table(place):
        return {}
    by_window: dict[Window, list[TableFile]] = {window: [] for window in closed}
    for file in live_files(open_table(place, spec.name)):
        window = spec.window_of_partition(file.window_key)
        if window is not None and window in by_window:
            by_window[window].append(file)
    plan = {window: files_to_merge(files, rules, closed=closed[window]) for window, files in by_window.items()}
    return {window: plan[window] for window in sorted(plan) if plan[window]}


def _alike(small: Sequence[TableFile]) -> int:
    """Return how many of the smallest files are of like size; at least two."""
    total = 0
    for number, file in enumerate(small):
        if number >= 2 and file.bytes > _SIZE_RATIO * total:
            return number
        total += file.bytes
    return len(small)


def _first_bytes(plan: dict[Window, list[TableFile]], most: float) -> Iterator[tuple[Window, list[TableFile]]]:
    """Yield windows until they have ``most`` bytes; always one."""
    total = 0
    for window, files in plan.items():
        if total and total + sum(file.bytes for file in files) > most:
            return
        total += sum(file.bytes for file in files)
        yield window, files


def _flush_is_due(store: Store, spec: DatasetSpec) -> bool:
    with store.ledger.read() as tx:
        state = queue_of(tx, spec.name)
        policy = store.policy(tx, spec)
    return due_trigger(state, policy.flush, policy.limits.max_pending, now_micros()) is not None


def _compact_once(
    store: Store, order: BuildOrder, rules: CompactionRules, plan: dict[Window, list[TableFile]]
) -> CompactionReport:
    spec = store.datasets[order.dataset]
    check_disk(store, store.table(spec.name).root)
    # What is staged may have brought columns that the table does not have yet; that is for its flush to publish.
    own = OwnTable(store, spec.name)
    columns = published_columns(store, spec, own.opened())
    starts = [window.start_micros for window in plan]
    rows = sum(file.rows for files in plan.values() for file in files)
    claimed = claim_published(store, order, BuildKind.COMPACTION, starts, rows)
    with publishing(store, claimed, columns) as publication:
        found = read_for_replacement(own, claimed, [window.key for window in plan], data_change=False)
        if not has_columns(found.table, columns):
            raise TableError(
                f"dataset {spec.name!r}: its columns changed just now; the next compaction merges its files"
            )
        # Only builds change files, and this is the one in flight; what somebody else has changed is left alone.
        live = set(found.files)
        chosen = {window: [file for file in files if file in live] for window, files in plan.items()}
        merged = [file for files in chosen.values() for file in files]
        written = _write_merged(store, columns, claimed, chosen, rules.target_file_bytes)
        publication.commit(WrittenFiles(written, found.only(merged)))
    return CompactionReport(
        spec.name,
        windows=len({file.window_key for file in merged}),
        rows=sum(file.rows for file in merged),
        bytes=sum(file.bytes for file in merged),
        files=len(merged),
        merged_files=len(publication.committed.files),
        merged_bytes=sum(file.bytes for file in publication.committed.files),
        builds=1,
    )


def _write_merged(
    store: Store,
    columns: Sequence[Column],
    build: Build,
    chosen: Mapping[Window, Sequence[TableFile]],
    target_file_bytes: int,
) -> list[ParquetFile]:
    """Write the rows of the chosen files of each window to as few files as they fit into."""
    spec = store.datasets[build.dataset]
    counts = {window: merged_count(files, target_file_bytes) for window, files in chosen.items() if files}
    share = Share(threads=1) if any(count > 1 for count in counts.values()) else AS_SET
    written: list[ParquetFile] = []
    with (
        store.connect(store.table(spec.name), share=share) as connection,
        window_folders(store, build, columns) as folders,
    ):
        for window, count in counts.items():
            check_disk(store, store.table(spec.name).root)
            source = _merged_source(store, spec, columns, chosen[window])
            written += write_window(folders, connection, window, source, target_file_bytes, count)
    return written


def _merged_source(
    store: Store, spec: DatasetSpec, columns: Sequence[Column], files: Sequence[TableFile]
) -> WindowSource:
    """Return the rows of files as what one file (or a few) of their window are made of."""
    place = store.table(spec.name)
    paths = sorted(file.path for file in files)
    named = ", ".join(place.shown(path) for path in paths[:3])
    return WindowSource(
        relations=[parquet_relation(place, paths, columns)],
        rows=sum(file.rows for file in files),
        bytes=sum(file.bytes for file in files),
        one_after_the_other=True,
        counted_by="the table",
        wrong=lambda reason: TableError(
            f"dataset {spec.name!r}: {named} cannot be compacted: {reason}. Restore the files from a backup, or build "
            f"their window again with 'timestore build {spec.name} --rebuild'."
        ),
    )


def _plus(one: CompactionReport, other: CompactionReport) -> CompactionReport:
    return CompactionReport(
        one.dataset,
        windows=one.windows + other.windows,
        rows=one.rows + other.rows,
        bytes=one.bytes + other.bytes,
        files=one.files + other.files,
        merged_files=one.merged_files + other.merged_files,
        merged_bytes=one.merged_bytes + other.merged_bytes,
        builds=one.builds + other.builds,
        duration_seconds=one.duration_seconds + other.duration_seconds,
        stopped=other.stopped,
    )

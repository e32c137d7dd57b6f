"""A commit that is in the table is recorded in the ledger, together with all others that become visible with it.

Builds of one dataset in different lanes commit in any order. Readers get a table version and all slices that are not
published; so no build may stay unpublished in the ledger whose commit is in the version that readers get. Whoever
moves that version asks the table, at just that version, which builds in flight it has, and ends them in the same
transaction. What that version has does not change any more, so the table is asked before the transaction; a build that
is claimed in between commits later.

Other programs commit too. Their versions become visible in the same way, once somebody has looked at them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import TableError
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.builds import Build, builds_in_flight, mark_published
from timestore_pipeline.ledger.corrected_windows import LeftOut
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.ledger.tables import advance_table_version, table_versions
from timestore_pipeline.ledger.windows import PublishedWindow, put_windows, window_totals, windows_replaced_by
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import Granularity, Window
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.table_folder import entry_is_empty, file_name, has_table
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import ParquetFile, TableFile, file_prefix, live_files
from timestore_pipeline.table.delta import DeltaTable
from timestore_pipeline.table.foreign import ForeignCommit, foreign_commits
from timestore_pipeline.table.manifests import keep_manifest
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.sequences import is_published, sync_found, version_of_build

log = log_named(__name__)

_ATTEMPTS = 10


@dataclass(frozen=True)
class Committed:
    """A build that is in the table: its version, the files that it wrote, and those that it left where it replaced.

    What it ``left_out`` only the process knows that wrote the files; the ledger has it by window and correction.
    """

    build: Build
    table_version: int
    files: Sequence[ParquetFile | TableFile]
    kept: Sequence[TableFile] = ()
    left_out: LeftOut = field(default_factory=LeftOut)


def record_commit(store: Store, commit: Committed) -> None:
    """Record a build as published, and with it the others whose commits are in the same table version.

    What other programs have committed since the version that readers had is taken up as well. Done again, also by
    another process, it changes nothing.

    Raises:
        TableError: the table cannot be read; nothing is recorded.
        LedgerError: likewise the ledger.
    """
    _follow_before(store, commit)

    def record(tx: Connection, commits: Iterable[Committed]) -> None:
        _record(store, tx, commits)
        reach(CrashPoint.PUBLICATION_RECORDED)

    def record_alone(tx: Connection) -> bool:
        lock_dataset(tx, commit.build.dataset)
        if _others(tx, commit.build):
            return False
        record(tx, [commit])
        return True

    if not store.ledger.transact(record_alone):
        others = _committed_before(store, commit)
        store.ledger.transact(lambda tx: record(tx, [*others, commit]))


def _follow_before(store: Store, commit: Committed) -> None:
    """Take up what other programs have committed before a build and after the last look; nobody would look again.

    First: what the build took out of windows, or found superseded there, is counted against what they had.
    """
    dataset, place = commit.build.dataset, store.table(commit.build.dataset)
    with store.ledger.read() as tx:
        looked_at = table_versions(tx, [dataset]).get(dataset)
    commits = foreign_commits(place, range(0 if looked_at is None else looked_at + 1, commit.table_version))
    if not commits:
        return
    try:
        table = open_table(place, dataset, commits[-1].version)
    except TableError:
        follow_others(store, dataset)  # its log is cleaned up already, and the build is recorded with it
    else:
        _take_up(store, dataset, table, looked_at, commits)


def _record(store: Store, tx: Connection, commits: Iterable[Committed]) -> None:
    for each in commits:
        spec = store.datasets[each.build.dataset]
        mark_published(
            tx,
            each.build,
            table_version=each.table_version,
            published=published_windows(spec.window, each.files),
            kept=published_windows(spec.window, each.kept),
            now=now_micros(),
        )


def _others(tx: Connection, build: Build) -> list[Build]:
    return [each for each in builds_in_flight(tx, build.dataset) if each.id != build.id]


def follow_others(store: Store, dataset: str) -> bool:
    """Let readers have what other programs have committed to the table since; whether there was anything.

    The totals of the windows that they changed become those of the table, and what the rows do not add up to any more
    is for the row audit to say. Builds that the version has are ended in the same transaction.

    Raises:
        TableError: the table cannot be read; nothing is recorded.
        LedgerError: likewise the ledger.
    """
    place = store.table(dataset)
    with store.ledger.read() as tx:
        looked_at = table_versions(tx, [dataset]).get(dataset)
    if looked_at is None or not has_table(place):
        return False
    for _ in range(_ATTEMPTS):
        # First: a build that is claimed later commits later.
        look = OwnTable(store, dataset).look()
        if look.objection is not None:
            return False
        version = look.table.version()
        commits = foreign_commits(place, range(looked_at + 1, version + 1))
        if not commits and not _log_has_moved_on(place, dataset, looked_at, version):
            return False
        if _take_up(store, dataset, look.table, looked_at, commits):
            return True
    return False  # builds move the version all the time, and each of them looks before it begins


def _take_up(
    store: Store, dataset: str, table: DeltaTable, looked_at: int | None, commits: Sequence[ForeignCommit]
) -> bool:
    """Make the version of ``table`` visible, with what others have committed; False where a later one is meanwhile."""
    sync_found(store.table(dataset), table, looked_at)
    committed = _committed_at(store, dataset, table)
    totals = _totals_of_changed(store, store.datasets[dataset], table, commits)
    version = table.version()

    def move_on(tx: Connection) -> bool:
        lock_dataset(tx, dataset)
        seen = table_versions(tx, [dataset]).get(dataset)
        given_up = seen is None and looked_at is not None
        if given_up or (seen is not None and seen > version):
            return False
        _record(store, tx, committed)
        put_windows(tx, dataset, totals, now_micros())
        advance_table_version(tx, dataset, version)
        return True

    if not store.ledger.transact(move_on):
        return False
    for commit in commits:
        log.log(logging.WARNING if commit.data_change else logging.INFO, "%s: %s", dataset, commit.in_words)
    return True


def _log_has_moved_on(place: Storage, dataset: str, looked_at: int, version: int) -> bool:
    """Whether the version that readers have cannot be opened any more, though no file of it went.

    Somebody else cleaned the log up to a commit that changed no file: a property, a vacuum. An entry that is there and
    empty is damage: a later version would be without its rows, and nobody would say so.
    """
    if version <= looked_at or entry_is_empty(place, looked_at):
        return False
    try:
        open_table(place, dataset, looked_at)
    except TableError:
        return True
    return False


def _totals_of_changed(
    store: Store, spec: DatasetSpec, table: DeltaTable, commits: Iterable[ForeignCommit]
) -> dict[int, PublishedWindow]:
    """Return what the table has of each window that other programs changed; of all where nobody can say which."""
    there = published_windows(spec.window, live_files(table))
    keys = [commit.window_keys for commit in commits]
    if None in keys:
        with store.ledger.read() as tx:
            changed = {total.window_start for total in window_totals(tx, spec.name)} | there.keys()
    else:
        windows = (spec.window_of_partition(key) for each in keys for key in each or ())
        changed = {window.start_micros for window in windows if window is not None}
    return {start: there.get(start, PublishedWindow(start, 0, 0, 0)) for start in changed}


def _committed_before(store: Store, commit: Committed) -> list[Committed]:
    """Return the other builds in flight that the table has at the version of ``commit``, in their order there."""
    table = open_table(store.table(commit.build.dataset), commit.build.dataset, commit.table_version)
    return [each for each in _committed_at(store, commit.build.dataset, table) if each.build.id != commit.build.id]


def _committed_at(store: Store, dataset: str, table: DeltaTable) -> list[Committed]:
    """Return the builds in flight that the table has at the version of ``table``, in their order there."""
    place = store.table(dataset)
    with store.ledger.read() as tx:
        seen = table_versions(tx, [dataset]).get(dataset)
        others = builds_in_flight(tx, dataset)
        replaced = {each.id: windows_replaced_by(tx, each.id) for each in others}
    others = [each for each in others if is_published(table, each)]
    if not others:
        return []
    sync_found(place, table, seen)
    # What readers do not see yet is in the entries behind the version that they see.
    behind = None if seen is None else max(1, table.version() - seen)
    files = live_files(table)
    found = []
    for each in others:
        keep_manifest(place, each.sequence)
        found.append(
            found_in_table(
                store.datasets[each.dataset],
                each,
                replaced[each.id],
                version_of_build(place, table, each, behind),
                files,
            )
        )
    return sorted(found, key=lambda each: each.table_version)


def found_in_table(
    spec: DatasetSpec, build: Build, replaced: Iterable[int], version: int, files: Iterable[TableFile]
) -> Committed:
    """Return what the live ``files`` of the table say of a build that died; no other build had its windows meanwhile.

    ``replaced`` are the starts of the windows whose files its commit replaced.
    """
    keys = {spec.window_at(start).key for start in replaced}
    written, kept = [], []
    for file in files:
        if file_name(file.path).startswith(file_prefix(build.sequence)):
            written.append(file)
        elif file.window_key in keys:
            kept.append(file)
    return Committed(build, version, written, kept)


def published_windows(granularity: Granularity, files: Iterable[ParquetFile | TableFile]) -> dict[int, PublishedWindow]:
    """Return what files have of each window, by the window's start in microseconds."""
    found: dict[int, PublishedWindow] = {}
    for file in files:
        window = Window.of_partition(file.window_key, granularity)
        if window is None:
            continue
        start = window.start_micros
        had = found.get(start, PublishedWindow(start, 0, 0, 0))
        found[start] = PublishedWindow(start, had.rows + file.rows, had.bytes + file.bytes, had.files + 1)
    return found

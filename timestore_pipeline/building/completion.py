"""A commit that is in the table is recorded in the ledger, together with all others that become visible with it.

Builds of one dataset in different lanes commit in any order. Readers get a table version and all slices that are not
published; so no build may stay unpublished in the ledger whose commit is in the version that readers get. Whoever
moves that version asks the table, at just that version, which builds in flight it has, and ends them in the same
transaction. What that version has does not change any more, so the table is asked before the transaction; a build that
is claimed in between commits later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from timestore_pipeline.building.manifests import keep_manifest
from timestore_pipeline.building.table import (
    ParquetFile,
    TableFile,
    file_prefix,
    is_published,
    live_files,
    open_table,
    sync_found,
    version_of_build,
)
from timestore_pipeline.clock import now_micros
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.ledger.builds import Build, builds_in_flight, mark_published
from timestore_pipeline.ledger.published import PublishedWindow, windows_replaced_by
from timestore_pipeline.ledger.registry import lock_dataset, table_versions
from timestore_pipeline.storage.table_folder import file_name
from timestore_pipeline.store import Store


@dataclass(frozen=True)
class Committed:
    """A build that is in the table: its version, the files that it wrote, and those that it left where it replaced."""

    build: Build
    table_version: int
    files: Sequence[ParquetFile | TableFile]
    kept: Sequence[TableFile] = ()


def record_commit(store: Store, commit: Committed, recorded: Callable[[], None] = lambda: None) -> None:
    """Record a build as published, and with it the others whose commits are in the same table version.

    Done again, also by another process, it changes nothing. ``recorded`` is called before the transaction commits.

    Raises:
        TableError: the table cannot be read; nothing is recorded.
        LedgerError: likewise the ledger.
    """

    def record(tx: Connection, commits: Iterable[Committed]) -> None:
        for each in commits:
            spec = store.datasets[each.build.dataset]
            mark_published(
                tx,
                each.build,
                table_version=each.table_version,
                published=published_windows(spec, each.files),
                kept=published_windows(spec, each.kept),
                now=now_micros(),
            )
        recorded()

    def record_alone(tx: Connection) -> bool:
        lock_dataset(tx, commit.build.dataset)
        if _others(tx, commit.build):
            return False
        record(tx, [commit])
        return True

    if not store.ledger.transact(record_alone):
        others = _committed_before(store, commit)
        store.ledger.transact(lambda tx: record(tx, [*others, commit]))


def _others(tx: Connection, build: Build) -> list[Build]:
    return [each for each in builds_in_flight(tx, build.dataset) if each.id != build.id]


def _committed_before(store: Store, commit: Committed) -> list[Committed]:
    """Return the other builds in flight that the table has at the version of ``commit``, in their order there."""
    place = store.table(commit.build.dataset)
    with store.ledger.read() as tx:
        seen = table_versions(tx, [commit.build.dataset]).get(commit.build.dataset)
        others = _others(tx, commit.build)
        replaced = {each.id: windows_replaced_by(tx, each.id) for each in others}
    table = open_table(place, commit.build.dataset, commit.table_version)
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


def published_windows(spec: DatasetSpec, files: Iterable[ParquetFile | TableFile]) -> dict[int, PublishedWindow]:
    """Return what files have of each window, by the window's start in microseconds."""
    found: dict[int, PublishedWindow] = {}
    for file in files:
        start = spec.window_from_key(file.window_key).start_micros
        had = found.get(start, PublishedWindow(start, 0, 0, 0))
        found[start] = PublishedWindow(start, had.rows + file.rows, had.bytes + file.bytes, had.files + 1)
    return found

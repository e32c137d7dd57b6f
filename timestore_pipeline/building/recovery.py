"""Settling builds that did not end by themselves: the table decides whether one was published (invariant 5)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from timestore_pipeline.alone import alone
from timestore_pipeline.building.completion import found_in_table, record_commit
from timestore_pipeline.building.lost_table import prepare_table
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import TableError, TimestoreError
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.builds import Build, builds_in_flight, get_build, mark_aborted
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.states import BuildState
from timestore_pipeline.ledger.tables import table_versions
from timestore_pipeline.ledger.windows import windows_replaced_by
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.storage.table_folder import file_name, parquet_files, scratch_of_windows
from timestore_pipeline.store import Store
from timestore_pipeline.table.commit import commit_fence
from timestore_pipeline.table.contents import file_prefix, live_files
from timestore_pipeline.table.manifests import keep_manifest, pending_manifest
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.parquet import scratch_of_build
from timestore_pipeline.table.replacement import SequenceTaken
from timestore_pipeline.table.sequences import is_published, sync_found, version_of_build

log = log_named(__name__)


@dataclass(frozen=True)
class SettledBuild:
    """A build that was settled; ``table_version`` is None where it was fenced and its slices are staged again."""

    build: Build
    table_version: int | None

    @property
    def published(self) -> bool:
        """Whether the build had reached the table."""
        return self.table_version is not None


def settle_dead_builds(
    store: Store, owner_is_gone: Callable[[str], bool] = lambda owner: False, now: int | None = None
) -> list[SettledBuild]:
    """Settle every build whose lease has run out or whose owner is gone.

    Args:
        store: the installation.
        owner_is_gone: whether a build's owner is known to have ended, before its lease says so.
        now: microseconds since the epoch, by default the clock's.

    Returns:
        The builds that were settled; one that cannot be (its table is broken) is logged and left for the next time.
    """
    now = now_micros() if now is None else now
    with store.ledger.read() as tx:
        builds = builds_in_flight(tx)
    settled = []
    for build in builds:
        if build.lease_expires_at > now and not owner_is_gone(build.owner):
            continue
        try:
            with alone(build.dataset):
                settled.append(settle_build(store, build, error=f"its owner {build.owner} is gone", recovered=True))
        except TimestoreError as error:
            log.error("build %s of %r cannot be settled: %s", build.id, build.dataset, error)
    return settled


def settle_build(store: Store, build: Build, *, error: str, recovered: bool) -> SettledBuild:
    """End one build: mark it published if the table has it, else fence it and give its slices back.

    ``error`` says why it failed, should it turn out not to be published; ``recovered`` that another process settles it.

    Raises:
        TableError: the table cannot be used, so the build stays as it is.
        LedgerError: likewise the ledger.
    """
    spec = store.datasets[build.dataset]
    place = store.table(build.dataset)
    with store.ledger.read() as tx:
        columns = dataset_columns(tx, spec)
    if columns is None:
        raise TableError(f"dataset {build.dataset!r}: its columns are not in the ledger, so its table cannot be used")
    # Where somebody has deleted the table, there is a new one to put the fence into.
    own = prepare_table(store, spec, columns)
    try:
        commit_fence(own, build, spec.table_columns(columns))
    except SequenceTaken:
        table = open_table(place, build.dataset)
        if is_published(table, build):
            with store.ledger.read() as tx:
                replaced = windows_replaced_by(tx, build.id)
                seen = table_versions(tx, [build.dataset]).get(build.dataset)
            sync_found(place, table, seen)
            version = version_of_build(place, table, build)
            keep_manifest(place, build.sequence)
            record_commit(store, found_in_table(spec, build, replaced, version, live_files(table)))
            reach(CrashPoint.RECOVERY_PUBLISHED)
            return SettledBuild(build, version)
    reach(CrashPoint.RECOVERY_FENCED)

    def abort(tx: Connection) -> Build:
        mark_aborted(tx, build, error=error, recovered=recovered, now=now_micros())
        return get_build(tx, build.id)

    ended = store.ledger.transact(abort)
    reach(CrashPoint.RECOVERY_ABORTED)
    if ended.state is BuildState.PUBLISHED:
        # Another process settled it first, and later builds are in the table by now: its files are live.
        return SettledBuild(build, ended.table_version)
    _remove_files(own, build)
    reach(CrashPoint.RECOVERY_CLEANED)
    return SettledBuild(build, None)


def _remove_files(own: OwnTable, build: Build) -> None:
    """Remove what a fenced build wrote; no commit can refer to it any more. What is missed, the sweep finds."""
    prefix, place = file_prefix(build.sequence), own.place
    try:
        files = (entry.key for entry in parquet_files(place) if file_name(entry.key).startswith(prefix))
        keys = [pending_manifest(build.sequence), *files, *(left.key for left in scratch_of_windows(place, prefix))]
        for _ in own.remove(keys):
            pass
    except (TimestoreError, OSError) as error:
        log.warning("%s: what build %s wrote is left for the sweep: %s", build.dataset, build.id, error)
    shutil.rmtree(scratch_of_build(own.store.settings, build.dataset, build.sequence), ignore_errors=True)

"""From an order to the end of its build: claimed, its files written and committed to the table, and recorded.

Whatever kind of build it is; should anything fail on the way, the table decides what became of it (invariant 5).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import duckdb
from sqlalchemy import Connection

from timestore_pipeline.building.completion import Committed, record_commit
from timestore_pipeline.building.lost_table import prepare_table
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_build
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.connections import AS_SET
from timestore_pipeline.duck.remote_files import reason_of
from timestore_pipeline.errors import BuildAborted, LedgerError, TimestoreError, TooManyOpenFiles
from timestore_pipeline.exhaustion import out_of_files
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.builds import Build, NewBuild, extend_lease
from timestore_pipeline.ledger.claims import Wanted, claim_build
from timestore_pipeline.ledger.corrected_windows import LeftOut
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.lineage import contributions_of_build
from timestore_pipeline.ledger.schemas import schema_history
from timestore_pipeline.ledger.states import BuildKind
from timestore_pipeline.ledger.windows import windows_replaced_by
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.staging.room import check_disk
from timestore_pipeline.storage.table_folder import file_name
from timestore_pipeline.store import Store
from timestore_pipeline.table.commit import commit_build
from timestore_pipeline.table.contents import ParquetFile, live_files
from timestore_pipeline.table.damaged_files import may_be_damage, refuse_damaged_files
from timestore_pipeline.table.manifests import keep_manifest, merge_manifests, write_manifest
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.replacement import Replacement, SequenceTaken

log = log_named(__name__)


@dataclass(frozen=True)
class WrittenFiles:
    """Files of a build, in place and durable, and those that its commit takes out of the table for them.

    ``left_out`` is what corrections take of what it read.
    """

    files: Sequence[ParquetFile]
    replacement: Replacement | None = None
    left_out: LeftOut = field(default_factory=LeftOut)


def new_build(store: Store, tx: Connection, order: BuildOrder, kind: BuildKind, now: int) -> NewBuild:
    """Return the build that an order asks for; a repair has no other build of its dataset beside it.

    ``now`` is read before the transaction: when that is done again, the claim is known by it.
    """
    spec = store.datasets[order.dataset]
    return NewBuild(
        spec.name,
        kind=kind,
        owner=order.owner,
        trigger=order.trigger,
        now=now,
        lease_micros=lease_micros(store),
        lanes=1 if kind is BuildKind.REPAIR else store.policy(tx, spec).limits.concurrent_builds,
        replaces=spec.key is not None,
    )


def columns_to_build(store: Store, spec: DatasetSpec) -> tuple[Column, ...] | None:
    """Return the columns of a dataset whose segments, table and disk are ready for a build; None: nothing was staged.

    To be called before anything is claimed: what is not mounted costs no attempt.

    Raises:
        PlaceError: staging or tables are not there, or another installation's.
        TableError, DiskFull, LedgerError: as they say.
    """
    with store.ledger.read() as tx:
        columns = dataset_columns(tx, spec)
    if columns is not None:
        store.places.require_segments(spec.name)
        prepare_table(store, spec, columns)
        check_disk(store, store.table(spec.name).root)
    return columns


def claim_published(store: Store, order: BuildOrder, kind: BuildKind, windows: Iterable[int], rows: int) -> Build:
    """Claim windows (their starts, at least one) whose ``rows`` published rows are written anew or dropped.

    Raises:
        BuildInFlight: as many builds of the dataset as may be have not ended, or one has such a window.
    """
    wanted, now = Wanted(windows=frozenset(windows), rows=rows), now_micros()
    claim = store.ledger.transact(lambda tx: claim_build(tx, new_build(store, tx, order, kind, now), wanted))
    assert claim is not None, "nothing is asked for"
    return claim.build


class Publication:
    """A claimed build on its way into its table: ``committed`` once it is there."""

    def __init__(self, store: Store, build: Build, columns: Sequence[Column]) -> None:
        """Take the claimed build, and the columns that its table has from its commit on."""
        self._store, self._build, self._columns = store, build, columns
        self._committed: Committed | None = None

    @property
    def committed(self) -> Committed:
        """What is in the table; without files where the build could not see its commit through, and it was found."""
        assert self._committed is not None, "nothing is committed yet"
        return self._committed

    def commit(self, written: WrittenFiles) -> None:
        """Commit the files that the build has written; the last thing in its block."""
        build, table = self._build, self._store.table(self._build.dataset)
        with self._store.ledger.read() as tx:
            contributions = contributions_of_build(tx, build.id)
            versions = [version.columns for version in schema_history(tx, build.dataset)]
        write_manifest(table, build.sequence, contributions, versions, now_micros())
        own = OwnTable(self._store, build.dataset)
        version = commit_build(own, build, self._columns, written.files, written.replacement)
        keep_manifest(table, build.sequence)
        if build.lane == 0:
            merge_manifests(table)
        kept = written.replacement.kept if written.replacement else ()
        self._committed = Committed(build, version, written.files, kept, written.left_out)

    def settle(self, error: Exception) -> None:
        """After a failure: let the table decide; raise the error unless the build was published after all."""
        version = _settle_own(self._store, self._build, error)
        self._committed = Committed(self._build, version, ())


@contextmanager
def publishing(store: Store, build: Build, columns: Sequence[Column]) -> Iterator[Publication]:
    """Let the block write and commit the files of a claimed build, which is kept alive meanwhile, and then record it.

    Raises:
        BuildAborted: the build was taken for dead and fenced meanwhile.
        TimestoreError: something else failed; the build published nothing and has given back what it had claimed.
    """
    reach(CrashPoint.SLICES_CLAIMED)
    publication = Publication(store, build, columns)
    try:
        with _kept_alive(store, build), _damage_named(store, build):
            yield publication
    except SequenceTaken:
        # Fenced by a recovery; or this very commit is in the table, and only its answer was lost.
        publication.settle(BuildAborted(build.dataset, build.id))
        return
    except (TimestoreError, duckdb.Error, OSError) as error:
        publication.settle(error)
        return
    except BaseException as error:
        # An interrupt, say: the slices go back to the queue now rather than when the lease runs out.
        with suppress(TimestoreError, OSError):
            settle_build(store, build, error=str(error) or type(error).__name__, recovered=False)
        raise
    record_commit(store, publication.committed)
    reach(CrashPoint.PUBLICATION_COMMITTED)


@contextmanager
def _damage_named(store: Store, build: Build) -> Iterator[None]:
    """Say which file of the table is damaged where a build comes upon one.

    Raises:
        TableError: one of a window that the build replaces is, or one that the error names, or it is gone.
    """
    try:
        yield
    except duckdb.Error as error:
        spec, table = store.datasets[build.dataset], open_table(store.table(build.dataset), build.dataset)
        keys = set()
        if may_be_damage(error):
            with store.ledger.read() as tx:
                keys = {spec.window_at(start).key for start in windows_replaced_by(tx, build.id)}
        files = [
            file.path for file in live_files(table) if file.window_key in keys or file_name(file.path) in str(error)
        ]
        refuse_damaged_files(store, build.dataset, table.version(), files, AS_SET, error)
        raise


def lease_micros(store: Store) -> int:
    """Return for how long a build is left alone after a heartbeat, in microseconds."""
    return int(store.settings.build_lease_seconds * 1e6)


def _settle_own(store: Store, build: Build, error: Exception) -> int:
    """After a failure: settle the build through the table; return the version if it was published after all."""
    try:
        settled = settle_build(store, build, error=reason_of(error), recovered=False)
    except (TimestoreError, OSError) as second:
        log.warning("build %s of %r stays claimed until its lease runs out: %s", build.id, build.dataset, second)
        raise _as_timestore_error(build, error) from error
    if settled.table_version is None:
        raise _as_timestore_error(build, error) from error
    return settled.table_version


def _as_timestore_error(build: Build, error: Exception) -> TimestoreError:
    if isinstance(error, TimestoreError):
        return error
    if out_of_files(error):
        return TooManyOpenFiles(f"build {build.id} of dataset {build.dataset!r} read and wrote")
    return TimestoreError(
        f"dataset {build.dataset!r}: build {build.id} failed and published nothing: {reason_of(error)}"
    )


@contextmanager
def _kept_alive(store: Store, build: Build) -> Iterator[None]:
    """Send heartbeats from another thread: one window may take longer than the lease."""
    done = threading.Event()
    lease = lease_micros(store)

    def beat() -> None:
        while not done.wait(lease / 3e6):
            try:
                with store.ledger.write() as tx:
                    if not extend_lease(tx, build.id, now_micros() + lease):
                        return  # settled by someone else; the commit will be refused
            except LedgerError as error:
                log.warning("heartbeat of build %s failed: %s", build.id, error)

    thread = threading.Thread(target=beat, name=f"lease-of-build-{build.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

"""From a claimed build to its end: its files are written, committed to the table and recorded in the ledger.

Whatever kind of build it is; should anything fail on the way, the table decides what became of it (invariant 5).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import duckdb

from timestore_pipeline.building.completion import Committed, record_commit
from timestore_pipeline.building.recovery import settle_build
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.duck.remote_files import reason_of
from timestore_pipeline.errors import BuildAborted, LedgerError, TimestoreError, TooManyOpenFiles
from timestore_pipeline.exhaustion import out_of_files
from timestore_pipeline.ledger.builds import Build, extend_lease
from timestore_pipeline.ledger.lineage import contributions_of_build
from timestore_pipeline.ledger.schemas import schema_history
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.store import Store
from timestore_pipeline.table.manifests import keep_manifest, merge_manifests, write_manifest
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.table import ParquetFile, Replacement, SequenceTaken, commit_build

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WrittenFiles:
    """Files of a build, in place and durable, and those that its commit takes out of the table for them."""

    files: Sequence[ParquetFile]
    replacement: Replacement | None = None


@dataclass(frozen=True)
class Publication:
    """A build that is published: the table version, and the files that it added.

    ``files`` is empty where the build could not see its commit through and a recovery found it in the table.
    """

    table_version: int
    files: Sequence[ParquetFile]


def lease_micros(store: Store) -> int:
    """Return for how long a build is left alone after a heartbeat, in microseconds."""
    return int(store.settings.build_lease_seconds * 1e6)


def publish(store: Store, build: Build, columns: Sequence[Column], write: Callable[[], WrittenFiles]) -> Publication:
    """Let ``write`` write a claimed build's files, and commit and record them; the claim is kept alive meanwhile.

    Raises:
        BuildAborted: the build was taken for dead and fenced meanwhile.
        TimestoreError: something else failed; the build published nothing and has given back what it had claimed.
    """
    reach(CrashPoint.SLICES_CLAIMED)
    try:
        with _kept_alive(store, build):
            written = write()
            table = store.table(build.dataset)
            with store.ledger.read() as tx:
                contributions = contributions_of_build(tx, build.id)
                versions = [version.columns for version in schema_history(tx, build.dataset)]
            write_manifest(table, build.sequence, contributions, versions, now_micros())
            own = OwnTable(store, build.dataset)
            version = commit_build(own, build, columns, written.files, written.replacement)
            keep_manifest(table, build.sequence)
            if build.lane == 0:
                merge_manifests(table)
    except SequenceTaken:
        # Fenced by a recovery; or this very commit is in the table, and only its answer was lost.
        return Publication(_settle_own(store, build, BuildAborted(build.dataset, build.id)), ())
    except (TimestoreError, duckdb.Error, OSError) as error:
        return Publication(_settle_own(store, build, error), ())
    except BaseException as error:
        # An interrupt, say: the slices go back to the queue now rather than when the lease runs out.
        with suppress(TimestoreError, OSError):
            settle_build(store, build, error=str(error) or type(error).__name__, recovered=False)
        raise
    kept = written.replacement.kept if written.replacement else ()
    record_commit(store, Committed(build, version, written.files, kept), lambda: reach(CrashPoint.PUBLICATION_RECORDED))
    reach(CrashPoint.PUBLICATION_COMMITTED)
    return Publication(version, written.files)


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

"""Builds: those in flight, keeping a claim alive, and ending it one of two ways (invariant 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from sqlalchemy import Connection, Row, case, func, select, update

from timestore_pipeline.ledger.corrected_windows import settle_windows, taken_by_build
from timestore_pipeline.ledger.corrections import corrections_so_far
from timestore_pipeline.ledger.counters import (
    COMPACTED_FILES,
    COMPACTION_DURATION,
    CORRECTED_ROWS,
    EXPIRED_ROWS,
    EXPIRED_WINDOWS,
    FLUSH_BATCHES,
    FLUSH_DURATION,
    FLUSH_ROWS,
    RETRIED_BATCHES,
    count,
    observe,
)
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.ledger.schema import builds, datasets
from timestore_pipeline.ledger.slices import publish_slices, release_slices
from timestore_pipeline.ledger.statements import BUILD_IS_IN_FLIGHT
from timestore_pipeline.ledger.states import BuildKind, BuildState
from timestore_pipeline.ledger.windows import CommittedWindows, PublishedWindow, move_windows, windows_replaced_by

PUBLISHING = (BuildKind.FLUSH, BuildKind.REBUILD)
"""Builds that publish slices; the others only write published rows anew, or drop them."""


@dataclass(frozen=True)
class NewBuild:
    """A build that is to be claimed: of which dataset, what it does, for whom and why, and when it is claimed.

    ``lease_micros`` is for how long it is left alone without a heartbeat, ``lanes`` how many builds of the dataset may
    be in flight at once. ``replaces`` says that a flush will commit the whole content of its windows, not what it adds
    to them; builds of another kind always do. Times are microseconds since the epoch.
    """

    dataset: str
    _: KW_ONLY
    kind: BuildKind = BuildKind.FLUSH
    owner: str
    trigger: str
    now: int
    lease_micros: int
    lanes: int = 1
    replaces: bool = False


@dataclass(frozen=True)
class Build:
    """A build as the ledger has it; windows and times in microseconds since the epoch.

    Sequences grow with the builds of a dataset, whatever their lanes, by steps that nobody can foresee.
    ``schema_version`` is that of the dataset's columns when the build was claimed.
    """

    id: int
    dataset: str
    sequence: int
    lane: int
    schema_version: int
    owner: str
    kind: BuildKind
    trigger: str
    state: BuildState
    claimed_at: int
    lease_expires_at: int
    finished_at: int | None
    first_window: int
    last_window: int
    batches: int
    rows: int
    bytes: int
    files: int
    table_version: int | None
    error: str | None


def extend_lease(tx: Connection, build_id: int, lease_expires_at: int) -> bool:
    """Move the lease of a build in flight; False where the build has been settled by someone else."""
    changed = tx.execute(
        update(builds)
        .where(builds.c.id == build_id, builds.c.state == BuildState.CLAIMED.value)
        .values(lease_expires_at=lease_expires_at)
    )
    return changed.rowcount == 1


def mark_published(
    tx: Connection,
    build: Build,
    *,
    table_version: int,
    published: Mapping[int, PublishedWindow],
    kept: Mapping[int, PublishedWindow] | None = None,
    now: int,
) -> bool:
    """Record that a build's commit is in the table; False where that (or its abort) is recorded already.

    Moves the version that readers see, the slices, and the batches and segments that this completes, in one go.
    ``published`` is what the build wrote, window by window, and ``kept`` what it left in windows that it replaced.
    """
    lock_dataset(tx, build.dataset)
    total_bytes = sum(window.bytes for window in published.values())
    total_files = sum(window.files for window in published.values())
    changed = tx.execute(
        update(builds)
        .where(builds.c.id == build.id, builds.c.state == BuildState.CLAIMED.value)
        .values(
            state=BuildState.PUBLISHED.value,
            finished_at=now,
            table_version=table_version,
            bytes=total_bytes,
            files=total_files,
        )
    )
    if changed.rowcount == 0:
        return False
    publish_slices(tx, build.id, now)
    seen, schema = datasets.c.table_version, datasets.c.published_schema
    known = build.schema_version if build.kind in PUBLISHING else 0
    tx.execute(
        update(datasets)
        .where(datasets.c.name == build.dataset)
        .values(
            table_version=case((func.coalesce(seen, -1) < table_version, table_version), else_=seen),
            published_schema=case((schema < known, known), else_=schema),
        )
    )
    taken = taken_by_build(tx, build.id)
    commit = CommittedWindows(published, kept or {}, taken)
    removed = move_windows(tx, build.dataset, build.id, build.kind, commit, now)
    if taken or corrections_so_far(tx, build.dataset):
        replaced = windows_replaced_by(tx, build.id)
        more = settle_windows(tx, build.dataset, build.kind, build.sequence, replaced, taken)
        count(tx, CORRECTED_ROWS, build.dataset, "", more)
    if build.kind is BuildKind.COMPACTION:
        count(tx, COMPACTED_FILES, build.dataset, "", removed.files)
    elif build.kind is BuildKind.EXPIRY:
        count(tx, EXPIRED_ROWS, build.dataset, "", removed.rows)
        count(tx, EXPIRED_WINDOWS, build.dataset, "", removed.windows)
    _count_end(tx, build, "success", now)
    return True


def mark_aborted(tx: Connection, build: Build, *, error: str, recovered: bool, now: int) -> bool:
    """Give the slices of a fenced build back to the queue; False where the build has ended already.

    Only to be called once the build's sequence is fenced in the table. ``recovered`` says that another process
    does it for a build that died, which is counted as a retry of its batches.
    """
    lock_dataset(tx, build.dataset)
    changed = tx.execute(
        update(builds)
        .where(builds.c.id == build.id, builds.c.state == BuildState.CLAIMED.value)
        .values(state=BuildState.ABORTED.value, finished_at=now, error=error)
    )
    if changed.rowcount == 0:
        return False
    release_slices(tx, build.id)
    if recovered:
        count(tx, RETRIED_BATCHES, build.dataset, "flush_abort", build.batches)
    _count_end(tx, build, "failure", now)
    return True


def get_build(tx: Connection, build_id: int) -> Build:
    """Return one build."""
    return build_of_row(tx.execute(select(builds).where(builds.c.id == build_id)).one())


def builds_in_flight(tx: Connection, dataset: str | None = None) -> list[Build]:
    """Return all builds that have not ended, of one dataset or of all, oldest first."""
    query = select(builds).where(BUILD_IS_IN_FLIGHT)
    if dataset is not None:
        query = query.where(builds.c.dataset == dataset)
    # Sorted here: asked for this order, SQLite walks through all builds that there ever were.
    return sorted((build_of_row(row) for row in tx.execute(query)), key=lambda build: build.id)


def build_in_flight(tx: Connection, dataset: str) -> Build | None:
    """Return the oldest build of the dataset that has not ended, if any."""
    return next(iter(builds_in_flight(tx, dataset)), None)


def oldest_in_flight(tx: Connection) -> dict[str, Build]:
    """Return the oldest build of each dataset that has one in flight."""
    return {build.dataset: build for build in reversed(builds_in_flight(tx))}


def _count_end(tx: Connection, build: Build, result: str, now: int) -> None:
    seconds = max(0.0, (now - build.claimed_at) / 1e6)
    if build.kind is BuildKind.FLUSH:
        count(tx, FLUSH_BATCHES, build.dataset, result, build.batches)
        count(tx, FLUSH_ROWS, build.dataset, result, build.rows)
        observe(tx, FLUSH_DURATION, build.dataset, result, seconds)
    elif build.kind is BuildKind.COMPACTION:
        observe(tx, COMPACTION_DURATION, build.dataset, result, seconds)


def build_of_row(row: Row) -> Build:
    """Return a build as its row in the ledger has it."""
    fields = dict(row._mapping)
    return Build(**{**fields, "kind": BuildKind(fields["kind"]), "state": BuildState(fields["state"])})

"""Builds: claiming slices, keeping the claim alive, and ending it one of two ways (invariant 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, literal_column, select, update

from timestore_pipeline.errors import BuildInFlight
from timestore_pipeline.ledger.completion import complete
from timestore_pipeline.ledger.counters import (
    COMPACTED_FILES,
    COMPACTION_DURATION,
    EXPIRED_ROWS,
    EXPIRED_WINDOWS,
    FLUSH_BATCHES,
    FLUSH_DURATION,
    FLUSH_ROWS,
    RETRIED_BATCHES,
    count,
    observe,
)
from timestore_pipeline.ledger.published import PublishedWindow, move_windows
from timestore_pipeline.ledger.queue import Slice, slice_is_queued, slices_of_build
from timestore_pipeline.ledger.registry import lock_dataset
from timestore_pipeline.ledger.schema import (
    BuildKind,
    BuildState,
    batch_slices,
    batches,
    builds,
    datasets,
    replaced_windows,
    slices,
    windows,
)

# Below the limit of variables in one SQLite statement, however it was compiled.
_IDS_PER_QUERY = 500

# In words that partial indexes have too: a planner cannot tell that a parameter has the value that it takes.
_IN_FLIGHT = builds.c.state == literal_column(f"'{BuildState.CLAIMED}'")
_ENDED_FLUSH = and_(
    builds.c.kind == literal_column(f"'{BuildKind.FLUSH}'"),
    builds.c.state != literal_column(f"'{BuildState.CLAIMED}'"),
)


@dataclass(frozen=True)
class Build:
    """A build as the ledger has it; windows and times in microseconds since the epoch."""

    id: int
    dataset: str
    sequence: int
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


@dataclass(frozen=True)
class Claim:
    """A build in flight with the slices that are its own until it ends."""

    build: Build
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class WindowTotals:
    """What is published in a window, since the beginning."""

    window_start: int
    rows: int
    bytes: int
    files: int
    published_at: int


@dataclass(frozen=True)
class WindowBatch:
    """A batch with rows in a window: its id, the file or caller it came from, and how many rows of it."""

    window_start: int
    batch_id: str
    source: str
    rows: int


def claim_slices(
    tx: Connection,
    dataset: str,
    *,
    owner: str,
    trigger: str,
    first_window: int | None,
    last_window: int | None,
    lease_micros: int,
    now: int,
    replaces: bool = False,
) -> Claim | None:
    """Claim the dataset's staged slices in the windows ``first_window … last_window`` (starts; None is unbounded).

    ``replaces`` says that the build will commit the whole content of these windows, not what it adds to them.
    Done again with the same ``owner`` and ``now``, it returns the claim that it made the first time.

    Returns:
        The claim, or None where nothing is staged there.

    Raises:
        BuildInFlight: another build of the dataset has not ended.
    """
    mine = claimed_already(tx, dataset, owner, now)
    if mine is not None:
        return Claim(mine, tuple(slices_of_build(tx, mine.id)))
    starts = staged_windows(tx, dataset, first_window, last_window)
    if not starts:
        return None
    replaced = starts if replaces else ()
    build = new_build(
        tx, dataset, BuildKind.FLUSH, starts, replaced, owner=owner, trigger=trigger, lease_micros=lease_micros, now=now
    )
    return add_slices(tx, build, first_window, last_window)


def staged_windows(tx: Connection, dataset: str, first_window: int | None, last_window: int | None) -> set[int]:
    """Return the starts of the windows in which anything can be claimed."""
    free = _free_slices(dataset, first_window, last_window)
    return set(tx.execute(select(slices.c.window_start).where(*free).distinct()).scalars())


def claimed_already(tx: Connection, dataset: str, owner: str, now: int) -> Build | None:
    """Lock the dataset until the transaction ends, and make sure that no build of it is in flight but the caller's own.

    Returns:
        The build that the same ``owner`` has claimed at the same ``now``: the transaction is done again, as nobody
        knew whether its commit had arrived. None where nothing is in flight.

    Raises:
        BuildInFlight: another build is.
    """
    lock_dataset(tx, dataset)
    found = build_in_flight(tx, dataset)
    if found is not None and (found.owner, found.claimed_at) != (owner, now):
        raise BuildInFlight(dataset, found.id, found.owner)
    return found


def new_build(
    tx: Connection,
    dataset: str,
    kind: BuildKind,
    window_starts: Iterable[int],
    replaced: Iterable[int],
    *,
    owner: str,
    trigger: str,
    lease_micros: int,
    now: int,
    rows: int = 0,
) -> Build:
    """Enter a build in flight with the next sequence, after :func:`claimed_already` in the same transaction.

    ``replaced`` are those of its windows whose files its commit replaces.
    """
    starts = set(window_starts)
    sequence = tx.execute(select(datasets.c.next_sequence).where(datasets.c.name == dataset)).scalar_one()
    tx.execute(update(datasets).where(datasets.c.name == dataset).values(next_sequence=sequence + 1))
    build_id = tx.execute(
        insert(builds)
        .values(
            dataset=dataset,
            sequence=sequence,
            owner=owner,
            kind=kind.value,
            trigger=trigger,
            state=BuildState.CLAIMED.value,
            claimed_at=now,
            lease_expires_at=now + lease_micros,
            first_window=min(starts),
            last_window=max(starts),
            batches=0,
            rows=rows,
        )
        .returning(builds.c.id)
    ).scalar_one()
    listed = [{"build_id": build_id, "window_start": start} for start in sorted(set(replaced))]
    if listed:
        tx.execute(insert(replaced_windows), listed)
    return get_build(tx, build_id)


def replace_also(tx: Connection, build: Build, window_starts: Iterable[int]) -> None:
    """Let a build in flight replace the files of more windows, before it commits."""
    known = set(
        tx.execute(select(replaced_windows.c.window_start).where(replaced_windows.c.build_id == build.id)).scalars()
    )
    more = [{"build_id": build.id, "window_start": start} for start in sorted(set(window_starts) - known)]
    if more:
        tx.execute(insert(replaced_windows), more)


def add_slices(tx: Connection, build: Build, first_window: int | None, last_window: int | None) -> Claim:
    """Give a new build the staged slices of these windows; its rows become theirs and those that it had."""
    tx.execute(update(slices).where(*_free_slices(build.dataset, first_window, last_window)).values(build_id=build.id))
    rows = tx.execute(select(func.sum(slices.c.rows)).where(slices.c.build_id == build.id)).scalar() or 0
    contributing = tx.execute(_batch_count(build.id)).scalar_one()
    tx.execute(
        update(builds).where(builds.c.id == build.id).values(batches=contributing, rows=builds.c.rows + int(rows))
    )
    return Claim(get_build(tx, build.id), tuple(slices_of_build(tx, build.id)))


def claim_windows(
    tx: Connection,
    dataset: str,
    kind: BuildKind,
    window_starts: Iterable[int],
    *,
    owner: str,
    trigger: str,
    rows: int,
    lease_micros: int,
    now: int,
) -> Build:
    """Claim windows whose ``rows`` published rows a build writes anew (or drops); their staged slices stay staged.

    Done again with the same ``owner`` and ``now``, it returns the build that it entered the first time.

    Raises:
        BuildInFlight: another build of the dataset has not ended.
    """
    mine = claimed_already(tx, dataset, owner, now)
    if mine is not None:
        return mine
    starts = set(window_starts)
    return new_build(
        tx, dataset, kind, starts, starts, owner=owner, trigger=trigger, rows=rows, lease_micros=lease_micros, now=now
    )


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
    tx.execute(update(slices).where(slices.c.build_id == build.id).values(published_at=now))
    touched = tx.execute(select(slices.c.segment_id).where(slices.c.build_id == build.id).distinct()).scalars().all()
    complete(tx, touched, now)
    tx.execute(
        update(datasets)
        .where(datasets.c.name == build.dataset, func.coalesce(datasets.c.table_version, -1) < table_version)
        .values(table_version=table_version)
    )
    taken = move_windows(tx, build.dataset, build.id, build.kind, published, kept or {}, now)
    if build.kind is BuildKind.COMPACTION:
        count(tx, COMPACTED_FILES, build.dataset, "", taken.files)
    elif build.kind is BuildKind.EXPIRY:
        count(tx, EXPIRED_ROWS, build.dataset, "", taken.rows)
        count(tx, EXPIRED_WINDOWS, build.dataset, "", taken.windows)
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
    tx.execute(update(slices).where(slices.c.build_id == build.id).values(build_id=None))
    if recovered:
        count(tx, RETRIED_BATCHES, build.dataset, "flush_abort", build.batches)
    _count_end(tx, build, "failure", now)
    return True


def get_build(tx: Connection, build_id: int) -> Build:
    """Return one build."""
    return _build(tx.execute(select(builds).where(builds.c.id == build_id)).one())


def builds_in_flight(tx: Connection) -> list[Build]:
    """Return all builds that have not ended, oldest first."""
    # Sorted here: asked for this order, SQLite walks through all builds that there ever were.
    found = [_build(row) for row in tx.execute(select(builds).where(_IN_FLIGHT))]
    return sorted(found, key=lambda build: build.id)


def build_in_flight(tx: Connection, dataset: str) -> Build | None:
    """Return the build of the dataset that has not ended, if any."""
    row = tx.execute(select(builds).where(builds.c.dataset == dataset, _IN_FLIGHT)).first()
    return None if row is None else _build(row)


def latest_builds(tx: Connection) -> dict[str, Build]:
    """Return the last ended flush of every dataset."""
    # A look at the end of each dataset's part of an index, and not at every flush that there ever was.
    last = (
        select(func.max(builds.c.id))
        .where(builds.c.dataset == datasets.c.name, _ENDED_FLUSH)
        .correlate(datasets)
        .scalar_subquery()
    )
    ids = [build_id for build_id in tx.execute(select(last).select_from(datasets)).scalars() if build_id is not None]
    found: dict[str, Build] = {}
    for start in range(0, len(ids), _IDS_PER_QUERY):
        query = select(builds).where(builds.c.id.in_(ids[start : start + _IDS_PER_QUERY]))
        found.update({row.dataset: _build(row) for row in tx.execute(query)})
    return found


def failures_in_a_row(tx: Connection, dataset: str) -> int:
    """Return how many flushes of the dataset have failed or died since the last one that published."""
    flush = (builds.c.dataset == dataset, _ENDED_FLUSH)
    last = (
        select(func.coalesce(func.max(builds.c.id), 0))
        .where(*flush, builds.c.state == BuildState.PUBLISHED.value)
        .scalar_subquery()
    )
    return tx.execute(
        select(func.count()).where(*flush, builds.c.state == BuildState.ABORTED.value, builds.c.id > last)
    ).scalar_one()


def published_build_before(tx: Connection, dataset: str, moment: int) -> Build | None:
    """Return the last build that had published at ``moment``: readers were then given its table version."""
    row = tx.execute(
        select(builds)
        .where(
            builds.c.dataset == dataset,
            builds.c.state == BuildState.PUBLISHED.value,
            builds.c.finished_at <= moment,
            builds.c.table_version.is_not(None),
        )
        .order_by(builds.c.sequence.desc())
        .limit(1)
    ).first()
    return None if row is None else _build(row)


def aborted_sequences(tx: Connection) -> dict[str, set[int]]:
    """Return per dataset the sequences of all builds that published nothing and never will."""
    found: dict[str, set[int]] = {}
    query = select(builds.c.dataset, builds.c.sequence).where(builds.c.state == BuildState.ABORTED.value)
    for row in tx.execute(query):
        found.setdefault(row.dataset, set()).add(row.sequence)
    return found


def window_totals(tx: Connection, dataset: str) -> list[WindowTotals]:
    """Return what is published, window by window in time order."""
    query = (
        select(windows.c.window_start, windows.c.rows, windows.c.bytes, windows.c.files, windows.c.published_at)
        .where(windows.c.dataset == dataset)
        .order_by(windows.c.window_start)
    )
    return [WindowTotals(**row) for row in tx.execute(query).mappings()]


def published_totals(tx: Connection) -> dict[str, tuple[int, int, int, int]]:
    """Return per dataset (windows, rows, bytes, files) published, of those with any."""
    query = select(
        datasets.c.name,
        datasets.c.published_windows,
        datasets.c.published_rows,
        datasets.c.published_bytes,
        datasets.c.published_files,
    ).where(datasets.c.published_windows > 0)
    return {name: (number, rows, size, files) for name, number, rows, size, files in tx.execute(query)}


def last_published(tx: Connection) -> dict[str, int]:
    """Return when rows of each dataset were published last, microseconds since the epoch; those that never were not."""
    query = select(datasets.c.name, datasets.c.published_at).where(datasets.c.published_at.is_not(None))
    return dict(tx.execute(query).all())


def batches_of_build(tx: Connection, build_id: int) -> list[WindowBatch]:
    """Return which batches gave rows to which window of a build."""
    return batches_of_slices(tx, slices.c.build_id == build_id)


def batches_of_slice(tx: Connection, piece: Slice) -> list[WindowBatch]:
    """Return which batches the rows of one slice came from."""
    return batches_of_slices(tx, slices.c.segment_id == piece.segment_id, slices.c.window_start == piece.window_start)


def batches_of_slices(tx: Connection, *conditions: ColumnElement[bool]) -> list[WindowBatch]:
    """Return which batches gave rows to which window, in the slices that meet all of ``conditions``."""
    query = (
        select(batch_slices.c.window_start, batches.c.batch_id, batches.c.source, batch_slices.c.rows)
        .join(
            slices,
            (slices.c.segment_id == batch_slices.c.segment_id) & (slices.c.window_start == batch_slices.c.window_start),
        )
        .join(
            batches,
            (batches.c.segment_id == batch_slices.c.segment_id) & (batches.c.ordinal == batch_slices.c.ordinal),
        )
        .where(*conditions)
        .order_by(batch_slices.c.window_start, batches.c.staged_at, batch_slices.c.segment_id, batches.c.ordinal)
    )
    return [WindowBatch(**row) for row in tx.execute(query).mappings()]


def _free_slices(dataset: str, first_window: int | None, last_window: int | None) -> list[ColumnElement[bool]]:
    free = [slices.c.dataset == dataset, slice_is_queued(), slices.c.build_id.is_(None)]
    if first_window is not None:
        free.append(slices.c.window_start >= first_window)
    if last_window is not None:
        free.append(slices.c.window_start <= last_window)
    return free


def _batch_count(build_id: int):
    pairs = (
        select(batch_slices.c.segment_id, batch_slices.c.ordinal)
        .distinct()
        .join(
            slices,
            (slices.c.segment_id == batch_slices.c.segment_id) & (slices.c.window_start == batch_slices.c.window_start),
        )
        .where(slices.c.build_id == build_id)
        .subquery()
    )
    return select(func.count()).select_from(pairs)


def _count_end(tx: Connection, build: Build, result: str, now: int) -> None:
    seconds = max(0.0, (now - build.claimed_at) / 1e6)
    if build.kind is BuildKind.FLUSH:
        count(tx, FLUSH_BATCHES, build.dataset, result, build.batches)
        count(tx, FLUSH_ROWS, build.dataset, result, build.rows)
        observe(tx, FLUSH_DURATION, build.dataset, result, seconds)
    elif build.kind is BuildKind.COMPACTION:
        observe(tx, COMPACTION_DURATION, build.dataset, result, seconds)


def _build(row: Row) -> Build:
    fields = dict(row._mapping)
    return Build(**{**fields, "kind": BuildKind(fields["kind"]), "state": BuildState(fields["state"])})

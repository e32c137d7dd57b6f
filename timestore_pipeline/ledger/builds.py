"""Builds: claiming slices, keeping the claim alive, and ending it one of two ways (invariant 5)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    case,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from timestore_pipeline.errors import BuildInFlight, LedgerError
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
from timestore_pipeline.ledger.lanes import free_lane, free_slices, share, windows_of_builds
from timestore_pipeline.ledger.published import PublishedWindow, move_windows
from timestore_pipeline.ledger.queue import Slice, slices_of_build, slices_where
from timestore_pipeline.ledger.registry import lock_dataset
from timestore_pipeline.ledger.schema import (
    BuildKind,
    BuildState,
    batch_slices,
    batches,
    builds,
    datasets,
    replaced_windows,
    schemas,
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
# So many flushes back failures are looked for: more than lanes and attempts.
_RECENT_FLUSHES = 100

MOST_APART = 2**31
"""How far the sequences of two builds may lie apart: the next one is drawn at random.

Two copies of one ledger so give their builds different sequences. Whoever finds a sequence in a table, or in the name
of a file, knows whose it is: no other build has it. 2**63 are enough for some 2**32 builds.
"""

PUBLISHING = (BuildKind.FLUSH, BuildKind.REBUILD)
"""Builds that publish slices; the others only write published rows anew, or drop them."""


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


@dataclass(frozen=True)
class Claim:
    """A build in flight with the slices that are its own until it ends.

    ``left_some``: windows behind its own were left to other builds.
    """

    build: Build
    slices: tuple[Slice, ...]
    left_some: bool = False


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
    lanes: int = 1,
    least_rows: int | None = None,
) -> Claim | None:
    """Claim the dataset's staged slices in the windows ``first_window … last_window`` (starts; None is unbounded).

    ``replaces`` says that the build will commit the whole content of these windows, not what it adds to them.
    Windows that another build has are left to it. Done again with the same ``owner`` and ``now``, it returns the claim
    that it made the first time.

    Args:
        tx: an open transaction.
        dataset: a known dataset.
        owner: who builds.
        trigger: why.
        first_window: the first window, inclusive.
        last_window: the last window, inclusive.
        lease_micros: for how long the build is left alone without a heartbeat.
        now: microseconds since the epoch.
        replaces: see above.
        lanes: how many builds of the dataset may be in flight at once.
        least_rows: leave windows to builds in the lanes that are still free, if each then gets so many rows; None
            takes all.

    Returns:
        The claim, or None where nothing is staged there.

    Raises:
        BuildInFlight: no lane is free, others have all windows in which anything is staged, or the columns have
            changed and one of the builds has to be alone.
    """
    mine, in_flight = claimed_already(tx, dataset, owner, now)
    if mine is not None:
        return Claim(mine, tuple(slices_of_build(tx, mine.id)))
    entry = enter(tx, dataset, BuildKind.FLUSH, lanes, in_flight)
    share_ends = None
    if least_rows is not None and entry.lanes_left > 1:
        share_ends = _last_of_share(tx, entry, first_window, last_window, least_rows)
        last_window = last_window if share_ends is None else share_ends
    pieces = staged_slices(tx, dataset, first_window, last_window, entry.others)
    starts = {piece.window_start for piece in pieces}
    if not starts:
        if entry.others and staged_windows(tx, dataset, first_window, last_window):
            raise BuildInFlight(dataset, entry.others[0].id, entry.others[0].owner)
        return None
    replaced = starts if replaces else ()
    build = new_build(
        tx,
        entry,
        BuildKind.FLUSH,
        starts,
        replaced,
        owner=owner,
        trigger=trigger,
        lease_micros=lease_micros,
        now=now,
        pieces=pieces,
    )
    return Claim(build, pieces, left_some=share_ends is not None)


def _last_of_share(
    tx: Connection, entry: Entry, first_window: int | None, last_window: int | None, least_rows: int
) -> int | None:
    """Return the last window of a new build's share; None where that is all that it could have."""
    free = free_slices(entry.dataset, first_window, last_window, _ids(entry.others))
    rows = tx.execute(
        select(slices.c.window_start, func.sum(slices.c.rows))
        .where(*free)
        .group_by(slices.c.window_start)
        .order_by(slices.c.window_start)
    ).all()
    chosen = share([(start, int(count)) for start, count in rows], entry.lanes_left, least_rows)
    return chosen[-1] if len(chosen) < len(rows) else None


def staged_windows(
    tx: Connection, dataset: str, first_window: int | None, last_window: int | None, others: Iterable[Build] = ()
) -> set[int]:
    """Return the starts of the windows in which anything can be claimed while the builds ``others`` are in flight."""
    free = free_slices(dataset, first_window, last_window, _ids(others))
    return set(tx.execute(select(slices.c.window_start).where(*free).distinct()).scalars())


def staged_slices(
    tx: Connection, dataset: str, first_window: int | None, last_window: int | None, others: Iterable[Build] = ()
) -> tuple[Slice, ...]:
    """Return what can be claimed in the windows while the builds ``others`` are in flight, by windows and times."""
    return tuple(slices_where(tx, *free_slices(dataset, first_window, last_window, _ids(others))))


def claimed_already(tx: Connection, dataset: str, owner: str, now: int) -> tuple[Build | None, tuple[Build, ...]]:
    """Lock the dataset until the transaction ends; return the build that the caller has claimed before, and all others.

    That is one of the same ``owner`` and the same ``now``: the transaction is done again, as nobody knew whether its
    commit had arrived. The others are those in flight.
    """
    lock_dataset(tx, dataset)
    in_flight = builds_in_flight(tx, dataset)
    mine = next((each for each in in_flight if (each.owner, each.claimed_at) == (owner, now)), None)
    return mine, tuple(each for each in in_flight if each is not mine)


@dataclass(frozen=True)
class Entry:
    """A lane for a new build, the builds that are in flight beside it, and how many lanes are free with this one."""

    dataset: str
    lane: int
    others: tuple[Build, ...]
    lanes_left: int


def enter(
    tx: Connection,
    dataset: str,
    kind: BuildKind,
    lanes: int,
    others: tuple[Build, ...],
    window_starts: Iterable[int] = (),
) -> Entry:
    """Find a lane for a new build beside ``others``, which :func:`claimed_already` has found under the dataset's lock.

    A build that publishes columns which the table does not have yet has no other one beside it: one that was claimed
    before knows nothing of them.

    Raises:
        BuildInFlight: none is free, another build has one of the windows, or one of the builds has to be alone.
    """
    lane = free_lane({each.lane for each in others}, lanes)
    if others:
        alone = [each for each in others if _changes_columns(tx, dataset, each.kind, each.schema_version)]
        if lane is None or alone or _changes_columns(tx, dataset, kind, _schema_version(tx, dataset)):
            raise BuildInFlight(dataset, (alone or others)[0].id, (alone or others)[0].owner)
        wanted = set(window_starts)
        for each in others if wanted else ():
            if wanted & set(tx.execute(windows_of_builds([each.id])).scalars()):
                raise BuildInFlight(dataset, each.id, each.owner)
    return Entry(dataset, lane or 0, others, lanes - len(others))


def _schema_version(tx: Connection, dataset: str) -> int:
    return tx.execute(select(func.max(schemas.c.version)).where(schemas.c.dataset == dataset)).scalar() or 0


def _changes_columns(tx: Connection, dataset: str, kind: BuildKind, schema_version: int) -> bool:
    """Whether the build publishes columns that no one has before; a new table has the first version from the start."""
    if kind not in PUBLISHING:
        return False
    published = tx.execute(select(datasets.c.published_schema).where(datasets.c.name == dataset)).scalar_one()
    return schema_version > max(1, published)


def new_build(
    tx: Connection,
    entry: Entry,
    kind: BuildKind,
    window_starts: Iterable[int],
    replaced: Iterable[int],
    *,
    owner: str,
    trigger: str,
    lease_micros: int,
    now: int,
    rows: int = 0,
    pieces: Sequence[Slice] = (),
) -> Build:
    """Enter a build in flight with a higher sequence than all before it, after :func:`enter` in the same transaction.

    ``replaced`` are those of its windows whose files its commit replaces. ``pieces`` are all that :func:`staged_slices`
    found in windows of its own: they are the build's from now on, and their rows are added to ``rows``.
    """
    starts, dataset = set(window_starts), entry.dataset
    free: list[ColumnElement[bool]] = []
    if pieces:
        free = free_slices(dataset, pieces[0].window_start, pieces[-1].window_start, _ids(entry.others))
    sequence = tx.execute(
        update(datasets)
        .where(datasets.c.name == dataset)
        .values(next_sequence=datasets.c.next_sequence + 1 + secrets.randbelow(MOST_APART))
        .returning(datasets.c.next_sequence - 1)
    ).scalar_one()
    build = build_of_row(
        tx.execute(
            insert(builds)
            .values(
                dataset=dataset,
                sequence=sequence,
                lane=entry.lane,
                schema_version=select(func.coalesce(func.max(schemas.c.version), 0))
                .where(schemas.c.dataset == dataset)
                .scalar_subquery(),
                owner=owner,
                kind=kind.value,
                trigger=trigger,
                state=BuildState.CLAIMED.value,
                claimed_at=now,
                lease_expires_at=now + lease_micros,
                first_window=min(starts),
                last_window=max(starts),
                batches=_batch_count(free).scalar_subquery() if free else 0,
                rows=rows + sum(piece.rows for piece in pieces),
            )
            .returning(builds)
        ).one()
    )
    if free:
        taken = tx.execute(update(slices).where(*free).values(build_id=build.id)).rowcount
        if taken != len(pieces):
            raise LedgerError(
                f"dataset {dataset!r}: {taken:,} slices were there to claim just after {len(pieces):,} were; something "
                "writes to the ledger without the dataset's lock. Nothing was claimed"
            )
    listed = [{"build_id": build.id, "window_start": start} for start in sorted(set(replaced))]
    if listed:
        tx.execute(insert(replaced_windows), listed)
    return build


def replace_also(tx: Connection, build: Build, window_starts: Iterable[int]) -> None:
    """Let a build in flight replace the files of more windows, before it commits."""
    known = set(
        tx.execute(select(replaced_windows.c.window_start).where(replaced_windows.c.build_id == build.id)).scalars()
    )
    more = [{"build_id": build.id, "window_start": start} for start in sorted(set(window_starts) - known)]
    if more:
        tx.execute(insert(replaced_windows), more)


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
    lanes: int = 1,
) -> Build:
    """Claim windows whose ``rows`` published rows a build writes anew (or drops); their staged slices stay staged.

    Done again with the same ``owner`` and ``now``, it returns the build that it entered the first time.

    Raises:
        BuildInFlight: ``lanes`` builds of the dataset have not ended, or one that has to be alone or has such a window.
    """
    mine, in_flight = claimed_already(tx, dataset, owner, now)
    if mine is not None:
        return mine
    starts = set(window_starts)
    entry = enter(tx, dataset, kind, lanes, in_flight, starts)
    return new_build(
        tx, entry, kind, starts, starts, owner=owner, trigger=trigger, rows=rows, lease_micros=lease_micros, now=now
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
    return build_of_row(tx.execute(select(builds).where(builds.c.id == build_id)).one())


def builds_in_flight(tx: Connection, dataset: str | None = None) -> list[Build]:
    """Return all builds that have not ended, of one dataset or of all, oldest first."""
    query = select(builds).where(_IN_FLIGHT)
    if dataset is not None:
        query = query.where(builds.c.dataset == dataset)
    # Sorted here: asked for this order, SQLite walks through all builds that there ever were.
    return sorted((build_of_row(row) for row in tx.execute(query)), key=lambda build: build.id)


def build_in_flight(tx: Connection, dataset: str) -> Build | None:
    """Return the oldest build of the dataset that has not ended, if any."""
    return next(iter(builds_in_flight(tx, dataset)), None)


def windows_in_flight(tx: Connection, dataset: str) -> set[int]:
    """Return the windows (their starts) that a build of the dataset has just now."""
    found = _ids(builds_in_flight(tx, dataset))
    return set(tx.execute(windows_of_builds(found)).scalars()) if found else set()


def oldest_in_flight(tx: Connection) -> dict[str, Build]:
    """Return the oldest build of each dataset that has one in flight."""
    return {build.dataset: build for build in reversed(builds_in_flight(tx))}


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
        found.update({row.dataset: build_of_row(row) for row in tx.execute(query)})
    return found


def failures_in_a_row(tx: Connection, dataset: str) -> int:
    """Return how many flushes of the dataset have failed or died since the last one that published.

    One that published other windows, maybe beside them, says nothing of theirs. Failures of windows in which nothing is
    staged any more are over, as are those before the last flushes.
    """
    query = (
        select(builds.c.state, builds.c.first_window, builds.c.last_window)
        .where(builds.c.dataset == dataset, _ENDED_FLUSH)
        .order_by(builds.c.id.desc())
        .limit(_RECENT_FLUSHES)
    )
    published: list[tuple[int, int]] = []
    failures = 0
    for state, first, last in tx.execute(query).all():
        if state == BuildState.PUBLISHED.value:
            published.append((first, last))
        elif not any(first <= later_last and later_first <= last for later_first, later_last in published):
            failures += bool(staged_windows(tx, dataset, first, last))
    return failures


def published_build_before(tx: Connection, dataset: str, moment: int) -> Build | None:
    """Return the build whose table version readers were given at ``moment``: the highest one published until then."""
    row = tx.execute(
        select(builds)
        .where(
            builds.c.dataset == dataset,
            builds.c.state == BuildState.PUBLISHED.value,
            builds.c.finished_at <= moment,
            builds.c.table_version.is_not(None),
        )
        .order_by(builds.c.table_version.desc(), builds.c.sequence.desc())
        .limit(1)
    ).first()
    return None if row is None else build_of_row(row)


def sequences_after(tx: Connection, dataset: str, moment: int) -> set[int]:
    """Return the sequences of builds that had not published at ``moment``: what they wrote may be in a later version.

    A build may publish after another one that was claimed later.
    """
    open_ = builds.c.state == BuildState.CLAIMED.value
    since = and_(builds.c.state == BuildState.PUBLISHED.value, builds.c.finished_at > moment)
    return set(tx.execute(select(builds.c.sequence).where(builds.c.dataset == dataset, or_(open_, since))).scalars())


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


def _ids(others: Iterable[Build]) -> list[int]:
    return [each.id for each in others]


def _batch_count(of_slices: Iterable[ColumnElement[bool]]) -> Select[int]:
    pairs = (
        select(batch_slices.c.segment_id, batch_slices.c.ordinal)
        .distinct()
        .join(
            slices,
            (slices.c.segment_id == batch_slices.c.segment_id) & (slices.c.window_start == batch_slices.c.window_start),
        )
        .where(*of_slices)
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


def build_of_row(row: Row) -> Build:
    """Return a build as its row in the ledger has it."""
    fields = dict(row._mapping)
    return Build(**{**fields, "kind": BuildKind(fields["kind"]), "state": BuildState(fields["state"])})

"""What came in and how it was built, as the ledger remembers it: the past that a simulation replays, and failures."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import Connection, and_, func, literal_column, or_, select

from timestore_pipeline.ledger.builds import Build, build_of_row
from timestore_pipeline.ledger.lanes import staged_windows
from timestore_pipeline.ledger.schema import batches, builds, datasets, slices
from timestore_pipeline.ledger.statements import in_parts
from timestore_pipeline.ledger.states import BuildKind, BuildState


@dataclass(frozen=True)
class Arrival:
    """A segment that was staged, or its late rows: when (microseconds), and what it held.

    ``window_rows`` says how many of its rows fall in each window (by its start). ``published_at`` is when the last of
    them was published, None while any is not.
    """

    staged_at: int
    batches: int
    rows: int
    bytes: int
    window_rows: tuple[tuple[int, int], ...]
    published_at: int | None
    late: bool = False


@dataclass(frozen=True)
class FlushRecord:
    """A flush that was published: when (microseconds), how long it took, and what it wrote."""

    finished_at: int
    duration_micros: int
    rows: int
    bytes: int
    files: int


def arrivals(tx: Connection, dataset: str, since: int) -> list[Arrival]:
    """Return what was staged at or after ``since`` (microseconds), in the order in which it came."""
    counts = (
        select(batches.c.segment_id, func.count().label("batches"))
        .where(batches.c.dataset == dataset, batches.c.staged_at >= since, batches.c.segment_id.is_not(None))
        .group_by(batches.c.segment_id)
    )
    batches_of = {row.segment_id: row.batches for row in tx.execute(counts)}
    query = (
        select(
            slices.c.segment_id,
            slices.c.window_start,
            slices.c.staged_at,
            slices.c.rows,
            slices.c.bytes,
            slices.c.published_at,
            slices.c.late,
        )
        .where(slices.c.dataset == dataset, slices.c.staged_at >= since)
        .order_by(slices.c.staged_at, slices.c.segment_id, slices.c.late, slices.c.window_start)
    )
    found = []
    for (segment_id, late), group in groupby(tx.execute(query), key=lambda row: (row.segment_id, bool(row.late))):
        shares = list(group)
        published = [share.published_at for share in shares]
        found.append(
            Arrival(
                staged_at=shares[0].staged_at,
                # Those of a segment are counted once, with its rows that are not late if it has any.
                batches=batches_of.pop(segment_id, 0),
                rows=sum(share.rows for share in shares),
                bytes=sum(share.bytes for share in shares),
                window_rows=tuple((share.window_start, share.rows) for share in shares),
                published_at=None if None in published else max(published),
                late=late,
            )
        )
    return found


def flushes(tx: Connection, dataset: str, since: int) -> list[FlushRecord]:
    """Return the flushes that were claimed at or after ``since`` (microseconds) and published, in their order."""
    query = (
        select(builds.c.finished_at, builds.c.claimed_at, builds.c.rows, builds.c.bytes, builds.c.files)
        .where(
            builds.c.dataset == dataset,
            builds.c.kind == BuildKind.FLUSH.value,
            builds.c.state == BuildState.PUBLISHED.value,
            builds.c.claimed_at >= since,
        )
        .order_by(builds.c.id)
    )
    return [
        FlushRecord(row.finished_at, max(0, row.finished_at - row.claimed_at), row.rows, row.bytes, row.files)
        for row in tx.execute(query)
    ]


_ENDED_FLUSH = and_(
    builds.c.kind == literal_column(f"'{BuildKind.FLUSH}'"),
    builds.c.state != literal_column(f"'{BuildState.CLAIMED}'"),
)


# So many flushes back failures are looked for: more than lanes and attempts.
_RECENT_FLUSHES = 100


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
    for some in in_parts(ids):
        query = select(builds).where(builds.c.id.in_(some))
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

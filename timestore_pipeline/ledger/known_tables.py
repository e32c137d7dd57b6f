"""What the ledger knows of each table: its Delta id, the version that readers are given, and whether it was refused."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, func, or_, select, update

from timestore_pipeline.ledger.builds import Build, build_of_row
from timestore_pipeline.ledger.installation import read_identity
from timestore_pipeline.ledger.schema import BuildState, builds, datasets

# Below the limit of variables in one SQLite statement, however it was compiled.
_SEQUENCES_PER_QUERY = 500


@dataclass(frozen=True)
class Refusal:
    """Why a table was not written to when it was last looked at; ``since`` in microseconds since the epoch."""

    reason: str
    message: str
    since: int


@dataclass(frozen=True)
class KnownTable:
    """What the ledger knows of a table.

    ``installation`` is the ledger's own identity. ``version`` is the one that readers are given, ``last`` the build
    that is in the highest version of the table that a build has; None where there is none. ``last_sequence`` is that
    of the last build that was claimed.
    """

    installation: str
    table_id: str | None
    version: int | None
    last_sequence: int
    last: Build | None
    refusal: Refusal | None


def known_table(tx: Connection, dataset: str) -> KnownTable:
    """Return what the ledger knows of the table of a dataset; nothing yet, of one that it does not know."""
    identity = read_identity(tx) or ""
    row = tx.execute(select(datasets).where(datasets.c.name == dataset)).one_or_none()
    if row is None:
        return KnownTable(identity, None, None, 0, None, None)
    last = tx.execute(
        select(builds)
        .where(
            builds.c.dataset == dataset,
            builds.c.state == BuildState.PUBLISHED.value,
            builds.c.table_version.is_not(None),
        )
        .order_by(builds.c.table_version.desc(), builds.c.sequence.desc())
        .limit(1)
    ).first()
    refusal = None
    if row.refused_at is not None:
        refusal = Refusal(row.refusal_reason, row.refusal, row.refused_at)
    return KnownTable(
        identity,
        row.table_id,
        row.table_version,
        row.next_sequence - 1,
        None if last is None else build_of_row(last),
        refusal,
    )


def builds_of_sequences(tx: Connection, dataset: str, sequences: Collection[int]) -> dict[int, Build]:
    """Return those of the sequences that the ledger has given to a build of the dataset, with the build."""
    wanted, found = sorted(sequences), {}
    for start in range(0, len(wanted), _SEQUENCES_PER_QUERY):
        some = wanted[start : start + _SEQUENCES_PER_QUERY]
        query = select(builds).where(builds.c.dataset == dataset, builds.c.sequence.in_(some))
        found.update({row.sequence: build_of_row(row) for row in tx.execute(query)})
    return found


def note_own(tx: Connection, dataset: str, table_id: str) -> None:
    """Record that the table was looked at and is the ledger's own, under its Delta id."""
    tx.execute(
        update(datasets)
        .where(datasets.c.name == dataset, or_(datasets.c.table_id.is_(None), datasets.c.table_id == table_id))
        .values(table_id=table_id, refusal_reason=None, refusal=None, refused_at=None)
    )


def note_refusal(tx: Connection, dataset: str, reason: str, message: str, now: int) -> None:
    """Record that the table was looked at and must not be written to; since when stays what it was."""
    tx.execute(
        update(datasets)
        .where(datasets.c.name == dataset)
        .values(refusal_reason=reason, refusal=message, refused_at=func.coalesce(datasets.c.refused_at, now))
    )


def refused_tables(tx: Connection) -> dict[str, Refusal]:
    """Return per dataset why its table was refused when it was last looked at, of those that were."""
    query = select(datasets.c.name, datasets.c.refusal_reason, datasets.c.refusal, datasets.c.refused_at).where(
        datasets.c.refused_at.is_not(None)
    )
    return {row.name: Refusal(row.refusal_reason, row.refusal, row.refused_at) for row in tx.execute(query)}

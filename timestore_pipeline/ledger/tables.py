"""What the ledger knows of each table: its Delta id, the version that readers are given, and whether it was refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, func, or_, select, update

from timestore_pipeline.ledger.builds import Build, build_in_flight, build_of_row
from timestore_pipeline.ledger.corrected_windows import pending_corrections
from timestore_pipeline.ledger.corrections import Correction
from timestore_pipeline.ledger.installation import read_identity
from timestore_pipeline.ledger.schema import builds, datasets
from timestore_pipeline.ledger.statements import in_parts
from timestore_pipeline.ledger.states import BuildState

# Below the limit of variables in one SQLite statement, however it was compiled.
_NAMES_PER_QUERY = 500


def table_versions(tx: Connection, names: Sequence[str] | None = None) -> dict[str, int | None]:
    """Return per dataset, of some or of all, the table version that readers may see; None where there is no table."""
    query = select(datasets.c.name, datasets.c.table_version)
    if names is not None and len(names) <= _NAMES_PER_QUERY:
        query = query.where(datasets.c.name.in_(names))
    return dict(tx.execute(query).all())


@dataclass(frozen=True)
class VisibleTable:
    """What readers are given of a table: a version, and the Delta id of the table that has it; None where unknown.

    ``pending`` are the corrections that may still take rows of its files, by window start.
    """

    version: int | None = None
    table_id: str | None = None
    pending: Mapping[int, tuple[Correction, ...]] = field(default_factory=dict)


def visible_tables(tx: Connection, names: Sequence[str]) -> dict[str, VisibleTable]:
    """Return per dataset what readers are given of its table."""
    query = select(datasets.c.name, datasets.c.table_version, datasets.c.table_id, datasets.c.corrections)
    if len(names) <= _NAMES_PER_QUERY:
        query = query.where(datasets.c.name.in_(names))
    return {
        row.name: VisibleTable(
            row.table_version, row.table_id, pending_corrections(tx, row.name) if row.corrections else {}
        )
        for row in tx.execute(query).all()
    }


def advance_table_version(tx: Connection, dataset: str, version: int) -> None:
    """Let readers have a later version of a dataset's table; the caller has ended all builds that it has."""
    query = update(datasets).where(datasets.c.name == dataset, datasets.c.table_version < version)
    tx.execute(query.values(table_version=version))


def last_claimed_sequence(tx: Connection, dataset: str) -> int:
    """Return the sequence of the last build that claimed slices of the dataset, 0 for none."""
    return tx.execute(select(datasets.c.next_sequence).where(datasets.c.name == dataset)).scalar_one() - 1


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
    found: dict[int, Build] = {}
    for some in in_parts(sorted(sequences)):
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


@dataclass(frozen=True)
class TableState:
    """Which version of the table readers are given, the last sequence claimed, and the build that has not ended."""

    version: int | None
    last_sequence: int
    in_flight: Build | None


def table_state(tx: Connection, dataset: str) -> TableState:
    """Return how far the table of a dataset is; equal before and after means that no build did anything between."""
    return TableState(
        table_versions(tx, [dataset]).get(dataset), last_claimed_sequence(tx, dataset), build_in_flight(tx, dataset)
    )

"""Whose ledger it is: an identity that is drawn once and stays, in the ledger and in every backup of it.

What an installation keeps elsewhere carries the identity too, and is so told from what belongs to another one. Here is
also how much it keeps besides staging and tables, and how large the ledger is.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from sqlalchemy import Connection, delete, select, text, update

from timestore_pipeline.ledger.schema import datasets, disk_use, installation, metadata, places, segments
from timestore_pipeline.ledger.statements import insert_unless_there, upsert

_IDENTITY_BYTES = 16


_ONLY_ROW = 1


_IN_THEIR_FOLDER = (segments.c.unlinked_at.is_(None), segments.c.quarantined_at.is_(None))


def read_identity(tx: Connection) -> str | None:
    """Return the identity of the ledger; None where it has none yet."""
    return tx.execute(select(installation.c.identity)).scalar()


def draw_identity(tx: Connection, identity: str | None = None) -> str:
    """Give the ledger ``identity``, by default a new one, unless it has one; return the one that it has then.

    Of several processes that open a new ledger at the same time the first one decides.
    """
    insert_unless_there(tx, installation, {"row": _ONLY_ROW, "identity": identity or new_identity()})
    return tx.execute(select(installation.c.identity)).scalar_one()


def new_identity() -> str:
    """Return an identity that no ledger has."""
    return secrets.token_hex(_IDENTITY_BYTES)


def set_identity(tx: Connection, identity: str) -> None:
    """Give the ledger another identity, on purpose."""
    tx.execute(update(installation).values(identity=identity))


def marked_places(tx: Connection) -> dict[str, str]:
    """Return the names of the places that carry the mark of this installation, each with where it was then."""
    return dict(tx.execute(select(places.c.name, places.c.location)).all())


def remember_place(tx: Connection, name: str, location: str, now: int) -> None:
    """Record that a place carries the mark; ``now`` in microseconds since the epoch."""
    upsert(tx, places, {"name": name, "location": location, "marked_at": now})


def forget_place(tx: Connection, name: str) -> None:
    """Record that a place does not carry the mark any more."""
    tx.execute(delete(places).where(places.c.name == name))


def newest_segments(tx: Connection, limit: int) -> list[str]:
    """Return the paths of the newest segments that are to be in staging."""
    there = segments.c.unlinked_at.is_(None)
    return list(tx.execute(select(segments.c.path).where(there).order_by(segments.c.id.desc()).limit(limit)).scalars())


def datasets_with_segments(tx: Connection) -> list[str]:
    """Return the names of the datasets that have segments that are to be in their folders."""
    some = select(segments.c.id).where(segments.c.dataset == datasets.c.name, *_IN_THEIR_FOLDER).exists()
    return list(tx.execute(select(datasets.c.name).where(some).order_by(datasets.c.name)).scalars())


def newest_segments_of(tx: Connection, dataset: str, limit: int) -> list[str]:
    """Return the paths of the newest segments that are to be in the dataset's folder."""
    there = (segments.c.dataset == dataset, *_IN_THEIR_FOLDER)
    return list(tx.execute(select(segments.c.path).where(*there).order_by(segments.c.id.desc()).limit(limit)).scalars())


def datasets_with_tables(tx: Connection) -> list[str]:
    """Return the names of the datasets that have a table."""
    found = select(datasets.c.name).where(datasets.c.table_version.is_not(None)).order_by(datasets.c.name)
    return list(tx.execute(found).scalars())


class MeasuredPlace(StrEnum):
    """What is looked at."""

    ARCHIVE = "archive"
    WORK = "work"


@dataclass(frozen=True)
class DiskUse:
    """Files of one place, of a dataset or (where that is empty) of all; ``looked_at`` in microseconds."""

    dataset: str
    place: MeasuredPlace
    files: int
    bytes: int
    looked_at: int


def all_disk_use(tx: Connection) -> list[DiskUse]:
    """Return what the last look found."""
    return [DiskUse(**{**row, "place": MeasuredPlace(row["place"])}) for row in tx.execute(select(disk_use)).mappings()]


def put_disk_use(tx: Connection, found: Iterable[DiskUse]) -> None:
    """Record what a look has found, in the place of what the last one did."""
    for each in sorted(found, key=lambda each: (each.dataset, each.place)):
        upsert(tx, disk_use, {**asdict(each), "place": each.place.value})


_SQLITE = text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")


# Its own tables only: the database may hold Dagster's as well.
_POSTGRESQL = text(
    "SELECT coalesce(sum(pg_total_relation_size(to_regclass(name))), 0) FROM unnest(CAST(:names AS text[])) AS name"
)


def ledger_bytes(tx: Connection) -> int:
    """Return the bytes of the ledger's tables and indexes, without SQLite's write-ahead log."""
    if tx.dialect.name == "sqlite":
        return int(tx.execute(_SQLITE).scalar_one())
    return int(tx.execute(_POSTGRESQL, {"names": sorted(metadata.tables)}).scalar_one())

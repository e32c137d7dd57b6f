"""Whose ledger it is: an identity that is drawn once and stays, in the ledger and in every backup of it.

What an installation keeps elsewhere carries the identity too, and is so told from what belongs to another one.
"""

from __future__ import annotations

import secrets

from sqlalchemy import Connection, delete, select, update

from timestore_pipeline.ledger.schema import datasets, installation, places, segments
from timestore_pipeline.ledger.upserts import insert_unless_there, upsert

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

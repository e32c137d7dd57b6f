"""Leases: one process at a time does a thing; one that dies holds nothing up for longer than its lease."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from timestore_pipeline.ledger.schema import leases


def take_lease(tx: Connection, name: str, owner: str, *, now: int, expires_at: int) -> bool:
    """Take the lease ``name``; False where another owner holds it and it has not expired.

    Times are microseconds since the epoch.
    """
    insert = sqlite_insert if tx.dialect.name == "sqlite" else postgresql_insert
    tx.execute(insert(leases).values(name=name, owner=owner, expires_at=expires_at).on_conflict_do_nothing())
    tx.execute(
        update(leases)
        .where(leases.c.name == name, (leases.c.expires_at <= now) | (leases.c.owner == owner))
        .values(owner=owner, expires_at=expires_at)
    )
    return tx.execute(select(leases.c.owner).where(leases.c.name == name)).scalar() == owner


def release_lease(tx: Connection, name: str, owner: str) -> None:
    """Give the lease back; nothing happens where it has expired and another owner took it."""
    tx.execute(delete(leases).where(leases.c.name == name, leases.c.owner == owner))

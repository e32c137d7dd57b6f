"""Leases: one process at a time does a thing, or a few at a time do it (slots).

A process that dies holds nothing up for longer than its lease.
"""

from __future__ import annotations

import secrets

from sqlalchemy import Connection, delete, func, select, update

from timestore_pipeline.ledger.schema import leases
from timestore_pipeline.ledger.statements import insert_unless_there


def claim_lease(tx: Connection, name: str, owner: str, *, now: int, expires_at: int) -> bool:
    """Claim the lease ``name``; False where another owner holds it and it has not expired.

    Times are microseconds since the epoch.
    """
    insert_unless_there(tx, leases, {"name": name, "owner": owner, "expires_at": expires_at})
    tx.execute(
        update(leases)
        .where(leases.c.name == name, (leases.c.expires_at <= now) | (leases.c.owner == owner))
        .values(owner=owner, expires_at=expires_at)
    )
    return tx.execute(select(leases.c.owner).where(leases.c.name == name)).scalar() == owner


def release_lease(tx: Connection, name: str, owner: str) -> None:
    """Give the lease back; nothing happens where it has expired and another owner has it."""
    tx.execute(delete(leases).where(leases.c.name == name, leases.c.owner == owner))


def claim_slot(tx: Connection, resource: str, slots: int, owner: str, *, now: int, lease_micros: int) -> str | None:
    """Claim one of ``slots`` slots of ``resource``; return the name of its lease, or None where all are held.

    An owner that has one gets the same again. Times are microseconds since the epoch.

    The caller serializes claims of one resource (see ``lock_dataset``): slots are counted and then claimed, so their
    number may change at any time. A lease that says to last for more than twice as long is of a clock that has been set
    back since, and counts as expired.
    """
    mine = leases.c.name.startswith(f"{resource}/", autoescape=True)
    tx.execute(
        delete(leases).where(mine, (leases.c.expires_at <= now) | (leases.c.expires_at > now + 2 * lease_micros))
    )
    had = tx.execute(select(leases.c.name).where(mine, leases.c.owner == owner)).scalar()
    if had is not None:
        return had
    if slots_held(tx, resource, now) >= slots:
        return None
    name = f"{resource}/{secrets.token_hex(8)}"
    claim_lease(tx, name, owner, now=now, expires_at=now + lease_micros)
    return name


def slots_held(tx: Connection, resource: str, now: int) -> int:
    """Return how many slots of ``resource`` are held."""
    mine = leases.c.name.startswith(f"{resource}/", autoescape=True)
    return tx.execute(select(func.count()).where(mine, leases.c.expires_at > now)).scalar_one()


def extend_slot(tx: Connection, name: str, owner: str, expires_at: int) -> bool:
    """Hold a slot for longer; False where it had expired and was given away."""
    held = (leases.c.name == name, leases.c.owner == owner)
    return tx.execute(update(leases).where(*held).values(expires_at=expires_at)).rowcount == 1

"""Landing files that stay where they are although they are dealt with: kept by setting, or impossible to move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, select

from timestore_pipeline.ledger.schema import settled_files
from timestore_pipeline.ledger.upserts import upsert


@dataclass(frozen=True)
class SettledFile:
    """A file by name, size and modification time (nanoseconds since the epoch); any change makes it another one.

    An object is known by its ``version`` instead of the time.
    """

    dataset: str
    name: str
    bytes: int
    modified_at: int
    version: str = ""


def remember_settled(tx: Connection, files: Iterable[SettledFile]) -> None:
    """Record files that the landing scan is to pass over from now on."""
    # In one order, lest two that settle the same files wait for each other.
    for file in sorted(files, key=lambda each: (each.dataset, each.name)):
        upsert(tx, settled_files, asdict(file))


def all_settled(tx: Connection) -> set[SettledFile]:
    """Return all files that the landing scan passes over."""
    return {SettledFile(**row) for row in tx.execute(select(settled_files)).mappings()}

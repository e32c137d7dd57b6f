"""Landing files that stay where they are although they are dealt with: kept by setting, or impossible to move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from timestore_pipeline.ledger.schema import settled_files


@dataclass(frozen=True)
class SettledFile:
    """A file by name, size and modification time (nanoseconds since the epoch); any change makes it another one."""

    dataset: str
    name: str
    bytes: int
    modified_at: int


def remember_settled(tx: Connection, files: Iterable[SettledFile]) -> None:
    """Record files that the landing scan is to pass over from now on."""
    for file in files:
        tx.execute(
            delete(settled_files).where(settled_files.c.dataset == file.dataset, settled_files.c.name == file.name)
        )
        tx.execute(
            insert(settled_files).values(
                dataset=file.dataset, name=file.name, bytes=file.bytes, modified_at=file.modified_at
            )
        )


def all_settled(tx: Connection) -> set[SettledFile]:
    """Return all files that the landing scan passes over."""
    return {SettledFile(**row) for row in tx.execute(select(settled_files)).mappings()}

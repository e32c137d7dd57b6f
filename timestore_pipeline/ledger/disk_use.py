"""What lies on the disk besides staging and tables: how much the last look found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from sqlalchemy import Connection, select

from timestore_pipeline.ledger.schema import disk_use
from timestore_pipeline.ledger.upserts import upsert


class Place(StrEnum):
    """What is looked at."""

    ARCHIVE = "archive"
    WORK = "work"


@dataclass(frozen=True)
class DiskUse:
    """Files of one place, of a dataset or (where that is empty) of all; ``looked_at`` in microseconds."""

    dataset: str
    place: Place
    files: int
    bytes: int
    looked_at: int


def all_disk_use(tx: Connection) -> list[DiskUse]:
    """Return what the last look found."""
    return [DiskUse(**{**row, "place": Place(row["place"])}) for row in tx.execute(select(disk_use)).mappings()]


def put_disk_use(tx: Connection, found: Iterable[DiskUse]) -> None:
    """Record what a look has found, in the place of what the last one did."""
    for each in sorted(found, key=lambda each: (each.dataset, each.place)):
        upsert(tx, disk_use, {**asdict(each), "place": each.place.value})

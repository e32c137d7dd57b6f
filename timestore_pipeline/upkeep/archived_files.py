"""Archived landing files whose day is further back than they are to be kept, or which are more than there may be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from itertools import islice

from timestore_pipeline.ledger.installation import DiskUse, MeasuredPlace, all_disk_use, put_disk_use
from timestore_pipeline.model.freed import Freed
from timestore_pipeline.model.windows import from_micros
from timestore_pipeline.storage import Entry
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.chores import Chore

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class _OldFiles:
    """Archived files of a dataset that are to go, oldest first; ``known`` is what it has, where anybody has looked."""

    dataset: str
    entries: list[Entry]
    known: DiskUse | None

    @property
    def size(self) -> Freed:
        return Freed.of(entry.bytes for entry in self.entries)


def find_old_archive(store: Store, *, now: int, most: int | None = None) -> Freed:
    """Return what :func:`remove_old_archive` would remove."""
    return sum((old.size for old in _old_files(store, now, most)), Freed())


def remove_old_archive(store: Store, *, now: int, most: int | None = None) -> Freed:
    """Remove archived files whose day is further back than they are to be kept, or which are more than there may be.

    At most so many, oldest first. How much there is, is what the last look at the disk found, less what went since.
    """
    freed = Freed()
    for old in _old_files(store, now, most):
        freed += old.size
        store.archive.delete(*(entry.key for entry in old.entries))
        if old.known is not None:
            rest = replace(
                old.known,
                files=max(0, old.known.files - old.size.files),
                bytes=max(0, old.known.bytes - old.size.bytes),
            )
            store.ledger.transact(partial(put_disk_use, found=[rest]))
        for folder in {entry.key.rpartition("/")[0] for entry in old.entries}:
            store.archive.prune(folder)
    return freed


def _old_files(store: Store, now: int, most: int | None) -> Iterator[_OldFiles]:
    """Yield what is to go of each dataset that has any, together at most so many files."""
    retention, limit = (
        store.settings.landing_archive_retention_seconds,
        store.settings.landing_archive_max_dataset_bytes,
    )
    first_kept = from_micros(now - int(retention * 1e6)).date().isoformat() if retention else ""
    with store.ledger.read() as tx:
        used = {each.dataset: each for each in all_disk_use(tx) if each.place is MeasuredPlace.ARCHIVE}
    for dataset in store.datasets:
        known = used.get(dataset)
        excess = max(0, known.bytes - limit) if known and limit else 0
        if not (first_kept or excess):
            continue
        old = list(islice(_not_to_be_kept(store, dataset, first_kept, excess), most))
        if old:
            yield _OldFiles(dataset, old, known)
        most = None if most is None else most - len(old)


def _not_to_be_kept(store: Store, dataset: str, first_kept: str, excess_bytes: int) -> Iterator[Entry]:
    """Yield what was archived before a day, or is the oldest of so many bytes; days are listed in order."""
    listed = ((entry.key.split("/"), entry) for entry in store.archive.entries(f"{dataset}/"))
    for parts, entry in listed:
        if len(parts) < 3 or not _is_day(parts[1]):
            continue
        if parts[1] >= first_kept and excess_bytes <= 0:
            return
        if len(parts) == 3:
            excess_bytes -= entry.bytes
            yield entry


def _is_day(name: str) -> bool:
    with suppress(ValueError):
        return _DAY.fullmatch(name) is not None and bool(date.fromisoformat(name))
    return False


OLD_ARCHIVE = Chore(
    "archived",
    "removing old archived files",
    Freed(),
    find=lambda round_: find_old_archive(round_.store, now=round_.now, most=round_.most),
    remove=lambda round_: remove_old_archive(round_.store, now=round_.now, most=round_.most),
)

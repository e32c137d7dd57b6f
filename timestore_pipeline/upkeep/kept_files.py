"""What is kept besides the rows in staging and tables: quarantine and archive, for as long as they are to be kept.

And how much of the disk that takes, with all that processes work with.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import date
from functools import partial
from itertools import islice
from pathlib import Path

from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.landing.found import bytes_on_disk
from timestore_pipeline.ledger.installation import DiskUse, Place, all_disk_use, put_disk_use
from timestore_pipeline.ledger.quarantine import QuarantineEntry, open_entries
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.model.freed import Freed
from timestore_pipeline.model.windows import from_micros
from timestore_pipeline.operating.quarantine import discard_entry
from timestore_pipeline.storage import Entry
from timestore_pipeline.store import Store

_RETENTION = "retention"
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_LOOKED_EVERY_MICROS = 3_600_000_000


def discard_old_entries(
    store: Store, *, now: int, dry_run: bool = False, most: int | None = None
) -> list[QuarantineEntry]:
    """Discard files and rows that have been in quarantine for longer than they are to be; return their entries.

    Staged rows that cannot be read back stay: they were acknowledged, and wait for a person, however long.
    """
    retention = store.settings.quarantine_retention_seconds
    if not retention:
        return []
    before = now - int(retention * 1e6)
    with store.ledger.read() as tx:
        old = [
            entry
            for entry in open_entries(tx)
            if entry.created_at < before and entry.kind is not QuarantineKind.SEGMENT
        ][:most]
    if dry_run:
        return old
    discarded = []
    for entry in old:
        with suppress(TimestoreError):  # somebody was first, or it is tried the next time
            discarded.append(discard_entry(store, entry.id, _RETENTION))
    return discarded


def remove_old_archive(store: Store, *, now: int, dry_run: bool = False, most: int | None = None) -> Freed:
    """Remove archived files whose day is further back than they are to be kept, or which are more than there may be.

    At most so many, oldest first. How much there is, is what the last look at the disk found, less what went since.
    """
    retention, limit = (
        store.settings.landing_archive_retention_seconds,
        store.settings.landing_archive_max_dataset_bytes,
    )
    first_kept = from_micros(now - int(retention * 1e6)).date().isoformat() if retention else ""
    with store.ledger.read() as tx:
        used = {each.dataset: each for each in all_disk_use(tx) if each.place is Place.ARCHIVE}
    freed = Freed()
    for dataset in store.datasets:
        known = used.get(dataset, DiskUse(dataset, Place.ARCHIVE, 0, 0, 0))
        excess = max(0, known.bytes - limit) if limit else 0
        if not (first_kept or excess):
            continue
        left = None if most is None else most - freed.files
        old = list(islice(_not_to_be_kept(store, dataset, first_kept, excess), left))
        gone = Freed(len(old), sum(entry.bytes for entry in old))
        freed += gone
        if dry_run or not old:
            continue
        store.archive.delete(*(entry.key for entry in old))
        rest = replace(known, files=max(0, known.files - gone.files), bytes=max(0, known.bytes - gone.bytes))
        if dataset in used:
            store.ledger.transact(partial(put_disk_use, found=[rest]))
        for folder in {entry.key.rpartition("/")[0] for entry in old}:
            store.archive.prune(folder)
    return freed


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


def look_at_disk(store: Store, *, now: int) -> None:
    """Record how much archive and work take, once an hour: there may be very many files."""
    with store.ledger.read() as tx:
        last = max((each.looked_at for each in all_disk_use(tx)), default=0)
    if 0 <= now - last < _LOOKED_EVERY_MICROS:
        return
    found = []
    for dataset in store.datasets:
        sizes = [entry.bytes for entry in store.archive.entries(f"{dataset}/")]
        found.append(DiskUse(dataset, Place.ARCHIVE, len(sizes), sum(sizes), now))
    work = list(_sizes((store.settings.work_path, store.settings.temp_path)))
    found.append(DiskUse("", Place.WORK, len(work), sum(work), now))
    store.ledger.transact(lambda tx: put_disk_use(tx, found))


def _sizes(folders: Iterable[Path]) -> Iterator[int]:
    """Yield what each file below the folders takes on the disk, one that is in both of them once."""
    seen: set[Path] = set()
    for folder in folders:
        for path in folder.rglob("*"):
            with suppress(OSError):  # gone meanwhile
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and path not in seen:
                    seen.add(path)
                    yield bytes_on_disk(status)

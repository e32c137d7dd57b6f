"""How much of the disk archive and work take (short, because each chore has a file).

It is counted once an hour, as there may be very many files.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from timestore_pipeline.landing.found import bytes_on_disk
from timestore_pipeline.ledger.installation import DiskUse, MeasuredPlace, all_disk_use, put_disk_use
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.chores import Chore

_RECORDED_EVERY_MICROS = 3_600_000_000


def record_disk_use(store: Store, *, now: int) -> None:
    """Record how much archive and work take, unless that was done within the hour; ``now`` is in microseconds."""
    with store.ledger.read() as tx:
        last = max((each.looked_at for each in all_disk_use(tx)), default=0)
    if 0 <= now - last < _RECORDED_EVERY_MICROS:
        return
    found = []
    for dataset in store.datasets:
        sizes = [entry.bytes for entry in store.archive.entries(f"{dataset}/")]
        found.append(DiskUse(dataset, MeasuredPlace.ARCHIVE, len(sizes), sum(sizes), now))
    work = list(_sizes((store.settings.work_path, store.settings.temp_path)))
    found.append(DiskUse("", MeasuredPlace.WORK, len(work), sum(work), now))
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


DISK_USE = Chore[None](
    "disk_use",
    "looking at the disk",
    None,
    find=lambda round_: None,
    remove=lambda round_: record_disk_use(round_.store, now=round_.now),
)

"""What lies in the folder of a table, wherever that is: the entries of its log, and its Parquet files.

In a directory whatever delta-rs writes must be synced (invariant 6). In an object store there is nothing to sync.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from timestore_pipeline.columns import WINDOW_COLUMN
from timestore_pipeline.durable_files import fsync_path, make_folder, sync_private
from timestore_pipeline.storage.contract import Entry, Storage

LOG_FOLDER = "_delta_log"

PARQUET_SUFFIX = ".parquet"


def has_table(place: Storage) -> bool:
    """Whether there is a table. Killed at the wrong moment, delta-rs leaves an empty folder, which is none yet.

    Raises:
        PlaceError: the place of the tables is not there, so nobody can say.
    """
    place.require()
    if place.local is None:
        return any(entry.key.endswith(".json") for entry in place.entries(f"{LOG_FOLDER}/"))
    log = place.local / LOG_FOLDER
    return log.is_dir() and any(log.glob("*.json"))


def parquet_files(place: Storage) -> Iterator[Entry]:
    """Go through the Parquet files of builds, committed or not, in the order of their keys."""
    if place.local is None:
        for entry in place.entries():
            if entry.key.startswith(f"{WINDOW_COLUMN}=") and entry.key.endswith(PARQUET_SUFFIX):
                yield entry
        return
    for path in sorted(place.local.glob(f"{WINDOW_COLUMN}=*/*{PARQUET_SUFFIX}")):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        yield Entry(path.relative_to(place.local).as_posix(), found.st_size, found.st_mtime_ns // 1_000)


def make_table_folder(place: Storage) -> None:
    """Make the folder that a new table is going to be in; an object store has none."""
    if place.local is not None:
        make_folder(place.local)


def sync_table_folder(place: Storage) -> None:
    """Make the entries of the table's folder durable."""
    if place.local is not None:
        fsync_path(place.local)


def entry_is_empty(place: Storage, version: int) -> bool:
    """Whether there is a log entry without content, as a power cut may leave it; an object is whole or not there."""
    if place.local is None:
        return False
    entry = _log_entry(place.local, version)
    return entry.exists() and not entry.stat().st_size


def log_entry(place: Storage, version: int) -> str:
    """Return the text of a log entry.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    if place.local is not None:
        return _log_entry(place.local, version).read_text()
    key = log_key(version)
    size = place.size(key)
    if size is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", place.shown(key))
    return place.read(key, 0, size).decode()


def log_key(version: int) -> str:
    """Return the key of a log entry."""
    return f"{LOG_FOLDER}/{version:020d}.json"


def log_sizes(place: Storage) -> dict[str, int]:
    """Return the bytes of each file of the log, by its key."""
    return {entry.key: entry.bytes for entry in place.entries(f"{LOG_FOLDER}/")}


def sync_log(place: Storage, version: int) -> None:
    """Make the log entry ``version`` durable, with a checkpoint that came with it and the folder."""
    if place.local is None:
        return
    log = place.local / LOG_FOLDER
    entry = _log_entry(place.local, version)
    if entry.exists():  # old ones are cleaned up behind a checkpoint
        sync_private(entry)
    checkpoints = list(log.glob(f"{version:020d}.checkpoint*"))
    for file in (*checkpoints, *([log / "_last_checkpoint"] if checkpoints else [])):
        sync_private(file)
    sync_private(log)


def _log_entry(folder: Path, version: int) -> Path:
    return folder / log_key(version)


def file_name(key: str) -> str:
    """Return the last part of a key."""
    return key.rpartition("/")[2]

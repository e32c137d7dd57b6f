"""What lies in the folder of a table, wherever that is: the entries of its log, and its Parquet files.

In a directory whatever delta-rs writes must be synced (invariant 6). In an object store there is nothing to sync.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from timestore_pipeline.durable_files import TEMPORARY_SUFFIX, fsync_path, make_folder, sync_private
from timestore_pipeline.model.columns import WINDOW_COLUMN
from timestore_pipeline.storage.contract import Entry, Storage

LOG_FOLDER = "_delta_log"

PARQUET_SUFFIX = ".parquet"

MANIFEST_FOLDER = "_timestore"
"""In the folder of a table; Delta and its readers pass over names that begin with an underscore."""

MANIFEST_SUFFIX = ".arrow"

# Names that builds give: of files, of what they write them to, and of manifests; and what delta-rs writes entries to.
_FILE = re.compile(rf"{WINDOW_COLUMN}=[^/]+/[0-9]{{10,19}}-[0-9]{{3,}}{re.escape(PARQUET_SUFFIX)}")
_SCRATCH = re.compile(rf"{WINDOW_COLUMN}=[^/]+/\.[0-9]{{10,19}}-{re.escape(TEMPORARY_SUFFIX)}")
_MANIFEST = re.compile(rf"{MANIFEST_FOLDER}/[^/]+{re.escape(MANIFEST_SUFFIX)}({re.escape(TEMPORARY_SUFFIX)})?")
_UNFINISHED_ENTRY = re.compile(rf"{LOG_FOLDER}/[^/]+\.json#[^/]*")

# An object store takes so many deletions in one request.
_REMOVED_AT_ONCE = 500


def may_be_removed(key: str, live: Collection[str]) -> bool:
    """Whether what lies under ``key`` in the folder of a table may be removed, where ``live`` are its live files.

    Only what a build has written, by the names that builds give, and never what the table's log names.
    """
    if _FILE.fullmatch(key):
        return key not in live
    return any(pattern.fullmatch(key) for pattern in (_SCRATCH, _MANIFEST, _UNFINISHED_ENTRY))


def remove_from_table(place: Storage, keys: Iterable[str], live: Collection[str]) -> Iterator[Sequence[str]]:
    """Remove what may be removed of ``keys``; yield those that are gone, as they go. Nobody else removes in a table.

    ``live`` are the files that the current version of the table's log names, after a look that said whose it is.

    Raises:
        StorageError, OSError: the next ones cannot be removed.
    """
    allowed = (key for key in keys if may_be_removed(key, live))
    while some := list(islice(allowed, 1 if place.local is not None else _REMOVED_AT_ONCE)):
        if place.local is not None and _SCRATCH.fullmatch(some[0]):
            shutil.rmtree(place.local / some[0], ignore_errors=True)  # its builder may be alive and writing
        else:
            place.delete(*some)
        yield some


def remove_whole_table(place: Storage, keys: Iterable[str]) -> None:
    """Remove a table that an operator gives up with its dataset, after a look that said whose it is.

    The log goes last: without it nobody could say any more whose the rest is.

    Raises:
        StorageError, OSError: some is left; the same again goes on.
    """
    named = sorted(keys, key=lambda key: key.startswith(f"{LOG_FOLDER}/"))
    for start in range(0, len(named), _REMOVED_AT_ONCE):
        place.delete(*named[start : start + _REMOVED_AT_ONCE])


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


def scratch_of_windows(place: Storage, prefix: str = "") -> list[str]:
    """Return the folders in which builds write files of windows, of those whose file names begin with ``prefix``.

    In an object store there are none: what is written goes to local scratch.
    """
    if place.local is None:
        return []
    found = place.local.glob(f"{WINDOW_COLUMN}=*/.{prefix}*{TEMPORARY_SUFFIX}")
    return sorted(path.relative_to(place.local).as_posix() for path in found)


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

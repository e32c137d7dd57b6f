"""What lies in the folder of a table, wherever that is: the entries of its log, and its Parquet files.

In a directory whatever delta-rs writes must be synced (invariant 6). In an object store there is nothing to sync.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.durable_files import (
    PRIVATE_FOLDER,
    TEMPORARY_SUFFIX,
    fsync_path,
    make_folder,
    rename_new,
    sync_private,
)
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
    while some := list(islice(allowed, place.traits.deleted_at_once)):
        if _SCRATCH.fullmatch(some[0]):
            place.remove_folder(some[0])  # its builder may be alive and writing
        else:
            place.delete(*some)
        yield some


def remove_whole_table(place: Storage, keys: Iterable[str]) -> None:
    """Remove a table that an operator gives up with its dataset, after a look that said whose it is.

    The log goes last: without it nobody could say any more whose the rest is.

    Raises:
        StorageError, OSError: some is left; the same again goes on.
    """
    named = set(keys)
    log = {key for key in named if key.startswith(f"{LOG_FOLDER}/")}
    place.delete(*named - log)
    place.delete(*log)


def has_table(place: Storage) -> bool:
    """Whether there is a table. Killed at the wrong moment, delta-rs leaves an empty folder, which is none yet.

    Raises:
        PlaceError: the place of the tables is not there, so nobody can say.
    """
    return any(entry.key.endswith(".json") for entry in place.entries(f"{LOG_FOLDER}/"))


def parquet_files(place: Storage) -> Iterator[Entry]:
    """Go through the Parquet files of builds, committed or not, in the order of their keys."""
    for entry in place.entries():
        window, _, name = entry.key.partition("/")
        # What lies deeper is in the scratch of a build.
        if window.startswith(f"{WINDOW_COLUMN}=") and name.endswith(PARQUET_SUFFIX) and "/" not in name:
            yield entry


def scratch_of_windows(place: Storage, prefix: str = "") -> Iterator[Entry]:
    """Go through the folders in which builds write files of windows, whose file names begin with ``prefix``.

    In an object store there are none: what is written goes to local scratch.
    """
    return place.leftovers(f"{WINDOW_COLUMN}=*/.{prefix}*{TEMPORARY_SUFFIX}")


def unfinished_entries(place: Storage) -> Iterator[Entry]:
    """Go through what delta-rs writes entries of the log to, before it names them."""
    return place.leftovers(f"{LOG_FOLDER}/*.json#*")


def entry_is_empty(place: Storage, version: int) -> bool:
    """Whether there is a log entry without content, as a power cut may leave it; an object is whole or not there."""
    if place.local is None:
        return False
    return place.size(log_key(version)) == 0


def log_entry(place: Storage, version: int) -> str:
    """Return the text of a log entry.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    return place.content(log_key(version)).decode()


def log_actions(place: Storage, version: int) -> list[dict[str, Any]]:
    """Return the actions of a log entry.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is damaged.
    """
    # A text in it may have what breaks lines elsewhere, such as U+2028, and none of that ends a line of JSON.
    return [json.loads(line) for line in log_entry(place, version).split("\n") if line.strip()]


def log_key(version: int) -> str:
    """Return the key of a log entry."""
    return f"{LOG_FOLDER}/{version:020d}.json"


def log_sizes(place: Storage) -> dict[str, int]:
    """Return the bytes of each file of the log, by its key."""
    return {entry.key: entry.bytes for entry in place.entries(f"{LOG_FOLDER}/")}


def sync_log(place: Storage, version: int) -> None:
    """Make the log entry ``version`` durable, with a checkpoint that came with it and the folder.

    The entry may be gone: old ones are cleaned up behind a checkpoint.
    """
    synced = place.sync(LOG_FOLDER, f"{version:020d}.json", f"{version:020d}.checkpoint*")
    if any(".checkpoint" in name for name in synced):
        place.sync(LOG_FOLDER, "_last_checkpoint")


@contextmanager
def folder_for_windows(place: Storage, scratch: Path) -> Iterator[Path]:
    """Give the local folder that files of windows are written in; when the block ends its entries are durable.

    It is that of the table, or ``scratch`` on the way to an object store, which is gone afterwards.
    """
    if place.local is not None:
        yield place.local
        # Also where no folder is new: a build that died may have made it.
        place.sync()
        return
    scratch.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_before_commit(place: Storage, key: str, write: Callable[[Path], None]) -> None:
    """Let a file be written that a commit is to rest on, durably.

    In a directory under its own name at once: one that is not whole is of a build that cannot have committed.
    """
    if place.local is None:
        scratch = place.scratch(key)
        write(scratch)
        place.put(scratch, key, keep=False)
        return
    path = place.local / key
    make_folder(path.parent)
    write(path)
    sync_private(path)
    fsync_path(path.parent)


def put_files_of_window(place: Storage, files: Sequence[tuple[Path, str]]) -> None:
    """Give whole files, written as :func:`folder_for_windows` says, their keys; durable once their folder is synced."""
    for written, key in files:
        if place.local is None:
            reach(CrashPoint.PARQUET_SYNCED)
            place.put(written, key, keep=False)
        else:
            sync_private(written)
            reach(CrashPoint.PARQUET_SYNCED)
            rename_new(written, place.local / key)
        reach(CrashPoint.PARQUET_RENAMED)


def file_name(key: str) -> str:
    """Return the last part of a key."""
    return key.rpartition("/")[2]

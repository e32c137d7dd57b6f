"""A folder of an ingest's own, with names of its own for what is read: names that mean nothing but themselves."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from timestore_pipeline.durable_files import PRIVATE_FOLDER, make_folder

_PREFIX = "ingest-"
_LONGEST_NAME = 100
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9.]")

# DuckDB takes these for a pattern, and then looks at all that lies beside the file; a backslash is a slash to it.
_NOT_ITSELF = re.compile(r"[*?\[\\]")


def means_itself(name: str) -> bool:
    """Whether DuckDB takes a name, or a path, for just what it is."""
    return _NOT_ITSELF.search(name) is None


def plain_name(name: str) -> str:
    """Return a name that everybody takes for just what it is, and that ends alike: the end says what format it is."""
    return _NOT_PLAIN.sub("_", name)[-_LONGEST_NAME:].lstrip(".") or "_"


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Give a folder of this process' own, removed afterwards; those of processes that died are removed first.

    A process holds a lock on its folder for as long as it lives, which says that and nothing else.
    """
    make_folder(parent)
    for left in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            _remove_unless_in_use(left)
    while True:
        folder = parent / f"{_PREFIX}{secrets.token_hex(8)}"
        folder.mkdir(mode=PRIVATE_FOLDER)
        # Before it is locked another process may take it for one that is left.
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not folder.exists():
                continue
            yield folder
            return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


def _remove_unless_in_use(folder: Path) -> None:
    found = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(found)

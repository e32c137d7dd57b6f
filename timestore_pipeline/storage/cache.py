"""Copies of immutable objects on the local disk, bounded in bytes, shared by the processes of a host.

There is no index and no lock: a copy is whole once it has its name, the least recently used ones go first, and a copy
that is unlinked while DuckDB has it open stays readable (POSIX), so a reader never loses what it holds.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from timestore_pipeline.durable_files import PRIVATE_FOLDER, TEMPORARY_SUFFIX, sync_private

IN_USE_SECONDS = 60
"""A copy is not evicted for this long after it was asked for: its reader may be about to open it."""

ABANDONED_SECONDS = 86_400
"""Scratch that nobody has written to for this long is of a process that died."""

# Measuring the whole cache costs a look at each file, so it is done once per this part of the bound.
_MEASURED_EVERY = 10


class Cache:
    """The part of a cache that belongs to one place; all parts under ``folder`` share the bound.

    Args:
        folder: the cache; made when it is needed.
        part: name of the place's own folder in it.
        limit_bytes: what all copies together may take. Copies in use, and what is open though unlinked, go beyond it.
    """

    def __init__(self, folder: Path, part: str, limit_bytes: int) -> None:
        self.folder = folder
        self.root = folder / part
        self.limit_bytes = limit_bytes
        self._unmeasured: int | None = None

    def path(self, key: str) -> Path:
        """Where a copy of ``key`` lies, if there is one."""
        return self.root / key

    def find(self, key: str) -> Path | None:
        """Return the copy of ``key`` and mark it as used now; None where there is none."""
        path = self.path(key)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def room(self, key: str) -> Path:
        """Return a name of its own beside that of the copy, to write to; its folder is there."""
        path = self.path(key)
        path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        return path.with_name(f"{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")

    def take_in(self, scratch: Path, key: str) -> Path:
        """Keep a complete file as the copy of ``key``; return its path.

        Synced, because a power cut after the rename would else leave a copy without its content.
        """
        path = self.path(key)
        sync_private(scratch)
        size = scratch.stat().st_size
        scratch.rename(path)
        self._unmeasured = None if self._unmeasured is None else self._unmeasured + size
        if self._unmeasured is None or self._unmeasured * _MEASURED_EVERY > self.limit_bytes:
            self.trim()
        return path

    def forget(self, *keys: str) -> None:
        """Remove copies."""
        for key in keys:
            self.path(key).unlink(missing_ok=True)

    def trim(self) -> int:
        """Remove the least recently used copies beyond the bound, and scratch of dead processes; return bytes freed."""
        now = time.time()
        copies, freed = [], 0
        for entry in _files(self.folder):
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if not entry.name.endswith(TEMPORARY_SUFFIX):
                    copies.append((found.st_mtime, found.st_size, entry.path))
                elif found.st_mtime < now - ABANDONED_SECONDS:
                    Path(entry.path).unlink()
                    freed += found.st_size
        # Some of the room until the next look is given in advance.
        allowed = self.limit_bytes - self.limit_bytes // _MEASURED_EVERY
        beyond = sum(size for _, size, _ in copies) - allowed
        for used_at, size, path in sorted(copies):
            if beyond <= 0 or used_at > now - IN_USE_SECONDS:
                break
            Path(path).unlink(missing_ok=True)
            beyond -= size
            freed += size
        self._unmeasured = 0
        return freed


def _files(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(entry.path)
                else:
                    yield entry
    except FileNotFoundError:
        return  # another process tidies up too

"""A directory of this host, or one that is mounted on several: exactly what the file system does, and nothing more."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from timestore_pipeline.durable_files import (
    TEMPORARY_SUFFIX,
    fsync_path,
    make_folder,
    move_file,
    put_in_place,
    sync_private,
)
from timestore_pipeline.storage.contract import Entry, Storage, Traits

_TRAITS = Traits(deleted_at_once=1, believed_seconds=0.0, unswept_seconds=0.0)


class LocalStorage(Storage):
    """Files under a directory, which need not be there yet."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def location(self) -> str:
        """The directory's path."""
        return str(self.root)

    @property
    def root(self) -> Path:
        """The directory."""
        return self._directory

    @property
    def local(self) -> Path:
        """The directory."""
        return self._directory

    @property
    def traits(self) -> Traits:
        """A look at a file costs microseconds."""
        return _TRAITS

    @property
    def options(self) -> Mapping[str, str]:
        """None are needed."""
        return {}

    def shown(self, key: str) -> str:
        """Return the file's path."""
        return str(self.root / key)

    def scratch(self, key: str) -> Path:
        """Return the temporary name beside it; old ones are orphans."""
        final = self.root / key
        make_folder(final.parent)
        return final.with_name(final.name + TEMPORARY_SUFFIX)

    def put(self, scratch: Path, key: str, *, keep: bool = True) -> None:
        """Sync it, give it its name unless another file has it, sync its folder."""
        put_in_place(scratch, self.root / key)

    def fetch(self, key: str) -> Path:
        """Return the file itself."""
        return self.root / key

    def read(self, key: str, start: int, length: int) -> bytes:
        """Read from the file."""
        with (self.root / key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def content(self, key: str) -> bytes:
        """Read the file."""
        return (self.root / key).read_bytes()

    def create(self, key: str, content: bytes) -> None:
        """Write it under another name and sync it, then give it its own, unless there is one; sync the folder."""
        path = self.root / key
        make_folder(path.parent)
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
        try:
            temporary.write_bytes(content)
            sync_private(temporary)
            path.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(path.parent)

    def forget(self, key: str) -> bool:
        """Do nothing: there is no copy."""
        return False

    def size(self, key: str) -> int | None:
        """Return the file's size."""
        try:
            return (self.root / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self) -> Callable[[str], int | None]:
        """Look at each file."""
        return self.size

    def entry(self, key: str) -> Entry | None:
        """Look at the file."""
        return next(self._entries_at(self.root / key), None)

    def stamp(self, key: str) -> tuple[int, ...] | None:
        """Return what tells its inode from another one."""
        try:
            found = (self.root / key).stat()
        except OSError:
            return None  # whoever reads it says why
        return found.st_dev, found.st_ino, found.st_mtime_ns

    def names(self, folder: str = "") -> list[str]:
        """List the folder."""
        try:
            return sorted(path.name for path in (self.root / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Walk through the folder; a link is no file."""
        folder = prefix.strip("/")
        try:
            with os.scandir(self.root / folder) as listed:
                found = sorted(listed, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in found:
            key = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self.entries(key)
            elif entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # removed meanwhile
                    status = entry.stat(follow_symlinks=False)
                    yield Entry(key, status.st_size, status.st_mtime_ns // 1_000)

    def delete(self, *keys: str) -> None:
        """Unlink them."""
        for key in keys:
            (self.root / key).unlink(missing_ok=True)

    def leftovers(self, pattern: str) -> Iterator[Entry]:
        """Look for names that match, in the order of these."""
        for path in sorted(self.root.glob(pattern)):
            yield from self._entries_at(path)

    def remove_folder(self, key: str) -> None:
        """Remove it as far as that can be done."""
        shutil.rmtree(self.root / key, ignore_errors=True)

    def prune(self, folder: str = "") -> None:
        """Remove empty folders, the inner ones first."""
        top = self.root / folder
        for path in (*sorted(top.rglob("*"), reverse=True), top):
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # something is in it
                    path.rmdir()

    def has_folder(self, folder: str = "") -> bool:
        """Look for it."""
        return (self.root / folder).is_dir()

    def make_root(self) -> None:
        """Make it with its parents."""
        make_folder(self.root)

    def holds(self, path: Path) -> bool:
        """Compare the paths."""
        return path.is_relative_to(self.root)

    def adopt(self, source: Path, key: str) -> None:
        """Rename it, or copy it from another file system; sync the folder."""
        target = self.root / key
        make_folder(target.parent)
        move_file(source, target)
        fsync_path(target.parent)

    def link(self, key: str, target: str) -> None:
        """Give it a second name."""
        old, new = self.root / key, self.root / target
        make_folder(new.parent)
        temporary = new.with_name(f"{new.name}.linked{TEMPORARY_SUFFIX}")
        temporary.unlink(missing_ok=True)
        temporary.hardlink_to(old)
        temporary.rename(new)
        fsync_path(new)
        fsync_path(new.parent)

    def rename(self, key: str, target: str) -> None:
        """Rename it."""
        new = self.root / target
        make_folder(new.parent)
        try:
            (self.root / key).rename(new)
        except FileNotFoundError:
            if not new.is_file():
                raise

    def sync(self, folder: str = "", *patterns: str) -> list[str]:
        """Sync them, and close them to others; an operator may have opened the folder of the place itself."""
        top = self.root / folder
        found = [path for pattern in patterns for path in sorted(top.glob(pattern))]
        for path in found:
            sync_private(path)
        if folder:
            sync_private(top)
        else:
            fsync_path(top)
        return [path.name for path in found]

    def _entries_at(self, path: Path) -> Iterator[Entry]:
        with suppress(FileNotFoundError, NotADirectoryError):
            found = path.stat()
            size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
            yield Entry(path.relative_to(self.root).as_posix(), size, found.st_mtime_ns // 1_000)

"""A directory of this host, or one that is mounted on several: exactly what the file system does, and nothing more."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
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
from timestore_pipeline.storage.contract import Entry


class LocalStorage:
    """Files under a directory, which need not be there yet; implements :class:`~timestore_pipeline.storage.Storage`."""

    def __init__(self, directory: Path) -> None:
        self.root = directory

    @property
    def location(self) -> str:
        """The directory's path."""
        return str(self.root)

    @property
    def local(self) -> Path:
        """The directory."""
        return self.root

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

    def require(self) -> None:
        """Do nothing: nobody said whose it is to be."""

    def forget(self, key: str) -> None:
        """Do nothing: there is no copy."""

    def size(self, key: str) -> int | None:
        """Return the file's size."""
        try:
            return (self.root / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

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

    def move(self, key: str, target: str) -> None:
        """Rename it, and sync both folders."""
        old, new = self.root / key, self.root / target
        make_folder(new.parent)
        try:
            old.rename(new)
        except FileNotFoundError:
            if not new.is_file():
                raise
        fsync_path(new.parent)
        if old.parent != new.parent and old.parent.is_dir():
            fsync_path(old.parent)

"""Landing files that lie in a folder, and are read where they are."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from blake3 import blake3

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.durable_files import (
    TEMPORARY_SUFFIX,
    fsync_path,
    held_alone,
    make_folder,
    put_in_place,
    side_by_side,
)
from timestore_pipeline.errors import PlaceError
from timestore_pipeline.inert import log_named
from timestore_pipeline.landing.found import LandingFile, bytes_on_disk
from timestore_pipeline.ledger.landing import SettledFile
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.identity import file_batch_id
from timestore_pipeline.settings import AfterIngest
from timestore_pipeline.staging.arrivals import (
    HASHED_BYTES,
    Stamp,
    archive_day,
    hash_of,
    remember,
    too_large_in_words,
    unique_name,
)
from timestore_pipeline.staging.deadline import Deadline
from timestore_pipeline.staging.scratch_folder import means_itself, plain_name, scratch_folder
from timestore_pipeline.storage import Storage
from timestore_pipeline.store import Store

log = log_named(__name__)

# Hashing and reading overlap; both release the interpreter's lock.
_HASHING_THREADS = 2

_LINKS_FOLDER = "_names"


class _Changed(Exception):
    """A file is not what was taken in any more."""


@dataclass
class _Clearing:
    """What becomes of staged files, into which folder of the archive, and which of them stay where they are."""

    action: AfterIngest
    day: str
    archived: bool = False
    staying: list[Path] = field(default_factory=list)


class FolderArrivals:
    """Files that lie in a folder and are read where they are.

    Args:
        store: the installation.
        spec: their dataset.
        through_links: whether a link is read; only for one that a caller has named.
    """

    def __init__(self, store: Store, spec: DatasetSpec, *, through_links: bool = False) -> None:
        self._store = store
        self._spec = spec
        self._through_links = through_links
        self._seen: dict[Path, Stamp] = {}
        self._own_paths: dict[Path, Path] = {}
        self._open = ExitStack()
        self._links: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def known_as(self, path: Path) -> Path:
        """Return as what a file is known here: its own path, or that of a link where DuckDB would misunderstand it."""
        root = self._store.staging.root
        if means_itself(path.name) and (means_itself(str(path)) or not means_itself(str(root))):
            return path
        if self._links is None:
            self._links = self._open.enter_context(scratch_folder(root / _LINKS_FOLDER))
        link = self._links / f"{len(self._own_paths)}-{plain_name(path.name)}"
        link.symlink_to(path)
        self._own_paths[link] = path
        self._seen[link] = self._seen[path]
        return link

    def look(self, path: Path, deadline: Deadline) -> tuple[int, str]:
        """Return the size and the hash of a file, and remember what was seen.

        Raises:
            OSError: it cannot be read, or is larger than a file may be.
            ReadingTooLong: its hash has taken too long.
        """
        limit = self._store.settings.landing_max_file_bytes
        # Neither a link nor a pipe that was put in the file's place since it was found is read, or waited for.
        flags = os.O_NONBLOCK if self._through_links else os.O_NONBLOCK | os.O_NOFOLLOW
        with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as stream:
            status = os.fstat(stream.fileno())  # first, so that a write in between is noticed
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file", str(path))
            if max(status.st_size, bytes_on_disk(status)) > limit:
                raise OSError(errno.EFBIG, too_large_in_words(status.st_size, bytes_on_disk(status), limit), str(path))
            self._seen[path] = Stamp.of_status(status)
            return status.st_size, hash_of(stream, status.st_size, deadline)

    def take_in(self, files: Sequence[LandingFile], deadline: Deadline) -> tuple[dict[Path, IncomingBatch], list[str]]:
        """Hash the files."""
        batches: dict[Path, IncomingBatch] = {}
        skipped = []
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            read = [pool.submit(self.look, file.path, deadline) for file in files]
        for file, result in zip(files, read, strict=True):
            try:
                _, fingerprint = result.result()
            except FileNotFoundError:
                continue  # another ingest took it
            except OSError as error:
                skipped.append(f"{file.path.name} cannot be read: {error.strerror or error}")
                continue
            path = self.known_as(file.path)
            batches[path] = IncomingBatch(file_batch_id(fingerprint), fingerprint, file.path.name, file.bytes)
        return batches, skipped

    def is_unchanged(self, path: Path) -> bool:
        """Whether its stamp is the same."""
        try:
            return Stamp.of(self._own(path), through_links=self._through_links) == self._seen[path]
        except FileNotFoundError:
            return False

    def clear_away(self, batches: Mapping[Path, IncomingBatch]) -> None:
        """Rename, copy, unlink or remember them."""
        clearing = _Clearing(self._store.settings.landing_after_ingest, f"{self._spec.name}/{archive_day()}")
        with side_by_side() as begin:
            for known_as, batch in batches.items():
                path = self._own(known_as)
                self._attempt(clearing, path, partial(self._clear, clearing, path, batch, begin))
        if clearing.archived:
            folder = self._store.archive.root / clearing.day
            try:
                fsync_path(folder)
            except OSError as error:
                # Their batches are acknowledged: files that a power cut puts back are passed over, and cleared again.
                log.warning("%s: %s may forget its files in a power cut: %s", self._spec.name, folder, error.strerror)
        reach(CrashPoint.LANDING_CLEARED)
        self._remember(clearing.staying)

    def _attempt(self, clearing: _Clearing, path: Path, act: Callable[[], object]) -> None:
        try:
            act()
        except (FileNotFoundError, BlockingIOError):
            return  # another ingest cleared it away, or does so just now
        except _Changed:
            log.warning("%s: %s has changed since it was staged; it is taken again", self._spec.name, path)
        except PlaceError as error:
            # Not remembered: it is looked at again, and cleared away when the archive is back.
            log.warning("%s: %s is staged but could not be cleared away: %s", self._spec.name, path, error)
        except OSError as error:
            clearing.staying.append(path)
            log.warning(
                "%s: %s is staged but could not be cleared away: %s", self._spec.name, path, error.strerror or error
            )

    def _clear(
        self, clearing: _Clearing, path: Path, batch: IncomingBatch, begin: Callable[[Callable[[], object]], None]
    ) -> None:
        archive = self._store.archive
        if clearing.action is AfterIngest.KEEP:
            clearing.staying.append(path)
            return
        if Stamp.of(path) != self._seen[path]:
            raise _Changed
        if clearing.action is AfterIngest.DELETE:
            path.unlink(missing_ok=True)
        elif archive.local is None:
            self._adopt(path, archive, f"{clearing.day}/{unique_name(batch.fingerprint, path.name)}", batch.fingerprint)
        else:
            folder = archive.local / clearing.day
            if not clearing.archived:
                archive.require()
                make_folder(folder)
            target = folder / path.name
            if target.exists():
                target = folder / unique_name(batch.fingerprint, path.name)
            clearing.archived = True
            if not self._is_renamed(path, target):
                # Each waits for the disk.
                begin(partial(self._attempt, clearing, path, partial(self._keep_copy, path, target, batch.fingerprint)))
        reach(CrashPoint.LANDING_FILE_CLEARED)

    def set_aside(self, path: Path, batch: IncomingBatch, relative: str) -> None:
        """Rename it, unless it is another file by now, which is looked at the next time."""
        path = self._own(path)
        try:
            self._adopt(path, self._store.staging, relative, batch.fingerprint)
            reach(CrashPoint.BAD_FILE_MOVED)
        except (_Changed, BlockingIOError):
            return  # another ingest has it just now, or it is another file
        except OSError as error:
            self._remember([path])
            log.warning(
                "%s: %s is in quarantine but stays where it is: %s", self._spec.name, path, error.strerror or error
            )

    def _own(self, known_as: Path) -> Path:
        return self._own_paths.get(known_as, known_as)

    def _adopt(self, path: Path, storage: Storage, key: str, fingerprint: str) -> None:
        """Move a file into a storage, as :meth:`_take_over` does."""
        if storage.local is not None:
            target = storage.local / key
            make_folder(target.parent)
            self._take_over(path, target, fingerprint)
            fsync_path(target.parent)
            return
        scratch = self._store.settings.temp_path / f"{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        make_folder(scratch.parent)
        try:
            self._copy(path, scratch, fingerprint)
            storage.adopt(scratch, key)
        finally:
            scratch.unlink(missing_ok=True)
        self._unlink_if_unchanged(path)

    def _take_over(self, path: Path, target: Path, fingerprint: str) -> None:
        """Move a file so that what is there afterwards is what was taken in, whoever has it open still.

        A file that nobody else can reach any more is renamed. Of another one a copy is kept that has the same hash.

        Raises:
            _Changed: it is not what was taken in any more; it stays where it is.
        """
        if not self._is_renamed(path, target):
            self._keep_copy(path, target, fingerprint)

    def _is_renamed(self, path: Path, target: Path) -> bool:
        with held_alone(path) as alone:
            if Stamp.of(path) != self._seen[path]:
                raise _Changed
            if not alone():
                return False
            try:
                path.rename(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                return False
            if alone():
                return True
            # Somebody opened it just now.
            with suppress(FileExistsError):
                path.hardlink_to(target)
            target.unlink()
            return False

    def _keep_copy(self, path: Path, target: Path, fingerprint: str) -> None:
        temporary = target.with_name(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
        try:
            self._copy(path, temporary, fingerprint)
            put_in_place(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        self._unlink_if_unchanged(path)

    def _copy(self, path: Path, target: Path, fingerprint: str) -> None:
        digest = blake3()
        # What was put in its place is not followed, or waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as source, target.open("xb") as copy:
            left = self._seen[path].bytes
            while block := source.read(min(HASHED_BYTES, left)):
                digest.update(block)
                copy.write(block)
                left -= len(block)
        if left or digest.hexdigest() != fingerprint:
            raise _Changed

    def _unlink_if_unchanged(self, path: Path) -> None:
        """Remove a file of which a copy is kept; what was written to it since is a file of its own."""
        now, seen = Stamp.of(path), self._seen[path]
        if (now.bytes, now.modified_at) == (seen.bytes, seen.modified_at):
            path.unlink()

    def set_unread_aside(self, file: LandingFile, relative: str) -> None:
        """Rename it, if it can be: to copy it is what it is not to be."""
        try:
            seen = self._seen[file.path] = Stamp.of(file.path)
            if (seen.bytes, seen.modified_at / 1e9) != (file.bytes, file.modified_at):
                return
            target = self._store.staging.local
            if target is None:
                raise OSError(errno.EXDEV, "the quarantine is in an object store")
            make_folder((target / relative).parent)
            file.path.rename(target / relative)
            fsync_path((target / relative).parent)
            reach(CrashPoint.BAD_FILE_MOVED)
        except FileNotFoundError:
            return
        except OSError as error:
            self._remember([file.path])
            log.warning(
                "%s: %s is in quarantine but stays where it is: %s", self._spec.name, file.path, error.strerror or error
            )

    def _remember(self, paths: Collection[Path]) -> None:
        seen = [(path.name, self._seen[path]) for path in paths]
        remember(self._store, [SettledFile(self._spec.name, name, each.bytes, each.modified_at) for name, each in seen])

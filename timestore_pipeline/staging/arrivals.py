"""The landing files of one ingest: what they are, whether they are still the same, and where they go afterwards.

Here of folders; :mod:`timestore_pipeline.staging.fetched` has those of an object store. A file leaves the landing
folder only after the ledger has its batch, or knows that it is bad.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from blake3 import blake3

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.durable_files import fsync_path, make_folder, move_file
from timestore_pipeline.landing.files import LandingFile
from timestore_pipeline.ledger.settled_files import SettledFile, remember_settled
from timestore_pipeline.settings import AfterIngest
from timestore_pipeline.staging.description import IncomingBatch
from timestore_pipeline.staging.identity import file_batch_id
from timestore_pipeline.store import Store

log = logging.getLogger(__name__)

# Hashing and reading overlap; both release the interpreter's lock.
_HASHING_THREADS = 2
_HASHED_BYTES = 1 << 20

# What file systems allow.
MAX_NAME_BYTES = 255


class Arrivals(Protocol):
    """Landing files of one dataset, as local files under which name they are known here."""

    def take_in(self, files: Sequence[LandingFile]) -> tuple[dict[Path, IncomingBatch], list[str]]:
        """Return the batches that the files are, and a sentence for each file that cannot be had.

        A file that another ingest has taken is left out.
        """
        ...

    def is_unchanged(self, path: Path) -> bool:
        """Whether what lies at ``path`` is still what was taken in."""
        ...

    def clear_away(self, batches: Mapping[Path, IncomingBatch]) -> None:
        """Archive, delete or keep the files of acknowledged batches, as the settings say.

        A file that stays, by setting or because it cannot be moved, is remembered, so that it is not taken again.
        """
        ...

    def set_aside(self, path: Path, relative: str) -> None:
        """Move a bad file, which the ledger knows as such, to ``relative`` in the staging directory."""
        ...


@dataclass(frozen=True)
class Stamp:
    """What changes when a file is written to, or another is put in its place for a while."""

    inode: int
    bytes: int
    modified_at: int
    changed_at: int

    @classmethod
    def of(cls, path: Path, *, through_links: bool = False) -> Stamp:
        """Return that of the file that is there now."""
        return cls.of_status(path.stat(follow_symlinks=through_links))

    @classmethod
    def of_status(cls, status: os.stat_result) -> Stamp:
        """Return that of a status."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


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

    def look(self, path: Path) -> tuple[int, str]:
        """Return the size and the hash of a file, and remember what was seen; OSError where it cannot be read."""
        # Neither a link nor a pipe that was put in the file's place since it was found is read, or waited for.
        flags = os.O_NONBLOCK if self._through_links else os.O_NONBLOCK | os.O_NOFOLLOW
        with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as stream:
            status = os.fstat(stream.fileno())  # first, so that a write in between is noticed
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file", str(path))
            self._seen[path] = Stamp.of_status(status)
            return status.st_size, _hash(stream)

    def take_in(self, files: Sequence[LandingFile]) -> tuple[dict[Path, IncomingBatch], list[str]]:
        """Hash the files."""
        batches: dict[Path, IncomingBatch] = {}
        skipped = []
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            read = [pool.submit(self.look, file.path) for file in files]
        for file, result in zip(files, read, strict=True):
            try:
                _, fingerprint = result.result()
            except FileNotFoundError:
                continue  # another ingest took it
            except OSError as error:
                skipped.append(f"{file.path.name} cannot be read: {error.strerror or error}")
                continue
            batches[file.path] = IncomingBatch(file_batch_id(fingerprint), fingerprint, file.path.name, file.bytes)
        return batches, skipped

    def is_unchanged(self, path: Path) -> bool:
        """Whether its stamp is the same."""
        try:
            return Stamp.of(path, through_links=self._through_links) == self._seen[path]
        except FileNotFoundError:
            return False

    def clear_away(self, batches: Mapping[Path, IncomingBatch]) -> None:
        """Rename, unlink or remember them."""
        action = self._store.settings.landing_after_ingest
        archive = self._store.archive
        day = f"{self._spec.name}/{archive_day()}"
        folder = archive.root / day
        staying: list[Path] = []
        archived = False
        for path, batch in batches.items():
            try:
                if action is AfterIngest.KEEP:
                    staying.append(path)
                elif Stamp.of(path) != self._seen[path]:
                    log.warning("%s: %s has changed since it was staged; it is taken again", self._spec.name, path)
                elif action is AfterIngest.DELETE:
                    path.unlink(missing_ok=True)
                    reach(CrashPoint.LANDING_FILE_CLEARED)
                elif archive.local is None:
                    archive.adopt(path, f"{day}/{unique_name(batch.fingerprint, path.name)}")
                    reach(CrashPoint.LANDING_FILE_CLEARED)
                else:
                    if not archived:
                        make_folder(folder)
                    target = folder / path.name
                    if target.exists():
                        target = folder / unique_name(batch.fingerprint, path.name)
                    move_file(path, target)
                    reach(CrashPoint.LANDING_FILE_CLEARED)
                    archived = True
            except FileNotFoundError:
                continue  # another ingest cleared it away
            except OSError as error:
                staying.append(path)
                log.warning(
                    "%s: %s is staged but could not be cleared away: %s",
                    self._spec.name,
                    path,
                    error.strerror or error,
                )
        if archived:
            fsync_path(folder)
        reach(CrashPoint.LANDING_CLEARED)
        self._remember(staying)

    def set_aside(self, path: Path, relative: str) -> None:
        """Rename it, unless it is another file by now, which is looked at the next time."""
        try:
            if Stamp.of(path) != self._seen[path]:
                return
            self._store.staging.adopt(path, relative)
            reach(CrashPoint.BAD_FILE_MOVED)
        except OSError as error:
            self._remember([path])
            log.warning(
                "%s: %s is in quarantine but stays where it is: %s", self._spec.name, path, error.strerror or error
            )

    def _remember(self, paths: Collection[Path]) -> None:
        seen = [(path.name, self._seen[path]) for path in paths]
        remember(self._store, [SettledFile(self._spec.name, name, each.bytes, each.modified_at) for name, each in seen])


@contextmanager
def arrivals_of(store: Store, spec: DatasetSpec) -> Iterator[Arrivals]:
    """Give the landing files of a dataset, wherever they lie."""
    if isinstance(store.settings.landing_location, Path):
        yield FolderArrivals(store, spec)
        return
    from timestore_pipeline.staging.fetched import fetched_arrivals  # brings obstore

    with fetched_arrivals(store, spec) as fetched:
        yield fetched


def remember(store: Store, files: Collection[SettledFile]) -> None:
    """Record files that stay although they are dealt with."""
    if files:
        store.ledger.transact(lambda tx: remember_settled(tx, files))
        reach(CrashPoint.LANDING_REMEMBERED)


def archive_day() -> str:
    """Return the folder of today in the archive."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def file_fingerprint(path: Path) -> str:
    """Return the BLAKE3 hash of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return _hash(stream)


def _hash(stream: BinaryIO) -> str:
    digest = blake3()
    while block := stream.read(_HASHED_BYTES):
        digest.update(block)
    return digest.hexdigest()


def unique_name(fingerprint: str, name: str) -> str:
    """Return a file name of the batch's own; of a very long name the beginning gives way."""
    prefix = f"{fingerprint[:16]}-"
    return prefix + os.fsencode(name)[-(MAX_NAME_BYTES - len(prefix)) :].decode(errors="ignore")

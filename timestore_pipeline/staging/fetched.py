"""The landing files of one ingest that lie in an object store: fetched to local scratch, read there, then cleared away.

What is staged is the version that was fetched, and only that version is removed: an object that was written again
meanwhile stays and is the next look's. Nothing here is one step. An object is copied to the archive and then deleted,
and one that a crash leaves in between is a duplicate the next time, as every file that was not cleared away.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.durable_files import PRIVATE_FOLDER
from timestore_pipeline.errors import PlaceError, StorageUnavailable
from timestore_pipeline.inert import log_named
from timestore_pipeline.landing.bucket import settled_object, version_of
from timestore_pipeline.landing.found import LandingFile
from timestore_pipeline.model.locations import ObjectUrl
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.identity import file_batch_id
from timestore_pipeline.settings import AfterIngest
from timestore_pipeline.staging.arrivals import (
    archive_day,
    file_fingerprint,
    remember,
    unique_name,
)
from timestore_pipeline.staging.deadline import Deadline
from timestore_pipeline.staging.scratch_folder import plain_name, scratch_folder
from timestore_pipeline.storage.objects import ObjectStorage
from timestore_pipeline.store import Store

log = log_named(__name__)

A = TypeVar("A")
B = TypeVar("B")

# Requests wait for the network, not for a processor.
_REQUESTS_AT_ONCE = 16
# So many are copied, looked at again and deleted at a time: a request deletes a thousand at most.
_CLEARED_TOGETHER = 500
# What S3 copies in one request.
_MOST_COPIED_BYTES = 5 << 30


class FetchedArrivals:
    """Landing files that are objects; ``scratch`` is a folder of this ingest's own."""

    def __init__(self, store: Store, spec: DatasetSpec, landing: ObjectStorage, scratch: Path) -> None:
        self._store = store
        self._spec = spec
        self._landing = landing
        self._scratch = scratch
        self._files: dict[Path, LandingFile] = {}
        self._numbers = count()

    def take_in(self, files: Sequence[LandingFile], deadline: Deadline) -> tuple[dict[Path, IncomingBatch], list[str]]:
        """Fetch the objects and hash them."""
        skipped: list[str] = []
        chosen = self._that_fit(files, skipped)
        given_up = threading.Event()

        def fetch(numbered: tuple[int, LandingFile]) -> tuple[Path, LandingFile, str] | OSError | None:
            number, file = numbered
            if given_up.is_set():
                return None
            path = self._scratch / str(number) / plain_name(file.path.name)
            deadline.check()
            try:
                path.parent.mkdir(mode=PRIVATE_FOLDER)
                entry = self._landing.download(file.path.as_posix(), path)
                # Written again since it was listed, it is another one: whole too, and as good.
                brought = LandingFile(file.dataset, file.path, entry.bytes, entry.modified_at / 1e6, version_of(entry))
                return path, brought, file_fingerprint(path)
            except StorageUnavailable as error:
                given_up.set()  # or each of thousands would wait for as long
                return error
            except OSError as error:
                return error

        batches: dict[Path, IncomingBatch] = {}
        folders: list[LandingFile] = []
        for file, result in zip(chosen, _at_once(fetch, zip(self._numbers, chosen, strict=False)), strict=True):
            if isinstance(result, FileNotFoundError):
                # Another ingest took it; unless it is the sign of a folder, whose key ends in a '/' that no listing
                # shows, and which would be found by each look.
                folders += [file] if file.bytes == 0 else []
            elif isinstance(result, OSError):
                skipped.append(f"{file.path.name} cannot be fetched: {result.strerror or result}")
            elif result is not None:
                path, brought, fingerprint = result
                self._files[path] = brought
                batches[path] = IncomingBatch(file_batch_id(fingerprint), fingerprint, brought.path.name, brought.bytes)
        if given_up.is_set():
            waiting = len(chosen) - len(batches)
            skipped.append(f"{waiting:,} files wait, because {self._landing.location} does not answer")
        remember(self._store, [settled_object(file) for file in folders])
        return batches, skipped

    def is_unchanged(self, path: Path) -> bool:
        """Yes: what was fetched is this ingest's own."""
        return True

    def clear_away(self, batches: Mapping[Path, IncomingBatch]) -> None:
        """Copy and delete, delete, or remember them."""
        action = self._store.settings.landing_after_ingest
        paths = list(batches)
        if action is AfterIngest.KEEP:
            self._remember(paths)
        else:
            for start in range(0, len(paths), _CLEARED_TOGETHER):
                chunk = {path: batches[path] for path in paths[start : start + _CLEARED_TOGETHER]}
                self._clear_chunk(chunk, archive=action is AfterIngest.ARCHIVE)
        reach(CrashPoint.LANDING_CLEARED)

    def set_aside(self, path: Path, batch: IncomingBatch, relative: str) -> None:
        """Put the fetched copy where bad files are, and delete the object."""
        try:
            self._store.staging.adopt(path, relative)
            reach(CrashPoint.BAD_FILE_MOVED)
            if self._is_same(path):
                self._landing.delete(self._key(path))
        except OSError as error:
            self._stays(path, "is in quarantine but stays where it is", error)
            self._remember([path])

    def set_unread_aside(self, file: LandingFile, relative: str) -> None:
        """Remember it: to bring it here is what it is not to be."""
        log.warning(
            "%s: %s is in quarantine but stays where it is",
            self._spec.name,
            self._landing.shown(file.path.as_posix()),
        )
        remember(self._store, [settled_object(file)])

    def _that_fit(self, files: Iterable[LandingFile], skipped: list[str]) -> list[LandingFile]:
        """Return the files for which there is local disk, oldest first."""
        room = shutil.disk_usage(self._scratch).free - self._store.settings.staging_min_free_disk_bytes
        chosen = []
        for file in files:
            if file.bytes > room:
                skipped.append(
                    f"{file.path.name} waits: its {file.bytes:,} bytes do not fit on the disk of {self._scratch}, "
                    f"where {max(room, 0):,} may be taken; free some, or set TIMESTORE_WORK_DIRECTORY to another disk"
                )
                continue
            room -= file.bytes
            chosen.append(file)
        return chosen

    def _clear_chunk(self, batches: Mapping[Path, IncomingBatch], *, archive: bool) -> None:
        staying: list[Path] = []

        def prepare(path: Path) -> bool | OSError | None:
            try:
                if archive and not self._is_archived(path, batches[path]):
                    return None
                return self._is_same(path)
            except OSError as error:
                return error

        going = []
        for path, result in zip(batches, _at_once(prepare, batches), strict=True):
            if isinstance(result, OSError):
                # Without an archive it is looked at again, and cleared away when the archive is back.
                staying += [] if isinstance(result, PlaceError) else [path]
                self._stays(path, "is staged but could not be cleared away", result)
            elif result:
                going.append(path)
        if archive:
            reach(CrashPoint.LANDING_FILES_COPIED)
        try:
            self._landing.delete(*map(self._key, going))
        except OSError as error:
            staying += going
            for path in going:
                self._stays(path, "is staged but could not be cleared away", error)
        reach(CrashPoint.LANDING_FILE_CLEARED)
        self._remember(staying)

    def _is_archived(self, path: Path, batch: IncomingBatch) -> bool:
        """Copy an object to the archive; False where there is none any more, as another ingest cleared it away."""
        key = f"{self._spec.name}/{archive_day()}/{unique_name(batch.fingerprint, self._files[path].path.name)}"
        archive, here = self._store.settings.archive_location, self._landing.url
        if (
            isinstance(archive, ObjectUrl)
            and (archive.scheme, archive.bucket) == (here.scheme, here.bucket)
            and batch.source_bytes <= _MOST_COPIED_BYTES
        ):
            try:
                self._landing.copy_to(self._key(path), archive / key)
            except FileNotFoundError:
                return False
        else:
            with suppress(FileExistsError):
                self._store.archive.adopt(path, key)
        return True

    def _is_same(self, path: Path) -> bool:
        """Whether the object is still the version that was fetched; says so if it is another one."""
        now = self._landing.entry(self._key(path))
        if now is not None and version_of(now) != self._files[path].version:
            log.warning(
                "%s: %s was written again since it was fetched; it is taken again",
                self._spec.name,
                self._landing.shown(self._key(path)),
            )
            return False
        return now is not None

    def _stays(self, path: Path, what: str, error: OSError) -> None:
        shown = self._landing.shown(self._key(path))
        log.warning("%s: %s %s: %s", self._spec.name, shown, what, error.strerror or error)

    def _key(self, path: Path) -> str:
        return self._files[path].path.as_posix()

    def _remember(self, paths: Iterable[Path]) -> None:
        remember(self._store, [settled_object(self._files[path]) for path in paths])


@contextmanager
def fetched_arrivals(store: Store, spec: DatasetSpec) -> Iterator[FetchedArrivals]:
    """Give the landing files of a dataset, and a scratch folder for them that is gone afterwards."""
    landing = store.landing
    assert isinstance(landing, ObjectStorage)
    with scratch_folder(store.settings.landing_path) as scratch:
        yield FetchedArrivals(store, spec, landing, scratch)


def _at_once(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        return list(pool.map(work, items))

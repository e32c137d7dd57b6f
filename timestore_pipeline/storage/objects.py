"""A prefix of an object store. Objects are put whole, created once and never changed; reads go through the cache.

A successful put is durable, so nothing is synced that anything rests on (invariant 6).
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, InvalidPathError, PreconditionError

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import ObjectMissing, StorageRefused, StorageUnavailable, UnlistableKey
from timestore_pipeline.model.locations import ObjectUrl
from timestore_pipeline.storage.cache import Cache
from timestore_pipeline.storage.contract import Entry, Storage, Traits
from timestore_pipeline.storage.retries import client_of, insistently, reason_of, times_of_requests

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

T = TypeVar("T")

# Up to here an object goes out in one conditional request, which holds it in memory; larger ones in parts.
_WHOLE_BYTES = 64 << 20
_PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4
_LISTED_AT_ONCE = 1_000
_MOST_DELETED_AT_ONCE = 1_000
_FETCHED_AT_ONCE = 8

# A bucket is not unmounted between two requests.
TRAITS = Traits(deleted_at_once=500, believed_seconds=10.0, unswept_seconds=600.0)


class ObjectStorage(Storage):
    """Objects under a prefix.

    Credentials, endpoint and the like come from the environment (``AWS_*``, ``GOOGLE_*``, ``AZURE_*``).

    Args:
        url: the place.
        cache: keeps copies of what was read, and holds what is being written.
        timeout_seconds: how long one request may take, its body included.
        patience_seconds: for how long a request that fails for the moment is made again.

    Raises:
        StorageRefused: the environment does not say enough to reach the store.
    """

    def __init__(self, url: ObjectUrl, cache: Cache, *, timeout_seconds: float, patience_seconds: float) -> None:
        self.url = url
        self.cache = cache
        self._patience = patience_seconds
        self._timeout = timeout_seconds
        self._store = client_of(url, timeout_seconds)

    @property
    def location(self) -> str:
        """The URL."""
        return str(self.url)

    @property
    def local(self) -> None:
        """None: it is not of this host."""
        return

    @property
    def traits(self) -> Traits:
        """Each question is a request, and one may be about many."""
        return TRAITS

    @property
    def root(self) -> Path:
        """The folder of this place's copies."""
        return self.cache.root

    @property
    def options(self) -> Mapping[str, str]:
        """The same times as here."""
        patience = f"{max(1, round(self._patience))}s"
        return {**times_of_requests(self._timeout), "retry_timeout": patience, "max_retries": "1000"}

    def shown(self, key: str) -> str:
        """Return the object's URL."""
        return str(self.url / key)

    def scratch(self, key: str) -> Path:
        """Return a new name in the cache, beside that of the copy."""
        return self.cache.room(key)

    def put(self, scratch: Path, key: str, *, keep: bool = True) -> None:
        """Upload it with a create-only condition, then keep it as the copy.

        When the answer to a put is lost it is made again, and meets the object that the first one created; then the
        two are compared byte by byte.
        """
        reach(CrashPoint.FILE_SYNCED)
        try:
            self._upload(scratch, key)
        except AlreadyExistsError:
            if not self._holds(key, scratch):
                raise FileExistsError(errno.EEXIST, "there is another object of that name", self.shown(key)) from None
        reach(CrashPoint.FILE_RENAMED)
        if keep:
            with suppress(OSError):  # what counts is there; a copy saves the next reader the way
                self.cache.take_in(scratch, key)
        scratch.unlink(missing_ok=True)
        reach(CrashPoint.FILE_IN_PLACE)

    def fetch(self, key: str) -> Path:
        """Return the copy, which is made first if there is none."""
        found = self.cache.find(key)
        if found is not None:
            return found
        scratch = self.cache.room(key)
        try:
            self.download(key, scratch)
            return self.cache.take_in(scratch, key)
        finally:
            scratch.unlink(missing_ok=True)

    def download(self, key: str, target: Path) -> Entry:
        """Write the content of ``key`` to a local file, past the cache; return what it was.

        Raises:
            FileNotFoundError: there is no such key.
            StorageError: it cannot be read, or was replaced meanwhile.
            OSError: the local disk cannot take it.
        """
        with target.open("wb") as stream:
            chunks = self._chunks(key)
            entry = next(chunks)
            for chunk in chunks:
                stream.write(chunk)
        return entry

    def read(self, key: str, start: int, length: int) -> bytes:
        """Ask for a range of the object."""
        if not length:
            return b""
        ask = partial(obstore.get_range, self._store, key, start=start, length=length)
        try:
            return bytes(self._ask("GET", key, ask))
        except FileNotFoundError:
            raise ObjectMissing(self.shown(key)) from None

    def content(self, key: str) -> bytes:
        """Ask for the whole object."""
        chunks = self._chunks(key)
        next(chunks)
        return b"".join(chunks)

    def bring(self, keys: Collection[str]) -> None:
        """Fetch them side by side."""

        def bring(key: str) -> None:
            with suppress(OSError):
                self.fetch(key)

        with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
            for _ in pool.map(bring, keys):
                pass

    def create(self, key: str, content: bytes) -> None:
        """Put it with a create-only condition."""
        try:
            self._ask("PUT", key, lambda: obstore.put(self._store, key, content, mode="create"))
        except AlreadyExistsError:
            raise FileExistsError(errno.EEXIST, "there is such an object", self.shown(key)) from None

    def forget(self, key: str) -> bool:
        """Drop the copy."""
        self.cache.forget(key)
        return True

    def size(self, key: str) -> int | None:
        """Return the object's size."""
        found = self.entry(key)
        return None if found is None else found.bytes

    def sizes(self) -> Callable[[str], int | None]:
        """List all objects."""
        return {entry.key: entry.bytes for entry in self.entries()}.get

    def entry(self, key: str) -> Entry | None:
        """Return what an object is now; None where there is none."""
        try:
            return _entry(key, self._ask("HEAD", key, lambda: obstore.head(self._store, key)))
        except FileNotFoundError:
            # The answer to a HEAD has no body, so it does not tell a missing bucket from a missing object.
            try:
                return _entry(key, self._begin(key)[0])
            except FileNotFoundError:
                return None

    def entries(self, prefix: str = "", after: str | None = None) -> Iterator[Entry]:
        """List objects, in the order of their keys, from behind ``after`` on.

        After an error the listing goes on where it was.

        Raises:
            UnlistableKey: among the next thousand is a key that cannot be listed.
        """
        folder = prefix.strip("/")
        pages: Any = None
        last = after

        def next_page() -> Any:
            nonlocal pages
            if pages is None:
                pages = iter(obstore.list(self._store, folder or None, offset=last, chunk_size=_LISTED_AT_ONCE))
            try:
                return next(pages, None)
            except InvalidPathError as error:
                raise UnlistableKey(self.shown(prefix), reason_of(error)) from None
            except BaseError:
                pages = None
                raise

        while page := self._ask("LIST", f"{folder}/" if folder else "", next_page):
            for meta in page:
                last = meta["path"]
                yield _entry(meta["path"], meta)

    def names(self, folder: str = "") -> list[str]:
        """List what is directly in it, without going into folders.

        Raises:
            UnlistableKey: one of these keys cannot be listed.
        """
        found = self._listed(folder)
        keys = (*(meta["path"] for meta in found["objects"]), *found["common_prefixes"])
        return sorted(key.rstrip("/").rpartition("/")[2] for key in keys)

    def folder(self, prefix: str) -> list[Entry]:
        """List the objects whose keys have no further '/' behind ``prefix``, a folder, without going into others.

        Raises:
            UnlistableKey: one of these keys cannot be listed.
        """
        return [_entry(meta["path"], meta) for meta in self._listed(prefix)["objects"]]

    def _listed(self, prefix: str) -> Any:
        def ask() -> Any:
            try:
                return obstore.list_with_delimiter(self._store, prefix.strip("/") or None)
            except InvalidPathError as error:
                raise UnlistableKey(self.shown(prefix), reason_of(error)) from None

        return self._ask("LIST", prefix, ask)

    def copy_to(self, key: str, target: ObjectUrl) -> None:
        """Copy an object on the server to another place of its bucket.

        Raises:
            FileNotFoundError: there is no such object.
        """
        self._ask("COPY", key, lambda: obstore.copy(self._bucket, (self.url / key).prefix, target.prefix))

    def delete(self, *keys: str) -> None:
        """Delete objects, many at once, and their copies."""
        for start in range(0, len(keys), _MOST_DELETED_AT_ONCE):
            chunk = list(keys[start : start + _MOST_DELETED_AT_ONCE])
            try:
                self._ask("DELETE", chunk[0], lambda chunk=chunk: obstore.delete(self._store, chunk))
            except FileNotFoundError:
                # Stores without a request for many delete one by one, and stop at the first that is gone.
                for key in chunk:
                    with suppress(FileNotFoundError):
                        self._ask("DELETE", key, lambda key=key: obstore.delete(self._store, key))
            self.cache.forget(*chunk)

    def adopt(self, source: Path, key: str) -> None:
        """Upload a copy of it, then unlink it."""
        scratch = self.scratch(key)
        try:
            shutil.copyfile(source, scratch)
            self.put(scratch, key)
        finally:
            scratch.unlink(missing_ok=True)
        source.unlink()

    def link(self, key: str, target: str) -> None:
        """Copy the object on the server."""
        try:
            self._ask("COPY", key, lambda: obstore.copy(self._store, key, target))
        except FileNotFoundError:
            raise ObjectMissing(self.shown(key)) from None
        self.cache.forget(target)

    def rename(self, key: str, target: str) -> None:
        """Copy the object on the server, then delete it."""
        try:
            self.link(key, target)
        except ObjectMissing:
            if self.size(target) is None:
                raise
            return
        self.delete(key)

    @cached_property
    def _bucket(self) -> ObjectStore:
        return client_of(ObjectUrl(self.url.scheme, self.url.bucket), self._timeout)

    def _ask(self, verb: str, key: str, ask: Callable[[], T]) -> T:
        return insistently(f"{verb} {self.shown(key)}", ask, self._patience)

    def _upload(self, scratch: Path, key: str) -> None:
        if scratch.stat().st_size <= _WHOLE_BYTES:
            content = scratch.read_bytes()
            self._ask("PUT", key, lambda: obstore.put(self._store, key, content, mode="create"))
            return
        # Parts cannot be put under a condition here. Names are random and given once, so that what is there by now can
        # only be an earlier attempt at this.
        if self.size(key) is not None:
            raise AlreadyExistsError(key)
        self._ask(
            "PUT",
            key,
            lambda: obstore.put(
                self._store, key, scratch, use_multipart=True, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE
            ),
        )

    def _holds(self, key: str, scratch: Path) -> bool:
        """Whether the object has the content of a local file."""
        chunks = self._chunks(key)
        if next(chunks).bytes != scratch.stat().st_size:
            return False
        with scratch.open("rb") as stream:
            return all(stream.read(len(chunk)) == chunk for chunk in chunks)

    def _chunks(self, key: str) -> Any:
        """Give what an object is, then its content in pieces, all of one version of it."""
        try:
            meta, chunk = self._begin(key)
        except FileNotFoundError:
            raise ObjectMissing(self.shown(key)) from None
        yield _entry(key, meta)
        size, done, condition = meta["size"], 0, meta["e_tag"]
        while True:
            yield chunk
            done += len(chunk)
            if done >= size:
                break
            options: Any = {"range": (done, min(done + _PART_BYTES, size)), "if_match": condition}
            try:
                chunk = self._ask("GET", key, lambda options=options: _got(self._store, key, options)[1])
            except (PreconditionError, FileNotFoundError):
                raise StorageRefused(f"GET {self.shown(key)}", "it was replaced while it was read") from None
        if done != size:
            raise StorageUnavailable(f"GET {self.shown(key)}", f"{done} of {size} bytes came", 1, self._patience)

    def _begin(self, key: str) -> tuple[ObjectMeta, bytes]:
        """Return what an object is and its beginning."""

        def ask() -> tuple[ObjectMeta, bytes]:
            try:
                return _got(self._store, key, {"range": (0, _PART_BYTES)})
            except GenericError as error:
                if "416" not in reason_of(error):
                    raise
                return _got(self._store, key, {})  # an empty one has no range

        return self._ask("GET", key, ask)


def _got(store: ObjectStore, key: str, options: Any) -> tuple[ObjectMeta, bytes]:
    answer = obstore.get(store, key, options=options)
    return answer.meta, bytes(answer.bytes())


def _entry(key: str, meta: ObjectMeta) -> Entry:
    return Entry(key, meta["size"], int(meta["last_modified"].timestamp() * 1_000_000), meta["e_tag"])

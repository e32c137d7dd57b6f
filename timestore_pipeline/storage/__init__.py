"""Immutable files in a local directory or in an object store, through one interface.

Segments, tables and landing files are written to local scratch and put whole. What is read from an object store is
fetched into a bounded local cache first; locally it is the file itself, and nothing is paid for the choice.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from blake3 import blake3

from timestore_pipeline.errors import StorageRefused
from timestore_pipeline.model.locations import ObjectUrl
from timestore_pipeline.storage.cache import Cache
from timestore_pipeline.storage.contract import Entry, Storage
from timestore_pipeline.storage.local import LocalStorage

__all__ = ["Entry", "Storage", "open_storage"]


def open_storage(
    location: Path | ObjectUrl,
    *,
    cache: Path,
    cache_bytes: int,
    timeout_seconds: float = 60.0,
    patience_seconds: float = 60.0,
) -> Storage:
    """Return the storage at ``location``; nothing is asked of it yet.

    Args:
        location: an absolute directory, or a place in an object store.
        cache: local folder for copies of objects and for what is being written; each location has a part of its own.
        cache_bytes: what the copies of all locations together may take.
        timeout_seconds: how long one request may take.
        patience_seconds: for how long a request that fails for the moment is made again.

    Raises:
        StorageRefused: the package for object stores is not installed, or the environment lacks what it needs.
    """
    if isinstance(location, Path):
        return LocalStorage(location)
    if find_spec("obstore") is None:
        raise StorageRefused(
            f"opening {location}", "object stores need a package: pip install 'timestore-pipeline[object-store]'"
        )
    from timestore_pipeline.storage.objects import ObjectStorage  # tens of milliseconds, for those who need it

    part = Cache(cache, blake3(str(location).encode()).hexdigest(8), cache_bytes)
    return ObjectStorage(location, part, timeout_seconds=timeout_seconds, patience_seconds=patience_seconds)

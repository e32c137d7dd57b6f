"""Where the places of an installation are, by its settings alone: nobody asks here whose they are.

What is found there, and whether it may be used, is said by ``places.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from timestore_pipeline.model.locations import ObjectUrl
from timestore_pipeline.settings import AfterIngest, Settings
from timestore_pipeline.storage import Storage, open_storage
from timestore_pipeline.storage.marks import read_mark

# A look is a sensor's, which has a minute in all: what is not answered by then is looked at by the next.
_LOOK_SECONDS = 10.0


class PlaceName(StrEnum):
    """The places; they are marked in this order, so that staging has its mark only where the others have theirs."""

    WORK = "work"
    ARCHIVE = "archive"
    TABLES = "tables"
    STAGING = "staging"


FIELDS: Mapping[PlaceName, str] = {
    PlaceName.STAGING: "staging_directory",
    PlaceName.TABLES: "tables_url",
    PlaceName.ARCHIVE: "landing_archive_directory",
    PlaceName.WORK: "work_directory",
}
"""The settings that say where the places are."""


def used_places(settings: Settings) -> list[PlaceName]:
    """Return the places that an installation has, in the order in which they are marked."""
    return [
        name
        for name in PlaceName
        if (name is not PlaceName.WORK or uses_work(settings))
        and (name is not PlaceName.ARCHIVE or settings.landing_after_ingest is AfterIngest.ARCHIVE)
    ]


def uses_work(settings: Settings) -> bool:
    """Whether anything is kept in an object store, so that its local copies are in the work directory."""
    locations = (
        settings.staging_location,
        settings.tables_location,
        settings.landing_location,
        settings.archive_location,
    )
    return any(isinstance(each, ObjectUrl) for each in locations)


def location_of(settings: Settings, name: PlaceName) -> Path | ObjectUrl:
    """Return where a place is."""
    match name:
        case PlaceName.STAGING:
            return settings.staging_location
        case PlaceName.TABLES:
            return settings.tables_location
        case PlaceName.ARCHIVE:
            return settings.archive_location
        case PlaceName.WORK:
            return settings.work_path


def storage_at(settings: Settings, location: Path | ObjectUrl) -> Storage:
    """Return the storage at a location, as ``settings`` have it cached and asked; nobody asks whose it is.

    Raises:
        StorageRefused: as :func:`~timestore_pipeline.storage.open_storage`.
    """
    return open_storage(
        location,
        cache=settings.work_path / "cache",
        cache_bytes=settings.object_cache_bytes,
        timeout_seconds=settings.object_store_timeout_seconds,
        patience_seconds=settings.object_store_retry_seconds,
    )


def hurried(settings: Settings) -> Settings:
    """Return settings for a look that is not worth waiting for: an object store is asked for a few seconds only."""
    return settings.model_copy(
        update={
            "object_store_timeout_seconds": min(_LOOK_SECONDS, settings.object_store_timeout_seconds),
            "object_store_retry_seconds": min(_LOOK_SECONDS, settings.object_store_retry_seconds),
        }
    )


def marks_found(settings: Settings) -> dict[PlaceName, str]:
    """Return the identities that the places carry, as far as they have marks, without any ledger.

    Not that of the work directory, which may outlast an installation and holds nothing of it.

    Raises:
        StorageError, OSError: a place cannot be looked at.
    """
    names = [name for name in used_places(settings) if name is not PlaceName.WORK]
    found = {name: read_mark(storage_at(settings, location_of(settings, name)), name) for name in names}
    return {name: mark for name, mark in found.items() if mark is not None}

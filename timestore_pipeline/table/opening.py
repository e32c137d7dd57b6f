"""Opening the Delta table of a dataset, and whose it says that it is; errors of delta-rs become this project's.

Whose a table is stands in its properties: these survive checkpoints and the clean-up of the log, and other programs
leave them as they are. Once they are changed, delta-rs refuses the commit of every build whose handle is older.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from timestore_pipeline.errors import TableError, TimestoreError
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.table_folder import (
    entry_is_empty,
    has_table,
    log_key,
    sync_log,
)
from timestore_pipeline.table.delta import (
    CommitFailedError,
    CommitProperties,
    DeltaError,
    DeltaTable,
    TableNotFoundError,
    set_properties,
)

OWNER_PROPERTY = "timestore.installation"
"""The property of a table that has the identity of its installation."""

NAIVE_TIMES = "timestampNtz"

# What changes nothing of how the rows of a file are read.
_READABLE_FEATURES = {NAIVE_TIMES, "v2Checkpoint", "vacuumProtocolCheck"}


def open_table(place: Storage, dataset: str, version: int | None = None) -> DeltaTable:
    """Open the table at ``version``, by default the latest.

    Raises:
        PlaceError: the place of the tables is not there, or another installation's.
        TableError: it is missing or damaged.
    """
    place.require()
    if version is not None and entry_is_empty(place, version):
        # delta-rs would take it for a commit of nothing, and its rows would be missing without a word.
        raise TableError(f"dataset {dataset!r}: the log entry {place.shown(log_key(version))} is empty; restore it")
    with translated(place, dataset, version):
        table = open_unchecked(place, version)
    unknown = sorted(set(table.protocol().reader_features or ()) - _READABLE_FEATURES)
    if unknown:
        raise TableError(
            f"dataset {dataset!r}: version {table.version()} of the table at {place.location} needs "
            f"{', '.join(unknown)} to be read, which another program has switched on and timestore does not know: rows "
            "marked as deleted would be read. Restore the version before it, and switch it off in that program."
        )
    return table


def open_unchecked(place: Storage, version: int | None = None) -> DeltaTable:
    """Open the table without a look at what it needs to be read, and without its place being asked for."""
    return DeltaTable(place.location, version=version, storage_options=dict(place.options))


def owner_of(table: DeltaTable) -> str | None:
    """Return the identity of the installation that the table belongs to; None where it does not say."""
    return table.metadata().configuration.get(OWNER_PROPERTY)


def declare_owner(place: Storage, dataset: str, table: DeltaTable, installation: str) -> None:
    """Say in a table whose it is from now on, on a handle that has just been looked at.

    Builds in flight whose handles are older are refused, and come again.

    Raises:
        TableError: the commit failed; somebody else may have been quicker.
    """
    with translated(place, dataset), suppress(CommitFailedError):
        said = CommitProperties(custom_metadata={"timestoreAction": "own", "timestoreInstallation": installation})
        set_properties(table, {OWNER_PROPERTY: installation}, said)
    for version in range(table.version(), open_table(place, dataset).version() + 1):
        sync_log(place, version)


def version_at(place: Storage, dataset: str, moment: datetime) -> int:
    """Return the version that the table was at, at a time.

    Raises:
        TableError: it is missing or damaged, or its log does not reach back so far.
    """
    table = open_table(place, dataset)
    with translated(place, dataset):
        table.load_as_version(moment)
    return table.version()


@contextmanager
def translated(place: Storage, dataset: str, version: int | None = None) -> Iterator[None]:
    """Let errors of delta-rs in the block be :class:`TableError`, with the cause kept."""
    try:
        yield
    except TimestoreError:
        raise
    except TableNotFoundError as error:
        if version is not None and has_table(place):
            raise TableError(
                f"dataset {dataset!r}: the log of the table at {place.location} does not reach back to version "
                f"{version} any more: it was cleaned up behind a later checkpoint. Read a later version."
            ) from error
        raise TableError(f"dataset {dataset!r}: there is no table at {place.location}") from error
    except (DeltaError, OSError) as error:
        raise TableError(
            f"dataset {dataset!r}: the table at {place.location} cannot be used: {delta_in_words(error)}"
        ) from error


def delta_in_words(error: Exception) -> str:
    """Return what delta-rs says in one line, without colours and without queries of URLs, which may be signed."""
    plain = re.sub(r"\x1b\[[0-9;]*m|↳", "", str(error))
    return " ".join(re.sub(r"(\w://[^\s?]*)\?\S*", r"\1", plain).split())

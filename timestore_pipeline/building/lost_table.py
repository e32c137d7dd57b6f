"""A table that somebody deleted: the dataset goes on with a new one, and what is lost is said and counted.

The rows that were in the table are gone, except those whose segments are still retained: these are staged again and
the next build publishes them. Nothing waits for an operator, but a file system that is only not mounted is no deleted
table: there the build fails, and goes on when it is back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from timestore_pipeline.building.completion import follow_others
from timestore_pipeline.building.manifests import forget_manifests
from timestore_pipeline.building.table import ensure_table, file_prefix
from timestore_pipeline.clock import now_micros
from timestore_pipeline.columns import Column
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.durable_files import fsync_path, make_folder
from timestore_pipeline.errors import TableError
from timestore_pipeline.ledger.builds import Build, builds_in_flight
from timestore_pipeline.ledger.lost_table import forget_table
from timestore_pipeline.ledger.registry import last_claimed_sequence, table_versions
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.table_folder import any_table, file_name, has_table, parquet_files
from timestore_pipeline.store import Store

log = logging.getLogger(__name__)

MARKER = ".timestore"
"""A file in the folder of all tables; where it and all tables are missing, the folder is an empty mount point."""

MARK = b"tables of timestore\n"
"""Its content in an object store."""


def prepare_table(store: Store, spec: DatasetSpec, columns: Sequence[Column]) -> int:
    """Make sure that the dataset has a table, in place of a deleted one too; return its version.

    A new table starts with every earlier build fenced, so that one that still lives cannot publish rows into it that
    are staged again.

    Raises:
        TableError: the table cannot be created or opened, or its file system does not seem to be mounted.
        LedgerError: the ledger cannot be used.
    """
    place = store.table(spec.name)
    columns = spec.table_columns(columns)
    with store.ledger.read() as tx:
        versions = table_versions(tx)
        fenced = last_claimed_sequence(tx, spec.name)
        in_flight = builds_in_flight(tx, spec.name)
    seen = versions.get(spec.name)
    if has_table(place) or (seen is not None and _has_published_files(place, in_flight)):
        # Where only the log is gone, or a part of it, the Parquet files are still there to be restored.
        version = ensure_table(place, spec.name, columns, seen)
        if seen is not None and version > seen:
            follow_others(store, spec.name)
        return version
    _mark(store.tables, spec, published=any(version is not None for version in versions.values()))
    if seen is not None:
        # Its manifests say of rows that are gone that they are published.
        forget_manifests(place)
        # Before the new table is there: a reader must not look for a version of the old one in it.
        lost = store.ledger.transact(lambda tx: forget_table(tx, spec.name, now_micros()))
        if lost is not None:
            log.error(
                "%s: the table at %s is gone with %s published rows. %s of them are still in segments and are staged "
                "again; %s rows are lost. Their batches are forgotten: let their files land again, from the archive.",
                spec.name,
                place.location,
                f"{lost.published_rows:,}",
                f"{lost.rows_staged_again:,}",
                f"{lost.rows_gone:,}",
            )
    return ensure_table(place, spec.name, columns, fenced=fenced)


def _has_published_files(place: Storage, in_flight: Sequence[Build]) -> bool:
    """Whether Parquet files are there that no build in flight has written since the table was deleted."""
    written = tuple(file_prefix(build.sequence) for build in in_flight)
    return any(not file_name(entry.key).startswith(written) for entry in parquet_files(place))


def _mark(tables: Storage, spec: DatasetSpec, *, published: bool) -> None:
    """Leave a sign in the folder of all tables by which it is known again, unless it seems to be another folder.

    In an object store it also shows that the store refuses to create a key twice: on that rests who decides on a build.
    """
    if tables.size(MARKER) is not None:
        return
    if published and (tables.local is None or tables.local.is_dir()) and not any_table(tables):
        raise TableError(
            f"dataset {spec.name!r}: {tables.location} has no tables, and the ledger knows of published ones. If its "
            "file system is not mounted, or this is another bucket, mend that. If the tables were deleted on purpose, "
            f"create the empty file {tables.shown(MARKER)} to go on."
        )
    if tables.local is not None:
        make_folder(tables.local)
        (tables.local / MARKER).touch()
        fsync_path(tables.local)
        return
    try:
        tables.create(MARKER, MARK)
    except FileExistsError:
        return  # another process was quicker
    try:
        tables.create(MARKER, MARK)
    except FileExistsError:
        return
    tables.delete(MARKER)
    raise TableError(
        f"dataset {spec.name!r}: the store of {tables.location} created the key {MARKER} twice, so it does not heed "
        "'If-None-Match: *'. Two builds could take each other's place in a table's log. Use a store that does (Amazon "
        "S3, Google Cloud Storage, Azure, MinIO, R2), or keep the tables on a file system."
    )

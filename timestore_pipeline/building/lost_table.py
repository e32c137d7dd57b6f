"""A table that somebody deleted: the dataset goes on with a new one, and what is lost is said and counted.

The rows that were in the table are gone, except those whose segments are still retained: these are staged again and
the next build publishes them. Nothing waits for an operator, but a file system that is only not mounted is no deleted
table: there the build fails, and goes on when it is back.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from timestore_pipeline.building.manifests import MANIFEST_FOLDER
from timestore_pipeline.building.table import LOG_FOLDER, ensure_table, file_prefix, has_table
from timestore_pipeline.clock import now_micros
from timestore_pipeline.columns import WINDOW_COLUMN, Column
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.durable_files import fsync_path, make_folder
from timestore_pipeline.errors import TableError
from timestore_pipeline.ledger.builds import Build, builds_in_flight
from timestore_pipeline.ledger.lost_table import forget_table
from timestore_pipeline.ledger.registry import last_claimed_sequence, table_versions
from timestore_pipeline.store import Store

log = logging.getLogger(__name__)

MARKER = ".timestore"
"""A file in the folder of all tables; where it and all tables are missing, the folder is an empty mount point."""


def prepare_table(store: Store, spec: DatasetSpec, columns: Sequence[Column]) -> int:
    """Make sure that the dataset has a table, in place of a deleted one too; return its version.

    A new table starts with every earlier build fenced, so that one that still lives cannot publish rows into it that
    are staged again.

    Raises:
        TableError: the table cannot be created or opened, or its file system does not seem to be mounted.
        LedgerError: the ledger cannot be used.
    """
    path = store.table_path(spec.name)
    columns = spec.table_columns(columns)
    with store.ledger.read() as tx:
        versions = table_versions(tx)
        fenced = last_claimed_sequence(tx, spec.name)
        in_flight = builds_in_flight(tx, spec.name)
    seen = versions.get(spec.name)
    if has_table(path) or (seen is not None and _has_published_files(path, in_flight)):
        # Where only the log is gone, or a part of it, the Parquet files are still there to be restored.
        return ensure_table(path, spec.name, columns, seen)
    _mark(store.settings.tables_path, spec, published=any(version is not None for version in versions.values()))
    if seen is not None:
        # Its manifests say of rows that are gone that they are published.
        shutil.rmtree(path / MANIFEST_FOLDER, ignore_errors=True)
        # Before the new table is there: a reader must not look for a version of the old one in it.
        lost = store.ledger.transact(lambda tx: forget_table(tx, spec.name, now_micros()))
        if lost is not None:
            log.error(
                "%s: the table at %s is gone with %s published rows. %s of them are still in segments and are staged "
                "again; %s rows are lost. Their batches are forgotten: let their files land again, from the archive.",
                spec.name,
                path,
                f"{lost.published_rows:,}",
                f"{lost.rows_staged_again:,}",
                f"{lost.rows_gone:,}",
            )
    return ensure_table(path, spec.name, columns, fenced=fenced)


def _has_published_files(path: Path, in_flight: Sequence[Build]) -> bool:
    """Whether Parquet files are there that no build in flight has written since the table was deleted."""
    written = tuple(file_prefix(build.sequence) for build in in_flight)
    return any(not file.name.startswith(written) for file in path.glob(f"{WINDOW_COLUMN}=*/*.parquet"))


def _mark(root: Path, spec: DatasetSpec, *, published: bool) -> None:
    """Leave a sign in the folder of all tables by which it is known again, unless it seems to be another folder."""
    marker = root / MARKER
    if marker.exists():
        return
    if root.is_dir() and published and not any(root.glob(f"*/{LOG_FOLDER}")):
        raise TableError(
            f"dataset {spec.name!r}: {root} has no tables, and the ledger knows of published ones. If its file system "
            f"is not mounted, mount it. If the tables were deleted on purpose, create the file {marker} to go on."
        )
    make_folder(root)
    marker.touch()
    fsync_path(root)

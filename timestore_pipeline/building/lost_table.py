"""A table that is not where it was: nothing is published or forgotten until it is back, or is given up.

Given up, the dataset goes on with a new table. The rows that were in the old one are gone, except those whose segments
are still retained: these are staged again and the next build publishes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from timestore_pipeline.building.completion import follow_others
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import TableError, TableGone
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.builds import Build, builds_in_flight
from timestore_pipeline.ledger.forgetting import LostTable, forget_table
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.placement import PlaceName
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.marks import put_empty_mark, table_mark
from timestore_pipeline.storage.table_folder import file_name, has_table, parquet_files
from timestore_pipeline.store import Store
from timestore_pipeline.table.commit import ensure_table
from timestore_pipeline.table.contents import file_prefix
from timestore_pipeline.table.manifests import forget_manifests
from timestore_pipeline.table.own_table import OwnTable

log = log_named(__name__)


def prepare_table(store: Store, spec: DatasetSpec, columns: Sequence[Column]) -> OwnTable:
    """Make sure that the dataset has a table that is ours, unless it had one that is not there; return it.

    A new table starts with every earlier build fenced, so that one that still lives cannot publish rows into it that
    are staged again.

    Raises:
        PlaceError: the place of the tables is not there, or another installation's.
        TableGone: it had one, and it is not there.
        TableNotOurs: it is not, or the ledger does not know all of it; nothing was changed.
        TableError: the table cannot be created or opened.
        LedgerError: the ledger cannot be used.
    """
    own = OwnTable(store, spec.name)
    store.places[PlaceName.TABLES].claim()
    # First: a table that the ledger knows was there before it was asked.
    known = own.known()
    if not has_table(own.place):
        if known.version is not None:
            raise TableGone(spec.name, own.place.location, known.version)
        ensure_table(own.place, spec.name, spec.table_columns(columns), own.installation, known.last_sequence)
    # Somebody else may have been quicker.
    version = own.opened(known).version()
    put_empty_mark(store.tables, table_mark(spec.name))
    if known.version is not None and version > known.version:
        follow_others(store, spec.name)
    return own


def give_up_table(store: Store, dataset: str) -> LostTable | None:
    """Let a dataset go on without the table that it had; None where it has none, or it was given up before.

    Raises:
        PlaceError: the place of the tables is not there, so nobody can say that the table is gone.
        TableError: the table is there, or a part of it.
        LedgerError: the ledger cannot be used.
    """
    place = store.table(dataset)
    place.require()
    with store.ledger.read() as tx:
        in_flight = builds_in_flight(tx, dataset)
    if has_table(place):
        raise TableError(f"dataset {dataset!r}: the table at {place.location} is there, so it is not given up.")
    if _has_published_files(place, in_flight):
        raise TableError(
            f"dataset {dataset!r}: {place.location} has no log and still has Parquet files. Restore the log; or "
            "move the folder away and do this again."
        )
    # Its manifests say of rows that are gone that they are published.
    forget_manifests(place)
    store.tables.delete(table_mark(dataset))
    lost = store.ledger.transact(lambda tx: forget_table(tx, dataset, now_micros()))
    if lost is not None:
        log.error(
            "%s: the table at %s was given up with %s published rows. %s of them are still in segments and are staged "
            "again; %s rows are lost. Their batches are forgotten: let their files land again, from the archive.",
            dataset,
            place.location,
            f"{lost.published_rows:,}",
            f"{lost.rows_staged_again:,}",
            f"{lost.rows_gone:,}",
        )
    return lost


def _has_published_files(place: Storage, in_flight: Sequence[Build]) -> bool:
    """Whether Parquet files are there that no build in flight has written since the table was deleted."""
    written = tuple(file_prefix(build.sequence) for build in in_flight)
    return any(not file_name(entry.key).startswith(written) for entry in parquet_files(place))

"""Repairs: what can still be read of damaged files is committed in their place, and what is gone leaves the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import duckdb

from timestore_pipeline.building.corrected_files import corrections_of_build, files_to_rewrite
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.publication import WrittenFiles, claim_published, publishing
from timestore_pipeline.building.writing import published_columns
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.remote_files import of_the_store
from timestore_pipeline.errors import TableError
from timestore_pipeline.ledger.corrected_windows import Taken, record_taken
from timestore_pipeline.ledger.states import BuildKind
from timestore_pipeline.model.windows import Window
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import ParquetFile, TableFile
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.parquet import WindowSource, parquet_relation, window_folders, write_window
from timestore_pipeline.table.replacement import read_for_replacement


def repair_windows(store: Store, order: BuildOrder, damaged: Mapping[Window, Mapping[TableFile, int]]) -> None:
    """Commit what can be read of damaged files of windows in their place; ``damaged`` has the rows that each still has.

    The ledger's totals of all these windows become those of the table, whoever has changed it.

    Raises:
        BuildInFlight: another build of the dataset has not ended.
        BuildAborted, TableError, LedgerError: nothing was changed.
    """
    spec, place = store.datasets[order.dataset], store.table(order.dataset)
    own = OwnTable(store, spec.name)
    columns = published_columns(store, spec, own.opened())
    claimed = claim_published(store, order, BuildKind.REPAIR, [window.start_micros for window in damaged], 0)
    with publishing(store, claimed, columns) as publication:
        found = read_for_replacement(own, claimed, [window.key for window in damaged])
        live = set(found.files)
        leaving = {window: [file for file in files if file in live] for window, files in damaged.items()}
        corrections = corrections_of_build(store, claimed)
        written: list[ParquetFile] = []
        taken: Taken = Counter()
        with store.connect(place) as connection, window_folders(store, claimed, columns) as folders:
            for window, files in leaving.items():
                there = [file for file in files if damaged[window][file]]
                readable = [file for file in there if _can_be_read(connection, parquet_relation(place, [file.path]))]
                again = files_to_rewrite(folders, connection, window, readable, corrections.get(window, ()))
                taken += again.taken
                if again.relations:
                    source = _what_is_left(spec, again.relations, files)
                    target = order.file_bytes(store.settings)
                    written += write_window(folders, connection, window, source, target)
        if taken:
            store.ledger.transact(lambda tx: record_taken(tx, claimed.id, taken))
        gone = [file for files in leaving.values() for file in files]
        publication.commit(WrittenFiles(written, found.only(gone)))


def _can_be_read(connection: duckdb.DuckDBPyConnection, relation: str) -> bool:
    """Whether all values can be read, not only the footer."""
    try:
        connection.execute(f"SELECT count(COLUMNS(*)) FROM {relation}").fetchall()
    except duckdb.Error as error:
        if of_the_store(error):
            raise  # it may pass, and says nothing of the file
        return False
    return True


def _what_is_left(spec: DatasetSpec, relations: Sequence[str], files: Sequence[TableFile]) -> WindowSource:
    return WindowSource(
        relations=relations,
        rows=None,
        bytes=sum(file.bytes for file in files),
        one_after_the_other=False,
        counted_by="the files",
        wrong=lambda reason: TableError(f"dataset {spec.name!r}: damaged files cannot be read again: {reason}"),
    )

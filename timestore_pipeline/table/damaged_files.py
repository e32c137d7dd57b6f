"""Which file of a table is gone or damaged, in words that say what to do: what DuckDB says names neither."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from timestore_pipeline.duck.connections import Share
from timestore_pipeline.duck.remote_files import of_the_store, reason_of
from timestore_pipeline.duck.sql import EVERY_VALUE
from timestore_pipeline.errors import TableError
from timestore_pipeline.exhaustion import out_of_files
from timestore_pipeline.store import Store
from timestore_pipeline.table.parquet import parquet_relation

# What DuckDB says of a damaged file; anything else does not cost a look at all files.
_SIGNS_OF_DAMAGE = (
    *("Corrupt database file", "IO Error", "INTERNAL Error", "FATAL Error"),
    # Of Parquet files.
    *("Out of buffer", "orrupted", "Failed to read file", "Varint-decoding", "don't know what type"),
)

_OUT_OF_BOUNDS = (duckdb.OutOfMemoryException, duckdb.InterruptException)


def may_be_damage(error: Exception) -> bool:
    """Whether an error may come from a damaged file, of whatever class it is."""
    return any(sign in str(error) for sign in _SIGNS_OF_DAMAGE)


def without_query(error: Exception) -> str:
    """Return what DuckDB says, but for the statement, which is ours."""
    return reason_of(error).partition("\n\nLINE ")[0]


def refuse_damaged_files(
    store: Store, dataset: str, version: int, paths: Sequence[str], share: Share, error: Exception
) -> None:
    """Look at files of a version of a table, which ``error`` may be about, until one is found to be damaged.

    Raises:
        TableError: files are gone, or one is damaged; it is named.
    """
    if not paths:
        return
    place = store.table(dataset)
    sizes = place.sizes()
    gone = [path for path in paths if sizes(path) is None]
    if gone:
        raise TableError(
            f"dataset {dataset!r}: {len(gone):,} of {len(paths):,} files of table version {version} are "
            f"gone, such as {place.shown(gone[0])}. If another program has vacuumed the table, read a later version; "
            f"what the latest one lacks is in 'timestore loss show {dataset}': restore it from a backup, or derive it "
            "again with 'timestore build --rebuild'."
        ) from error
    with store.connect(place, share=share) as connection:
        for path in paths:
            try:
                connection.execute(f"SELECT {EVERY_VALUE} FROM {parquet_relation(place, [path])}").fetchall()
            except duckdb.Error as damaged:
                if of_the_store(damaged) or out_of_files(damaged) or isinstance(damaged, _OUT_OF_BOUNDS):
                    return  # which says nothing of the file
                raise TableError(
                    f"dataset {dataset!r}: {place.shown(path)} is damaged: {without_query(damaged)}. Restore it from a "
                    f"backup. Without one, move it elsewhere: 'timestore loss show {dataset}' then says which rows are "
                    "missing, and what to do."
                ) from error

"""Files of the table whose rows corrections take, as a build reads them again to write what stays."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import duckdb

from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.ledger.corrected_windows import Taken, pending_corrections
from timestore_pipeline.ledger.corrections import Correction
from timestore_pipeline.model.windows import Window
from timestore_pipeline.rows.corrected import count_taken, kept_rows
from timestore_pipeline.storage.table_folder import file_name
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import TableFile, sequence_of_file
from timestore_pipeline.table.parquet import WindowFolders, parquet_relation

Corrections = Mapping[Window, tuple[Correction, ...]]
"""Window → the corrections that may take rows of its published files, oldest first."""


@dataclass(frozen=True)
class FilesToRewrite:
    """Files that a build reads again: relations (SQL) with the rows that stay, and what is taken."""

    files: tuple[TableFile, ...] = ()
    relations: tuple[str, ...] = ()
    taken: Taken = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """How many rows stay."""
        return sum(file.rows for file in self.files) - self.taken.total()


def corrections_of_build(store: Store, build: Build) -> Corrections:
    """Return the corrections that a build has to apply to published files: those acknowledged before it was claimed.

    Only builds correct windows, and no two have one; so nothing comes or goes of these meanwhile.
    """
    spec = store.datasets[build.dataset]
    with store.ledger.read() as tx:
        pending = pending_corrections(tx, spec.name)
    found = {
        spec.window_at(start): tuple(each for each in corrections if each.before_sequence <= build.sequence)
        for start, corrections in pending.items()
    }
    return {window: corrections for window, corrections in found.items() if corrections}


def _by_corrections(
    files: Sequence[TableFile], corrections: Sequence[Correction]
) -> list[tuple[tuple[Correction, ...], list[TableFile]]]:
    """Return files by which of the corrections act on them."""
    found: dict[tuple[Correction, ...], list[TableFile]] = defaultdict(list)
    for file in files:
        sequence = sequence_of_file(file_name(file.path))
        found[tuple(each for each in corrections if each.acts_on_file(sequence))].append(file)
    return list(found.items())


def files_to_rewrite(
    folders: WindowFolders,
    connection: duckdb.DuckDBPyConnection,
    window: Window,
    files: Sequence[TableFile],
    corrections: Sequence[Correction],
) -> FilesToRewrite:
    """Return how the files of a window are read again, without the rows that corrections take.

    Raises:
        duckdb.Error: one cannot be read.
    """
    relations: list[str] = []
    taken: Taken = Counter()
    for acting, some in _by_corrections(sorted(files, key=lambda file: file.path), corrections):
        relation = parquet_relation(folders.place, [file.path for file in some], folders.columns)
        taken.update(count_taken(connection, folders.spec, folders.columns, relation, acting, window))
        relations.append(kept_rows(folders.spec, folders.columns, relation, acting))
    return FilesToRewrite(tuple(files), tuple(relations), taken)


def files_with_taken_rows(
    folders: WindowFolders,
    connection: duckdb.DuckDBPyConnection,
    window: Window,
    files: Sequence[TableFile],
    corrections: Sequence[Correction],
) -> list[TableFile]:
    """Return those of the files of a window that have rows which corrections take; the others may stay as they are.

    Raises:
        duckdb.Error: one cannot be read.
    """
    found = []
    for acting, some in _by_corrections(files, corrections):
        for file in some if acting else ():
            relation = parquet_relation(folders.place, [file.path], folders.columns)
            if count_taken(connection, folders.spec, folders.columns, relation, acting, window):
                found.append(file)
    return found

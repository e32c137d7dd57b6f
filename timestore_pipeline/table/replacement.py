"""What a commit replaces: files that it takes out of the table, as they are live on the handle that it commits on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from timestore_pipeline.storage import Storage
from timestore_pipeline.table.delta import (
    DeltaTable,
)

if TYPE_CHECKING:
    from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.table.contents import TableFile, live_files, types_by_name
from timestore_pipeline.table.sequences import last_sequence


class Owned(Protocol):
    """A table as whoever it belongs to writes to it (see ``own_table.py``)."""

    @property
    def place(self) -> Storage:
        """Where its files are."""
        ...

    @property
    def dataset(self) -> str:
        """Whose rows it has."""
        ...

    @property
    def installation(self) -> str:
        """The identity of the one that it belongs to."""
        ...

    def opened(self) -> DeltaTable:
        """Open its latest version; raise :class:`~timestore_pipeline.errors.TableNotOurs` if none may commit on it."""
        ...


@dataclass(frozen=True)
class Replacement:
    """Files that a commit takes out of the table, as they are live on ``table``: the handle that it commits on.

    ``kept`` are the other files of the same windows (``window_keys``), which stay. ``data_change`` says whether the
    rows become others; where they do not, as in a compaction, whoever follows the table's changes has nothing to do.
    """

    table: DeltaTable
    files: tuple[TableFile, ...]
    kept: tuple[TableFile, ...] = ()
    data_change: bool = True
    window_keys: frozenset[str] = frozenset()

    def unchanged_on(self, table: DeltaTable) -> Replacement | None:
        """Return the same replacement on a newer handle; None where its windows have other files there."""
        live = {file for file in live_files(table) if file.window_key in self.window_keys}
        same = live == {*self.files, *self.kept} and types_by_name(table.schema()) == types_by_name(self.table.schema())
        return replace(self, table=table) if same else None

    def only(self, files: Collection[TableFile]) -> Replacement:
        """Return the replacement of just these of its files."""
        chosen = set(files)
        return replace(
            self,
            files=tuple(file for file in self.files if file in chosen),
            kept=(*self.kept, *(file for file in self.files if file not in chosen)),
        )


class SequenceTaken(Exception):
    """The table already has this sequence or a later one: the build was published or fenced."""


def read_for_replacement(
    own: Owned, build: Build, window_keys: Collection[str], *, data_change: bool = True
) -> Replacement:
    """Return all live files of some windows, for a build that reads them and commits others in their place.

    Raises:
        SequenceTaken: the build was fenced before.
        TableError: the table is missing or damaged, or not ours.
    """
    table = own.opened()
    if last_sequence(table, build.dataset, build.lane) >= build.sequence:
        raise SequenceTaken
    wanted = frozenset(window_keys)
    files = tuple(file for file in live_files(table) if file.window_key in wanted)
    return Replacement(table, files, data_change=data_change, window_keys=wanted)

"""Whose a table is: asked of its own log before anything is written into its folder or removed from it.

A table says in its properties which installation it belongs to, from its first commit on; what this installation
commits says it too. And no build has the sequence of another one, of whatever ledger. So the log tells whether all
that was committed is known to this ledger. Where it is not, the ledger is an older copy, or somebody else is at work:
what a build would write might be there already, and what it would replace or remove might be somebody's rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from timestore_pipeline.errors import AnotherTable, LedgerError, StorageError, TableError, TableNotOurs
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.datasets import known_datasets
from timestore_pipeline.ledger.tables import KnownTable, builds_of_sequences, known_table, note_own, note_refusal
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.placement import storage_at
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.table_folder import has_table, log_key, remove_from_table
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.delta import DeltaTable
from timestore_pipeline.table.opening import declare_owner, open_table, owner_of
from timestore_pipeline.table.title import Objection, objection_to, read_title, way_out

if TYPE_CHECKING:
    from timestore_pipeline.store import Store

log = log_named(__name__)

_ATTEMPTS = 5


@dataclass(frozen=True)
class JudgedTable:
    """A table as it was opened, what the ledger knew of it before that, and what speaks against writing to it."""

    table: DeltaTable
    known: KnownTable
    objection: tuple[Objection, str] | None


@dataclass(frozen=True)
class OwnTable:
    """The table of a dataset as one installation writes to it: only after a look at its log.

    With ``any_place`` nobody asks whose the place of all tables is: it is about to become another one's.
    """

    store: Store
    dataset: str
    any_place: bool = False

    @property
    def place(self) -> Storage:
        """Where its files are."""
        if self.any_place:
            return storage_at(self.store.settings, self.store.settings.table_location(self.dataset))
        return self.store.table(self.dataset)

    @property
    def installation(self) -> str:
        """Whose it is: the identity of the ledger."""
        return self.store.ledger.identity

    def known(self) -> KnownTable:
        """Ask the ledger what it knows of the table."""
        with self.store.ledger.read() as tx:
            return known_table(tx, self.dataset)

    def opened(self, known: KnownTable | None = None) -> DeltaTable:
        """Open its latest version if it is ours, and say in its log whose it is where that is missing and proven.

        The ledger remembers what came out. ``known`` is what it said before, where it was asked already.

        Raises:
            TableNotOurs: it is not ours, or the ledger does not know all that was committed to it; nothing was changed.
            TableError: it is missing or damaged, or cannot be committed to.
        """
        for _ in range(_ATTEMPTS):
            table = self.accept(self.look(known))
            if owner_of(table) is not None:
                return table
            log.info("%s: the table at %s says from now on whose it is", self.dataset, self.place.location)
            declare_owner(self.place, self.dataset, table, self.installation)
            known = None
        raise self._overtaken()

    def look(self, known: KnownTable | None = None, *, as_owner: bool = False, fences: bool = True) -> JudgedTable:
        """Open its latest version, and see what speaks against writing to it, if anything; changes nothing.

        The ledger is asked first (or was, and said ``known``): whatever it knows to be in the table is in the version
        that is opened after that. What others have committed since is looked up in the ledger once it was seen, and a
        build is in the ledger before it is in the table. With ``as_owner`` nobody minds whose it says that it is;
        without ``fences`` nobody minds those that the ledger does not know, as they have no rows.

        Raises:
            TableError: it is missing or damaged, or its log cannot be read.
        """
        known = known or self.known()
        table = open_table(self.place, self.dataset)
        title = read_title(self.place, table, self.dataset, known, as_owner=as_owner)
        if not fences:
            title = replace(title, commits=tuple(commit for commit in title.commits if not commit.is_fence))
        builds = {known.last.sequence: known.last} if known.last else {}
        others = {commit.sequence for commit in title.commits} - builds.keys()
        if others:
            with self.store.ledger.read() as tx:
                builds |= builds_of_sequences(tx, self.dataset, others)
        return JudgedTable(table, known, objection_to(self.dataset, title, known, builds))

    def accept(self, look: JudgedTable) -> DeltaTable:
        """Let the ledger remember what a look has found; return the table that nothing speaks against.

        Raises:
            TableNotOurs: something speaks against writing to the table.
        """
        if look.objection is not None:
            error = self._refusal(*look.objection)
            with suppress(LedgerError):
                self.store.ledger.transact(
                    lambda tx: note_refusal(tx, self.dataset, error.reason, str(error), now_micros())
                )
            raise error
        table_id = look.table.metadata().id
        if look.known.table_id is None or look.known.refusal is not None:
            self.store.ledger.transact(lambda tx: note_own(tx, self.dataset, str(table_id)))
        return look.table

    def refuse_to_read(self) -> None:
        """Refuse to read what the ledger gives readers where its log has more, or less: rows would be missing.

        Nothing is said of a table that cannot be looked at.

        Raises:
            TableError: it has commits of builds that the ledger does not know, or lacks one that it knows.
        """
        try:
            found = self.look(fences=False).objection
        except TableError:
            return
        if found is not None and found[0] in (Objection.AHEAD, Objection.BEHIND):
            objection, words = found
            raise TableError(
                f"dataset {self.dataset!r}: the table at {self.place.location} is not read, as rows would be missing: "
                f"{words}. {way_out(objection)}"
            )

    def refuse_to_read_old(self, version: int | None) -> None:
        """Do the same where ``version``, which readers are given, is not the latest one; else it is one look at a name.

        Raises:
            TableError: as it says.
            PlaceError, StorageError: nobody can say whether there is a later one.
        """
        if version is None:
            with suppress(StorageError):  # then there are staged rows alone, whether it is there or not
                if has_table(self.place):
                    self.refuse_to_read()
        elif self.place.size(log_key(version + 1)) is not None:
            self.refuse_to_read()

    def remove(self, keys: Iterable[str]) -> Iterator[Sequence[str]]:
        """Remove what builds have written and the table's log does not name; yield the keys that are gone, as they go.

        Raises:
            TableNotOurs: as :meth:`opened`; nothing was removed.
            TableError, StorageError, OSError: the next ones cannot be removed.
        """
        wanted = list(keys)
        if wanted:
            live = {file.path for file in live_files(self.opened())}
            yield from remove_from_table(self.place, wanted, live)

    def hand_over(self, installation: str) -> None:
        """Let the table belong to ``installation`` from now on, if it is the one that this ledger knows.

        Whatever it says of whose it is: a copy of an installation becomes one of its own, maybe in a second attempt.

        Raises:
            TableNotOurs: it is another one, or the ledger does not know all of it; nothing was changed.
            TableError: it is missing or damaged, or cannot be committed to.
        """
        for _ in range(_ATTEMPTS):
            look = self.look(as_owner=True)
            if owner_of(look.table) == installation:
                return
            self._refuse_to_hand_over(look)
            declare_owner(self.place, self.dataset, look.table, installation)
        raise self._overtaken()

    def refuse_to_hand_over(self) -> None:
        """Raise :class:`TableNotOurs` unless it is the table that the ledger knows, and the ledger knows all of it."""
        self._refuse_to_hand_over(self.look(as_owner=True))

    def _refuse_to_hand_over(self, look: JudgedTable) -> None:
        if look.objection is not None:
            raise self._refusal(*look.objection)

    def _overtaken(self) -> TableError:
        return TableError(
            f"dataset {self.dataset!r}: the table at {self.place.location} cannot say whose it is, as others commit to "
            "it all the time; try again"
        )

    def _refusal(self, objection: Objection, words: str) -> TableNotOurs:
        return TableNotOurs(self.dataset, self.place.location, objection.value, words, way_out(objection))


def open_to_read(place: Storage, dataset: str, version: int, table_id: str | None) -> DeltaTable:
    """Open a version of a table for reading, if it is the one whose Delta id the ledger knows.

    Raises:
        TableError: it is another table, which may be there in the place of ours; or it is missing or damaged.
    """
    try:
        table = open_table(place, dataset, version)
    except TableError as error:
        try:
            latest = open_table(place, dataset)
        except TableError:
            raise error from None
        # Another one need not have that version.
        _refuse_to_read_another(place, dataset, latest, table_id)
        raise
    _refuse_to_read_another(place, dataset, table, table_id)
    return table


def _refuse_to_read_another(place: Storage, dataset: str, table: DeltaTable, table_id: str | None) -> None:
    found = str(table.metadata().id)
    if table_id not in (None, found):
        raise AnotherTable(dataset, place.location, found, table_id, way_out(Objection.OTHER_TABLE))


def tables_to_hand_over(store: Store) -> list[OwnTable]:
    """Return the tables that are there of all datasets that the ledger knows, if all of them can be handed over.

    Raises:
        TableNotOurs: one is not the one that the ledger knows, or the ledger does not know all of it.
        TableError: one is damaged.
    """
    with store.ledger.read() as tx:
        known = sorted(known_datasets(tx))
    found = [own for own in (OwnTable(store, dataset, any_place=True) for dataset in known) if has_table(own.place)]
    for own in found:
        own.refuse_to_hand_over()
    return found

"""The places of an installation: whether each is there, and belongs to this installation and no other (invariant 10).

What is there carries a mark with the identity of the ledger, and the ledger remembers which places were given one. Both
together tell a place that is new from one that is not mounted, was emptied, or is another one:

=============  =====================  ==========================================================
mark           the ledger             the place
=============  =====================  ==========================================================
ours           (whatever it says)     is ours
another one    (whatever it says)     is foreign
none           has marked it          is missing
none           knows files there      is missing, unless they are there: then it was never marked
none           knows nothing of it    is new
=============  =====================  ==========================================================

A place that is new, or was never marked, is marked before the first thing is written there. Whatever is missing or
foreign is left alone, until it is back or somebody says on purpose what it is to be.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from timestore_pipeline.errors import (
    PlaceError,
    PlaceForeign,
    PlaceMissing,
    PlaceUnreadable,
    SegmentsAway,
    StorageError,
)
from timestore_pipeline.ledger import Ledger
from timestore_pipeline.ledger.installation import (
    datasets_with_tables,
    marked_places,
    newest_segments,
    newest_segments_of,
    remember_place,
)
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.placement import (
    FIELDS,
    PlaceName,
    location_of,
    storage_at,
    used_places,
    uses_work,
)
from timestore_pipeline.settings import Settings, variable_name
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.layout import is_of_segment, segments_mark
from timestore_pipeline.storage.marks import mark_key, put_empty_mark, put_mark, read_mark
from timestore_pipeline.storage.owned import OwnedStorage
from timestore_pipeline.storage.table_folder import has_table

_LOOKED_FOR = 5


class PlaceState(StrEnum):
    """What a place is to this installation."""

    OURS = "ours"
    NEW = "new"
    MISSING = "missing"
    FOREIGN = "foreign"


@dataclass(frozen=True)
class IdentifiedPlace:
    """What was found of a place; ``mark`` is the identity that it carries, None where it has no mark."""

    name: PlaceName
    location: str
    state: PlaceState
    mark: str | None = None


def state_of(mark: str | None, identity: str, *, marked: bool, known_files: bool | None) -> PlaceState:
    """Return what a place is, by the table in the module's docstring.

    Args:
        mark: the identity that it carries; None where it has no mark.
        identity: that of the ledger.
        marked: whether the ledger remembers that the place was given the mark.
        known_files: whether files that the ledger knows are there; None where it knows of none.
    """
    if mark is not None:
        return PlaceState.OURS if mark == identity else PlaceState.FOREIGN
    return PlaceState.MISSING if marked or known_files is False else PlaceState.NEW


class Place:
    """One place, with the ledger that it is to belong to."""

    def __init__(self, places: Places, name: PlaceName) -> None:
        self.name = name
        self.raw = storage_at(places.settings, location_of(places.settings, name))
        self._places = places
        self._believed_until = 0.0
        self._seen: tuple[int, ...] | None = None

    @cached_property
    def storage(self) -> Storage:
        """Its files, as far as it is ours."""
        return OwnedStorage(self.raw, self)

    def part(self, key: str) -> Storage:
        """Return the files in a folder of it."""
        return OwnedStorage(
            storage_at(self._places.settings, location_of(self._places.settings, self.name) / key), self
        )

    def find(self) -> IdentifiedPlace:
        """Look what it is.

        Raises:
            StorageError, OSError: it cannot be looked at.
            LedgerError: the ledger cannot be read.
        """
        stamp = self.raw.stamp(mark_key(self.name))
        mark = read_mark(self.raw, self.name)
        identity = self._places.ledger.identity
        if mark is not None:
            state = state_of(mark, identity, marked=True, known_files=None)
        else:
            marked = self.name in self._places.marked()
            state = state_of(None, identity, marked=marked, known_files=None if marked else self._known_files())
        self._seen = stamp if state is PlaceState.OURS else None
        if state is PlaceState.OURS:
            self._believed_until = time.monotonic() + self.raw.traits.believed_seconds
        return IdentifiedPlace(self.name, self.raw.location, state, mark)

    def require(self) -> None:
        """Refuse a place that is missing or foreign; a new one has nothing in it yet.

        Raises:
            PlaceError: it is one of these, or cannot be looked at.
            LedgerError: the ledger cannot be read.
        """
        self._found_usable()

    def claim(self) -> None:
        """Refuse a place that is missing or foreign, and mark a new one, with all others that are.

        Raises:
            PlaceError: this place, or another that has to be marked with it, is missing or foreign.
            LedgerError: the ledger cannot be read or written.
        """
        found = self._found_usable()
        if self.name is PlaceName.WORK:
            if found is PlaceState.NEW:
                self.put_mark()
        elif found is PlaceState.NEW or not self._places.remembers(self.name):
            self._places.mark_new()

    def _found_usable(self) -> PlaceState:
        if time.monotonic() < self._believed_until:
            return PlaceState.OURS
        if self._seen is not None and self.raw.stamp(mark_key(self.name)) == self._seen:
            return PlaceState.OURS
        try:
            found = self.find()
        except StorageError:
            raise  # says all that there is to say
        except OSError as error:
            raise PlaceUnreadable(self.name, self.raw.location, error.strerror or str(error)) from error
        refusal = self.refusal(found)
        if refusal is not None:
            raise refusal
        return found.state

    def refusal(self, found: IdentifiedPlace) -> PlaceError | None:
        """Return the error that says what was found; None where the place may be used."""
        variable = variable_name(FIELDS[self.name])
        if found.state is PlaceState.MISSING:
            return PlaceMissing(self.name, found.location, variable, there=self.raw.has_folder())
        if found.state is PlaceState.FOREIGN:
            identity = self._places.ledger.identity
            return PlaceForeign(self.name, found.location, variable, owner=found.mark or "", identity=identity)
        return None

    def put_mark(self) -> None:
        """Give a new place its mark, and look whether it has it.

        Raises:
            PlaceError: it has not: another process was quicker, for another installation.
            StorageError, OSError: it cannot be written.
        """
        put_mark(self.raw, self.name, self._places.ledger.identity)
        self._found_usable()

    def _known_files(self) -> bool | None:
        settings, ledger = self._places.settings, self._places.ledger
        if self.name is PlaceName.TABLES:
            with ledger.read() as tx:
                tables = datasets_with_tables(tx)
            return (
                any(has_table(storage_at(settings, settings.table_location(name))) for name in tables)
                if tables
                else None
            )
        if self.name is PlaceName.STAGING:
            with ledger.read() as tx:
                segments = newest_segments(tx, _LOOKED_FOR)
            if segments:
                return any(self.raw.size(path) is not None for path in segments)
            if not self._has_the_ledger() and any(is_of_segment(entry.key) for entry in self.raw.entries()):
                return False  # and yet there are some: they are another installation's
        return None

    def _has_the_ledger(self) -> bool:
        file = self._places.ledger.file
        return file is not None and self.raw.holds(file)


class Places:
    """All places of an installation."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.settings = settings
        self.ledger = ledger
        self._places: dict[PlaceName, Place] = {}
        self._marked: set[str] = set()
        self._lock = threading.RLock()
        self._folders_believed_until: dict[str, float] = {}

    def __getitem__(self, name: PlaceName) -> Place:
        with self._lock:
            if name not in self._places:
                self._places[name] = Place(self, name)
            return self._places[name]

    def __iter__(self) -> Iterator[Place]:
        """Go through those that the installation uses, in the order in which they are marked."""
        return (self[name] for name in used_places(self.settings))

    def near(self) -> list[Place]:
        """Return those that are on this host."""
        return [place for place in self if place.raw.local is not None]

    def marked(self) -> set[str]:
        """Return the names of the places that the ledger remembers to have marked."""
        with self.ledger.read() as tx:
            self._marked = set(marked_places(tx))
        return self._marked

    def remembers(self, name: PlaceName) -> bool:
        """Whether the ledger has a place among those that it has marked."""
        return name in self._marked or name in self.marked()

    def mark_new(self) -> None:
        """Mark every place that is new, and remember all that are ours.

        Together, so that a ledger that is lost right after can still be told from one that never had tables.

        Raises:
            PlaceError: a place that was not marked before is missing or foreign; what is new may be marked by then.
            StorageError, OSError, LedgerError: as they say.
        """
        with self._lock:
            marked = self.marked()
            for place in self:
                if place.name in marked or place.name is PlaceName.WORK:
                    continue  # of work each host has its own, and may lose it
                if place._found_usable() is PlaceState.NEW:
                    place.put_mark()
                self.remember(place)

    def remember(self, place: Place) -> None:
        """Record in the ledger that a place carries the mark."""
        self.ledger.transact(lambda tx: remember_place(tx, place.name, place.raw.location, now_micros()))
        self._marked.add(place.name)

    def mark_at_open(self) -> None:
        """Mark the places of an installation that is new, or is older than marks.

        What is missing, foreign or cannot be looked at says so when it is used. A new installation does not wait here
        for an object store; its places there are marked when they are used.
        """
        if self.marked().issuperset({PlaceName.STAGING, PlaceName.TABLES}):
            return
        with self.ledger.read() as tx:
            known = bool(newest_segments(tx, 1) or datasets_with_tables(tx))
        if known or not uses_work(self.settings):
            with suppress(StorageError, OSError):
                self.mark_new()

    def require_segments(self, dataset: str) -> None:
        """Refuse to go on where the folder of a dataset's segments is another one than they were written to.

        One in which the ledger knows segments has the mark, or some of these, from a version that set none.

        Raises:
            SegmentsAway: it has neither.
            PlaceError: staging is missing or foreign, or cannot be looked at.
            LedgerError: the ledger cannot be read.
        """
        staging = self[PlaceName.STAGING].storage
        staging.require()
        if self._has_segments_mark(dataset):
            return
        with self.ledger.read() as tx:
            known = newest_segments_of(tx, dataset, _LOOKED_FOR)
        if known and all(staging.size(path) is None for path in known):
            raise SegmentsAway(dataset, staging.shown(dataset), there=staging.has_folder(dataset))

    def claim_segments(self, dataset: str) -> None:
        """Refuse as :meth:`require_segments`, and mark a folder that has no mark, before a segment is written there.

        Raises:
            PlaceError: as it says.
            StorageError, OSError: the mark cannot be written.
            LedgerError: the ledger cannot be read.
        """
        self.require_segments(dataset)
        if not self._has_segments_mark(dataset):
            self.mark_segments(dataset)

    def mark_segments(self, dataset: str) -> None:
        """Take the folder of a dataset's segments as it is, by giving it the mark.

        Raises:
            StorageError, OSError: it cannot be written.
        """
        put_empty_mark(self[PlaceName.STAGING].storage, segments_mark(dataset))

    def _has_segments_mark(self, dataset: str) -> bool:
        if time.monotonic() < self._folders_believed_until.get(dataset, 0.0):
            return True
        staging = self[PlaceName.STAGING].storage
        if staging.size(segments_mark(dataset)) is None:
            return False
        self._folders_believed_until[dataset] = time.monotonic() + staging.traits.believed_seconds
        return True

    def is_usable(self, name: PlaceName) -> bool:
        """Whether a place is neither missing nor foreign, and can be looked at."""
        try:
            self[name].require()
        except (StorageError, OSError):
            return False
        return True

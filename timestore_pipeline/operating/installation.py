"""The ways out on purpose: adopt a place, give a table up, make a copy an installation of its own.

Everything else that an installation does refuses a place that is not there or not its own, and waits. Here somebody
says what it is to be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection

from timestore_pipeline.building.lost_table import give_up_table
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import CopyInPlace, UnknownPlace
from timestore_pipeline.ledger.datasets import known_datasets
from timestore_pipeline.ledger.installation import (
    datasets_with_segments,
    datasets_with_tables,
    forget_place,
    marked_places,
    new_identity,
    remember_place,
    set_identity,
)
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.placement import PlaceName
from timestore_pipeline.places import Place, PlaceState
from timestore_pipeline.storage.marks import replace_mark
from timestore_pipeline.storage.table_folder import has_table
from timestore_pipeline.store import Store
from timestore_pipeline.table.opening import open_table, owner_of
from timestore_pipeline.table.own_table import OwnTable, tables_to_hand_over


def adopt(store: Store, name: str) -> str:
    """Take what is at a place for this installation's from now on, whatever it is; return in a sentence what was done.

    ``tables/<dataset>`` gives up a table that is gone, ``staging/<dataset>`` takes its folder of segments as it is.

    Raises:
        UnknownPlace: it has no such place.
        TableError: the table is there.
        StorageError, OSError, LedgerError: the place cannot be marked, or the ledger not be written.
    """
    kind, _, dataset = name.partition("/")
    known = {place.name for place in store.places}
    if dataset and kind == PlaceName.TABLES:
        with store.ledger.read() as tx:
            tables = datasets_with_tables(tx)
        if dataset not in tables:
            raise UnknownPlace(name, [*known, *(f"tables/{each}" for each in tables)])
        lost = give_up_table(store, dataset)
        again, gone = (lost.rows_staged_again, lost.rows_gone) if lost else (0, 0)
        return f"{name}: given up; {again:,} rows are staged again from segments, {gone:,} rows are lost"
    if dataset and kind == PlaceName.STAGING:
        with store.ledger.read() as tx:
            datasets = known_datasets(tx)
        if dataset not in datasets:
            raise UnknownPlace(name, [*known, *(f"staging/{each}" for each in datasets)])
        store.places.mark_segments(dataset)
        return f"{name}: {store.staging.shown(dataset)} is where its segments are from now on"
    if name not in known:
        raise UnknownPlace(name, known)
    place = store.places[PlaceName(name)]
    found = place.find()
    if found.state is PlaceState.OURS:
        store.places.remember(place)
        return f"{name}: {found.location} belongs to this installation already"
    replace_mark(place.raw, name, store.ledger.identity)
    if place.name is not PlaceName.WORK:
        store.places.remember(place)
    if place.name is PlaceName.STAGING:
        with store.ledger.read() as tx:
            datasets = datasets_with_segments(tx)
        for dataset in datasets:
            store.places.mark_segments(dataset)
    store.prepare_local_folders()
    return f"{name}: {found.location} belongs to this installation now"


@dataclass(frozen=True)
class NewIdentity:
    """The identity that an installation was given; ``marked`` are the places that carry it."""

    before: str
    identity: str
    marked: tuple[str, ...]


def change_identity(store: Store, *, in_place: bool = False) -> NewIdentity:
    """Make an installation of its own of a copy: another identity, in the ledger, in all of its places and tables.

    Nothing else may use the copy meanwhile; whatever has it open is refused afterwards, until it opens it again. Killed
    in the middle, it is to be done again, whatever places and tables say by then: until the ledger has the new identity
    everything gets yet another one, from then on what is left of the tables gets that.

    Args:
        store: the copy.
        in_place: also where a place is where the original had it: it is a copy of that place, as on another host.

    Raises:
        CopyInPlace: a place is where the original has it, so it is the original's; nothing was changed.
        PlaceError: a place is not there, or another installation's; nothing was changed.
        TableNotOurs: a table has commits that the ledger of the copy does not know; nothing was changed.
        StorageError, OSError, LedgerError: not all could be changed; do it again.
    """
    ledger = store.ledger
    with ledger.read() as tx:
        locations = marked_places(tx)
    places = list(store.places)
    names = tuple(place.name for place in places)
    before = _owner_before(store, places)
    if before is not None:
        _hand_over(tables_to_hand_over(store), ledger.identity)
        return NewIdentity(before, ledger.identity, names)
    shared = [place for place in places if locations.get(place.name) == place.raw.location]
    if shared and not in_place:
        raise CopyInPlace([(place.name, place.raw.location) for place in shared])
    tables = tables_to_hand_over(store)
    identity = new_identity()
    # Then the ledger: until then a process that is killed leaves places that say whose they are not.
    for place in places:
        replace_mark(place.raw, place.name, identity)

    def enter(tx: Connection) -> None:
        set_identity(tx, identity)
        for name in locations:
            forget_place(tx, name)
        for place in places:
            if place.name is not PlaceName.WORK:
                remember_place(tx, place.name, place.raw.location, now_micros())
        reach(CrashPoint.IDENTITY_RECORDED)

    before = ledger.identity
    ledger.transact(enter)
    ledger.read_identity_again()
    reach(CrashPoint.IDENTITY_COMMITTED)
    _hand_over(tables, identity)
    return NewIdentity(before, identity, names)


def _owner_before(store: Store, places: Iterable[Place]) -> str | None:
    """Return whose some tables still say they are, where a change was killed when all places had the new identity."""
    if any(place.find().state is not PlaceState.OURS for place in places):
        return None
    with store.ledger.read() as tx:
        tables = [(store.table(name), name) for name in datasets_with_tables(tx)]
    owners = {owner_of(open_table(place, name)) for place, name in tables if has_table(place)}
    return min(filter(None, owners - {store.ledger.identity}), default=None)


def _hand_over(tables: Iterable[OwnTable], identity: str) -> None:
    """Let tables say whose they are now; whatever they say, they are those that the ledger knows."""
    for table in tables:
        table.hand_over(identity)
        reach(CrashPoint.TABLE_HANDED_OVER)

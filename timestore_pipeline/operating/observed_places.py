"""A look at all places: for people, for metrics, and for whoever asks for work that cannot be done without them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from timestore_pipeline.errors import SegmentsAway, StorageError, TableGone
from timestore_pipeline.ledger.installation import datasets_with_segments
from timestore_pipeline.ledger.tables import table_versions
from timestore_pipeline.placement import PlaceName, hurried
from timestore_pipeline.places import Place, Places
from timestore_pipeline.storage.table_folder import has_table
from timestore_pipeline.store import Store

UNREACHABLE = "unreachable"
"""The state of a place that cannot be looked at."""

GONE = "gone"
"""The state of a table, or of the segments of a dataset, that are not where they were."""


@dataclass(frozen=True)
class ObservedPlace:
    """What was found of a place, or of a table or segments that are gone; without a problem it may be used."""

    name: str
    location: str
    state: str
    problem: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Expected:
    """What the ledger says is there: the versions of tables, None before the first, and who has segments."""

    tables: Mapping[str, int | None]
    segments: Collection[str]

    @classmethod
    def of(cls, tx: Connection) -> Expected:
        """Read it."""
        return cls(table_versions(tx), datasets_with_segments(tx))


def observe_places(store: Store) -> list[ObservedPlace]:
    """Look at every place, and whether the tables that the ledger knows are there; nothing is changed.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    with store.ledger.read() as tx:
        expected = Expected.of(tx)
    return _observe(store, list(Places(hurried(store.settings), store.ledger)), expected)


def observe_near_places(store: Store, expected: Expected) -> list[ObservedPlace]:
    """Look as :func:`observe_places` at those of this host: to ask an object store is too slow for every few seconds.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    return _observe(store, Places(hurried(store.settings), store.ledger).near(), expected)


def _observe(store: Store, looked_at: Collection[Place], expected: Expected) -> list[ObservedPlace]:
    places = list(_observed(looked_at))
    if not any(each.name == PlaceName.TABLES and not each.problem for each in places):
        return places
    staged = expected.segments if any(place.name is PlaceName.STAGING for place in looked_at) else ()
    return [*places, *_gone_tables(store, expected.tables), *_segments_away(store, staged)]


def _observed(places: Iterable[Place]) -> Iterator[ObservedPlace]:
    for place in places:
        location = place.raw.location
        try:
            found = place.find()
        except OSError as error:
            problem = str(error) if isinstance(error, StorageError) else error.strerror or str(error)
            yield ObservedPlace(place.name, location, UNREACHABLE, f"cannot be looked at: {problem}", "Mend that.")
            continue
        refusal = place.refusal(found)
        if refusal is None:
            yield ObservedPlace(place.name, location, found.state)
        else:
            yield ObservedPlace(place.name, location, found.state, refusal.reason, refusal.remedy)


def _gone_tables(store: Store, versions: Mapping[str, int | None]) -> Iterator[ObservedPlace]:
    for name, version in sorted(versions.items()):
        place = store.table(name)
        try:
            if version is None or has_table(place):
                continue
        except (StorageError, OSError):
            return  # the place of all tables says so
        error = TableGone(name, place.location, version)
        yield ObservedPlace(f"tables/{name}", place.location, GONE, f"has no table, and was at version {version}",
                            error.remedy)  # fmt: skip


def _segments_away(store: Store, datasets: Iterable[str]) -> Iterator[ObservedPlace]:
    for name in datasets:
        try:
            store.places.require_segments(name)
        except SegmentsAway as error:
            yield ObservedPlace(error.name, error.location, GONE, error.reason, error.remedy)
        except (StorageError, OSError):
            return  # staging says so


def problems_in_words(places: Iterable[ObservedPlace]) -> list[str]:
    """Return a sentence for each place that cannot be used."""
    return [f"{each.name}: {each.location} {each.problem}. {each.remedy}" for each in places if each.problem]

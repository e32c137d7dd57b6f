"""A ledger that was lost is made again from segments, tables, manifests and quarantine.

Exactly once (invariant 2) decides everything here: a slice is published if a manifest of a build that is in the table
says so, else it is staged; a batch is taken from one segment only. All is entered in one transaction: a rebuild that is
killed leaves a ledger that is as empty as before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Connection

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import Datasets, load_datasets
from timestore_pipeline.duck.connections import Connect, connector
from timestore_pipeline.durable_files import make_folder
from timestore_pipeline.errors import (
    LedgerError,
    LedgerInUse,
    NothingToRebuildFrom,
    RebuildFromOthers,
    SegmentsLost,
    TablesOfOthers,
    TimestoreError,
)
from timestore_pipeline.ledger import Ledger
from timestore_pipeline.ledger.datasets import register
from timestore_pipeline.ledger.installation import new_identity, set_identity
from timestore_pipeline.ledger.restoring import lock_ledger
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.placement import FIELDS, PlaceName, location_of, storage_at
from timestore_pipeline.places import Places
from timestore_pipeline.restoring.dataset import RestoredDataset, Restoring
from timestore_pipeline.restoring.evidence import (
    Evidence,
    datasets_with_files,
    gather,
    give_up_tables,
    refuse_tables_away,
)
from timestore_pipeline.restoring.replaced import (
    StagedSlice,
    identity_of_ledger,
    move_ledger_aside,
    put_ledger_back,
    refuse_ledger_of_others,
    staged_by,
    tables_known_to,
)
from timestore_pipeline.restoring.restored import last_retry
from timestore_pipeline.settings import Settings, load_settings, variable_name
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.layout import is_segment
from timestore_pipeline.storage.marks import UNREADABLE, put_mark, read_mark, replace_mark
from timestore_pipeline.storage.table_folder import has_table
from timestore_pipeline.store import Store, ledger_file, writer_pool
from timestore_pipeline.table.opening import open_table, owner_of


@dataclass(frozen=True)
class Rebuilt:
    """A ledger that was made again; ``moved_aside`` is where the one before is now."""

    location: str
    datasets: tuple[RestoredDataset, ...]
    moved_aside: Path | None = None

    @property
    def complete(self) -> bool:
        """Whether there was nothing that could not be restored."""
        return not any(each.problems for each in self.datasets)


@dataclass(frozen=True)
class Consent:
    """What somebody who has looked at the files agrees to; by default nothing is replaced, taken over or given up.

    Args:
        replace_existing: the new ledger comes in place of one that is in use or damaged, which is moved aside (SQLite
            only).
        adopt: take places without a mark for this installation's: somebody has looked that they are all there.
        take_over: let tables that are another installation's become this one's.
        lost_tables: datasets whose tables are gone for good: what segments still have of their rows is staged again.
        lost_segments: datasets of which segments that the replaced ledger has as staged are gone for good.
    """

    replace_existing: bool = False
    adopt: bool = False
    take_over: bool = False
    lost_tables: Collection[str] = ()
    lost_segments: Collection[str] = ()


def rebuild_ledger(
    settings: Settings | None = None,
    connect: Connect | None = None,
    *,
    by: str,
    consent: Consent = Consent(),
    progress: Callable[[str], None] = lambda sentence: None,
) -> Rebuilt:
    """Make the ledger again where it is gone or empty; nothing else of the installation may run meanwhile.

    It has the identity that the places carry: staging and tables, and whatever else is marked, must be there and be of
    one installation. Without the tables everything would be staged again, without staging the sweep would remove what
    it knows nothing of.

    Args:
        settings: the installation, by default that of the environment.
        connect: opens DuckDB connections.
        by: who does it, for people.
        consent: what may be done beyond that.
        progress: gets a sentence for each dataset.

    Raises:
        LedgerInUse: there is one with batches in it; nothing was done.
        PlaceError: staging or tables are not there, or not of one installation; nothing was done.
        LedgerError: it cannot be opened or written, or a file not read or synced; nothing was entered.
        TableNotOurs: a table is another installation's; nothing was done.
        TablesAway: a table is not there that a dataset has, and nobody has said that it is lost; nothing was done.
        SegmentsLost: segments with staged rows are not there, and nobody has said that they are lost; nothing was done.
        TableError: a table cannot be read, so nobody can say what is published; nothing was entered.
        SettingsError, DatasetsFileError: as they say.
    """
    settings = settings or load_settings()
    datasets = load_datasets(settings.datasets_path)
    take_over, adopt = consent.take_over, consent.adopt
    identity = _take_tables(settings) if take_over else common_identity(settings, datasets, adopt=adopt)
    make_folder(settings.temp_path)
    connect = connect or connector(settings)
    moved = None
    if consent.replace_existing:
        _refuse_to_replace(settings, datasets, connect, identity, consent)
        moved = move_ledger_aside(settings)
    try:
        ledger = Ledger.open(
            settings.resolved_ledger_url,
            busy_timeout_seconds=settings.ledger_busy_timeout_seconds,
            identity=identity,
        )
        with Store(settings, datasets, ledger, connect, writer_pool(settings, connect)) as store:
            restored = _make_again(store, identity, consent, by, progress)
    except Exception:
        put_ledger_back(settings, moved)
        raise
    return Rebuilt(ledger.location, tuple(restored), moved)


def _make_again(
    store: Store, identity: str, consent: Consent, by: str, progress: Callable[[str], None]
) -> list[RestoredDataset]:
    """Enter all that is found into a new ledger, in one transaction."""
    ledger = store.ledger
    try:
        _give_identity(ledger, identity)
        _mark(store.places, adopt=consent.adopt)
        with ledger.write() as tx:
            _refuse_if_in_use(ledger, tx)
            give_up_tables(store, consent.lost_tables)
            refuse_tables_away(store)
            restored = _restore_all(store, tx, by, consent.take_over, progress)
            reach(CrashPoint.LEDGER_REBUILT)
    except TimestoreError:
        raise
    except OSError as error:
        raise LedgerError(
            f"the ledger {ledger.location} could not be made again: {error}. Nothing was entered; run it again"
        ) from error
    return restored


def common_identity(settings: Settings, datasets: Datasets, *, adopt: bool) -> str:
    """Return the identity that staging and tables carry; with ``adopt`` those without a mark are passed over.

    Where neither has a mark, it is the one that all tables say they belong to, or that of the ledger.

    Raises:
        PlaceError: one of them is not there or has no mark, or they are of different installations; or
            nothing but the tables says whose they are.
    """
    names = (PlaceName.STAGING, PlaceName.TABLES)
    places = {name: storage_at(settings, location_of(settings, name)) for name in names}
    marks = {name: read_mark(place, name) for name, place in places.items()}
    marked = marks[PlaceName.STAGING] or marks[PlaceName.TABLES] or _owner_of_all(settings, datasets)
    owner = marked or identity_of_ledger(settings) or new_identity()
    for name, mark in marks.items():
        place = places[name]
        if mark is not None and (mark != owner or mark == UNREADABLE):
            raise RebuildFromOthers(name, place.location, mark, owner)
        if mark is None and not adopt:
            raise NothingToRebuildFrom(name, place.location, variable_name(FIELDS[name]), there=place.has_folder())
    if marks[PlaceName.STAGING] is None and not _may_be_of(settings, places[PlaceName.STAGING], owner):
        tables = places[PlaceName.TABLES]
        if marks[PlaceName.TABLES] is not None or _owner_of_all(settings, datasets) == owner:
            raise TablesOfOthers(tables.location, owner)
    return owner


def _may_be_of(settings: Settings, staging: Storage, owner: str) -> bool:
    """Whether the ledger says that this installation is ``owner``, or there are segments, so that it is no new one."""
    if identity_of_ledger(settings) == owner:
        return True
    return any(is_segment(entry.key) for entry in staging.entries())


def _owner_of_all(settings: Settings, datasets: Datasets) -> str | None:
    """Return the identity of the installation that all tables belong to; None where they say none or several."""
    found = set()
    for name in datasets:
        place = storage_at(settings, settings.table_location(name))
        if has_table(place):
            found.add(owner_of(open_table(place, name)))
    found.discard(None)
    return found.pop() if len(found) == 1 else None


def _take_tables(settings: Settings) -> str:
    """Give the place of the tables the mark of the installation that takes them over; return its identity.

    That is the one of staging or of the ledger; a host that has neither yet is a new installation.

    Raises:
        StorageError, OSError: the mark cannot be read or written.
    """
    staging, tables = (
        storage_at(settings, location_of(settings, name)) for name in (PlaceName.STAGING, PlaceName.TABLES)
    )
    identity = read_mark(staging, PlaceName.STAGING)
    if identity in (None, UNREADABLE):
        identity = identity_of_ledger(settings) or new_identity()
    if read_mark(tables, PlaceName.TABLES) != identity:
        replace_mark(tables, PlaceName.TABLES, identity)
    return identity


def _refuse_if_in_use(ledger: Ledger, tx: Connection) -> None:
    known = lock_ledger(tx)
    if known:
        raise LedgerInUse(ledger.location, known)


def _give_identity(ledger: Ledger, identity: str) -> None:
    """Give the identity of the places to a ledger that was opened before anybody knew that one was lost."""

    def give(tx: Connection) -> None:
        _refuse_if_in_use(ledger, tx)
        set_identity(tx, identity)

    ledger.transact(give)
    ledger.read_identity_again()


def _mark(places: Places, *, adopt: bool) -> None:
    """Give places their marks where they have none, and remember all; before the transaction, as it takes one itself.

    The archive too, which is not needed here: it had its mark if staging had.
    """
    for place in places:
        if place.name is not PlaceName.WORK:
            if place.name is not PlaceName.ARCHIVE or adopt:
                put_mark(place.raw, place.name, places.ledger.identity)
            places.remember(place)


def _refuse_to_replace(
    settings: Settings, datasets: Datasets, connect: Connect, identity: str, consent: Consent
) -> None:
    """Read all that a rebuild needs, and change nothing: a ledger that nothing else can stand in for is not moved."""
    file = ledger_file(settings)
    if file is not None and file.exists():
        refuse_ledger_of_others(file, identity)
    ledger = Ledger.open("sqlite://", identity=identity)
    with Store(settings, datasets, ledger, connect, writer_pool(settings, connect)) as store:
        refuse_tables_away(store, tables_known_to(file), consent.lost_tables)
        found = {
            name: gather(store, name, fence=False, take_over=consent.take_over)
            for name in sorted(datasets_with_files(store))
        }
        _refuse_segments_lost(store, staged_by(file), found, consent.lost_segments)


def _refuse_segments_lost(
    store: Store, staged: Collection[StagedSlice], found: Mapping[str, Evidence], lost: Collection[str]
) -> None:
    """Refuse to forget staged rows because their segments are away.

    An older ledger has slices as staged that were published since, and whose segments are gone for that.

    Raises:
        SegmentsLost: some are.
    """
    there = {entry.key for entry in store.staging.entries()} if staged else set()
    away: dict[str, int] = {}
    published = {
        (each.contribution.segment_id, each.contribution.window_start)
        for evidence in found.values()
        if evidence.table is not None
        for each in evidence.table.published
    }
    for piece in staged:
        known = piece.path in there or (piece.segment_id, piece.window_start) in published
        if not known and piece.dataset not in lost:
            away[piece.dataset] = away.get(piece.dataset, 0) + piece.rows
    if away:
        raise SegmentsLost([(name, rows, store.staging.shown(name)) for name, rows in sorted(away.items())])


def _restore_all(
    store: Store, tx: Connection, by: str, take_over: bool, progress: Callable[[str], None]
) -> list[RestoredDataset]:
    restored = []
    found = {name: gather(store, name, take_over=take_over) for name in sorted(datasets_with_files(store))}
    next_entry = 1 + max((last_retry(evidence) for evidence in found.values()), default=0)
    for name, evidence in found.items():
        restoring = Restoring(store, tx, evidence, by)
        outcome, next_entry = restoring.restore(next_entry)
        restored.append(outcome)
        progress(f"{name}: {outcome.staged_rows:,} rows staged, {outcome.published_rows:,} rows published")
    refused = register(tx, store.datasets.values(), now_micros())
    return [
        replace(each, problems=(*each.problems, str(refused[each.dataset]))) if each.dataset in refused else each
        for each in restored
    ]

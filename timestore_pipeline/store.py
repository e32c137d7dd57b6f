"""An installation of timestore, opened: its settings, its datasets, its ledger and its DuckDB connections.

The parts (landing, staging, building, …) are functions that take a :class:`Store`; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from sqlalchemy import Connection

from timestore_pipeline.datasets import Datasets, DatasetSpec, load_datasets
from timestore_pipeline.duck.connections import Connect, ConnectionPool, connector
from timestore_pipeline.durable_files import make_folder
from timestore_pipeline.errors import LedgerLost, TimestoreError
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger import Ledger
from timestore_pipeline.ledger.datasets import known_datasets, refused_datasets, register
from timestore_pipeline.ledger.engines import parse_ledger_url, sqlite_file
from timestore_pipeline.ledger.limits import limits_set
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.placement import PlaceName, location_of, marks_found, storage_at, uses_work
from timestore_pipeline.places import Places
from timestore_pipeline.policy import Policy
from timestore_pipeline.settings import Settings, load_settings
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.layout import folders_of, is_segment
from timestore_pipeline.storage.table_folder import has_table

log = log_named(__name__)


@dataclass(frozen=True)
class Store:
    """Handle on one installation. Use it as a context manager, or :meth:`close` it.

    Example:
        >>> with Store.open() as store:
        ...     receipt = stage(store, "weather", table)
    """

    settings: Settings
    datasets: Datasets
    ledger: Ledger
    connect: Connect
    writers: ConnectionPool

    @classmethod
    def open(
        cls, settings: Settings | None = None, connect: Connect | None = None, datasets: Datasets | None = None
    ) -> Self:
        """Open the installation that ``settings`` (by default the environment) describes.

        ``datasets`` are those of the datasets file, for a process that has read it already. Those that contradict what
        the ledger has of them are refused (``store.datasets.refused``), and the others work.

        Raises:
            SettingsError, DatasetsFileError, LedgerError: it is not usable; says what to do.
        """
        settings = settings or load_settings()
        datasets = load_datasets(settings.datasets_path) if datasets is None else datasets
        refuse_in_place_of_a_lost_ledger(settings, datasets)
        ledger = Ledger.open(
            settings.resolved_ledger_url,
            busy_timeout_seconds=settings.ledger_busy_timeout_seconds,
            pool_size=settings.ledger_pool_size,
        )
        try:
            datasets = datasets.refusing(_registered(settings, datasets, ledger))
        except BaseException:
            ledger.close()
            raise
        for error in datasets.refused.values():
            log.error("%s", error)
        connect = connect or connector(settings)
        store = cls(settings, datasets, ledger, connect, writer_pool(settings, connect))
        try:
            store.places.mark_at_open()
            store.prepare_local_folders()
        except BaseException:
            store.close()
            raise
        return store

    @cached_property
    def places(self) -> Places:
        """Where everything is, and whether it is ours."""
        return Places(self.settings, self.ledger)

    @property
    def staging(self) -> Storage:
        """Where the segments are, and what was set aside."""
        return self.places[PlaceName.STAGING].storage

    @cached_property
    def landing(self) -> Storage:
        """Where files land, which is nobody's."""
        return storage_at(self.settings, self.settings.landing_location)

    @property
    def archive(self) -> Storage:
        """Where landing files go when their batches are acknowledged."""
        return self.places[PlaceName.ARCHIVE].storage

    def prepare_local_folders(self) -> None:
        """Make DuckDB's folder for temporary files, unless that is to be on a disk that is not there.

        Raises:
            PlaceForeign: the work directory is another installation's.
        """
        settings = self.settings
        if uses_work(settings):
            self.places[PlaceName.WORK].claim()
        if not self.staging.holds(settings.temp_path) or self.places.is_usable(PlaceName.STAGING):
            make_folder(settings.temp_path)

    def close(self) -> None:
        """Close the ledger and the idle connections."""
        self.writers.close()
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def policy(self, tx: Connection, spec: DatasetSpec) -> Policy:
        """What holds for a dataset now."""
        return Policy.of(self.settings, spec, limits_set(tx, spec.name).get(spec.name))

    def policies(self, tx: Connection) -> dict[str, Policy]:
        """What holds for every declared dataset now, by name."""
        by_operators = limits_set(tx)
        return {
            name: Policy.of(self.settings, spec, by_operators.get(name))
            for name, spec in self.datasets.declared.items()
        }

    def segment_folders(self, dataset: str) -> tuple[Path, ...]:
        """The local folders of a dataset's segments: those damaged in part lie among what was set aside."""
        root = self.staging.root
        home, aside, _ = folders_of(dataset)
        return root / home, root / aside

    @property
    def tables(self) -> Storage:
        """Where the tables are, each in a folder named after its dataset."""
        return self.places[PlaceName.TABLES].storage

    def table(self, dataset: str) -> Storage:
        """Where the files of a dataset's Delta table are."""
        if dataset not in self._tables:
            self._tables[dataset] = self.places[PlaceName.TABLES].part(dataset)
        return self._tables[dataset]

    @cached_property
    def _tables(self) -> dict[str, Storage]:
        return {}


def _registered(settings: Settings, datasets: Datasets, ledger: Ledger) -> Mapping[str, TimestoreError]:
    """Make sure that the ledger has every dataset; return those that must be left alone, with the reason.

    Raises:
        LedgerLost: it has none of them, and there are files of one: this is not their ledger.
    """
    with ledger.read() as tx:
        refused = refused_datasets(tx, datasets.declared.values())
    if refused is not None:
        return refused

    def enter(tx: Connection) -> dict[str, TimestoreError]:
        known = known_datasets(tx)
        # In here, because the first process to open a new installation may have rows staged by now.
        lost = {
            name: LedgerLost(ledger.location, found)
            for name in datasets.declared.keys() - known
            if (found := files_of_unknown(settings, [name]))
        }
        if lost and not known & datasets.declared.keys():
            raise LedgerLost(ledger.location, [file for name in sorted(lost) for file in lost[name].found])
        rest = [spec for name, spec in datasets.declared.items() if name not in lost]
        return {**lost, **register(tx, rest, now_micros())}

    return ledger.transact(enter)


def writer_pool(settings: Settings, connect: Connect) -> ConnectionPool:
    """Return the connections that segments are written with, which reach staging and landing files."""
    return ConnectionPool(connect, storage_at(settings, settings.staging_location).root, settings.landing_path)


def refuse_in_place_of_a_lost_ledger(settings: Settings, datasets: Iterable[str]) -> None:
    """Raise :class:`LedgerLost` where the ledger is a file that is not there, and there are files of its installation.

    Else one would be made, perhaps in the empty folder on which the disk is not mounted that has the real one.
    """
    file = ledger_file(settings)
    if file is None or file.exists():
        return
    found = signs_of_a_ledger(settings, datasets)
    if found and not file.exists():  # the first process to open a new installation may have made it by now
        raise LedgerLost(str(file), found)


def ledger_file(settings: Settings) -> Path | None:
    """Return the file of a SQLite ledger; None where it is another database.

    Raises:
        LedgerError: TIMESTORE_LEDGER_URL is no URL.
    """
    return sqlite_file(parse_ledger_url(settings.resolved_ledger_url))


def signs_of_a_ledger(settings: Settings, datasets: Iterable[str]) -> list[str]:
    """Return what there is of an installation that no ledger is known of: marks, segments and tables."""
    places = [
        f"{name} of the installation {identity} at {storage_at(settings, location_of(settings, name)).location}"
        for name, identity in marks_found(settings).items()
    ]
    return [*files_of_unknown(settings, datasets), *places]


def files_of_unknown(settings: Settings, datasets: Iterable[str]) -> list[str]:
    """Return where there are segments or tables of datasets that the ledger does not know: it is not their ledger.

    Without it these segments would be swept as orphans, and published rows published again.
    """
    found = []
    staging = storage_at(settings, settings.staging_location)
    for name in sorted(datasets):
        table = storage_at(settings, settings.table_location(name))
        if any(is_segment(entry.key) for entry in staging.entries(f"{name}/")):
            found.append(f"the segments in {staging.shown(name)}")
        if has_table(table):
            found.append(f"the table {table.location}")
    return found

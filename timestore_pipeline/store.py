"""An installation of timestore, opened: its settings, its datasets, its ledger and its DuckDB connections.

The parts (landing, staging, building, …) are functions that take a :class:`Store`; it decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from timestore_pipeline.connections import Connect, ConnectionPool, connector
from timestore_pipeline.datasets import Datasets, DatasetSpec, load_datasets
from timestore_pipeline.ledger import Ledger
from timestore_pipeline.ledger.registry import register, unregistered
from timestore_pipeline.settings import Settings, load_settings


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

        ``datasets`` are those of the datasets file, for a process that has read it already.

        Raises:
            SettingsError, DatasetsFileError, LedgerError: it is not usable; says what to do.
        """
        settings = settings or load_settings()
        datasets = load_datasets(settings.datasets_path) if datasets is None else datasets
        ledger = Ledger.open(settings.resolved_ledger_url, busy_timeout_seconds=settings.ledger_busy_timeout_seconds)
        with ledger.read() as tx:
            incomplete = unregistered(tx, datasets.values())
        if incomplete:
            with ledger.write() as tx:
                register(tx, datasets.values())
        settings.temp_path.mkdir(parents=True, exist_ok=True)
        connect = connect or connector(settings)
        return cls(settings, datasets, ledger, connect, ConnectionPool(connect))

    def close(self) -> None:
        """Close the ledger and the idle connections."""
        self.writers.close()
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def max_pending(self, spec: DatasetSpec) -> int:
        """The most staged, unpublished batches of a dataset; 0 is no limit."""
        own = spec.limits.max_pending
        return self.settings.staging_max_pending if own is None else own

    def max_dataset_bytes(self, spec: DatasetSpec) -> int:
        """The size guardrail of a dataset in bytes; 0 is none."""
        own = spec.limits.max_bytes
        return self.settings.staging_max_dataset_bytes if own is None else own

    def segment_path(self, relative: str) -> Path:
        """The file that a ledger row's path, relative to the staging directory, means."""
        return self.settings.staging_path / relative

    def table_path(self, dataset: str) -> Path:
        """The folder of a dataset's Delta table."""
        return self.settings.tables_path / dataset

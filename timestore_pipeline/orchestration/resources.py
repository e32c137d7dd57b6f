"""What assets and sensors work with: the opened store and the Pushgateway, both as the environment says."""

# No `from __future__ import annotations`: Dagster reads the annotations of a resource as they stand.
import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import dagster as dg
from dagster_duckdb import DuckDBResource
from duckdb import DuckDBPyConnection
from pydantic import PrivateAttr

from timestore_pipeline.datasets import Datasets
from timestore_pipeline.duck.connections import confined, connection_config
from timestore_pipeline.landing.files import files_for_one_run, scan_landing
from timestore_pipeline.landing.found import LandingFile
from timestore_pipeline.orchestration.logs import InertLog
from timestore_pipeline.settings import Settings
from timestore_pipeline.store import Store

Shares = Mapping[str, tuple[LandingFile, ...]]

# So that pushing takes at most a tenth of a run's time.
_PAUSE_AFTER_PUSH = 10


@dataclass(frozen=True)
class Installation:
    """Which installation a code location serves: the settings and datasets that it was loaded with.

    A changed datasets file counts once the code location is reloaded: assets and ledger must not disagree before.
    """

    settings: Settings
    datasets: Datasets


def duckdb_resource(settings: Settings) -> DuckDBResource:
    """Return the DuckDB connections of ``settings``: in memory, with their threads, memory limit and temp directory."""
    return DuckDBResource(database=":memory:", connection_config=connection_config(settings))


class StoreResource(dg.ConfigurableResource):
    """The opened installation; opened once per run (and per sensor tick), closed at its end.

    Both fields are objects rather than config, so that neither paths nor a ledger's password get into run config.
    """

    duckdb: dg.ResourceDependency[DuckDBResource]
    installation: dg.ResourceDependency[Installation]

    _store: Store | None = PrivateAttr(default=None)
    _shares: Shares | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Open the store."""
        self._store = Store.open(
            self.installation.settings, connect=confined(self._connection), datasets=self.installation.datasets
        )

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()
        self._store = self._shares = None

    @property
    def opened(self) -> Store:
        """The store."""
        if self._store is None:
            raise RuntimeError("the store is open only while a run or a sensor tick lasts")
        return self._store

    def landing_share(self, dataset: str, datasets: Iterable[str]) -> tuple[LandingFile, ...]:
        """Return the files of ``dataset`` that this run takes; ``datasets`` are all that it ingests.

        Landing is looked at once per run, by the first step that asks: the bounds are those of a whole run.
        """
        if self._shares is None:
            self._shares = files_for_one_run(self.opened, scan_landing(self.opened, list(datasets)))
        return self._shares.get(dataset, ())

    @contextlib.contextmanager
    def _connection(self) -> Iterator[DuckDBPyConnection]:
        # DuckDBResource leaves the connection open when the block raises, and with it memory and attached segments.
        with self.duckdb.get_connection() as connection:
            try:
                yield connection
            finally:
                connection.close()


class MetricsResource(dg.ConfigurableResource):
    """Pushes the metrics to the Pushgateway, if there is one; whatever happens is at most a warning.

    Each push is the whole picture, which grows with the number of datasets, and so does the number of steps of a run.
    So steps of one run push again only after ten times the time that the last push took; what is left out then is
    made up for at the end of the run.
    """

    _not_before: float = PrivateAttr(default=0.0)
    _owed: tuple[Store, InertLog] | None = PrivateAttr(default=None)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Push what the last steps left out."""
        if self._owed is None:
            return
        store, log = self._owed
        try:
            self._push(store, log)
        finally:
            # The run's store may have been closed before, and its ledger has been opened again by this.
            store.ledger.close()

    def push(self, store: Store, log: InertLog) -> str:
        """Push the current picture of the ledger, unless that was done just now, and return what happened, in words."""
        if store.settings.pushgateway_url is None:
            return "metrics are off: TIMESTORE_PUSHGATEWAY_URL is not set"
        if time.monotonic() < self._not_before:
            self._owed = (store, log)
            return "metrics are pushed at the end of the run: they were just now, and take long"
        return self._push(store, log)

    def _push(self, store: Store, log: InertLog) -> str:
        # The only user of prometheus_client in a code location, so it costs only those that push.
        from timestore_pipeline.metrics.pushgateway import push_metrics

        began = time.monotonic()
        result = push_metrics(store)
        ended = time.monotonic()
        self._not_before = ended + _PAUSE_AFTER_PUSH * (ended - began)
        self._owed = None
        if result.pushed:
            return result.reason
        log.warning("metrics were not pushed: %s", result.reason)
        return f"metrics were not pushed: {result.reason}"

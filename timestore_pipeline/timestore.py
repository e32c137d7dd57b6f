"""The way in and out for a program of one's own: an installation, opened, with what one does with it.

Decides nothing: every method is one call into the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import duckdb

from timestore_pipeline.datasets import Datasets
from timestore_pipeline.errors import QueryError
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.model.windows import Moment
from timestore_pipeline.reading.relations import Snapshot
from timestore_pipeline.reading.rows import Rows, past_snapshots, query_rows, range_query
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.frame_rows import range_of
from timestore_pipeline.staging.frames import Frame
from timestore_pipeline.staging.receipts import Receipt
from timestore_pipeline.staging.stage import incoming_of, stage_incoming
from timestore_pipeline.staging.writer import MAX_WAITING_BYTES, Writer
from timestore_pipeline.store import Store


class Tables:
    """The datasets as they are to be read: now, or in the past (see :meth:`Timestore.as_of`)."""

    def __init__(self, store: Store, take: Callable[[list[str]], list[Snapshot]] | None = None) -> None:
        self._store = store
        self._take = take

    def read(
        self,
        dataset: str,
        start: Moment | None = None,
        end: Moment | None = None,
        columns: Sequence[str] | None = None,
        filter: str | None = None,
    ) -> Rows:
        """Return rows of one dataset, in no particular order.

        Files and segments that can have none of them are not opened. The rows are those of the moment of this call,
        whenever they are fetched.

        Args:
            dataset: a declared dataset.
            start: the first time; a datetime (naive means UTC), a date, or ISO 8601 text.
            end: the first time that is not wanted any more.
            columns: names of the columns, in order; all of them by default.
            filter: a SQL condition on the dataset's columns, such as ``"station = 'JFK' AND temp > 20"``.

        Raises:
            UnknownDataset: the dataset is not declared.
            QueryError: a column, a time or the filter is wrong.
            SegmentUnreadable, LedgerError, TableError, PlaceError: as they say.
        """
        spec = self._store.datasets[dataset]
        with self._store.ledger.read() as tx:
            known = dataset_columns(tx, spec)
        wanted = None if columns is None else list(columns)
        return query_rows(self._store, range_query(spec, known, start, end, wanted, filter), self._take)

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Return a query in which every dataset is a table, as a DuckDB relation.

        The relation is lazy, and its rows are those of the moment of this call. Where a WHERE clause compares columns
        with constants, files and segments that can have no such rows are not opened.

        Raises:
            QueryError: it is no query, cannot be run, or would do more than read.
            SegmentUnreadable, LedgerError, TableError, PlaceError: as they say.
        """
        return query_rows(self._store, query, self._take).relation


class Timestore(Tables):
    """An installation of timestore, opened. Use it as a context manager, or :meth:`close` it. Threads may share it.

    Example:
        >>> with Timestore.open() as timestore:
        ...     receipt = timestore.stage("weather", frame, batch_id="weather-2026-11-22")
        ...     hot = timestore.read("weather", start="2026-11-22", filter="temp > 30").to_pandas()
    """

    @classmethod
    def open(cls, settings: Settings | None = None) -> Self:
        """Open the installation that ``settings`` describe, by default the ``TIMESTORE_*`` variables.

        Raises:
            SettingsError, DatasetsFileError, LedgerError: it is not usable; says what to do.
        """
        return cls(Store.open(settings))

    def close(self) -> None:
        """Close the installation. Rows and relations that were taken from it can still be read."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def store(self) -> Store:
        """The opened installation, as the other parts of the library take it."""
        return self._store

    @property
    def datasets(self) -> Datasets:
        """The declared datasets by name."""
        return self._store.datasets

    def stage(
        self,
        dataset: str,
        data: Frame,
        batch_id: str | None = None,
        *,
        source: str = "stage()",
        wait_seconds: float = 0.0,
        replace: tuple[Moment, Moment] | None = None,
    ) -> Receipt:
        """Stage a frame as one batch. When this returns, its rows are on disk, and queries have them.

        With ``replace=(start, end)`` they are all rows of that range of times (its end is not part of it): from then on
        nobody sees an earlier one. See :func:`timestore_pipeline.staging.stage.stage` for arguments and errors, and
        :func:`timestore_pipeline.staging.stage.incoming_of` for what a replacement is.

        Raises:
            BadRange: ``replace`` has no time in it; besides what ``stage`` raises.
        """
        incoming = incoming_of(self._store, dataset, data, batch_id, source, range_of(dataset, replace))
        return stage_incoming(self._store, dataset, incoming, wait_seconds)

    def writer(
        self,
        dataset: str,
        *,
        wait_seconds: float = 0.0,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        source: str = "writer()",
    ) -> Writer:
        """Return a writer, which many callers share to stage many small batches: they share segments and commits.

        It must be closed before this installation is. See :class:`timestore_pipeline.staging.writer.Writer`.
        """
        return Writer(
            self._store, dataset, wait_seconds=wait_seconds, max_waiting_bytes=max_waiting_bytes, source=source
        )

    def as_of(self, version: int | None = None, time: Moment | None = None) -> Tables:
        """Return the published tables as they were: at a version of their own count, or at a time.

        What is staged has no past. A version goes back for as long as the table keeps its files.

        Raises:
            QueryError: not exactly one of the two is given, or it is no version. (Reading raises TableError where there
                is no such version.)
        """
        if (version is None) == (time is None):
            raise QueryError("as_of takes either a table version or a time")
        if version is not None and (not isinstance(version, int) or version < 0):
            raise QueryError(f"version is {version!r}; a table version is a whole number from 0 on")
        return Tables(self._store, lambda names: past_snapshots(self._store, names, version, time))

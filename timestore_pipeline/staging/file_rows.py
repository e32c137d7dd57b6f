"""Files as one load: what an ingest run does with those that have landed, and ``stage_file`` with one from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path

import duckdb

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.formats.format import Reader
from timestore_pipeline.rows.read_plan import ReadPlan, plan_reads, wider_columns
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.segment import WrittenSegment
from timestore_pipeline.staging.arrivals import Arrivals
from timestore_pipeline.staging.deadline import Deadline
from timestore_pipeline.staging.incoming import Rows
from timestore_pipeline.store import Store


class ChangedWhileRead(TimestoreError):
    """A file was written to, or swapped for another one, while it was read; nothing of it was staged."""

    def __init__(self, source: str) -> None:
        self.reason = (
            f"{source} changed while it was read; it is taken when it is complete "
            "(write under a name that ends in .partial and rename it)"
        )
        super().__init__(self.reason)


class FileRows(Rows):
    """The rows of files, which lie in the landing folder or in ``folders``; all readings together have one deadline."""

    def __init__(
        self,
        store: Store,
        spec: DatasetSpec,
        arrivals: Arrivals,
        batches: Mapping[Path, IncomingBatch],
        folders: Sequence[Path] = (),
        *,
        take_late: bool = False,
    ) -> None:
        super().__init__(store, spec, list(batches.values()))
        self.paths = list(batches)
        self.take_late = take_late
        self._arrivals = arrivals
        self._folders = folders
        self._wider: dict[int, Sequence[Column]] = {}

    @cached_property
    def deadline(self) -> Deadline:
        """When reading has taken too long, from the first reading on."""
        return Deadline.of(self.spec.name, self.store.settings.landing_max_reading_seconds)

    @contextmanager
    def connection(self, numbers: Sequence[int]) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a connection that reaches the files."""
        del numbers
        with self.store.writers.connection(*self._folders) as connection, self.reading(connection):
            yield connection

    def reading(self, connection: duckdb.DuckDBPyConnection) -> AbstractContextManager[None]:
        """Return what goes on around the time in which files are read and written to a segment."""
        return self.deadline.over(connection)

    def plan(self, connection: duckdb.DuckDBPyConnection, schema: Schema | None, numbers: Sequence[int]) -> ReadPlan:
        """Plan to read files of one shape together; what does not fit is refused."""
        files = {number: self.paths[number] for number in numbers}
        plan = plan_reads(self._reader(connection), schema, files, self._wider)
        self.deadline.check()
        return plan

    def _reader(self, connection: duckdb.DuckDBPyConnection) -> Reader:
        return Reader(connection, self.spec, Bounds.of(self.store.settings))

    def unreadable(
        self, connection: duckdb.DuckDBPyConnection, schema: Schema | None, number: int, reason: str
    ) -> TimestoreError | None:
        """Return that it is refused, or has changed; a text file whose values want wider types is read with these."""
        self.deadline.check()  # readers take an interrupt for something that is wrong with a file
        path = self.paths[number]
        if not self._arrivals.is_unchanged(path):
            return ChangedWhileRead(self.batches[number].source)
        if schema is not None and self.spec.evolves and number not in self._wider:
            self._wider[number] = wider_columns(self._reader(connection), schema, path)
            if self._wider[number]:
                return None
        return self.rejected(number, reason)

    def withheld(self, order: Sequence[int], written: WrittenSegment) -> Mapping[int, TimestoreError]:
        """Leave files alone that have changed."""
        del written
        return {
            number: ChangedWhileRead(self.batches[number].source)
            for number in order
            if not self._arrivals.is_unchanged(self.paths[number])
        }

"""A state machine beside a model: rows of ``orders`` are staged, built and lost, and builds die, in whatever order."""

from __future__ import annotations

import shutil
import tempfile
from abc import abstractmethod
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from timestore_pipeline.building import writing as writing_module
from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import RebuildRefused
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.quarantine import DamagedSegment, open_entries, set_slices_aside
from timestore_pipeline.ledger.slices import unclaimed_slices
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import WindowRange
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline.reading import relations
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.segments import slices as slices_module
from timestore_pipeline.settings import Settings
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import NEW_YEAR, in_order, published
from timestore_pipeline_tests.deaths import may_die_at

DAYS = 3
HOURS = st.integers(0, 24 * DAYS - 1)

Row = tuple[Any, ...]


class MachineOfOrders(RuleBasedStateMachine):
    """A store with the dataset ``orders`` (``id`` is its second column), of windows of a day.

    A subclass calls :meth:`begin_with` and says which rows are there. ``away`` are slices in quarantine: each by its
    segment and its day.
    """

    columns: tuple[str, ...]
    """The columns that the dataset begins with."""

    def begin_with(self, datasets_yaml: str, retention: float) -> None:
        """Open the store of a new installation."""
        self.home = Path(tempfile.mkdtemp())
        self.retention = retention
        self.away: set[tuple[str, int]] = set()
        self.grown = 0
        (self.home / "datasets.yaml").write_text(datasets_yaml)
        self.open_store()
        self.patched = pytest.MonkeyPatch()
        # So small that most builds and reads gather segments first, and some do not.
        for module in (writing_module, relations, slices_module):
            self.patched.setattr(module, "MOST_ATTACHED", 2)

    def open_store(self) -> None:
        self.store = Store.open(
            Settings(home=self.home, staging_min_free_disk_bytes=0, staging_retention_seconds=self.retention)
        )

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        settle_dead_builds(self.store, lambda owner: True)
        self.retry_all()
        flush_windows(self.store, BuildOrder("orders", owner="the test"))
        assert self.readable() == self.expected()
        # A reader of Delta tables also sees the columns that came later.
        declared = slice(1, len(self.columns))
        assert in_order(row[declared] for row in published(self.store, "orders")) == in_order(
            row[declared] for row in self.expected()
        )
        assert audit_rows(self.store, "orders").wrong == ()
        self.store.close()
        self.patched.undo()
        shutil.rmtree(self.home)

    @abstractmethod
    def expected(self) -> list[Row]:
        """Return the rows that are to be readable."""

    def readable(self) -> list[Row]:
        table = query_rows(self.store, f"SELECT {', '.join(self.columns)} FROM orders").to_arrow()
        return in_order(row.values() for row in table.to_pylist())

    def building(self) -> bool:
        with self.store.ledger.read() as tx:
            return bool(builds_in_flight(tx))

    def with_growth(self, table: pa.Table, most: int) -> pa.Table:
        """Give a batch a column more than the one before had, up to ``most``; ``id`` gets wider with the second."""
        if self.grown < most:
            self.grown += 1
            table = table.append_column(f"more{self.grown}", pa.array([1.0] * len(table)))
            if self.grown == 2:
                table = table.set_column(1, "id", table["id"].cast(pa.int64()))
        return table

    def windows(self, day: int | None) -> WindowRange:
        spec = self.store.datasets["orders"]
        start = NEW_YEAR + timedelta(days=day or 0)
        window = None if day is None else spec.window_from_key(f"{start:%Y-%m-%d}")
        return WindowRange(window, window)

    @precondition(lambda self: not self.building())
    @rule(day=st.none() | st.integers(0, DAYS - 1))
    def flush(self, day: int | None) -> None:
        flush_windows(self.store, BuildOrder("orders", self.windows(day), owner="the test"))

    @precondition(lambda self: not self.building())
    @rule(day=st.none() | st.integers(0, DAYS - 1))
    def rebuild(self, day: int | None) -> None:
        with suppress(RebuildRefused):
            rebuild_windows(self.store, BuildOrder("orders", self.windows(day), owner="the test"))

    @precondition(lambda self: not self.building())
    @rule(
        point=st.sampled_from(
            [
                CrashPoint.PARQUET_IN_PLACE,
                CrashPoint.TABLE_CHECKED,
                CrashPoint.TABLE_SYNCED,
                CrashPoint.PUBLICATION_COMMITTED,
            ]
        ),
        builds=st.sampled_from([flush_windows, rebuild_windows]),
    )
    def build_and_die(self, point: CrashPoint, builds: Any) -> None:
        with suppress(RebuildRefused), may_die_at(point):
            builds(self.store, BuildOrder("orders", owner="the test"))

    @rule()
    def recover(self) -> None:
        settle_dead_builds(self.store, lambda owner: True)

    @precondition(lambda self: not self.building())
    @rule(data=st.data())
    def lose_a_slice(self, data: st.DataObject) -> None:
        with self.store.ledger.read() as tx:
            pieces = unclaimed_slices(tx, "orders")
        if not pieces:
            return
        piece = data.draw(st.sampled_from(pieces))
        with self.store.ledger.write() as tx:
            damaged = DamagedSegment("orders", piece.segment_id, piece.path, 1, "lost")
            set_slices_aside(tx, damaged, [piece.window_start], now_micros())
        day = (piece.window_start // 1_000_000 - int(NEW_YEAR.timestamp())) // 86_400
        self.away.add((piece.segment_id, day))

    @rule()
    def retry_all(self) -> None:
        with self.store.ledger.read() as tx:
            entries = open_entries(tx)
        for entry in entries:
            assert retry_entry(self.store, entry.id, "the test").done
        self.away.clear()

    @precondition(lambda self: not self.building())
    @rule()
    def compact(self) -> None:
        compact_fully(self.store, BuildOrder("orders", owner="the test"))

    @rule()
    def clean_up(self) -> None:
        unlink_published_segments(self.store)
        sweep_orphans(self.store, older_than_seconds=0)

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.open_store()

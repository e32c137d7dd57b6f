"""A dataset with a key beside a dictionary: whatever happens in whatever order, a window has the row that wins."""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from timestore_pipeline.building import writing as writing_module
from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint
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
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import NEW_YEAR, in_order, published
from timestore_pipeline_tests.deaths import may_die_at
from timestore_pipeline_tests.sampling import examples

DATASETS = """
datasets:
  orders:
    columns: {ts: timestamptz, id: int, value: double, version: int}
    evolve: true
    time: ts
    window: day
    key: {columns: [id]%s}
"""
DAYS = 3

# (hour, id, value, version)
rows = st.tuples(
    st.integers(0, 24 * DAYS - 1), st.integers(0, 4), st.integers(0, 9).map(float), st.none() | st.integers(0, 3)
)


class OneRowPerKey(RuleBasedStateMachine):
    """A store beside {(day, key): (version, position, row)} of what was acknowledged and is not in quarantine."""

    @initialize(version=st.booleans())
    def begin(self, version: bool) -> None:
        self.home = Path(tempfile.mkdtemp())
        self.by_version = version
        self.acked: list[tuple[int, Any, tuple[Any, ...], str]] = []
        self.away: set[tuple[str, int]] = set()
        self.columns = 0
        self.open_store()
        self.patched = pytest.MonkeyPatch()
        for module in (writing_module, relations, slices_module):
            self.patched.setattr(module, "MOST_ATTACHED", 2)

    def open_store(self) -> None:
        (self.home / "datasets.yaml").write_text(DATASETS % (", version: version" if self.by_version else ""))
        self.store = Store.open(Settings(home=self.home, staging_min_free_disk_bytes=0, staging_retention_seconds=0))

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        settle_dead_builds(self.store, lambda owner: True)
        self.retry_all()
        flush_windows(self.store, BuildOrder("orders", owner="the test"))
        assert self.readable() == self.expected()
        assert in_order(row[1:4] for row in published(self.store, "orders")) == in_order(
            row[1:4] for row in self.expected()
        )
        assert audit_rows(self.store, "orders").wrong == ()
        self.store.close()
        self.patched.undo()
        shutil.rmtree(self.home)

    def expected(self) -> list[tuple[Any, ...]]:
        winners: dict[tuple[int, int], tuple[tuple[Any, ...], tuple[Any, ...]]] = {}
        for position, (day, id_, row, segment) in enumerate(self.acked):
            if (segment, day) in self.away:
                continue
            version = row[3] if self.by_version else None
            rank = (version is not None, version or 0, position)
            if (day, id_) not in winners or winners[day, id_][0] < rank:
                winners[day, id_] = rank, row
        return in_order(row for _, row in winners.values())

    def readable(self) -> list[tuple[Any, ...]]:
        table = query_rows(self.store, "SELECT ts, id, value, version FROM orders").to_arrow()
        return in_order(row.values() for row in table.to_pylist())

    def building(self) -> bool:
        with self.store.ledger.read() as tx:
            return bool(builds_in_flight(tx))

    @rule(batch=st.lists(rows, min_size=1, max_size=6), grows=st.booleans())
    def stage_a_batch(self, batch: list[tuple[int, int, float, int | None]], grows: bool) -> None:
        moments = [NEW_YEAR + timedelta(hours=hour) for hour, *_ in batch]
        kept = [(moment, *rest) for moment, (_, *rest) in zip(moments, batch, strict=True)]
        table = pa.table(
            {
                "ts": pa.array(moments, pa.timestamp("us", "UTC")),
                "id": pa.array([row[1] for row in kept], pa.int32()),
                "value": [row[2] for row in kept], "version": pa.array([row[3] for row in kept], pa.int32()),
            }
        )  # fmt: skip
        if grows and self.columns < 3:
            self.columns += 1
            table = table.append_column(f"more{self.columns}", pa.array([1.0] * len(kept)))
            if self.columns == 2:
                table = table.set_column(1, "id", table["id"].cast(pa.int64()))
        receipt = stage(self.store, "orders", table, batch_id=f"b{len(self.acked)}")
        for (hour, *_), row in zip(batch, kept, strict=True):
            self.acked.append((hour // 24, row[1], row, receipt.segment_id or ""))

    @precondition(lambda self: not self.building())
    @rule(day=st.none() | st.integers(0, DAYS - 1))
    def flush(self, day: int | None) -> None:
        spec = self.store.datasets["orders"]
        start = NEW_YEAR + timedelta(days=day or 0)
        window = None if day is None else spec.window_from_key(f"{start:%Y-%m-%d}")
        flush_windows(self.store, BuildOrder("orders", WindowRange(window, window), owner="the test"))

    @precondition(lambda self: not self.building())
    @rule(
        point=st.sampled_from(
            [
                CrashPoint.PARQUET_IN_PLACE,
                CrashPoint.MANIFEST_WRITTEN,
                CrashPoint.TABLE_SYNCED,
                CrashPoint.PUBLICATION_COMMITTED,
            ]
        )
    )
    def flush_and_die(self, point: CrashPoint) -> None:
        with may_die_at(point):
            flush_windows(self.store, BuildOrder("orders", owner="the test"))

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
        sweep_orphans(self.store)

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.open_store()

    @invariant()
    def every_window_has_the_row_that_wins_for_each_key(self) -> None:
        if hasattr(self, "store"):
            assert self.readable() == self.expected()


OneRowPerKey.TestCase.settings = settings(
    max_examples=examples(12), stateful_step_count=14, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestOneRowPerKey = OneRowPerKey.TestCase

"""A dataset with a key beside a dictionary: whatever happens in whatever order, a window has the row that wins."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from timestore_pipeline.staging.stage import stage
from timestore_pipeline_tests.builders import NEW_YEAR, in_order
from timestore_pipeline_tests.reading.orders import HOURS, MachineOfOrders, Row
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
# (hour, id, value, version)
rows = st.tuples(HOURS, st.integers(0, 4), st.integers(0, 9).map(float), st.none() | st.integers(0, 3))


class OneRowPerKey(MachineOfOrders):
    """A store beside {(day, key): (version, position, row)} of what was acknowledged and is not in quarantine."""

    columns = ("ts", "id", "value", "version")

    @initialize(version=st.booleans())
    def begin(self, version: bool) -> None:
        self.by_version = version
        self.acked: list[tuple[int, Any, Row, str]] = []
        self.begin_with(DATASETS % (", version: version" if version else ""), retention=0)

    def expected(self) -> list[Row]:
        winners: dict[tuple[int, int], tuple[Row, Row]] = {}
        for position, (day, id_, row, segment) in enumerate(self.acked):
            if (segment, day) in self.away:
                continue
            version = row[3] if self.by_version else None
            rank = (version is not None, version or 0, position)
            if (day, id_) not in winners or winners[day, id_][0] < rank:
                winners[day, id_] = rank, row
        return in_order(row for _, row in winners.values())

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
        if grows:
            table = self.with_growth(table, most=3)
        receipt = stage(self.store, "orders", table, batch_id=f"b{len(self.acked)}")
        for (hour, *_), row in zip(batch, kept, strict=True):
            self.acked.append((hour // 24, row[1], row, receipt.segment_id or ""))

    @invariant()
    def every_window_has_the_row_that_wins_for_each_key(self) -> None:
        if hasattr(self, "store"):
            assert self.readable() == self.expected()


OneRowPerKey.TestCase.settings = settings(
    max_examples=examples(12), stateful_step_count=14, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestOneRowPerKey = OneRowPerKey.TestCase

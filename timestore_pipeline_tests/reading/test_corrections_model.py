"""Replacements beside a list: whatever happens in whatever order, readers have what was said last of every range."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from timestore_pipeline.model.windows import TimeRange
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.restoring.ledger import Consent, rebuild_ledger
from timestore_pipeline.staging.receipts import Receipt
from timestore_pipeline.staging.stage import incoming_of, stage, stage_incoming
from timestore_pipeline_tests.builders import NEW_YEAR, in_order
from timestore_pipeline_tests.reading.orders import HOURS, MachineOfOrders, Row
from timestore_pipeline_tests.sampling import examples

DATASETS = """
datasets:
  orders:
    columns: {ts: timestamptz, id: int, value: double}
    evolve: true
    time: ts
    window: day
    %s
"""

# (hour, id, value)
rows = st.tuples(HOURS, st.integers(0, 3), st.integers(0, 9).map(float))


@dataclass
class Said:
    """A row that was acknowledged, in which segment it is, and whether a replacement has taken it since."""

    hour: int
    row: Row
    segment: str
    taken: bool = False

    @property
    def day(self) -> int:
        return self.hour // 24


class LastWord(MachineOfOrders):
    """A store beside the list of all rows that were acknowledged."""

    columns = ("ts", "id", "value")

    @initialize(keyed=st.booleans(), retention=st.sampled_from([0, 86_400]))
    def begin(self, keyed: bool, retention: int) -> None:
        self.keyed = keyed
        self.said: list[Said] = []
        self.batches = 0
        self.begin_with(DATASETS % ("key: {columns: [id]}" if keyed else ""), retention)

    def expected(self) -> list[Row]:
        there = [each for each in self.said if not each.taken and (each.segment, each.day) not in self.away]
        if self.keyed:
            there = list({(each.day, each.row[1]): each for each in there}.values())
        return in_order(each.row for each in there)

    def table(self, batch: list[tuple[int, int, float]]) -> pa.Table:
        return pa.table(
            {
                "ts": pa.array([NEW_YEAR + timedelta(hours=hour) for hour, *_ in batch], pa.timestamp("us", "UTC")),
                "id": pa.array([row[1] for row in batch], pa.int32()),
                "value": pa.array([row[2] for row in batch], pa.float64()),
            }
        )

    def acknowledged(self, batch: list[tuple[int, int, float]], segment: str | None) -> None:
        for hour, *rest in batch:
            self.said.append(Said(hour, (NEW_YEAR + timedelta(hours=hour), *rest), segment or ""))

    @rule(batch=st.lists(rows, min_size=1, max_size=6), grows=st.booleans())
    def stage_a_batch(self, batch: list[tuple[int, int, float]], grows: bool) -> None:
        table = self.table(batch)
        if grows:
            table = self.with_growth(table, most=2)
        self.batches += 1
        receipt = stage(self.store, "orders", table, batch_id=f"b{self.batches}")
        self.acknowledged(batch, receipt.segment_id)

    @rule(ends=st.tuples(HOURS, HOURS), drawn=st.lists(rows, max_size=4), named=st.booleans(), again=st.booleans())
    def replace_a_range(
        self, ends: tuple[int, int], drawn: list[tuple[int, int, float]], named: bool, again: bool
    ) -> None:
        first, last = min(ends), max(ends)
        batch = [(first + hour % (last - first + 1), id_, value) for hour, id_, value in drawn]
        start = int(NEW_YEAR.timestamp()) * 1_000_000 + first * 3_600_000_000
        replaces = TimeRange(start, start + (last - first + 1) * 3_600_000_000)
        self.batches += 1
        name = f"b{self.batches}" if named else None
        receipt = self.replaced(batch, name, replaces)
        if not receipt.duplicate:
            for each in self.said:
                each.taken = each.taken or first <= each.hour <= last
            self.acknowledged(batch, receipt.segment_id)
        if again:
            assert self.replaced(batch, name, replaces).duplicate

    def replaced(self, batch: list[tuple[int, int, float]], name: str | None, replaces: TimeRange) -> Receipt:
        incoming = incoming_of(self.store, "orders", self.table(batch), name, replaces=replaces)
        return stage_incoming(self.store, "orders", incoming)

    @precondition(lambda self: not self.building() and not self.away)
    @rule()
    def lose_the_ledger(self) -> None:
        self.store.close()
        done = rebuild_ledger(self.store.settings, by="the test", consent=Consent(replace_existing=True))
        assert [each.problems for each in done.datasets] in ([], [()])
        self.open_store()

    @invariant()
    def readers_have_what_was_said_last(self) -> None:
        if hasattr(self, "store"):
            assert self.readable() == self.expected()

    @precondition(lambda self: not self.building())
    @invariant()
    def the_audit_adds_up(self) -> None:
        if hasattr(self, "store"):
            assert audit_rows(self.store, "orders").wrong == ()


LastWord.TestCase.settings = settings(
    max_examples=examples(12), stateful_step_count=16, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLastWord = LastWord.TestCase

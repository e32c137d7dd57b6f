"""Replacements beside a list: whatever happens in whatever order, readers have what was said last of every range."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from timestore_pipeline.building import publication as publication_module
from timestore_pipeline.building import writing as writing_module
from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.errors import RebuildRefused
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.quarantine import DamagedSegment, open_entries, set_slices_aside
from timestore_pipeline.ledger.slices import unclaimed_slices
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import TimeRange, WindowRange
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline.reading import relations
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.restoring.ledger import Consent, rebuild_ledger
from timestore_pipeline.segments import slices as slices_module
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.receipts import Receipt
from timestore_pipeline.staging.stage import incoming_of, stage, stage_incoming
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import NEW_YEAR, in_order, published
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
DAYS = 3
HOURS = st.integers(0, 24 * DAYS - 1)

# (hour, id, value)
rows = st.tuples(HOURS, st.integers(0, 3), st.integers(0, 9).map(float))


@dataclass
class Said:
    """A row that was acknowledged, in which segment it is, and whether a replacement has taken it since."""

    hour: int
    row: tuple[Any, ...]
    segment: str
    taken: bool = False

    @property
    def day(self) -> int:
        return self.hour // 24


class LastWord(RuleBasedStateMachine):
    """A store beside the list of all rows that were acknowledged."""

    @initialize(keyed=st.booleans(), retention=st.sampled_from([0, 86_400]))
    def begin(self, keyed: bool, retention: int) -> None:
        self.home = Path(tempfile.mkdtemp())
        self.keyed, self.retention = keyed, retention
        self.said: list[Said] = []
        self.away: set[tuple[str, int]] = set()
        self.columns = 0
        self.batches = 0
        self.open_store()
        self.patched = pytest.MonkeyPatch()
        for module in (writing_module, relations, slices_module):
            self.patched.setattr(module, "MOST_ATTACHED", 2)

    def open_store(self) -> None:
        (self.home / "datasets.yaml").write_text(DATASETS % ("key: {columns: [id]}" if self.keyed else ""))
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
        assert in_order(row[1:3] for row in published(self.store, "orders")) == in_order(
            row[1:3] for row in self.expected()
        )
        assert audit_rows(self.store, "orders").wrong == ()
        self.store.close()
        self.patched.undo()
        shutil.rmtree(self.home)

    def expected(self) -> list[tuple[Any, ...]]:
        there = [each for each in self.said if not each.taken and (each.segment, each.day) not in self.away]
        if self.keyed:
            there = list({(each.day, each.row[1]): each for each in there}.values())
        return in_order(each.row for each in there)

    def readable(self) -> list[tuple[Any, ...]]:
        table = query_rows(self.store, "SELECT ts, id, value FROM orders").to_arrow()
        return in_order(row.values() for row in table.to_pylist())

    def building(self) -> bool:
        with self.store.ledger.read() as tx:
            return bool(builds_in_flight(tx))

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
        if grows and self.columns < 2:
            self.columns += 1
            table = table.append_column(f"more{self.columns}", pa.array([1.0] * len(batch)))
            if self.columns == 2:
                table = table.set_column(1, "id", table["id"].cast(pa.int64()))
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

    @precondition(lambda self: not self.building())
    @rule(day=st.none() | st.integers(0, DAYS - 1))
    def flush(self, day: int | None) -> None:
        flush_windows(self.store, BuildOrder("orders", self.windows(day), owner="the test"))

    def windows(self, day: int | None) -> WindowRange:
        spec = self.store.datasets["orders"]
        start = NEW_YEAR + timedelta(days=day or 0)
        window = None if day is None else spec.window_from_key(f"{start:%Y-%m-%d}")
        return WindowRange(window, window)

    @precondition(lambda self: not self.building())
    @rule(day=st.none() | st.integers(0, DAYS - 1))
    def rebuild(self, day: int | None) -> None:
        with suppress(RebuildRefused):
            rebuild_windows(self.store, BuildOrder("orders", self.windows(day), owner="the test"))

    @precondition(lambda self: not self.building())
    @rule(
        step=st.sampled_from(
            [("write_window", True, writing_module), ("commit_build", False, publication_module),
             ("commit_build", True, publication_module), ("record_commit", True, publication_module)]
        ),
        builds=st.sampled_from([flush_windows, rebuild_windows]),
    )  # fmt: skip
    def build_and_die(self, step: tuple[str, bool, Any], builds: Any) -> None:
        name, after, module = step
        real = getattr(module, name)

        class Killed(BaseException):
            pass

        def end(*arguments: Any, **options: Any) -> None:
            if after:
                real(*arguments, **options)
            raise Killed

        def die(*_: Any, **__: Any) -> None:
            raise Killed

        with pytest.MonkeyPatch.context() as patched, suppress(Killed, RebuildRefused):
            patched.setattr(module, name, end)
            patched.setattr(publication_module, "settle_build", die)
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

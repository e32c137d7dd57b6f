"""Invariant 2 against a simple model: whatever is done in whatever order, every acked row is readable exactly once."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from timestore_pipeline.building import writing as writing_module
from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import BatchConflict, BuildInFlight, RebuildRefused
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.ledger.windows import window_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import Window, WindowRange
from timestore_pipeline.reading import relations
from timestore_pipeline.segments import slices as slices_module
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline.upkeep.vacuum import vacuum_table
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    declared,
    ingest,
    parquet_bytes,
    published,
    readable,
    rows_of,
    weather,
)
from timestore_pipeline_tests.crash.child import BUILDING
from timestore_pipeline_tests.deaths import may_die_at, may_end_at
from timestore_pipeline_tests.machines import MachineOnALedger
from timestore_pipeline_tests.postgresql import fresh_ledger
from timestore_pipeline_tests.sampling import examples

DATASETS = declared(weather="")
HOURS = 24 * 6

rows = st.tuples(
    st.integers(0, HOURS - 1).map(lambda hours: NEW_YEAR + timedelta(hours=hours)),
    st.none() | st.sampled_from(["JFK", "LGA", "é"]),
    st.none() | st.integers(0, 5).map(float),
)
batches = st.lists(rows, max_size=6).map(lambda some: weather(*some))
day_numbers = st.integers(0, 6)
ranges = (
    st.tuples(day_numbers, day_numbers).map(lambda days: (min(days), max(days)))
    | st.tuples(st.none(), st.none() | day_numbers)
    | st.tuples(day_numbers, st.none())
)


def window(store: Store, day: int | None) -> Window | None:
    return None if day is None else Window.containing(NEW_YEAR + timedelta(days=day), store.datasets["weather"].window)


def open_store(home: Path) -> Store:
    (home / "datasets.yaml").write_text(DATASETS)
    return Store.open(Settings(home=home, staging_min_free_disk_bytes=0, staging_retention_seconds=0))


def land(store: Store, name: str, table: pa.Table) -> None:
    folder = store.settings.landing_path / "weather"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(parquet_bytes(table))


@pytest.mark.matrix
@pytest.mark.long
@pytest.mark.parametrize("ledger", ["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
@given(st.lists(st.tuples(st.lists(batches, min_size=1, max_size=4), st.booleans(), st.none() | ranges), max_size=5))
@settings(max_examples=examples(12), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_batches_in_any_grouping_with_any_flushes_read_back_as_they_were(
    ledger: str,
    groups: Sequence[tuple[list[pa.Table], bool, tuple[int | None, int | None] | None]],
):
    with fresh_ledger(ledger), tempfile.TemporaryDirectory() as home, open_store(Path(home)) as store:
        acked: list[pa.Table] = []
        for number, (tables, as_files, flush) in enumerate(groups):
            for index, table in enumerate(tables):
                if as_files:
                    land(store, f"{number}-{index}.parquet", table)
                else:
                    stage(store, "weather", table, batch_id=f"{number}-{index}")
            if as_files:
                # Equal contents are one batch, now and ever.
                fresh = [receipt.source for receipt in ingest(store)["weather"].staged]
                acked += [table for index, table in enumerate(tables) if f"{number}-{index}.parquet" in fresh]
            else:
                acked += tables
            assert readable(store) == rows_of(*acked)
            if flush is not None:
                flush_windows(
                    store,
                    BuildOrder(
                        "weather", WindowRange(window(store, flush[0]), window(store, flush[1])), owner="the test"
                    ),
                )
                assert readable(store) == rows_of(*acked)
        flush_windows(store, BuildOrder("weather", owner="the test"))
        assert readable(store) == published(store) == rows_of(*acked)


STEPS = [
    CrashPoint.SLICES_CLAIMED,
    CrashPoint.PARQUET_IN_PLACE,
    *BUILDING[BUILDING.index(CrashPoint.MANIFEST_WRITTEN) :],
]
STEPS_WITHOUT_A_MANIFEST = [point for point in STEPS if not point.name.startswith("MANIFEST")]
RECOVERY_STEPS = [
    CrashPoint.TABLE_SYNCED,
    CrashPoint.RECOVERY_FENCED,
    CrashPoint.MANIFEST_KEPT,
    CrashPoint.RECOVERY_ABORTED,
]


class ExactlyOnce(MachineOnALedger):
    """A store beside a model that is a multiset of acked rows, those that must be in the table, and batch ids."""

    def __init__(self) -> None:
        super().__init__()
        self.store = open_store(self.root)
        self.acked: dict[str, pa.Table] = {}
        self.patched = pytest.MonkeyPatch()
        # So small that most builds and reads gather segments first, and some do not.
        for module in (writing_module, relations, slices_module):
            self.patched.setattr(module, "MOST_ATTACHED", 2)

    def teardown(self) -> None:
        settle_dead_builds(self.store, lambda owner: True)
        flush_windows(self.store, BuildOrder("weather", owner="the test"))
        unlink_published_segments(self.store)
        expected = rows_of(*self.acked.values())
        assert readable(self.store) == published(self.store) == expected
        with self.store.ledger.read() as tx:
            assert queue_states(tx) == {}
            assert sum(total.rows for total in window_totals(tx, "weather")) == len(expected)
        self.store.close()
        self.patched.undo()
        super().teardown()

    def building(self) -> bool:
        with self.store.ledger.read() as tx:
            return bool(builds_in_flight(tx))

    @rule(table=batches)
    def stage_a_batch(self, table: pa.Table) -> None:
        batch_id = f"b{len(self.acked)}"
        assert not stage(self.store, "weather", table, batch_id=batch_id).duplicate
        self.acked[batch_id] = table

    @rule(tables=st.lists(batches, min_size=1, max_size=3))
    def ingest_files(self, tables: list[pa.Table]) -> None:
        names = [f"{len(self.acked) + number}.parquet" for number in range(len(tables))]
        for name, table in zip(names, tables, strict=True):
            land(self.store, name, table)
        staged = {receipt.source: receipt.batch_id for receipt in ingest(self.store)["weather"].staged}
        for name, table in zip(names, tables, strict=True):
            if name in staged:
                self.acked[staged[name]] = table

    @precondition(lambda self: any(key.startswith("b") for key in self.acked))
    @rule(data=st.data())
    def stage_a_batch_again(self, data: st.DataObject) -> None:
        batch_id = data.draw(st.sampled_from([key for key in self.acked if key.startswith("b")]))
        assert stage(self.store, "weather", self.acked[batch_id], batch_id=batch_id).duplicate

    @precondition(lambda self: any(key.startswith("b") for key in self.acked))
    @rule(data=st.data(), table=batches)
    def stage_other_rows_under_a_known_id(self, data: st.DataObject, table: pa.Table) -> None:
        batch_id = data.draw(st.sampled_from([key for key in self.acked if key.startswith("b")]))
        if not table.equals(self.acked[batch_id]):
            with pytest.raises(BatchConflict):
                stage(self.store, "weather", table, batch_id=batch_id)

    @rule(days=ranges)
    def flush(self, days: tuple[int | None, int | None]) -> None:
        first, last = (window(self.store, day) for day in days)
        if self.building():
            with pytest.raises(BuildInFlight):
                flush_windows(self.store, BuildOrder("weather", owner="the test"))
        else:
            flush_windows(self.store, BuildOrder("weather", WindowRange(first, last), owner="the test"))

    @rule(step=st.sampled_from(STEPS), days=ranges, end=st.sampled_from([may_die_at, may_end_at]))
    def flush_and_end(
        self,
        step: CrashPoint,
        days: tuple[int | None, int | None],
        end: Callable[[CrashPoint], AbstractContextManager[None]],
    ) -> None:
        """Killed a process just ends; interrupted it still settles its build."""
        first, last = (window(self.store, day) for day in days)
        if self.building():
            return
        with end(step):
            flush_windows(self.store, BuildOrder("weather", WindowRange(first, last), owner="the test"))

    @rule(step=st.sampled_from(RECOVERY_STEPS))
    def recover_and_die(self, step: CrashPoint) -> None:
        with may_die_at(step):
            settle_dead_builds(self.store, lambda owner: True)

    @rule()
    def recover(self) -> None:
        settle_dead_builds(self.store, lambda owner: True)
        assert not self.building()

    @rule()
    def compact(self) -> None:
        if not self.building():
            compact_fully(self.store, BuildOrder("weather", owner="the test"))

    @rule(step=st.sampled_from(STEPS_WITHOUT_A_MANIFEST))
    def compact_and_die(self, step: CrashPoint) -> None:
        if self.building():
            return
        with may_die_at(step):
            self.compact()

    @rule(days=ranges)
    def rebuild(self, days: tuple[int | None, int | None]) -> None:
        first, last = (window(self.store, day) for day in days)
        if not self.building():
            with suppress(RebuildRefused):  # its segments may be gone
                rebuild_windows(self.store, BuildOrder("weather", WindowRange(first, last), owner="the test"))

    @rule()
    def clean_up(self) -> None:
        unlink_published_segments(self.store)
        sweep_orphans(self.store)
        vacuum_table(self.store, "weather", now=now_micros() + 10**13)

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = open_store(self.root)

    @invariant()
    def every_acked_row_is_readable_exactly_once(self) -> None:
        assert readable(self.store) == rows_of(*self.acked.values())

    @invariant()
    def the_table_has_acked_rows_only_and_none_twice(self) -> None:
        in_table = Counter(published(self.store))
        assert in_table <= Counter(rows_of(*self.acked.values()))


class ExactlyOnceOnPostgresql(ExactlyOnce):
    """The same with the ledger on PostgreSQL."""

    ledger = "postgresql"


ExactlyOnce.TestCase.settings = settings(
    max_examples=examples(12), stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
ExactlyOnceOnPostgresql.TestCase.settings = settings(ExactlyOnce.TestCase.settings, max_examples=examples(8))
TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnceOnPostgresql = pytest.mark.server(ExactlyOnceOnPostgresql.TestCase)

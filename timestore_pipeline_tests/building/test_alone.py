"""One dataset fails, in whatever way, and the others go on in every loop over datasets (invariant 9)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pytest

from timestore_pipeline.alone import alone
from timestore_pipeline.building.due import plan_flushes
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.cli.job_commands import build_datasets
from timestore_pipeline.cli.run_commands import flush_datasets, ingest_landing
from timestore_pipeline.cli.status_command import collect_status
from timestore_pipeline.datasets import Datasets, DatasetSpec
from timestore_pipeline.errors import DatasetFailed, TimestoreError
from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.ledger.builds import NewBuild, builds_in_flight
from timestore_pipeline.metrics.projection import collect_metrics
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.doctor import look_at_ledger
from timestore_pipeline.operating.drain import drain
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.maintenance import maintain
from timestore_pipeline_tests.builders import build, claim_slices, readable
from timestore_pipeline_tests.conftest import MakeStore

Drop = Callable[..., Path]

TWO = """
datasets:
  bad: {columns: {ts: timestamptz, v: int}, time: ts, window: day, start: 0001-01-01}
  good: {columns: {ts: timestamptz, v: int}, time: ts, window: day}
"""


CLAIM: Any = {"trigger": Trigger.MANUAL, "lease_micros": 0, "now": 1}


class Broken(DatasetSpec):
    """A dataset whose windows nobody can tell: it stands for whatever nobody has thought of."""

    def window_at(self, start_micros: int) -> NoReturn:
        raise ZeroDivisionError(start_micros)

    def first_open_window(self, now: int) -> NoReturn:
        raise OverflowError(now)

    def time_column(self, columns: Any) -> NoReturn:
        raise StopIteration


def rows(at: datetime) -> pa.Table:
    return pa.table({"ts": pa.array([at], pa.timestamp("us", "UTC")), "v": pa.array([1], pa.int32())})


@pytest.fixture
def broken(make_store: MakeStore, make_settings: Callable[..., Any]) -> Any:
    """Both datasets have a row staged; then ``bad``, the first of them, breaks."""
    before = make_store(TWO)
    for name in ("bad", "good"):
        stage(before, name, rows(datetime(2026, 1, 1, tzinfo=UTC)))
    specs = {name: before.datasets[name] for name in before.datasets}
    specs["bad"] = Broken(**{name: getattr(specs["bad"], name) for name in DatasetSpec.model_fields})
    settings = make_settings(staging_flush_max_rows=1)
    with Store.open(settings, datasets=Datasets(specs)) as store:
        yield store


LOOPS: dict[str, Callable[[Store], object]] = {
    "flush": lambda store: flush_datasets(store, [], None, None),
    "build": lambda store: build_datasets(store, [], None, None, rebuild=False),
    "drain": lambda store: drain(store, [], owner="the test", by="me", reason="-", timeout_seconds=60),
    "maintain and flush": lambda store: (maintain(store, owner="the test"), build(store, "good")),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_staged_of_the_others_is_published(broken: Store, loop: str):
    LOOPS[loop](broken)

    (window,) = audit_rows(broken, "good").windows
    assert (window.table_rows, window.problems) == (1, ())


def test_landing_files_of_the_others_are_taken(broken: Store, drop: Drop):
    for name in ("bad", "good"):
        drop(broken, name, "a.csv", "ts,v\n2026-01-01T01:00:00Z,2\n")

    ingest_landing(broken, [])

    assert len(readable(broken, "good")) == 2


def test_a_dead_build_of_the_others_is_settled(broken: Store):
    with broken.ledger.write() as tx:
        for name in ("bad", "good"):
            claim_slices(tx, NewBuild(name, **CLAIM, owner="dead"))

    settled = settle_dead_builds(broken)

    assert [each.build.dataset for each in settled if each.build.dataset == "good"] == ["good"]
    with broken.ledger.read() as tx:
        assert "good" not in {build.dataset for build in builds_in_flight(tx)}


def test_the_others_are_planned_and_shown(broken: Store):
    plan = plan_flushes(broken)

    assert [request.dataset for group in plan.groups for request in group.requests] == ["good"]
    assert any("'bad': ZeroDivisionError" in sentence for sentence in plan.waiting)
    assert {status.dataset for status in collect_status(broken)[0]} == {"bad", "good"}
    assert scan_landing(broken).answered
    assert collect_metrics(broken)
    list(look_at_ledger(broken))


def test_maintenance_says_what_it_could_not_do(broken: Store):
    assert any(
        "ZeroDivisionError" in problem or "OverflowError" in problem
        for problem in maintain(broken, owner="the test").problems
    )


def test_an_interrupt_is_no_error_of_a_dataset():
    with pytest.raises(KeyboardInterrupt), alone("w"):
        raise KeyboardInterrupt
    with pytest.raises(TimestoreError, match="as it is"), alone("w"):
        raise TimestoreError("as it is")
    with pytest.raises(DatasetFailed, match="dataset 'w': ValueError: in one line"), alone("w"):
        raise ValueError("in one\n  line")


@pytest.mark.long
@pytest.mark.parametrize("window", ["hour", "day", "month"])
def test_a_row_of_the_first_century_is_staged_published_and_compacted(make_store: MakeStore, window: str):
    store = make_store(TWO.replace("window: day, start", f"window: {window}, start"))
    for minute in (0, 1):
        stage(store, "bad", rows(datetime(24, 1, 5, 3, minute, tzinfo=UTC)))
        stage(store, "good", rows(datetime(2026, 1, 1, 3, minute, tzinfo=UTC)))
        assert flush_datasets(store, [], None, None) == 0
    assert maintain(store, owner="the test").problems == ()

    assert len(readable(store, "bad")) == 2
    (audited,) = audit_rows(store, "bad").windows
    assert audited.window.key == {"hour": "0024-01-05T03", "day": "0024-01-05", "month": "0024-01"}[window]
    assert audited.problems == ()
    stage(store, "bad", rows(datetime(1, 1, 1, tzinfo=UTC)))
    assert all(each.empty for each in drain(store, [], owner="t", by="me", reason="-", timeout_seconds=60).remainders)
    assert len(readable(store, "bad")) == 3

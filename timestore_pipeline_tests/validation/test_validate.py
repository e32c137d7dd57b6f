"""``timestore validate``: it passes where promises are kept, fails where not, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.cli import ExitCode
from timestore_pipeline.datasets import SCRATCH_PREFIX, parse_datasets
from timestore_pipeline.errors import DatasetsFileError, UnknownDataset
from timestore_pipeline.ledger import schema
from timestore_pipeline.ledger.leases import claim_lease
from timestore_pipeline.metrics import exposition
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.policy import ServiceLevels
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.validation.run import LoadSize, validate
from timestore_pipeline.validation.scratch import remove_leftovers, scratch_name, scratch_store
from timestore_pipeline.validation.verdict import Measurements, RowCount, checks
from timestore_pipeline_tests.builders import hourly, readable, rows_of
from timestore_pipeline_tests.cli.conftest import Finished, installation, timestore  # noqa: F401
from timestore_pipeline_tests.conftest import MakeStore

Run = Callable[..., Finished]
Install = Callable[..., Store]

QUICK: dict[str, Any] = {
    "staging_flush_max_age_ms": 500,
    "flush_sensor_interval_seconds": 1,
    "landing_sensor_interval_seconds": 1,
    "slo_publish_seconds": 120,
    "slo_flush_seconds": 60,
}
SHORT = ("--rate", 4, "--rows", 20, "--duration", "2s")
COMMAND = [sys.executable, "-m", "timestore_pipeline.cli", "validate"]


def everything(store: Store) -> dict[str, list[Any]]:
    """All rows of the ledger, and all files and folders of the installation but the ledger's own."""
    with store.ledger.read() as tx:
        rows = {name: sorted(map(repr, tx.execute(select(table)))) for name, table in schema.metadata.tables.items()}
    files = [
        str(path)
        for path in sorted(store.settings.home.rglob("*"))
        if "ledger.sqlite" not in path.name and "_tmp" not in path.parts
    ]
    return {**rows, "files": files}


@pytest.mark.long
def test_an_installation_that_keeps_its_promises_passes_and_is_as_it_was(installation: Install, timestore: Run):  # noqa: F811
    store = installation(**QUICK)
    rows = hourly(5)
    stage(store, "weather", rows)
    for folder in (store.settings.landing_path, store.settings.archive_path, store.tables.root / ".timestore"):
        folder.mkdir(parents=True, exist_ok=True)
    before = everything(store)

    finished = timestore("validate", *SHORT, "--json")

    document = json.loads(finished.out)
    assert finished.code is ExitCode.DONE, finished.out
    assert document["passed"] is True
    assert document["acknowledged_batches"] == 8
    assert document["acknowledged_rows"] == 160
    assert document["flushes"] >= 1
    assert {each["check"]: each["passed"] for each in document["checks"]} == dict.fromkeys(
        (
            "load",
            "refusals and errors",
            "queue settles",
            "flush latency, 95 %",
            "freshness, longest",
            "rows while it ran",
            "rows at the end",
        ),
        True,
    )
    assert everything(store) == before
    assert readable(store) == rows_of(rows)


@pytest.mark.long
def test_the_report_says_what_was_put_to_the_test_and_what_not(installation: Install, timestore: Run):  # noqa: F811
    installation(**QUICK)

    shown = timestore("validate", *SHORT).out

    assert shown.startswith("load: 8 batches of 20 rows in ")
    assert "not exercised: the Dagster daemon" in shown
    assert shown.endswith("passed\n")


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "failed"),
    [
        ({"slo_flush_seconds": 1e-6}, "flush latency, 95 %"),
        ({"slo_publish_seconds": 1e-6}, "freshness, longest"),
        ({"staging_max_pending": 1, "flush_sensor_interval_seconds": 60}, "refusals and errors"),
    ],
)
def test_a_promise_that_is_not_kept_fails(
    settings: dict[str, Any],
    failed: str,
    installation: Install,  # noqa: F811
    timestore: Run,  # noqa: F811
):
    store = installation(**QUICK | settings)

    finished = timestore("validate", *SHORT)

    assert finished.code is ExitCode.FAILED
    assert finished.out.endswith("FAILED\n")
    line = next(line for line in finished.out.splitlines() if line.startswith(failed))
    assert line.endswith("FAILED")
    assert SCRATCH_PREFIX not in str(everything(store))


@pytest.mark.long
def test_rows_that_a_build_loses_are_found(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch):
    from timestore_pipeline.validation import run

    build = run.flush_windows

    def forgetful(store: Store, order: BuildOrder) -> Any:
        report = build(store, order)
        for path in store.table(order.dataset).root.glob("_delta_log/*.json"):
            actions = [json.loads(line) for line in path.read_text().splitlines()]
            kept = [each for each in actions if "add" not in each]
            path.write_text("\n".join(map(json.dumps, kept)))
        return report

    monkeypatch.setattr(run, "flush_windows", forgetful)

    found = validate(make_store(**QUICK), LoadSize(4, 10, 1))

    assert not found.passed
    assert {check.name: check.passed for check in found.checks}["rows at the end"] is False


def test_thresholds_and_limits_are_those_of_another_dataset(make_store: MakeStore):
    store = make_store(
        "datasets: {busy: {columns: {ts: timestamptz}, time: ts, window: month, flush: {max_rows: 7, max_age_ms: 9},"
        " limits: {max_pending: 5}}}"
    )
    with scratch_store(store, "busy") as scratch:
        spec = scratch.datasets[scratch_name(scratch)]
        with scratch.ledger.read() as tx:
            limits = scratch.policy(tx, spec).limits
    assert (spec.flush.max_rows, spec.flush.max_age_ms, spec.window.value) == (7, 9, "month")
    assert limits.max_pending == 5
    with pytest.raises(UnknownDataset), scratch_store(store, "nothing"):
        pass


@pytest.mark.long
def test_what_no_threshold_takes_is_flushed_by_hand_at_the_end(make_store: MakeStore):
    store = make_store(**{**QUICK, "staging_flush_max_age_ms": 0})

    found = validate(store, LoadSize(4, 10, 1))

    assert found.passed, found.checks
    assert found.measurements.flushed_by_hand > 0


def started(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A long validation that has put in some rows."""
    environment = {**environment, "PYTHONPATH": ":".join(sys.path)}
    return subprocess.Popen([*COMMAND, "--rate", "20", "--duration", "10m"], env=environment, stdout=subprocess.DEVNULL)


def scratch_rows(store: Store) -> int:
    with store.ledger.read() as tx:
        names = tx.execute(select(schema.slices.c.dataset)).scalars().all()
    return sum(name.startswith(SCRATCH_PREFIX) for name in names)


@pytest.fixture
def validating(installation: Install, home: Path) -> Iterator[tuple[Store, subprocess.Popen[bytes]]]:  # noqa: F811
    store = installation(**QUICK, staging_retention_seconds=0)
    process = started(dict(os.environ))
    deadline = time.monotonic() + 240
    while not scratch_rows(store):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield store, process
    process.kill()
    process.wait()


@pytest.mark.matrix
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.process
def test_an_interrupted_validation_leaves_nothing(
    sent: signal.Signals, validating: tuple[Store, subprocess.Popen[bytes]]
):
    store, process = validating

    process.send_signal(sent)

    assert process.wait(240) != 0
    assert SCRATCH_PREFIX not in str(everything(store))


@pytest.mark.process
def test_a_killed_validation_is_cleared_away_by_the_next_one_once_its_lease_is_over(
    validating: tuple[Store, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
):
    store, process = validating
    assert b'dataset="timestore_validation' not in exposition(store), "it is no concern of those on call"
    assert remove_leftovers(store) == [], "it is alive"
    process.kill()
    process.wait()
    assert SCRATCH_PREFIX in str(everything(store))
    assert remove_leftovers(store) == [], "it may be alive for all that the ledger knows"

    later = now_micros() + 120_000_000
    monkeypatch.setattr("timestore_pipeline.validation.scratch.now_micros", lambda: later)
    assert len(remove_leftovers(store)) == 1

    assert SCRATCH_PREFIX not in str(everything(store))


def test_nothing_else_is_ever_taken_for_a_leftover(make_store: MakeStore):
    store = make_store()
    near = [f"{SCRATCH_PREFIX}x", f"{SCRATCH_PREFIX}0123456789", "weather", f"my_{SCRATCH_PREFIX}01234567"]
    for name in near:
        (store.tables.root / name).mkdir(parents=True)
    with store.ledger.write() as tx:
        for name in near[:2]:
            tx.execute(insert(schema.datasets).values(name=name, granularity="day"))
        held = f"{SCRATCH_PREFIX}0000aaaa"
        tx.execute(insert(schema.datasets).values(name=held, granularity="day"))
        now = now_micros()
        claim_lease(tx, f"validation:{held}", "another", now=now, expires_at=now + 60_000_000)
    before = everything(store)

    assert remove_leftovers(store) == []

    assert everything(store) == before


def test_no_declared_dataset_may_have_such_a_name():
    with pytest.raises(DatasetsFileError, match="reserved for validations"):
        parse_datasets(f"datasets: {{{SCRATCH_PREFIX}01234567: {{time: ts, window: day}}}}")


def measured(**fields: Any) -> Measurements:
    """A run of two batches of three rows that went well, but for ``fields``."""
    good = {1: RowCount(3, 3), 2: RowCount(3, 3)}
    defaults: dict[str, Any] = {
        "load": LoadSize(2, 3, 1), "loaded_seconds": 1.0, "settled_seconds": 1.0, "acknowledged": {1: 3, 2: 3},
        "refused": 0, "errors": [], "pending_batches": 0, "most_pending": 2, "flushed_by_hand": 0, "flushes": [1.0],
        "waits": [2.0], "reads": 3, "wrong_reads": [], "readable": good, "in_table": good, "stage_seconds": [0.1],
    }  # fmt: skip
    return Measurements(**{**defaults, **fields})


@pytest.mark.parametrize(
    ("fields", "failed"),
    [
        ({}, []),
        ({"acknowledged": {1: 3}}, ["load", "rows at the end"]),
        ({"loaded_seconds": 3.0}, ["load"]),
        ({"refused": 1}, ["refusals and errors"]),
        ({"errors": ["no"]}, ["refusals and errors"]),
        ({"pending_batches": 1}, ["queue settles"]),
        ({"flushes": [1.0, 9.0]}, ["flush latency, 95 %"]),
        ({"flushes": [], "waits": []}, ["flush latency, 95 %", "freshness, longest"]),
        ({"waits": [2.0, 21.0]}, ["freshness, longest"]),
        ({"wrong_reads": ["3 rows"]}, ["rows while it ran"]),
        ({"reads": 0}, ["rows while it ran"]),
        ({"readable": {1: RowCount(3, 3)}}, ["rows at the end"]),
        ({"readable": {1: RowCount(3, 3), 2: RowCount(2, 2)}}, ["rows at the end"]),
        ({"in_table": {1: RowCount(3, 3), 2: RowCount(4, 3)}}, ["rows at the end"]),
        ({"in_table": {1: RowCount(3, 3), 2: RowCount(3, 3), 7: RowCount(1, 1)}}, ["rows at the end"]),
    ],
)
def test_each_promise_is_held_against_what_was_measured(fields: dict[str, Any], failed: list[str]):
    found = checks(measured(**fields), ServiceLevels(flush_seconds=5, publish_seconds=20))

    assert [check.name for check in found if check.passed is False] == failed


def test_what_is_not_promised_is_measured_all_the_same():
    found = {check.name: check for check in checks(measured(), ServiceLevels(0, 0))}

    assert found["freshness, longest"].passed is None
    assert found["freshness, longest"].measured == "2.00 s"

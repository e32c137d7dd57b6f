"""``timestore validate``: the report of a validation."""

from __future__ import annotations

from typing import Any

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.output import Heading, print_table, say
from timestore_pipeline.simulating.what_if import weighted_quantile
from timestore_pipeline.validation.run import Validation

EXERCISED = (
    "exercised: stage() and landing files (CSV), the ledger, segments, thresholds, limits, builds, the table and "
    "reads, on this installation's disks and with its settings"
)
NOT_EXERCISED = (
    "not exercised: the Dagster daemon, its sensors and the start of runs (this command does their work itself, "
    "beside them), producers on other hosts, your own rows"
)

_MARKS = {True: "ok", False: "FAILED", None: "-"}


def print_report(found: Validation) -> None:
    """Print what was promised, what was measured, and what this says nothing about."""
    load = found.measurements.load
    say(
        f"load: {wording.counted(load.batches, 'batch', 'batches')} of {wording.counted(load.rows_per_batch, 'row')} "
        f"in {wording.duration(found.measurements.loaded_seconds)}"
    )
    headings = (Heading("check"), Heading("promised"), Heading("measured"), Heading("result"))
    print_table(
        headings, [[check.name, check.promised, check.measured, _MARKS[check.passed]] for check in found.checks]
    )
    if found.measurements.flushed_by_hand:
        batches = wording.counted(found.measurements.flushed_by_hand, "batch was", "batches were")
        say(f"{batches} flushed by hand at the end: the age threshold is off, and too little was left for the others")
    say(EXERCISED)
    say(NOT_EXERCISED)
    say("passed" if found.passed else "FAILED")


def as_json(found: Validation) -> dict[str, Any]:
    """Return the report as ``timestore validate --json`` prints it."""
    measured = found.measurements
    staged = [(each, 1) for each in measured.stage_seconds]
    return {
        "passed": found.passed,
        "load": {
            "batches_per_second": measured.load.batches_per_second,
            "rows_per_batch": measured.load.rows_per_batch,
            "seconds": measured.load.seconds,
        },
        "checks": [
            {"check": each.name, "promised": each.promised, "measured": each.measured, "passed": each.passed}
            for each in found.checks
        ],
        "acknowledged_batches": len(measured.acknowledged),
        "acknowledged_rows": sum(measured.acknowledged.values()),
        "refused_batches": measured.refused,
        "errors": list(measured.errors),
        "flushes": len(measured.flushes),
        "flush_seconds": list(measured.flushes),
        "longest_wait_seconds": max(measured.waits, default=None),
        "stage_seconds_p95": weighted_quantile(staged, 0.95) if staged else None,
        "most_pending_batches": measured.most_pending,
        "flushed_by_hand": measured.flushed_by_hand,
        "exercised": EXERCISED,
        "not_exercised": NOT_EXERCISED,
    }

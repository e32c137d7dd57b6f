"""``timestore validate``: a load that shows whether this installation keeps its promises, and the report of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.cli.operator import terminated_like_interrupted
from timestore_pipeline.cli.options import AsJson, open_store, seconds_of
from timestore_pipeline.cli.output import Heading, print_json, print_table, say, warn

if TYPE_CHECKING:
    from timestore_pipeline.validation.run import Validation


_EXERCISED = (
    "exercised: stage() and landing files (CSV), the ledger, segments, thresholds, limits, builds, the table and "
    "reads, on this installation's disks and with its settings"
)
_NOT_EXERCISED = (
    "not exercised: the Dagster daemon, its sensors and the start of runs (this command does their work itself, "
    "beside them), producers on other hosts, your own rows"
)

_MARKS = {True: "ok", False: "FAILED", None: "-"}

validate_app = typer.Typer(rich_markup_mode=None)


@validate_app.command(short_help="Put a load through this installation and look whether it keeps its promises.")
def validate(
    rate: Annotated[float, typer.Option(min=0.01, metavar="N", help="Batches per second.")] = 2.0,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Rows per batch.")] = 500,
    duration: Annotated[str, typer.Option(metavar="DURATION", help="How long the load lasts, such as 90s.")] = "60s",
    like: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="Take the window, thresholds and limits of this dataset."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put a load through this installation in a scratch dataset, and look whether it keeps its promises.

    Half of the batches are staged by code, half lie in a landing folder. Then the queue must become empty, flushes and
    freshness must be within the service levels (TIMESTORE_SLO_...), and no row may be lost or doubled. The scratch
    dataset has its own table, and is removed at the end; one whose command was killed, by the next validation.
    """
    from timestore_pipeline.validation.run import validate as run
    from timestore_pipeline.validation.verdict import LoadSize

    load = LoadSize(rate, rows, seconds_of(duration, "--duration"))
    with open_store() as store, terminated_like_interrupted():
        found = run(store, load, like=like, progress=warn)
    if as_json:
        print_json(_as_json(found))
    else:
        _print_report(found)
    raise typer.Exit(ExitCode.DONE if found.passed else ExitCode.FAILED)


def _print_report(found: Validation) -> None:
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
    say(_EXERCISED)
    say(_NOT_EXERCISED)
    say("passed" if found.passed else "FAILED")


def _as_json(found: Validation) -> dict[str, Any]:
    from timestore_pipeline.simulating.what_if import weighted_quantile

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
        "exercised": _EXERCISED,
        "not_exercised": _NOT_EXERCISED,
    }

"""The commands that explain and predict: their options. What they do is in modules of their names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

insight_app = typer.Typer(rich_markup_mode=None)

Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


@insight_app.command(short_help="Show where the rows of a window came from.")
def lineage(
    dataset: Dataset,
    window: Annotated[str, typer.Argument(metavar="WINDOW", help="The window's key, such as 2026-11-23.")],
    as_json: AsJson = False,
) -> None:
    """Show which builds, segments, batches, table files and Dagster runs the rows of a window came from."""
    from timestore_pipeline.cli import lineage as shown
    from timestore_pipeline.cli.output import print_json
    from timestore_pipeline.reading.lineage import trace_window
    from timestore_pipeline.store import Store

    with Store.open() as store:
        try:
            found = trace_window(store, dataset, window)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    if as_json:
        print_json(shown.as_json(found))
    else:
        shown.print_lineage(found)


@insight_app.command(short_help="Show what other flush thresholds would have done.")
def simulate(
    dataset: Dataset,
    max_age: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Proposed age threshold, such as 90s, 15m or 2h; 0 switches it off."),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Proposed threshold of rows; 0 switches it off.")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Proposed threshold of bytes; 0 switches it off.")
    ] = None,
    last: Annotated[str, typer.Option(metavar="DURATION", help="How far to look back, such as 6h or 30d.")] = "7d",
    run_start: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="What a run needs to start, on your machine.")
    ] = 5.0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it too: a .png, .svg or .pdf. Needs matplotlib.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay what was staged with other flush thresholds, beside those that hold.

    It says what they would have done to the number of flushes, the sizes of files and the freshness of the table.
    Thresholds that are not given stay as they are. Nothing is changed.
    """
    from timestore_pipeline.cli import simulate as shown
    from timestore_pipeline.cli.output import print_json, warn
    from timestore_pipeline.simulating import what_if
    from timestore_pipeline.store import Store

    age = None if max_age is None else _duration(max_age, "--max-age")
    with Store.open() as store:
        found = what_if.simulate(
            store,
            dataset,
            max_age_ms=None if age is None else round(age * 1e3),
            max_rows=max_rows,
            max_bytes=max_bytes,
            last_seconds=_duration(last, "--last"),
            run_start_seconds=run_start,
        )
    if as_json:
        print_json(shown.as_json(found))
    else:
        shown.print_comparison(found)
    if plot is not None:
        shown.save_plot(found, plot)
        warn(f"drawn into {plot}")


def _duration(text: str, option: str) -> float:
    from timestore_pipeline.model.durations import parse_duration

    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


@insight_app.command(short_help="Put a load through this installation and look whether it keeps its promises.")
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
    from timestore_pipeline.cli import validate as shown
    from timestore_pipeline.cli.exit_codes import ExitCode
    from timestore_pipeline.cli.operator import terminated_like_interrupted
    from timestore_pipeline.cli.output import print_json, warn
    from timestore_pipeline.store import Store
    from timestore_pipeline.validation.run import validate as run
    from timestore_pipeline.validation.verdict import Load

    load = Load(rate, rows, _duration(duration, "--duration"))
    with Store.open() as store, terminated_like_interrupted():
        found = run(store, load, like=like, progress=warn)
    if as_json:
        print_json(shown.as_json(found))
    else:
        shown.print_report(found)
    raise typer.Exit(ExitCode.DONE if found.passed else ExitCode.FAILED)

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
    from timestore_pipeline.building import what_if
    from timestore_pipeline.cli import simulate as shown
    from timestore_pipeline.cli.output import print_json, warn
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
    from timestore_pipeline.durations import parse_duration

    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error

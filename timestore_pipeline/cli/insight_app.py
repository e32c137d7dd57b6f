"""The commands that explain and predict: their options. What they do is in modules of their names."""

from __future__ import annotations

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

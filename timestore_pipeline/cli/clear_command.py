"""``timestore clear-staging`` (short, because a command of no group has a file).

The staging directory keeps what it must, and what is given up on purpose goes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.cli.operator import operator
from timestore_pipeline.cli.options import AsJson, EveryDataset, NamedDatasets, chosen, go_on_if, open_store
from timestore_pipeline.cli.output import print_json, say, warn

clear_app = typer.Typer(rich_markup_mode=None)


@clear_app.command("clear-staging", short_help="Remove what the staging directory need not keep.")
def clear(
    datasets: NamedDatasets = None,
    all_datasets: EveryDataset = False,
    lose_rows: Annotated[
        int, typer.Option(min=0, metavar="N", help="Give up this many unpublished rows: all that there are.")
    ] = 0,
    lose_files: Annotated[
        int, typer.Option(min=0, metavar="N", help="Give up this many quarantined files: all that there are.")
    ] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before rows or files are given up.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove published segments, orphaned and temporary files, whatever their age.

    While anything is unpublished it refuses, unless told exactly how much is to be lost. Batches whose rows are given
    up stay known: send them again under other ids.
    """
    names = chosen(datasets, all_datasets)
    from timestore_pipeline.upkeep.clearing import clear_staging

    if (lose_rows or lose_files) and not yes:
        go_on_if(f"{lose_rows:,} unpublished rows and {lose_files:,} quarantined files are lost for good. Go on?")
    with open_store() as store:
        cleared = clear_staging(store, names, by=operator(), lose_rows=lose_rows, lose_files=lose_files)
    if as_json:
        print_json(asdict(cleared))
    else:
        say(f"{wording.counted(cleared.files, 'file')} of {wording.size(cleared.bytes)} removed")
        if cleared.lost_rows or cleared.lost_files:
            say(
                f"{wording.counted(cleared.lost_rows, 'row')} and {wording.counted(cleared.lost_files, 'file')} "
                "given up; 'timestore quarantine list --all' says by whom"
            )
    for problem in cleared.problems:
        warn(problem)
    raise typer.Exit(ExitCode.FAILED if cleared.problems else ExitCode.DONE)

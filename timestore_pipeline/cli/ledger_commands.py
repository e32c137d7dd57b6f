"""``timestore ledger``: the ledger itself is backed up, or made again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.cli.operator import operator
from timestore_pipeline.cli.options import AsJson, go_on_if
from timestore_pipeline.cli.output import print_json, say, warn

ledger_app = typer.Typer(
    help="The ledger itself: back it up, make a lost one again.", no_args_is_help=True, rich_markup_mode=None
)


@ledger_app.command("rebuild", short_help="Make a lost ledger again.")
def rebuild(
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where there is one: it is moved aside. Only for SQLite.")
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Also from staging or tables without a mark: all that there is, is there.")
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Also from tables of another installation, which may not use them any more."),
    ] = False,
    lost_tables: Annotated[
        list[str] | None,
        typer.Option("--lost-table", metavar="DATASET", help="Also without this dataset's table: it is gone for good."),
    ] = None,
    lost_segments: Annotated[
        list[str] | None,
        typer.Option(
            "--lost-segments",
            metavar="DATASET",
            help="Also without this dataset's segments that the replaced ledger has as staged: their rows are lost.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before anything is replaced or taken over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a lost ledger again from segments, tables, manifests and quarantine. Stop the service before.

    Every acknowledged row is readable once afterwards. Counters start from 0, limits and pauses set at run time are
    gone, and the history of builds is one entry per dataset. Refused while staging or tables are not there, or the
    table or the staged segments of one dataset.
    """
    if replace and not yes:
        go_on_if("The ledger is moved aside and made again from files, with counters from 0. Is the service stopped?")
    if take_over and not yes:
        go_on_if("The tables become this installation's, and whoever has them now can write to them no more. Go on?")
    from timestore_pipeline.restoring.ledger import Consent, rebuild_ledger

    rebuilt = rebuild_ledger(
        by=operator(),
        consent=Consent(
            replace_existing=replace,
            adopt=adopt,
            take_over=take_over,
            lost_tables=lost_tables or (),
            lost_segments=lost_segments or (),
        ),
    )
    if as_json:
        print_json(
            {
                "ledger": rebuilt.location,
                "moved_aside": rebuilt.moved_aside and str(rebuilt.moved_aside),
                "complete": rebuilt.complete,
                "datasets": [asdict(each) for each in rebuilt.datasets],
            }
        )
    for each in rebuilt.datasets:
        if not as_json:
            say(
                f"{each.dataset}: {wording.counted(each.batches, 'batch', 'batches')}, "
                f"{wording.counted(each.staged_rows, 'row')} staged in {wording.counted(each.segments, 'segment')}, "
                f"{wording.counted(each.published_rows, 'row')} published in "
                f"{wording.counted(each.windows, 'window')}, "
                f"{wording.counted(each.quarantined, 'entry', 'entries')} in quarantine"
            )
        for sentence in (*each.notes, *each.problems):
            warn(sentence)
    if not as_json and not rebuilt.datasets:
        say("there was nothing to restore; the ledger is empty")
    if rebuilt.moved_aside:
        warn(f"the ledger before is {rebuilt.moved_aside}")
    raise typer.Exit(ExitCode.DONE if rebuilt.complete else ExitCode.FAILED)


@ledger_app.command("backup", short_help="Copy the ledger, while it is in use.")
def backup(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; must not exist yet.")],
    as_json: AsJson = False,
) -> None:
    """Copy a SQLite ledger as it stands at one moment, also while it is in use.

    To be put back only where nothing was staged or published since; else rebuild the ledger.
    """
    from timestore_pipeline.operating.backup import back_up_ledger
    from timestore_pipeline.settings import load_settings

    size = back_up_ledger(load_settings(), target)
    if as_json:
        print_json({"file": str(target.absolute()), "bytes": size})
    else:
        say(f"{target}: {wording.size(size)}, checked")

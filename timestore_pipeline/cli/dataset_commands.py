"""``timestore dataset``: a dataset as a whole."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.operator import operator
from timestore_pipeline.cli.options import AsJson, go_on_if, open_store
from timestore_pipeline.cli.output import print_json, say, warn

if TYPE_CHECKING:
    from timestore_pipeline.operating.removal import Removal

dataset_app = typer.Typer(help="A dataset as a whole.", no_args_is_help=True, rich_markup_mode=None)


@dataset_app.command("remove", short_help="Remove a dataset that is not declared any more.")
def remove(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset; not in datasets.yaml any more.")],
    with_table: Annotated[bool, typer.Option("--table", help="Remove its published table too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and change nothing.")] = False,
    lose_rows: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Give up this many rows: all that are nowhere else (`--dry-run`)."),
    ] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the queue, the segments, the quarantine and the ledger's rows of a dataset, with `--table` its table too.

    Refused while datasets.yaml has it, or a build of it is in flight. Landing files and their archive stay.
    """
    from timestore_pipeline.operating.removal import plan_removal, remove_dataset

    with open_store() as store:
        if dry_run:
            removal = plan_removal(store, dataset, with_table=with_table)
        else:
            if not yes:
                go_on_if(f"{_in_words(plan_removal(store, dataset, with_table=with_table))}. For good?")
            removal = remove_dataset(store, dataset, with_table=with_table, lost_rows=lose_rows, by=operator())
    if as_json:
        print_json({**asdict(removal), "lost_rows": removal.lost_rows, "dry_run": dry_run})
    else:
        say(f"{dataset}: {'would be removed' if dry_run else 'removed'}: {_in_words(removal)}")
        if dry_run and removal.lost_rows:
            say(f"rows that are nowhere else; give them up with --lose-rows {removal.lost_rows}")
    for file in removal.staying:
        warn(f"{file} stays: nobody can say whose it is")
    if removal.table and not with_table:
        warn(f"the table stays at {removal.table}: move it away before a dataset of that name is declared again")


def _in_words(removal: Removal) -> str:
    parts = [
        wording.counted(removal.staged_rows, "unpublished row"),
        f"{wording.counted(removal.quarantined, 'quarantine entry', 'quarantine entries')} with "
        + wording.counted(removal.quarantined_rows, "row"),
        f"{wording.counted(removal.staging.files, 'file')} of {wording.size(removal.staging.bytes)} in staging",
    ]
    if removal.with_table and removal.table:
        parts.append(f"the table with {wording.counted(removal.table_rows, 'row')} at {removal.table}")
    return ", ".join(parts)

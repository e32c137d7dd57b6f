"""The commands for those who operate an installation: their options. What they do is in ``operations``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

operations_app = typer.Typer(rich_markup_mode=None)
ledger_app = typer.Typer(
    help="The ledger itself: back it up, make a lost one again.", no_args_is_help=True, rich_markup_mode=None
)
operations_app.add_typer(ledger_app, name="ledger")
installation_app = typer.Typer(
    help="Whose the places of files are, and what they are to be.", no_args_is_help=True, rich_markup_mode=None
)
operations_app.add_typer(installation_app, name="installation")
loss_app = typer.Typer(
    help="Rows of the table that are gone for good: show them, give them up.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
operations_app.add_typer(loss_app, name="loss")

dataset_app = typer.Typer(help="A dataset as a whole.", no_args_is_help=True, rich_markup_mode=None)
operations_app.add_typer(dataset_app, name="dataset")

Named = Annotated[list[str] | None, typer.Argument(metavar="DATASET", help="The datasets.")]
Every = Annotated[bool, typer.Option("--all", help="Every dataset.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


@operations_app.command(short_help="Stop intake and publish all that is staged.")
def drain(
    datasets: Named = None,
    all_datasets: Every = False,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to go on; a build that has begun is not cut.")
    ] = 600.0,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for those who find it paused.")] = "drained",
    as_json: AsJson = False,
) -> None:
    """Stop intake, publish all that is staged, wait until nothing is, and say what is left and why.

    Batches are refused and landing files wait from then on, in every process, until `timestore resume`.
    """
    from timestore_pipeline.cli.operations import drain_datasets
    from timestore_pipeline.store import Store

    names = _chosen(datasets, all_datasets)
    with Store.open() as store:
        code = drain_datasets(store, names, timeout_seconds=timeout, reason=reason, as_json=as_json)
    raise typer.Exit(code)


@operations_app.command(short_help="Let datasets take in again.")
def resume(datasets: Named = None, all_datasets: Every = False, as_json: AsJson = False) -> None:
    """Let datasets take in again what a drain stopped."""
    from timestore_pipeline.cli.operations import resume_datasets
    from timestore_pipeline.store import Store

    names = _chosen(datasets, all_datasets)
    with Store.open() as store:
        code = resume_datasets(store, names, as_json=as_json)
    raise typer.Exit(code)


@operations_app.command(short_help="Publish windows and compact them, or build them again.")
def build(
    datasets: Named = None,
    all_datasets: Every = False,
    first: Annotated[str | None, typer.Option(metavar="KEY", help="First window, such as 2026-11-23.")] = None,
    last: Annotated[str | None, typer.Option(metavar="KEY", help="Last window, included.")] = None,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Derive the windows again from retained segments, and swap them in one commit."),
    ] = False,
) -> None:
    """Publish what is staged for windows and merge their small files, as a backfill in the UI does.

    With `--rebuild` they are derived again from the segments that are retained; refused where not all are.
    """
    from timestore_pipeline.cli.maintenance import build_datasets
    from timestore_pipeline.store import Store

    names = _chosen(datasets, all_datasets)
    with Store.open() as store:
        try:
            code = build_datasets(store, names, first, last, rebuild=rebuild)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    raise typer.Exit(code)


@operations_app.command(short_help="Free disk and tidy up, once.")
def maintain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do what one run of the maintenance job does: compact, drop what has had its time, and free its disk.

    Dagster's own runs are pruned by the job only.
    """
    from timestore_pipeline.cli.maintenance import maintain_once
    from timestore_pipeline.store import Store

    with Store.open() as store:
        code = maintain_once(store, dry_run=dry_run, as_json=as_json)
    raise typer.Exit(code)


@operations_app.command(short_help="Look for what is wrong, and say what mends it.")
def doctor(as_json: AsJson = False) -> None:
    """Look at settings, datasets, folders, disk, ledger, segments, tables, gateway and Dagster; change nothing.

    Each part is named with what is wrong and the command that mends it. Exit code 1 where something is broken, 3 where
    nothing works without it; warnings alone are 0.
    """
    from timestore_pipeline.cli.doctor import examine

    raise typer.Exit(examine(as_json=as_json))


@operations_app.command("clear-staging", short_help="Remove what the staging directory need not keep.")
def clear(
    datasets: Named = None,
    all_datasets: Every = False,
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
    from timestore_pipeline.cli.operations import clear_staging_directory
    from timestore_pipeline.store import Store

    names = _chosen(datasets, all_datasets)
    if (lose_rows or lose_files) and not yes:
        _ask(f"{lose_rows:,} unpublished rows and {lose_files:,} quarantined files are lost for good. Go on?")
    with Store.open() as store:
        code = clear_staging_directory(store, names, lose_rows=lose_rows, lose_files=lose_files, as_json=as_json)
    raise typer.Exit(code)


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
    from timestore_pipeline.cli.operations import rebuild_the_ledger

    if replace and not yes:
        _ask("The ledger is moved aside and made again from files, with counters from 0. Is the service stopped?")
    if take_over and not yes:
        _ask("The tables become this installation's, and whoever has them now can write to them no more. Go on?")
    code = rebuild_the_ledger(
        replace_existing=replace,
        adopt=adopt,
        take_over=take_over,
        lost_tables=lost_tables or (),
        lost_segments=lost_segments or (),
        as_json=as_json,
    )
    raise typer.Exit(code)


@installation_app.command("show", short_help="Show where files are kept, and whose that is.")
def show_installation(as_json: AsJson = False) -> None:
    """Show the identity of this installation and its places: which are its own, and which are not there.

    Exit code 1 where one is missing or belongs to another installation.
    """
    from timestore_pipeline.cli.installation import show
    from timestore_pipeline.store import Store

    with Store.open() as store:
        code = show(store, as_json=as_json)
    raise typer.Exit(code)


@installation_app.command("adopt", short_help="Take a place for this installation's, on purpose.")
def adopt_places(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="PLACE",
            help="`staging`, `tables`, `archive`, `work`, `tables/DATASET`: its table, `staging/DATASET`: segments.",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take what is at a place for this installation's from now on: where the old one is gone for good, or is another's.

    `tables/DATASET` gives up a table that is gone: what segments still have of its rows is published again, the others
    are lost. `staging/DATASET` takes its folder of segments as it is: those that are gone go to quarantine. Nothing is
    removed. What another installation had is refused to it from then on.
    """
    from timestore_pipeline.cli.installation import adopt_all, question
    from timestore_pipeline.store import Store

    with Store.open() as store:
        if not yes:
            _ask(question(store, names))
        code = adopt_all(store, list(dict.fromkeys(names)))
    raise typer.Exit(code)


@installation_app.command("new-identity", short_help="Make a copy an installation of its own.")
def new_identity(
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Also where the original has a place at the same name: on another host, say."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give a copied installation an identity of its own, in its ledger and in its staging, tables and archive.

    Stop whatever uses the copy before. The original stays as it is; its places must not be those of the copy.
    """
    from timestore_pipeline.cli.installation import change, question_of_change
    from timestore_pipeline.store import Store

    with Store.open() as store:
        if not yes:
            _ask(question_of_change(store))
        code = change(store, in_place=in_place, as_json=as_json)
    raise typer.Exit(code)


@ledger_app.command("backup", short_help="Copy the ledger, while it is in use.")
def backup(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; must not exist yet.")],
    as_json: AsJson = False,
) -> None:
    """Copy a SQLite ledger as it stands at one moment, also while it is in use.

    To be put back only where nothing was staged or published since; else rebuild the ledger.
    """
    from timestore_pipeline.cli.operations import back_up_the_ledger

    raise typer.Exit(back_up_the_ledger(target, as_json=as_json))


@loss_app.command("show", short_help="Show what is missing, and what was given up.")
def show_loss(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")], as_json: AsJson = False
) -> None:
    """Audit all windows and show which rows are missing, and what was given up before, by whom and why.

    Exit code 1 where rows are missing that nobody has given up.
    """
    from timestore_pipeline.cli.losses import show_losses
    from timestore_pipeline.store import Store

    with Store.open() as store:
        code = show_losses(store, dataset, as_json=as_json)
    raise typer.Exit(code)


@loss_app.command("accept", short_help="Give up rows that nothing can bring back.")
def accept_loss(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")],
    rows: Annotated[
        int, typer.Option(metavar="N", help="Give up this many rows: all that are missing (`timestore loss show`).")
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for those who ask later.")],
    window: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Only of this window; may be given more than once.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give up rows that the row audit misses, once no backup and no retained segment has them (`build --rebuild`).

    Files that are gone or damaged leave the table, with what can still be read of them written anew, so that queries
    work again. The ledger keeps who gave up what and why; lineage, row audit and `timestore_lost_rows_total` say it.
    """
    from timestore_pipeline.cli.losses import accept_loss_of
    from timestore_pipeline.store import Store

    if not reason.strip():
        raise typer.BadParameter("say why", param_hint="--reason")
    if not yes:
        _ask(f"{rows:,} published rows of {dataset} are given up, and damaged files leave its table. Go on?")
    with Store.open() as store:
        try:
            code = accept_loss_of(store, dataset, window or (), rows=rows, reason=reason, as_json=as_json)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    raise typer.Exit(code)


@loss_app.command("withdraw", short_help="Take back what was given up.")
def withdraw_loss(
    ids: Annotated[list[int], typer.Argument(metavar="ID...", help="The losses, as `timestore loss show` has them.")],
) -> None:
    """Take back what was given up: the row audit reports it again. A rebuild of the window does so by itself."""
    from timestore_pipeline.cli.losses import withdraw_losses
    from timestore_pipeline.store import Store

    with Store.open() as store:
        code = withdraw_losses(store, ids)
    raise typer.Exit(code)


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
    from timestore_pipeline.cli.operations import removal_in_words, remove_a_dataset
    from timestore_pipeline.operating.removal import plan_removal
    from timestore_pipeline.store import Store

    with Store.open() as store:
        if not (dry_run or yes):
            _ask(f"{removal_in_words(plan_removal(store, dataset, with_table=with_table))}. For good?")
        code = remove_a_dataset(
            store, dataset, with_table=with_table, dry_run=dry_run, lose_rows=lose_rows, as_json=as_json
        )
    raise typer.Exit(code)


def _ask(question: str) -> None:
    from timestore_pipeline.cli.output import ask, can_ask

    if not can_ask():
        raise typer.BadParameter("nobody can be asked here; give --yes")
    if not ask(question):
        raise typer.Exit(1)


def _chosen(datasets: list[str] | None, all_datasets: bool) -> list[str]:
    if bool(datasets) == all_datasets:
        raise typer.BadParameter("name the datasets, or give --all")
    return list(dict.fromkeys(datasets or ()))

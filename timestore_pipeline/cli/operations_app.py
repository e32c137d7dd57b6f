"""The commands for those who operate an installation: their options. What they do is in ``operations``."""

from __future__ import annotations

from typing import Annotated

import typer

operations_app = typer.Typer(rich_markup_mode=None)

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


def _chosen(datasets: list[str] | None, all_datasets: bool) -> list[str]:
    if bool(datasets) == all_datasets:
        raise typer.BadParameter("name the datasets, or give --all")
    return list(dict.fromkeys(datasets or ()))

"""``timestore build`` and ``maintain``: what a backfill and the maintenance job do, by hand and once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from timestore_pipeline.alone import alone
from timestore_pipeline.cli import wording
from timestore_pipeline.cli.exit_codes import ExitCode, exit_code_of, worst
from timestore_pipeline.cli.operator import command_has_died, this_command
from timestore_pipeline.cli.options import (
    AsJson,
    EveryDataset,
    FirstWindow,
    LastWindow,
    NamedDatasets,
    chosen,
    open_store,
    windows_of,
)
from timestore_pipeline.cli.output import print_json, say, warn
from timestore_pipeline.cli.run_commands import refusals
from timestore_pipeline.errors import TimestoreError

if TYPE_CHECKING:
    from timestore_pipeline.building.compact import CompactionReport
    from timestore_pipeline.building.report import BuildReport
    from timestore_pipeline.store import Store

job_app = typer.Typer(rich_markup_mode=None)


@job_app.command(short_help="Publish windows and compact them, or build them again.")
def build(
    datasets: NamedDatasets = None,
    all_datasets: EveryDataset = False,
    first: FirstWindow = None,
    last: LastWindow = None,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Derive the windows again from retained segments, and swap them in one commit."),
    ] = False,
) -> None:
    """Publish what is staged for windows and merge their small files, as a backfill in the UI does.

    With `--rebuild` they are derived again from the segments that are retained; refused where not all are.
    """
    names = chosen(datasets, all_datasets)
    with open_store() as store:
        try:
            code = build_datasets(store, names, first, last, rebuild=rebuild)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    raise typer.Exit(code)


def build_datasets(
    store: Store, datasets: Sequence[str], first: str | None, last: str | None, *, rebuild: bool
) -> ExitCode:
    """Publish (or ``rebuild``) and compact the windows ``first … last`` (keys) of each dataset (none: of all).

    Raises:
        UnknownDataset: a dataset is not declared.
        ValueError: a key names no window of a dataset, or the last one is before the first one.
    """
    from timestore_pipeline.building.order import BuildOrder
    from timestore_pipeline.building.recovery import settle_dead_builds
    from timestore_pipeline.operating.backfill import materialize_again, materialize_windows

    specs = [store.datasets[name] for name in datasets or store.datasets]
    ranges = [(spec.name, windows_of(spec, first, last)) for spec in specs]
    settle_dead_builds(store, command_has_died)
    materialize = materialize_again if rebuild else materialize_windows
    codes = refusals(store, datasets)
    for name, windows in ranges:
        try:
            with alone(name):
                order = BuildOrder(name, windows, owner=this_command())
                report, merged = materialize(store, order)
            say(_in_words(name, report, merged, rebuild=rebuild))
        except TimestoreError as error:
            warn(str(error))
            codes.append(exit_code_of(error))
    return worst(codes)


@job_app.command(short_help="Free disk and tidy up, once.")
def maintain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do what one run of the maintenance job does: compact, drop what has had its time, and free its disk.

    Dagster's own runs are pruned by the job only.
    """
    from timestore_pipeline.upkeep import maintenance

    with open_store() as store:
        report = maintenance.maintain(store, owner=this_command(), owner_is_gone=command_has_died, dry_run=dry_run)
    if as_json:
        print_json({**asdict(report), "freed": asdict(report.freed)})
    else:
        for line in list(maintenance.in_words(report)) or ["nothing to do"]:
            say(line)
    for problem in report.problems:
        warn(problem)
    raise typer.Exit(ExitCode.FAILED if report.problems else ExitCode.DONE)


def _in_words(name: str, report: BuildReport | None, merged: CompactionReport, *, rebuild: bool) -> str:
    if report is None:
        done = "nothing was ever published or staged" if rebuild else "nothing is staged"
    else:
        windows = wording.counted(len(report.windows), "window")
        verb = "built again" if rebuild else "published"
        done = (
            f"{wording.counted(report.rows, 'row')} {verb} in {windows} "
            f"({wording.counted(report.files, 'file')}, {wording.size(report.bytes)}) "
            f"in {wording.duration(report.duration_seconds)}"
        )
        if report.taken:
            done += f"; {wording.counted(report.taken, 'row')} left out that corrections took back"
    if merged.files:
        done += f"; {wording.counted(merged.files, 'small file')} merged into {merged.merged_files:,}"
    return f"{name}: {done}"

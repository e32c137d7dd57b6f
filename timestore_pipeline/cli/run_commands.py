"""``timestore stage``, ``ingest`` and ``flush``: what the sensors' runs do, by hand and once.

One bad file or dataset never stops the others; each says on stderr what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timestore_pipeline.alone import alone
from timestore_pipeline.cli import wording
from timestore_pipeline.cli.exit_codes import ExitCode, exit_code_of, worst
from timestore_pipeline.cli.operator import command_has_died, this_command
from timestore_pipeline.cli.options import AsJson, Datasets, FirstWindow, LastWindow, each_once, open_store, windows_of
from timestore_pipeline.cli.output import print_json, say, warn
from timestore_pipeline.errors import TimestoreError

if TYPE_CHECKING:
    from timestore_pipeline.building.report import BuildReport
    from timestore_pipeline.staging.ingest import IngestReport
    from timestore_pipeline.staging.receipts import Receipt
    from timestore_pipeline.store import Store

run_app = typer.Typer(rich_markup_mode=None)


@run_app.command(short_help="Stage files that lie anywhere.")
def stage(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset that the files belong to.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Files; they stay where they are.")],
    batch_id: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Key of the batch, for one file: the same key is staged once. By default from the content.",
        ),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="While there is no room for a file, try again for so long."),
    ] = 0.0,
    replace: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="START END",
            help="One file has all rows of the times from START until before END (ISO 8601, UTC without a zone): they "
            "take the place of what is there.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Stage files that lie anywhere, and print a receipt for each."""
    if batch_id is not None and len(files) > 1:
        raise typer.BadParameter("a batch id names one file's content, and several files are given")
    if replace is not None and len(files) > 1:
        raise typer.BadParameter(
            "each file would take the place of the one before it; give one", param_hint="--replace"
        )
    from timestore_pipeline.staging.frame_rows import range_of
    from timestore_pipeline.staging.retry import REFUSALS
    from timestore_pipeline.staging.stage import stage_file, stage_file_replacing

    codes, receipts = [], []
    with open_store() as store:
        spec = store.datasets[dataset]
        replaces = range_of(spec.name, replace)
        for index, path in enumerate(files):
            try:
                if replaces is None:
                    receipt = stage_file(store, spec.name, path, batch_id, wait)
                else:
                    receipt = stage_file_replacing(store, spec.name, path, replaces, batch_id, wait)
                receipts.append(receipt)
                if not as_json:
                    say(_receipt_in_words(receipt))
            except TimestoreError as error:
                warn(str(error))
                codes.append(exit_code_of(error))
                not_tried = len(files) - index - 1
                if type(error) in REFUSALS and not_tried:
                    warn(f"{wording.counted(not_tried, 'more file was', 'more files were')} not tried")
                    break
    if as_json:
        print_json([_receipt_as_json(receipt) for receipt in receipts])
    raise typer.Exit(worst(codes))


@run_app.command(short_help="Take the landing files that are ready, once.")
def ingest(datasets: Datasets = None) -> None:
    """Take the landing files that are ready now, once, as the landing sensor's run does."""
    with open_store() as store:
        code = ingest_landing(store, each_once(datasets))
    raise typer.Exit(code)


def ingest_landing(store: Store, datasets: Sequence[str]) -> ExitCode:
    """Take the landing files of the datasets (none: of all) that are ready now, as one ingest run does.

    Raises:
        UnknownDataset: a dataset is not declared.
    """
    from timestore_pipeline.landing.files import files_for_one_run, scan_landing, waiting_for_room
    from timestore_pipeline.landing.found import record_backlog
    from timestore_pipeline.staging.suspects import suspected_datasets

    names = [store.datasets[name].name for name in datasets or store.datasets]
    codes = refusals(store, datasets)
    scan = scan_landing(store, datasets or None)
    for problem in scan.problems:
        warn(problem)
    for sentence in waiting_for_room(store, scan):
        warn(sentence)
    if not scan.answered:
        return ExitCode.TRY_LATER
    chosen = files_for_one_run(store, scan)
    last = suspected_datasets(store, chosen)
    for name in (*(name for name in names if name not in last), *last):
        waiting = scan.of(name)
        files = chosen.get(name, ())
        if not waiting:
            say(f"{name}: no landing files")
            continue
        if files:
            codes.append(_ingest(store, name, files))
        if len(files) < len(waiting):
            left = wording.counted(len(waiting) - len(files), "landing file waits", "landing files wait")
            warn(f"dataset {name!r}: {left} for room in the queue or for the next run")
            codes.append(ExitCode.TRY_LATER)
    record_backlog(store, scan_landing(store, names), names)
    return worst(codes)


@run_app.command(short_help="Publish what is staged now.")
def flush(
    datasets: Annotated[list[str] | None, typer.Argument(metavar="DATASET", help="Datasets to flush.")] = None,
    all_datasets: Annotated[bool, typer.Option("--all", help="Flush every dataset.")] = False,
    first: FirstWindow = None,
    last: LastWindow = None,
) -> None:
    """Publish what is staged now, whatever the thresholds say."""
    if bool(datasets) == all_datasets:
        raise typer.BadParameter("name the datasets to flush, or give --all")
    with open_store() as store:
        try:
            code = flush_datasets(store, each_once(datasets), first, last)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    raise typer.Exit(code)


def flush_datasets(store: Store, datasets: Sequence[str], first: str | None, last: str | None) -> ExitCode:
    """Publish what is staged in the windows ``first … last`` (keys; None is unbounded) of each dataset (none: of all).

    Raises:
        UnknownDataset: a dataset is not declared.
        ValueError: a key names no window of a dataset, or the last one is before the first one.
    """
    from timestore_pipeline.building.flush import flush_in_shares
    from timestore_pipeline.building.order import BuildOrder
    from timestore_pipeline.building.recovery import settle_dead_builds
    from timestore_pipeline.upkeep.published_segments import unlink_published_segments

    specs = [store.datasets[name] for name in datasets or store.datasets]
    ranges = [(spec.name, windows_of(spec, first, last)) for spec in specs]
    for settled in settle_dead_builds(store, command_has_died):
        outcome = "it had been published" if settled.published else "its rows are staged again"
        build = settled.build
        warn(f"dataset {build.dataset!r}: build {build.id} of {build.owner} had died; {outcome}")
    owner = this_command()
    codes = refusals(store, datasets)
    for name, windows in ranges:
        try:
            with alone(name):
                report = flush_in_shares(store, BuildOrder(name, windows, owner=owner))
            say(_build_in_words(name, report))
        except TimestoreError as error:
            warn(str(error))
            codes.append(exit_code_of(error))
    unlink_published_segments(store)
    return worst(codes)


def refusals(store: Store, datasets: Sequence[str]) -> list[ExitCode]:
    """Return an exit code for each dataset that is refused where ``datasets`` names none, so that all are meant.

    Why was said when the installation was opened.
    """
    return [] if datasets else [ExitCode.FAILED for _ in store.datasets.refused]


def _ingest(store: Store, name: str, files: Sequence) -> ExitCode:
    from timestore_pipeline.staging.ingest import ingest_files

    try:
        with alone(name):
            report = ingest_files(store, name, files)
    except TimestoreError as error:
        warn(str(error))
        return exit_code_of(error)
    say(_ingest_in_words(report))
    for entry in report.quarantined:
        warn(f"dataset {name!r}: {entry.source} is in quarantine ({entry.kind.value}): {entry.reason}")
    for sentence in report.skipped:
        warn(sentence)
    return worst(
        [
            ExitCode.FAILED if report.quarantined else ExitCode.DONE,
            ExitCode.TRY_LATER if report.skipped else ExitCode.DONE,
        ]
    )


def _receipt_as_json(receipt: Receipt) -> dict[str, Any]:
    return {
        "dataset": receipt.dataset,
        "source": receipt.source,
        "batch_id": receipt.batch_id,
        "rows": receipt.rows,
        "quarantined_rows": receipt.quarantined_rows,
        "dropped_rows": receipt.dropped_rows,
        "duplicate": receipt.duplicate,
        "windows": [window.key for window in receipt.windows],
        "segment": receipt.segment_id,
    }


def _receipt_in_words(receipt: Receipt) -> str:
    what = "already staged" if receipt.duplicate else "staged"
    quarantined = f", {receipt.quarantined_rows:,} in quarantine" if receipt.quarantined_rows else ""
    dropped = f", {receipt.dropped_rows:,} too late and dropped" if receipt.dropped_rows else ""
    windows = f" in {wording.counted(len(receipt.windows), 'window')}" if receipt.windows else ""
    return (
        f"{receipt.source}: {what}, {wording.counted(receipt.rows, 'row')}{quarantined}{dropped}{windows}, "
        f"batch {receipt.batch_id}"
    )


def _ingest_in_words(report: IngestReport) -> str:
    parts = [
        f"{wording.counted(report.batches, 'batch', 'batches')} staged with {wording.counted(report.rows, 'row')}"
        f" in {wording.counted(len(report.windows), 'window')}"
    ]
    if report.duplicates:
        parts.append(f"{wording.counted(report.duplicates, 'duplicate')}")
    if report.quarantined_rows:
        parts.append(f"{wording.counted(report.quarantined_rows, 'row')} in quarantine")
    if report.dropped_rows:
        parts.append(f"{wording.counted(report.dropped_rows, 'row')} too late and dropped")
    return f"{report.dataset}: {', '.join(parts)} ({wording.duration(report.duration_seconds)})"


def _build_in_words(name: str, report: BuildReport | None) -> str:
    if report is None:
        return f"{name}: nothing is staged"
    return (
        f"{name}: {wording.counted(report.rows, 'row')} of {wording.counted(report.batches, 'batch', 'batches')} "
        f"published in {wording.counted(len(report.windows), 'window')} "
        f"({wording.counted(report.files, 'file')}, {wording.size(report.bytes)}) "
        f"in {wording.duration(report.duration_seconds)}"
    )

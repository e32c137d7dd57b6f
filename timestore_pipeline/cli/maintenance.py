"""``timestore build`` and ``maintain``: what a backfill and the maintenance job do, by hand and once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from timestore_pipeline.alone import alone
from timestore_pipeline.building.compact import CompactionReport
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.building.report import BuildReport
from timestore_pipeline.cli import wording
from timestore_pipeline.cli.arguments import window_of
from timestore_pipeline.cli.exit_codes import ExitCode, exit_code_of, worst
from timestore_pipeline.cli.operator import command_has_died, this_command
from timestore_pipeline.cli.output import print_json, say, warn
from timestore_pipeline.cli.work import refusals
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.model.windows import WindowRange
from timestore_pipeline.operating.backfill import materialize_windows
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.maintenance import in_words, maintain


def build_datasets(
    store: Store, datasets: Sequence[str], first: str | None, last: str | None, *, rebuild: bool
) -> ExitCode:
    """Publish (or ``rebuild``) and compact the windows ``first … last`` (keys) of each dataset (none: of all).

    Raises:
        UnknownDataset: a dataset is not declared.
        ValueError: a key names no window of a dataset.
    """
    specs = [store.datasets[name] for name in datasets or store.datasets]
    ranges = [(spec.name, WindowRange(window_of(spec, first), window_of(spec, last))) for spec in specs]
    settle_dead_builds(store, command_has_died)
    codes = refusals(store, datasets)
    for name, windows in ranges:
        try:
            with alone(name):
                order = BuildOrder(name, windows, owner=this_command())
                report, merged = materialize_windows(store, order, rebuild=rebuild)
            say(_in_words(name, report, merged, rebuild=rebuild))
        except TimestoreError as error:
            warn(str(error))
            codes.append(exit_code_of(error))
    return worst(codes)


def maintain_once(store: Store, *, dry_run: bool, as_json: bool) -> ExitCode:
    """Do one pass of maintenance (or say what one would do), and print what it did."""
    report = maintain(store, owner=this_command(), owner_is_gone=command_has_died, dry_run=dry_run)
    if as_json:
        print_json({**asdict(report), "freed": asdict(report.freed)})
    else:
        for line in list(in_words(report)) or ["nothing to do"]:
            say(line)
    for problem in report.problems:
        warn(problem)
    return ExitCode.FAILED if report.problems else ExitCode.DONE


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
    if merged.files:
        done += f"; {wording.counted(merged.files, 'small file')} merged into {merged.merged_files:,}"
    return f"{name}: {done}"

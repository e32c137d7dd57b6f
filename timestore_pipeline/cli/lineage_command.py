"""``timestore lineage``: a tree for people, JSON for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.loss_commands import loss_in_words
from timestore_pipeline.cli.options import AsJson, OneDataset, open_store
from timestore_pipeline.cli.output import node, print_json, print_tree, root

if TYPE_CHECKING:
    from rich.tree import Tree

    from timestore_pipeline.ledger.corrected_windows import WindowCorrection
    from timestore_pipeline.reading.lineage import BuildOrigin, Lineage, SegmentOrigin
    from timestore_pipeline.table.contents import TableFile

lineage_app = typer.Typer(rich_markup_mode=None)


@lineage_app.command(short_help="Show where the rows of a window came from.")
def lineage(
    dataset: OneDataset,
    window: Annotated[str, typer.Argument(metavar="WINDOW", help="The window's key, such as 2026-11-23.")],
    as_json: AsJson = False,
) -> None:
    """Show which builds, segments, batches, table files and Dagster runs the rows of a window came from."""
    from timestore_pipeline.reading.lineage import trace_window

    with open_store() as store:
        try:
            found = trace_window(store, dataset, window)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    if as_json:
        print_json(_as_json(found))
    else:
        print_tree(_tree(found))


def _as_json(lineage: Lineage) -> dict[str, Any]:
    return {
        "dataset": lineage.dataset,
        "window": lineage.window.key,
        "from": wording.iso(lineage.window.start_micros),
        "until": wording.iso(lineage.window.end_micros),
        "table_version": lineage.table_version,
        "published_rows": lineage.published_rows,
        "forgotten_rows": lineage.forgotten_rows,
        "builds": [_build_as_json(build) for build in lineage.builds],
        "losses": [
            {"rows": loss.rows, "by": loss.accepted_by, "at": wording.iso(loss.accepted_at), "reason": loss.reason}
            for loss in lineage.losses
        ],
        "corrections": [
            {
                "number": each.correction.number,
                "kind": each.correction.kind.value,
                "from": wording.iso(each.correction.range_start),
                "until": wording.iso(each.correction.range_end),
                "batch_id": each.correction.batch_id,
                "at": wording.iso(each.correction.acknowledged_at),
                "rows": each.rows,
                "pending": each.pending,
            }
            for each in lineage.corrections
        ],
        "other_files": [_file_as_json(file) for file in lineage.files],
        "staged": [_segment_as_json(segment) for segment in lineage.staged],
        "quarantined": [_segment_as_json(segment) for segment in lineage.quarantined],
    }


def _tree(lineage: Lineage) -> Tree:
    def add_segments(under: Tree, segments: tuple[SegmentOrigin, ...]) -> None:
        for segment in segments:
            branch = node(under, _segment_in_words(segment))
            for batch in segment.batches:
                node(branch, f"batch {batch.batch_id} from {batch.source}: {wording.counted(batch.rows, 'row')}")

    version = "no table yet" if lineage.table_version is None else f"table version {lineage.table_version}"
    whole = root(
        f"{lineage.dataset} {lineage.window.key}: {wording.counted(lineage.published_rows, 'row')} published, {version}"
    )
    for build in lineage.builds:
        branch = node(whole, _build_in_words(build))
        for file in build.files:
            node(branch, _file_in_words(file))
        add_segments(branch, build.segments)
    if lineage.files:
        others = node(whole, "files of no build that the ledger knows")
        for file in lineage.files:
            node(others, _file_in_words(file))
    for correction in lineage.corrections:
        node(whole, _correction_in_words(correction))
    for loss in lineage.losses:
        node(whole, loss_in_words(loss))
    if lineage.forgotten_rows:
        node(whole, f"{wording.counted(lineage.forgotten_rows, 'row')} of segments that the ledger knows no more")
    for title, segments in (("staged, not published", lineage.staged), ("in quarantine", lineage.quarantined)):
        if segments:
            add_segments(node(whole, title), segments)
    if not whole.children:
        node(whole, "nothing of it was ever staged")
    return whole


def _build_in_words(origin: BuildOrigin) -> str:
    build = origin.build
    by = f"run {origin.run_id}" if origin.run_id else build.owner
    when = wording.moment(build.finished_at or build.claimed_at)
    return (
        f"build {build.id} ({build.kind.value} by {build.trigger}), {build.state.value} {when} by {by}: "
        f"{wording.counted(origin.rows, 'row')}"
    )


def _correction_in_words(found: WindowCorrection) -> str:
    each = found.correction
    waits = "; more of the table are left out with the next build" if found.pending else ""
    return (
        f"correction {each.number} ({each.kind.value} of {wording.iso(each.range_start)} … "
        f"{wording.iso(each.range_end)} by batch {each.batch_id}), {wording.moment(each.acknowledged_at)}: "
        f"{wording.counted(found.rows, 'row')} taken back{waits}"
    )


def _segment_in_words(origin: SegmentOrigin) -> str:
    share = origin.share
    kept = "" if share.on_disk else ", unlinked"
    return (
        f"segment {share.segment_id} staged {wording.moment(share.staged_at)}{kept}: "
        f"{wording.counted(share.rows, 'row')}"
    )


def _file_in_words(file: TableFile) -> str:
    return f"file {file.path}: {wording.counted(file.rows, 'row')}, {wording.size(file.bytes)}"


def _build_as_json(origin: BuildOrigin) -> dict[str, Any]:
    build = origin.build
    return {
        "build": build.id,
        "kind": build.kind.value,
        "trigger": build.trigger,
        "state": build.state.value,
        "owner": build.owner,
        "run_id": origin.run_id,
        "claimed_at": wording.iso(build.claimed_at),
        "finished_at": None if build.finished_at is None else wording.iso(build.finished_at),
        "table_version": build.table_version,
        "rows": origin.rows,
        "files": [_file_as_json(file) for file in origin.files],
        "segments": [_segment_as_json(segment) for segment in origin.segments],
    }


def _segment_as_json(origin: SegmentOrigin) -> dict[str, Any]:
    share = origin.share
    return {
        "segment": share.segment_id,
        "path": share.path,
        "on_disk": share.on_disk,
        "rows": share.rows,
        "staged_at": wording.iso(share.staged_at),
        "batches": [
            {
                "batch_id": batch.batch_id,
                "source": batch.source,
                "rows": batch.rows,
                "staged_at": wording.iso(batch.staged_at),
            }
            for batch in origin.batches
        ],
    }


def _file_as_json(file: TableFile) -> dict[str, Any]:
    return {"path": file.path, "rows": file.rows, "bytes": file.bytes}

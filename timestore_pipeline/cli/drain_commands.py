"""``timestore drain`` and ``resume``: intake stops and all that is staged is published, until it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.cli.operator import command_has_died, operator, this_command
from timestore_pipeline.cli.options import AsJson, EveryDataset, NamedDatasets, chosen, open_store
from timestore_pipeline.cli.output import print_json, say, warn
from timestore_pipeline.errors import UnknownDataset

if TYPE_CHECKING:
    from timestore_pipeline.operating.drain import Drained, Remainder

drain_app = typer.Typer(rich_markup_mode=None)


@drain_app.command(short_help="Stop intake and publish all that is staged.")
def drain(
    datasets: NamedDatasets = None,
    all_datasets: EveryDataset = False,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to go on; a build that has begun is not cut.")
    ] = 600.0,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for those who find it paused.")] = "drained",
    as_json: AsJson = False,
) -> None:
    """Stop intake, publish all that is staged, wait until nothing is, and say what is left and why.

    Batches are refused and landing files wait from then on, in every process, until `timestore resume`.
    """
    names = chosen(datasets, all_datasets)
    from timestore_pipeline.operating import drain as draining

    with open_store() as store:
        drained = draining.drain(
            store,
            names,
            owner=this_command(),
            by=operator(),
            reason=reason,
            timeout_seconds=timeout,
            owner_is_gone=command_has_died,
            progress=warn,
        )
    left = [remainder for remainder in drained.remainders if not remainder.empty]
    if as_json:
        print_json(_as_json(drained))
    else:
        for remainder in drained.remainders:
            say(_in_words(drained, remainder))
    resume = " ".join(names) if names else "--all"
    warn(f"intake stays paused until 'timestore resume {resume}'")
    if left:
        raise typer.Exit(ExitCode.TRY_LATER if all(remainder.passes for remainder in left) else ExitCode.FAILED)


@drain_app.command(short_help="Let datasets take in again.")
def resume(datasets: NamedDatasets = None, all_datasets: EveryDataset = False, as_json: AsJson = False) -> None:
    """Let datasets take in again what a drain stopped."""
    names = chosen(datasets, all_datasets)
    from timestore_pipeline.ledger.datasets import known_datasets
    from timestore_pipeline.ledger.limits import EVERY_DATASET, all_pauses
    from timestore_pipeline.operating.drain import let_in

    with open_store() as store:
        with store.ledger.read() as tx:
            known = known_datasets(tx)
        for name in names:
            if name not in store.datasets.declared and name not in known:
                raise UnknownDataset(name, list(store.datasets.declared))
        resumed = let_in(store, names)
        with store.ledger.read() as tx:
            left = all_pauses(tx)
    if as_json:
        print_json({"resumed": resumed, "still_paused": sorted(left)})
    else:
        for name in resumed or names or ["-"]:
            what = "intake of all datasets" if name == EVERY_DATASET else f"{name}: intake"
            say(f"{what} goes on" if name in resumed else f"{name}: nothing was paused")
    if names and EVERY_DATASET in left:
        warn("all datasets are paused together: 'timestore resume --all' ends that")
        raise typer.Exit(ExitCode.FAILED)


def _in_words(drained: Drained, remainder: Remainder) -> str:
    rows = drained.published_rows.get(remainder.dataset, 0)
    done = f"{wording.counted(rows, 'row')} published" if rows else "nothing was staged"
    if remainder.empty:
        return f"{remainder.dataset}: {done}, nothing is left"
    return f"{remainder.dataset}: {wording.counted(rows, 'row')} published; left: {'; '.join(remainder.reasons)}"


def _as_json(drained: Drained) -> dict[str, Any]:
    return {
        "empty": drained.empty,
        "datasets": [
            {
                "dataset": each.dataset,
                "declared": each.declared,
                "published_rows": drained.published_rows.get(each.dataset, 0),
                "empty": each.empty,
                "staged_batches": each.queue.pending_batches,
                "staged_rows": each.queue.pending_rows,
                "quarantine": {
                    "batches": each.quarantine.batches,
                    "rows": each.quarantine.rows,
                    "segments": each.quarantine.segments,
                },
                "in_flight": each.in_flight
                and {"build": each.in_flight.id, "owner": each.in_flight.owner, "rows": each.in_flight.rows},
                "error": each.error,
                "reasons": list(each.reasons),
            }
            for each in drained.remainders
        ],
    }

"""``timestore drain`` and ``resume``: what they print, and how they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.cli.operator import command_has_died, operator, this_command
from timestore_pipeline.cli.output import print_json, say, warn
from timestore_pipeline.errors import UnknownDataset
from timestore_pipeline.ledger.pauses import EVERY_DATASET, all_pauses
from timestore_pipeline.ledger.registry import known_datasets
from timestore_pipeline.lifecycle.drain import Drained, Remainder, drain, let_in
from timestore_pipeline.store import Store


def drain_datasets(
    store: Store, datasets: Sequence[str], *, timeout_seconds: float, reason: str, as_json: bool
) -> ExitCode:
    """Drain datasets (none: all); progress goes to stderr, the outcome to stdout.

    Raises:
        UnknownDataset: a dataset is neither declared nor known to the ledger.
    """
    drained = drain(
        store,
        datasets,
        owner=this_command(),
        by=operator(),
        reason=reason,
        timeout_seconds=timeout_seconds,
        owner_is_gone=command_has_died,
        progress=warn,
    )
    left = [remainder for remainder in drained.remainders if not remainder.empty]
    if as_json:
        print_json(_as_json(drained))
    else:
        for remainder in drained.remainders:
            say(_in_words(drained, remainder))
    resume = " ".join(datasets) if datasets else "--all"
    warn(f"intake stays paused until 'timestore resume {resume}'")
    if not left:
        return ExitCode.DONE
    return ExitCode.TRY_LATER if all(remainder.passes for remainder in left) else ExitCode.FAILED


def resume_datasets(store: Store, datasets: Sequence[str], *, as_json: bool) -> ExitCode:
    """Let datasets (none: all) take in again.

    Raises:
        UnknownDataset: a dataset is neither declared nor known to the ledger.
    """
    with store.ledger.read() as tx:
        known = known_datasets(tx)
    for name in datasets:
        if name not in store.datasets and name not in known:
            raise UnknownDataset(name, list(store.datasets))
    resumed = let_in(store, datasets)
    with store.ledger.read() as tx:
        left = all_pauses(tx)
    still_paused = bool(datasets) and EVERY_DATASET in left
    if as_json:
        print_json({"resumed": resumed, "still_paused": sorted(left)})
    else:
        for name in resumed or datasets or ["-"]:
            what = "intake of all datasets" if name == EVERY_DATASET else f"{name}: intake"
            say(f"{what} goes on" if name in resumed else f"{name}: nothing was paused")
    if still_paused:
        warn("all datasets are paused together: 'timestore resume --all' ends that")
        return ExitCode.FAILED
    return ExitCode.DONE


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

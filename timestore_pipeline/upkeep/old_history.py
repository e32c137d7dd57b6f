"""The ledger forgets batches and builds of long ago (short, because each chore has a file).

Batches that were published long ago, and builds that ended long ago.
"""

from __future__ import annotations

from sqlalchemy import Connection

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.ledger.forgetting import (
    Pruned,
    find_old_batches,
    find_old_builds,
    prune_batches,
    prune_builds,
)
from timestore_pipeline.upkeep.chores import ChoreOfDatasets, Round


def _find(round_: Round, dataset: str) -> Pruned:
    batches_before, builds_before = _moments(round_)
    return round_.store.ledger.transact(
        lambda tx: (
            find_old_batches(tx, dataset, batches_before, round_.most) + find_old_builds(tx, dataset, builds_before)
        )
    )


def _forget(round_: Round, dataset: str) -> Pruned:
    batches_before, builds_before = _moments(round_)

    def forget(tx: Connection) -> Pruned:
        pruned = prune_batches(tx, dataset, batches_before, round_.most) + prune_builds(tx, dataset, builds_before)
        reach(CrashPoint.LEDGER_PRUNED)
        return pruned

    return round_.store.ledger.transact(forget)


def _moments(round_: Round) -> tuple[int, int]:
    """Return before when a batch and a build must have ended (microseconds since the epoch)."""
    settings = round_.store.settings
    retentions = (settings.ledger_batch_retention_seconds, settings.ledger_build_retention_seconds)
    of_batches, of_builds = (round_.now - int(seconds * 1e6) for seconds in retentions)
    return of_batches, of_builds


OLD_HISTORY = ChoreOfDatasets("pruned", "pruning the ledger", lambda dataset: Pruned(), _find, _forget)

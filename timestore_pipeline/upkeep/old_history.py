"""The ledger forgets batches and builds of long ago (short, because each chore has a file).

Batches that were published long ago, and builds that ended long ago.
"""

from __future__ import annotations

from sqlalchemy import Connection

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.ledger.forgetting import Pruned, prune_batches, prune_builds
from timestore_pipeline.upkeep.chores import ChoreOfDatasets, Round


def _find(round_: Round, dataset: str) -> Pruned:
    return round_.store.ledger.transact(lambda tx: _prune(tx, round_, dataset, dry_run=True))


def _forget(round_: Round, dataset: str) -> Pruned:
    def forget(tx: Connection) -> Pruned:
        pruned = _prune(tx, round_, dataset, dry_run=False)
        reach(CrashPoint.LEDGER_PRUNED)
        return pruned

    return round_.store.ledger.transact(forget)


def _prune(tx: Connection, round_: Round, dataset: str, *, dry_run: bool) -> Pruned:
    settings, now = round_.store.settings, round_.now
    batches_before = now - int(settings.ledger_batch_retention_seconds * 1e6)
    builds_before = now - int(settings.ledger_build_retention_seconds * 1e6)
    pruned = prune_batches(tx, dataset, batches_before, round_.most, dry_run=dry_run)
    return pruned + prune_builds(tx, dataset, builds_before, dry_run=dry_run)


OLD_HISTORY = ChoreOfDatasets("pruned", "pruning the ledger", lambda dataset: Pruned(), _find, _forget)

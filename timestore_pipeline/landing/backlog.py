"""Counting what waits in landing: files for which there is no room yet are the backlog of their dataset."""

from __future__ import annotations

from collections.abc import Iterable

from timestore_pipeline.landing.found import LandingScan
from timestore_pipeline.ledger.counters import LANDING_FAILED_LOOKS, count
from timestore_pipeline.ledger.landing import Backlog, landing_backlogs, put_backlogs
from timestore_pipeline.store import Store


def record_backlog(store: Store, scan: LandingScan, datasets: Iterable[str] | None = None) -> bool:
    """Put into the ledger what a look at ``datasets`` (by default all) found; False where nothing has changed.

    A look that an object store did not answer is counted, and what the last one found stays. Writes only what has
    changed, so a look that finds what the last one found costs no more than one query.
    """
    if not scan.answered:
        store.ledger.transact(lambda tx: count(tx, LANDING_FAILED_LOOKS, "", ""), repeatable=False)
        return False
    looked_at = set(store.datasets if datasets is None else datasets)
    found = backlog_of(scan)
    with store.ledger.read() as tx:
        before = landing_backlogs(tx)
    # A dataset that is not declared any more has no folder that is looked at.
    looked_at |= before.keys() - set(store.datasets.declared)
    changed = [name for name in sorted(looked_at) if before.get(name) != found.get(name)]
    if changed:
        store.ledger.transact(lambda tx: put_backlogs(tx, changed, found))
    return bool(changed)


def backlog_of(scan: LandingScan) -> dict[str, Backlog]:
    """Return what a look found, for every dataset with files."""
    found: dict[str, Backlog] = {}
    for file in scan.files:
        had = found.get(file.dataset, Backlog(0, 0, int(file.modified_at * 1e6)))
        oldest = min(had.oldest_modified_at, int(file.modified_at * 1e6))
        found[file.dataset] = Backlog(had.files + 1, had.bytes + file.bytes, oldest)
    return found

"""What waits in the landing folders, as the last look found it: metrics are made from the ledger alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, select

from timestore_pipeline.ledger.schema import landing_backlog
from timestore_pipeline.ledger.upserts import upsert_all

# Each with four values: below the limit of variables in one SQLite statement, however it was compiled.
_DATASETS_PER_STATEMENT = 200


@dataclass(frozen=True)
class Backlog:
    """Files of one dataset that are ready and not staged; ``oldest_modified_at`` in microseconds since the epoch."""

    files: int
    bytes: int
    oldest_modified_at: int


def landing_backlogs(tx: Connection) -> dict[str, Backlog]:
    """Return the backlog of every dataset that has any."""
    return {
        row.dataset: Backlog(row.files, row.bytes, row.oldest_modified_at)
        for row in tx.execute(select(landing_backlog))
    }


def put_backlogs(tx: Connection, datasets: Iterable[str], found: Mapping[str, Backlog]) -> None:
    """Record what was found for ``datasets``; those that are not in ``found`` have nothing waiting."""
    # Two looks may end at the same moment; the later one counts. In one order, lest they wait for each other.
    names = sorted(datasets)
    for start in range(0, len(names), _DATASETS_PER_STATEMENT):
        some = names[start : start + _DATASETS_PER_STATEMENT]
        rows = [{"dataset": name, **asdict(found[name])} for name in some if name in found]
        if rows:
            upsert_all(tx, landing_backlog, rows)
        if empty := [name for name in some if name not in found]:
            tx.execute(delete(landing_backlog).where(landing_backlog.c.dataset.in_(empty)))

"""What waits in the landing folders, as the last look found it: metrics are made from the ledger alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from timestore_pipeline.ledger.schema import landing_backlog


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
    # Two looks may end at the same moment; the later one counts.
    upsert = sqlite_insert if tx.dialect.name == "sqlite" else postgresql_insert
    for dataset in datasets:
        if dataset not in found:
            tx.execute(delete(landing_backlog).where(landing_backlog.c.dataset == dataset))
            continue
        values = asdict(found[dataset])
        statement = upsert(landing_backlog).values(dataset=dataset, **values)
        tx.execute(statement.on_conflict_do_update(index_elements=["dataset"], set_=values))

"""How large the ledger is: what a bookkeeping that is never pruned grows to."""

from __future__ import annotations

from sqlalchemy import Connection, text

from timestore_pipeline.ledger.schema import metadata

_SQLITE = text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")
# Its own tables only: the database may hold Dagster's as well.
_POSTGRESQL = text(
    "SELECT coalesce(sum(pg_total_relation_size(to_regclass(name))), 0) FROM unnest(CAST(:names AS text[])) AS name"
)


def ledger_bytes(tx: Connection) -> int:
    """Return the bytes of the ledger's tables and indexes, without SQLite's write-ahead log."""
    if tx.dialect.name == "sqlite":
        return int(tx.execute(_SQLITE).scalar_one())
    return int(tx.execute(_POSTGRESQL, {"names": sorted(metadata.tables)}).scalar_one())

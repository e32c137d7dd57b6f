"""``timestore schema``: the columns of a dataset, and how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.output import Heading
from timestore_pipeline.ledger.schemas import SchemaVersion, schema_history
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.evolution import changes
from timestore_pipeline.store import Store

HEADINGS = (
    Heading("version", right=True),
    Heading("since"),
    Heading("brought by"),
    Heading("batch"),
    Heading("changes"),
)


def collect_history(store: Store, dataset: str) -> list[SchemaVersion]:
    """Return the versions of a dataset's columns, oldest first; none before its first batch.

    Raises:
        UnknownDataset: it is not declared.
        LedgerError: the ledger cannot be read.
    """
    spec = store.datasets[dataset]
    with store.ledger.read() as tx:
        return schema_history(tx, spec.name)


def as_rows(history: Sequence[SchemaVersion]) -> list[list[str]]:
    """Return the cells of every version under :data:`HEADINGS`."""
    before: Sequence[Column] = ()
    rows = []
    for version in history:
        rows.append(
            [
                str(version.version),
                wording.moment(version.since),
                version.source,
                version.batch_id or "-",
                ", ".join(changes(before, version.columns)),
            ]
        )
        before = version.columns
    return rows


def as_json(dataset: str, history: Sequence[SchemaVersion]) -> dict[str, Any]:
    """Return the columns of now and every version, with what it changed."""
    before: Sequence[Column] = ()
    versions = []
    for version in history:
        versions.append(
            {
                "version": version.version,
                "since": wording.iso(version.since),
                "source": version.source,
                "batch_id": version.batch_id,
                "changes": list(changes(before, version.columns)),
                "columns": _columns(version.columns),
            }
        )
        before = version.columns
    return {"dataset": dataset, "columns": _columns(before), "history": versions}


def _columns(columns: Sequence[Column]) -> list[dict[str, str]]:
    return [{"name": column.name, "type": column.type} for column in columns]

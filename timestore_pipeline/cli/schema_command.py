"""``timestore schema``: the columns of a dataset, and how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.options import JsonForTable, OneDataset, open_store
from timestore_pipeline.cli.output import Heading, print_json, print_table

if TYPE_CHECKING:
    from timestore_pipeline.ledger.schemas import SchemaVersion
    from timestore_pipeline.model.columns import Column

_HEADINGS = (
    Heading("version", right=True),
    Heading("since"),
    Heading("brought by"),
    Heading("batch"),
    Heading("changes"),
)

schema_app = typer.Typer(rich_markup_mode=None)


@schema_app.command(short_help="Show the columns of a dataset, and how they came about.")
def schema(dataset: OneDataset, as_json: JsonForTable = False) -> None:
    """Show every version of a dataset's columns: since when, what brought it, and what it added or widened."""
    from timestore_pipeline.ledger.schemas import schema_history

    with open_store() as store:
        spec = store.datasets[dataset]
        with store.ledger.read() as tx:
            history = schema_history(tx, spec.name)
    if as_json:
        print_json(_as_json(dataset, history))
    else:
        print_table(_HEADINGS, _as_rows(history))


def _as_rows(history: Sequence[SchemaVersion]) -> list[list[str]]:
    from timestore_pipeline.model.evolution import changes

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


def _as_json(dataset: str, history: Sequence[SchemaVersion]) -> dict[str, Any]:
    """Return the columns of now and every version, with what it changed."""
    from timestore_pipeline.model.evolution import changes

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

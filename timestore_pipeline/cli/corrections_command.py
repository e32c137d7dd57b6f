"""``timestore corrections``: what was taken back, when and by which batch, and what the table still has of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.options import JsonForTable, open_store
from timestore_pipeline.cli.output import Heading, print_json, print_table, say
from timestore_pipeline.model.windows import TimeRange, from_micros

if TYPE_CHECKING:
    from timestore_pipeline.ledger.corrections import CorrectionRecord

_HEADINGS = (
    Heading("dataset"),
    Heading("number", right=True),
    Heading("when"),
    Heading("kind"),
    Heading("range"),
    Heading("rows left out", right=True),
    Heading("windows pending", right=True),
    Heading("batch"),
    Heading("source"),
)

corrections_app = typer.Typer(rich_markup_mode=None)


@corrections_app.command(short_help="List what was replaced, and what is still to be left out.")
def corrections(
    dataset: Annotated[
        str | None, typer.Argument(metavar="DATASET", help="The dataset; all of them if none is named.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, the latest ones.")] = 100,
    as_json: JsonForTable = False,
) -> None:
    """List what was replaced, the latest first.

    Queries are without the earlier rows from the moment on that is shown. Builds leave them out of the table: the list
    has how many they have left out so far, and in how many windows table files may still have some.
    """
    from timestore_pipeline.ledger.corrections import recorded_corrections

    with open_store() as store:
        name = None if dataset is None else store.datasets.declared[dataset].name
        with store.ledger.read() as tx:
            records = recorded_corrections(tx, name, limit)
    if as_json:
        print_json([_as_json(record) for record in records])
    elif records:
        print_table(_HEADINGS, [_row(record) for record in records])
    else:
        say("nothing was corrected")


def _row(record: CorrectionRecord) -> list[str]:
    correction = record.correction
    return [
        correction.dataset,
        wording.number(correction.number),
        wording.moment(correction.acknowledged_at),
        correction.kind.value,
        str(TimeRange(correction.range_start, correction.range_end)),
        wording.number(record.rows),
        wording.number(record.pending_windows),
        correction.batch_id,
        correction.source,
    ]


def _as_json(record: CorrectionRecord) -> dict[str, Any]:
    correction = record.correction
    return {
        "dataset": correction.dataset,
        "number": correction.number,
        "at": wording.iso(correction.acknowledged_at),
        "kind": correction.kind.value,
        "from": from_micros(correction.range_start).isoformat(timespec="microseconds"),
        "until": from_micros(correction.range_end).isoformat(timespec="microseconds"),
        "batch_id": correction.batch_id,
        "source": correction.source,
        "rows_left_out": record.rows,
        "windows": record.windows,
        "pending_windows": record.pending_windows,
    }

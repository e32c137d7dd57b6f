"""``timestore quarantine``: what was set aside, why, and where its bytes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.output import Heading
from timestore_pipeline.ledger.quarantine import QuarantineEntry, open_entries
from timestore_pipeline.store import Store

HEADINGS = (
    Heading("id", right=True),
    Heading("dataset"),
    Heading("kind"),
    Heading("since"),
    Heading("rows", right=True),
    Heading("bytes", right=True),
    Heading("source"),
    Heading("reason"),
    Heading("kept in"),
)


def collect_entries(store: Store, datasets: Sequence[str] = ()) -> list[QuarantineEntry]:
    """Return what is in quarantine and unresolved of the datasets (none: of all), oldest first.

    Raises:
        UnknownDataset: a dataset is not declared.
    """
    wanted = {store.datasets[name].name for name in datasets}
    with store.ledger.read() as tx:
        return [entry for entry in open_entries(tx) if not wanted or entry.dataset in wanted]


def as_row(store: Store, entry: QuarantineEntry) -> list[str]:
    """Return the cells of an entry under :data:`HEADINGS`."""
    return [
        str(entry.id),
        entry.dataset,
        entry.kind.value,
        wording.moment(entry.created_at),
        "?" if entry.rows is None else wording.number(entry.rows),
        wording.size(entry.bytes),
        entry.source,
        entry.reason,
        str(store.segment_path(entry.path)),
    ]


def as_json(store: Store, entry: QuarantineEntry) -> dict[str, Any]:
    """Return an entry as ``timestore quarantine list --json`` prints it."""
    return {
        "id": entry.id,
        "dataset": entry.dataset,
        "kind": entry.kind.value,
        "batch_id": entry.batch_id,
        "source": entry.source,
        "reason": entry.reason,
        "rows": entry.rows,
        "bytes": entry.bytes,
        "created_at": wording.iso(entry.created_at),
        "path": str(store.segment_path(entry.path)),
    }

"""Windows that are materialized by hand, in few files (short, because the asset and the command do the same)."""

from __future__ import annotations

from timestore_pipeline.building.compact import CompactionReport, compact_windows
from timestore_pipeline.building.flush import flush_in_shares
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.building.report import BuildReport
from timestore_pipeline.errors import BuildInFlight
from timestore_pipeline.store import Store


def materialize_windows(
    store: Store, order: BuildOrder, *, rebuild: bool = False
) -> tuple[BuildReport | None, CompactionReport]:
    """Publish what is staged for the windows of an order, or ``rebuild`` them, and compact them.

    Returns:
        What was published, None for nothing, and what was merged then. Where another build came in between nothing is
        merged: maintenance does it later.

    Raises:
        RebuildRefused: a window cannot be rebuilt.
        TimestoreError: as builds and compactions say.
    """
    report = rebuild_windows(store, order) if rebuild else flush_in_shares(store, order)
    try:
        merged = compact_windows(store, order, thorough=True)
    except BuildInFlight as error:
        merged = CompactionReport(order.dataset, stopped=str(error))
    return report, merged

"""Windows that are materialized by hand, in few files (short, because the asset and the command do the same)."""

from __future__ import annotations

from timestore_pipeline.building.compact import CompactionReport, compact_fully
from timestore_pipeline.building.flush import flush_in_shares
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.building.report import BuildReport
from timestore_pipeline.errors import BuildInFlight
from timestore_pipeline.store import Store


def materialize_windows(store: Store, order: BuildOrder) -> tuple[BuildReport | None, CompactionReport]:
    """Publish what is staged for the windows of an order, and compact them.

    Returns:
        What was published, None for nothing, and what was merged then. Where another build came in between nothing is
        merged: maintenance does it later.

    Raises:
        TimestoreError: as builds and compactions say.
    """
    return flush_in_shares(store, order), _compacted(store, order)


def materialize_again(store: Store, order: BuildOrder) -> tuple[BuildReport | None, CompactionReport]:
    """Rebuild the windows of an order, and compact them; returns and raises what :func:`materialize_windows` does.

    Raises:
        RebuildRefused: a window cannot be rebuilt.
    """
    return rebuild_windows(store, order), _compacted(store, order)


def _compacted(store: Store, order: BuildOrder) -> CompactionReport:
    try:
        return compact_fully(store, order)
    except BuildInFlight as error:
        return CompactionReport(order.dataset, stopped=str(error))

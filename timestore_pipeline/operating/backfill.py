"""What an operator asks for when windows are materialized by hand: published or rebuilt, and in few files."""

from __future__ import annotations

from timestore_pipeline.building.build import BuildReport
from timestore_pipeline.building.compaction import CompactionReport, compact_dataset
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.building.sharing import build_in_shares
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.errors import BuildInFlight
from timestore_pipeline.model.windows import Window
from timestore_pipeline.store import Store


def materialize_windows(
    store: Store,
    dataset: str,
    first: Window | None = None,
    last: Window | None = None,
    *,
    owner: str,
    trigger: Trigger = Trigger.MANUAL,
    target_file_bytes: int | None = None,
    rebuild: bool = False,
) -> tuple[BuildReport | None, CompactionReport]:
    """Publish what is staged for the windows ``first … last`` (by default all), or ``rebuild`` them, and compact them.

    Other args are those of :func:`timestore_pipeline.building.sharing.build_in_shares`.

    Returns:
        What was published, None for nothing, and what was merged then. Where another build came in between nothing is
        merged: maintenance does it later.

    Raises:
        RebuildRefused: a window cannot be rebuilt.
        TimestoreError: as builds and compactions say.
    """
    act = rebuild_windows if rebuild else build_in_shares
    report = act(store, dataset, first, last, owner=owner, trigger=trigger, target_file_bytes=target_file_bytes)
    try:
        merged = compact_dataset(
            store,
            dataset,
            first,
            last,
            owner=owner,
            trigger=trigger,
            thorough=True,
            target_file_bytes=target_file_bytes,
        )
    except BuildInFlight as error:
        merged = CompactionReport(dataset, stopped=str(error))
    return report, merged

"""The tags of a run: which datasets, which windows and why, so that operators can filter the runs page by them.

``timestore/datasets``, ``timestore/windows`` and ``timestore/trigger`` say it of the run as a whole;
``timestore.dataset/<dataset>`` has the trigger of one dataset, so that its runs are found among those it shares.
Sensors tag the runs that they ask for. A run that a person started is tagged by its first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import dagster as dg

from timestore_pipeline.model.windows import Window

TRIGGER_TAG = "timestore/trigger"
DATASETS_TAG = "timestore/datasets"
WINDOWS_TAG = "timestore/windows"
LANDING = "landing"
"""The trigger of an ingest run that a sensor asked for."""

SENSOR_TAG = "dagster/sensor_name"
"""Dagster's own, on every run that a sensor asked for."""

_DATASET_TAG = "timestore.dataset"
_MAX_NAMES = 20
_RANGE = "..."


def run_tags(triggers: Mapping[str, str], windows: Iterable[Window] = ()) -> dict[str, str]:
    """Return the tags of a run of some datasets.

    Args:
        triggers: dataset → why it is in the run.
        windows: those that the run is for, of which the first and the last are named; none where it is not said.
    """
    tags = {
        TRIGGER_TAG: ",".join(sorted(set(triggers.values()))),
        DATASETS_TAG: _names(triggers),
        **{f"{_DATASET_TAG}/{dataset}": triggers[dataset] for dataset in sorted(triggers)[:_MAX_NAMES]},
    }
    windows = sorted(windows)
    if windows:
        first, last = windows[0].key, windows[-1].key
        tags[WINDOWS_TAG] = first if first == last else f"{first}{_RANGE}{last}"
    return tags


def tag_run_of_a_person(
    context: dg.AssetExecutionContext, datasets: Iterable[str], trigger: str, windows: Iterable[Window] = ()
) -> None:
    """Tag the run of a step, unless a sensor did, or an earlier step; what that one did not know is added."""
    if SENSOR_TAG in context.run.tags:
        return
    run = context.instance.get_run_by_id(context.run.run_id)
    tags = run_tags(dict.fromkeys(datasets, trigger), windows)
    missing = {name: value for name, value in tags.items() if run is None or name not in run.tags}
    if missing:
        context.instance.add_run_tags(context.run.run_id, missing)


def _names(datasets: Iterable[str]) -> str:
    listed = sorted(datasets)
    more = f" and {len(listed) - _MAX_NAMES} more" if len(listed) > _MAX_NAMES else ""
    return ",".join(listed[:_MAX_NAMES]) + more

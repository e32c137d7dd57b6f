"""What Dagster calls the assets of a dataset, and its windows: these are partitions.

A window's name *is* its partition key; a test holds the two against each other.
"""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.model.windows import Granularity, Window

_FIRST_YEAR = 1_000
"""Dagster writes earlier years with fewer than four digits, and does not find its own keys again."""

_CRON = {Granularity.HOUR: "0 * * * *", Granularity.DAY: "0 0 * * *", Granularity.MONTH: "0 0 1 * *"}


def landing_key(dataset: str) -> dg.AssetKey:
    """Return the key of the dataset's landing folder."""
    return dg.AssetKey(["landing", dataset])


def staging_key(dataset: str) -> dg.AssetKey:
    """Return the key of the dataset's staging queue."""
    return dg.AssetKey(["staging", dataset])


def partitions_key(dataset: str) -> dg.AssetKey:
    """Return the key of the dataset's table."""
    return dg.AssetKey(["partitions", dataset])


def partitions_op(dataset: str) -> str:
    """Return the name under which run config speaks of the asset ``partitions/<dataset>``."""
    return f"partitions__{dataset}"


def partitions_definition(spec: DatasetSpec) -> dg.TimeWindowPartitionsDefinition:
    """Return the partitions of a dataset: its windows, from its start up to and including the current one.

    Windows before the year 1000 are no partitions: they are built and read like all others, and Dagster does not show
    them. Equal for datasets of the same granularity and start, because only assets with equal definitions share a run.
    """
    return dg.TimeWindowPartitionsDefinition(
        start=first_partition(spec).start,
        fmt=spec.window.key_format,
        cron_schedule=_CRON[spec.window],
        timezone="UTC",
        end_offset=1,
    )


def first_partition(spec: DatasetSpec) -> Window:
    """Return the first window of a dataset that is a partition."""
    first = spec.first_window
    return first if is_partition(first) else Window.containing(datetime(_FIRST_YEAR, 1, 1, tzinfo=UTC), spec.window)


def is_partition(window: Window) -> bool:
    """Whether Dagster can show a window as a partition."""
    return window.start.year >= _FIRST_YEAR


def partition_key(definition: dg.TimeWindowPartitionsDefinition, window: Window) -> str:
    """Return Dagster's key of a window.

    Asked of Dagster rather than formatted: it takes a key that is not aligned for the window after it.

    Raises:
        ValueError: Dagster calls that window something else, so it is no window of ``definition``.
    """
    key = definition.get_partition_key_for_timestamp(window.start.timestamp())
    if key != window.key:
        raise ValueError(f"window {window.key} of one {window.granularity} is called {key} by Dagster")
    return key

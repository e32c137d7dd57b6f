"""The two kinds of jobs: ``ingest`` over all staging assets, ``partition_build`` over all partitions assets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import dagster as dg

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.model.windows import Window
from timestore_pipeline.orchestration.assets import partitions_key, staging_key
from timestore_pipeline.orchestration.keys import first_partition

INGEST_JOB = "ingest"
BUILD_JOB = "partition_build"


def build_job_names(datasets: Mapping[str, DatasetSpec]) -> dict[str, str]:
    """Return for each dataset the job that builds its partitions.

    Assets share a job only if their partitions are equal, start included. So there is one ``partition_build`` where
    all datasets share granularity and start; else one per granularity (``partition_build_hour``), and one per start
    (``partition_build_hour_20130101``) where the datasets of a granularity start on different days.
    """
    first_windows = {name: first_partition(spec) for name, spec in datasets.items()}
    different = set(first_windows.values())
    starts = Counter(window.granularity for window in different)

    def name_of(first: Window) -> str:
        if len(different) == 1:
            return BUILD_JOB
        if starts[first.granularity] == 1:
            return f"{BUILD_JOB}_{first.granularity}"
        return f"{BUILD_JOB}_{first.granularity}_{first.start:%Y%m%d}"

    return {dataset: name_of(first) for dataset, first in first_windows.items()}


def ingest_job(datasets: Mapping[str, DatasetSpec]) -> Any:
    """Return the job that stages what has landed, for all datasets or a selection of them."""
    return dg.define_asset_job(
        INGEST_JOB,
        selection=[staging_key(name) for name in datasets],
        description="Stages landing files. landing_sensor asks for one run for all datasets that have new files.",
    )


def build_jobs(datasets: Mapping[str, DatasetSpec]) -> list[Any]:
    """Return the jobs that publish what is staged: one, or one per partitions definition."""
    members: dict[str, list[dg.AssetKey]] = {}
    for dataset, job in build_job_names(datasets).items():
        members.setdefault(job, []).append(partitions_key(dataset))
    return [
        dg.define_asset_job(
            name,
            selection=keys,
            description="Publishes what is staged. With partitions chosen it publishes and marks those windows; "
            "without, the windows of the run config, by default all that have something staged.",
        )
        for name, keys in members.items()
    ]

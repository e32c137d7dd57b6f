"""The two kinds of jobs: ``ingest`` over all staging assets, ``partition_build`` over all partitions assets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.orchestration.assets import partitions_key, staging_key

INGEST_JOB = "ingest"
BUILD_JOB = "partition_build"


def build_job_name(spec: DatasetSpec, datasets: Mapping[str, DatasetSpec]) -> str:
    """Return the job that builds the partitions of ``spec``, one of all declared ``datasets``.

    Assets share a job only if their partitions are equal, start included. So there is one ``partition_build`` where
    all datasets share granularity and start; else one per granularity (``partition_build_hour``), and one per start
    (``partition_build_hour_20130101``) where the datasets of a granularity start on different days.
    """
    firsts = {other.first_window for other in datasets.values()} | {spec.first_window}
    if len(firsts) == 1:
        return BUILD_JOB
    name = f"{BUILD_JOB}_{spec.window}"
    if sum(first.granularity is spec.window for first in firsts) == 1:
        return name
    return f"{name}_{spec.first_window.start:%Y%m%d}"


def ingest_job(datasets: Mapping[str, DatasetSpec]) -> Any:
    """Return the job that stages what has landed, for all datasets or a selection of them."""
    return dg.define_asset_job(
        INGEST_JOB,
        selection=[staging_key(name) for name in datasets],
        description="Stages landing files. landing_sensor asks for one run for all datasets that have new files.",
    )


def build_jobs(datasets: Mapping[str, DatasetSpec]) -> list[Any]:
    """Return the jobs that publish what is staged: one, or one per partitions definition (:func:`build_job_name`)."""
    members: dict[str, list[dg.AssetKey]] = {}
    for spec in datasets.values():
        members.setdefault(build_job_name(spec, datasets), []).append(partitions_key(spec.name))
    return [
        dg.define_asset_job(
            name,
            selection=keys,
            description="Publishes what is staged. With partitions chosen it publishes and marks those windows; "
            "without, the windows of the run config, by default all that have something staged.",
        )
        for name, keys in members.items()
    ]

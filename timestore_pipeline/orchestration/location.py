"""All definitions of a code location (short, because it only lists what its neighbours define)."""

from __future__ import annotations

import dagster as dg

from timestore_pipeline.datasets import Datasets, parse_datasets, read_datasets_file
from timestore_pipeline.orchestration.assets import dataset_assets
from timestore_pipeline.orchestration.checks import dataset_checks
from timestore_pipeline.orchestration.jobs import build_jobs, ingest_job
from timestore_pipeline.orchestration.maintenance_job import maintenance, maintenance_schedule
from timestore_pipeline.orchestration.resources import Installation, MetricsResource, StoreResource, duckdb_resource
from timestore_pipeline.orchestration.sensors import flush_sensor, housekeeping_sensor, landing_sensor, metrics_sensor
from timestore_pipeline.settings import Settings


def build_definitions(settings: Settings, datasets: Datasets) -> dg.Definitions:
    """Return the assets of every dataset, the jobs, the sensors and the resources.

    Runs execute their steps in one process, one after the other: a process per step would cost seconds each.
    """
    datasets = datasets.declared  # whether one contradicts the ledger is seen when the store is opened
    jobs = [ingest_job(datasets), *build_jobs(datasets)] if datasets else []
    looking = [landing_sensor(settings), flush_sensor(settings, datasets, jobs[1:])] if datasets else []
    duckdb = duckdb_resource(settings)
    return dg.Definitions(
        assets=[asset for spec in datasets.values() for asset in dataset_assets(spec, settings)],
        asset_checks=[check for spec in datasets.values() for check in dataset_checks(spec)],
        jobs=[*jobs, maintenance],
        schedules=[maintenance_schedule(settings)],
        sensors=[*looking, metrics_sensor(settings), housekeeping_sensor()],
        resources={
            "duckdb": duckdb,
            "store": StoreResource(duckdb=duckdb, installation=Installation(settings, datasets)),
            "metrics": MetricsResource(),
        },
        executor=dg.in_process_executor,
    )


def installed_definitions(settings: Settings) -> dg.Definitions:
    """Return the definitions for ``settings`` and the datasets file that they name.

    A process that is asked again gets the same ones as long as neither has changed: a warm worker is, for each run, and
    making them takes four seconds for a thousand datasets.

    Raises:
        DatasetsFileError: the datasets file is not usable.
    """
    text = read_datasets_file(settings.datasets_path)
    if not _made or _made[0][:2] != (settings, text):
        _made[:] = [(settings, text, build_definitions(settings, parse_datasets(text, settings.datasets_path)))]
    return _made[0][2]


_made: list[tuple[Settings, str, dg.Definitions]] = []

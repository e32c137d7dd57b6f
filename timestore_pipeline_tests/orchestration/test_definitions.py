"""What Dagster finds when it loads the code location."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import get_args

import dagster as dg
import pytest

from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.datasets import Datasets, parse_datasets
from timestore_pipeline.errors import DatasetsFileError, SettingsError
from timestore_pipeline.orchestration.config import TriggerName
from timestore_pipeline.orchestration.jobs import build_job_names
from timestore_pipeline.orchestration.location import build_definitions
from timestore_pipeline.settings import Settings

ALL_GRANULARITIES = """
datasets:
  ticks: {time: ts, window: hour}
  trades: {time: ts, window: hour}
  old_trades: {time: ts, window: hour, start: 2013-01-01}
  weather: {columns: {ts: timestamptz, temp: double}, time: ts, window: day, owners: ["team:climate", "a@b.org"]}
  bills: {time: ts, window: month}
"""


def definitions_of(text: str, settings: Settings) -> dg.Definitions:
    definitions = build_definitions(settings, parse_datasets(text))
    dg.Definitions.validate_loadable(definitions)
    return definitions


def datasets_of(**windows_and_starts: tuple[str, str]) -> Datasets:
    lines = [f"  {name}: {{time: ts, window: {w}, start: {s}}}" for name, (w, s) in windows_and_starts.items()]
    return parse_datasets("\n".join(["datasets:", *lines]))


def test_datasets_of_all_granularities_and_starts_load_together(make_settings: Callable[..., Settings]):
    definitions = definitions_of(ALL_GRANULARITIES, make_settings())

    jobs = {job.name for job in definitions.resolve_all_job_defs() if not job.name.startswith("__")}
    assert jobs == {
        "ingest",
        "partition_build_hour_20200101",
        "maintenance",
        "partition_build_hour_20130101",
        "partition_build_day",
        "partition_build_month",
    }


def test_an_installation_without_datasets_loads(make_settings: Callable[..., Settings]):
    definitions = definitions_of("datasets: {}", make_settings())

    assert {sensor.name for sensor in definitions.sensors or ()} == {"metrics_sensor", "housekeeping_sensor"}


def test_one_build_job_serves_datasets_of_equal_partitions():
    assert set(build_job_names(datasets_of(a=("day", "2020-01-01"), b=("day", "2020-01-01"))).values()) == {
        "partition_build"
    }


def test_a_month_starts_on_its_first_day_whatever_the_day_of_the_start():
    assert set(build_job_names(datasets_of(a=("month", "2020-01-01"), b=("month", "2020-01-31"))).values()) == {
        "partition_build"
    }


def test_granularities_have_a_build_job_each():
    assert build_job_names(datasets_of(a=("day", "2020-01-01"), b=("hour", "2020-01-01"))) == {
        "a": "partition_build_day",
        "b": "partition_build_hour",
    }


def test_starts_have_a_build_job_each_and_other_granularities_keep_theirs():
    datasets = datasets_of(a=("hour", "2020-01-01"), b=("hour", "2013-05-01"), c=("day", "2020-01-01"))

    assert build_job_names(datasets) == {
        "a": "partition_build_hour_20200101",
        "b": "partition_build_hour_20130501",
        "c": "partition_build_day",
    }


def test_assets_tell_the_ui_what_they_are(make_settings: Callable[..., Settings]):
    settings = make_settings()
    graph = definitions_of(ALL_GRANULARITIES, settings).resolve_asset_graph()

    table = graph.get(dg.AssetKey(["partitions", "weather"]))
    assert table.parent_keys == {dg.AssetKey(["staging", "weather"])}
    assert graph.get(dg.AssetKey(["staging", "weather"])).parent_keys == {dg.AssetKey(["landing", "weather"])}
    assert not graph.get(dg.AssetKey(["landing", "weather"])).is_executable
    assert table.group_name == "weather"
    assert table.kinds == {"parquet", "deltalake"}
    assert table.owners == ["team:climate", "a@b.org"]
    assert table.tags["timestore/dataset"] == "weather"
    assert [column.name for column in table.metadata["dagster/column_schema"].columns] == ["ts", "temp"]
    assert table.metadata["dagster/table_name"] == "weather"
    folder = settings.table_location("weather")
    assert isinstance(folder, Path)
    assert table.metadata["dagster/uri"] == folder.as_uri()
    assert table.metadata["table"] == dg.MetadataValue.path(folder)
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description
        assert node.metadata["runbook"] == dg.MetadataValue.path("docs/runbooks/timestore-staging-operations.md")


def test_the_runbook_is_a_link_where_it_has_an_address(make_settings: Callable[..., Settings]):
    graph = definitions_of(ALL_GRANULARITIES, make_settings(runbook_url="https://wiki/timestore")).resolve_asset_graph()

    link = graph.get(dg.AssetKey(["partitions", "weather"])).metadata["runbook"]

    assert link == dg.MetadataValue.url("https://wiki/timestore")


def test_a_table_is_held_to_the_freshness_that_is_promised(make_settings: Callable[..., Settings]):
    text = """
datasets:
  promised: {time: ts, window: day, freshness: 2h}
  minute: {time: ts, window: day, freshness: 1m}
  unpromised: {time: ts, window: day, freshness: 0}
  usual: {time: ts, window: day}
"""

    def policies(**settings: float) -> list[dg.FreshnessPolicy | None]:
        graph = definitions_of(text, make_settings(**settings)).resolve_asset_graph()
        names = ("promised", "minute", "unpromised", "usual")
        return [graph.get(dg.AssetKey(["partitions", name])).freshness_policy for name in names]

    window = dg.FreshnessPolicy.time_window
    own = [window(timedelta(hours=2), timedelta(hours=1)), window(timedelta(minutes=1)), None]
    assert policies() == [*own, None]
    assert policies(freshness_seconds=600) == [*own, window(timedelta(minutes=10), timedelta(minutes=5))]


def test_loading_does_not_open_the_ledger(make_settings: Callable[..., Settings]):
    settings = make_settings()

    definitions_of(ALL_GRANULARITIES, settings)

    assert not settings.staging_path.exists()


def test_sensors_start_switched_on(make_settings: Callable[..., Settings]):
    sensors = definitions_of(ALL_GRANULARITIES, make_settings()).sensors or ()

    assert {sensor.name for sensor in sensors} == {
        "landing_sensor",
        "flush_sensor",
        "metrics_sensor",
        "housekeeping_sensor",
    }
    assert all(
        isinstance(sensor, dg.SensorDefinition) and sensor.default_status is dg.DefaultSensorStatus.RUNNING
        for sensor in sensors
    )


def test_no_secret_gets_into_the_definitions(make_settings: Callable[..., Settings]):
    settings = make_settings(ledger_url="postgresql+psycopg2://timestore:hunter2@ledger/timestore")

    definitions = definitions_of(ALL_GRANULARITIES, settings)

    repository = definitions.get_repository_def()
    configs = [str(resource.config_schema.default_value) for resource in repository.get_top_level_resources().values()
               if resource.config_schema.default_provided]  # fmt: skip
    assert "hunter2" not in "".join(configs)


def test_run_config_knows_every_trigger():
    assert set(get_args(TriggerName)) == {trigger.value for trigger in Trigger}


def test_the_location_of_the_environment_loads(store_environment: Callable[..., dict[str, str]]):
    store_environment(ALL_GRANULARITIES)
    from timestore_pipeline.definitions import defs

    dg.Definitions.validate_loadable(defs())


def test_definitions_are_made_again_only_when_something_has_changed(
    store_environment: Callable[..., dict[str, str]], home: Path
):
    store_environment(ALL_GRANULARITIES)
    from timestore_pipeline.definitions import defs

    first = defs()
    assert defs() is first
    store_environment(ALL_GRANULARITIES, staging_flush_max_rows=7)
    second = defs()
    assert second is not first
    (home / "datasets.yaml").write_text("datasets: {one_more: {time: ts, window: day}}", encoding="utf-8")
    assert dg.AssetKey(["staging", "one_more"]) in defs().resolve_all_asset_keys()


def test_a_broken_datasets_file_says_what_is_wrong(store_environment: Callable[..., dict[str, str]]):
    store_environment("datasets: {weather: {time: ts, window: week}}")
    from timestore_pipeline.definitions import defs

    with pytest.raises(DatasetsFileError, match="dataset 'weather', key 'window'"):
        defs()


def test_a_wrong_setting_says_which(store_environment: Callable[..., dict[str, str]]):
    store_environment(ALL_GRANULARITIES, staging_flush_max_rows="many")
    from timestore_pipeline.definitions import defs

    with pytest.raises(SettingsError, match="TIMESTORE_STAGING_FLUSH_MAX_ROWS"):
        defs()


@pytest.mark.process
def test_the_code_location_starts_without_slow_libraries():
    program = (
        "import sys, timestore_pipeline.definitions;"
        "sys.exit(', '.join({'pandas', 'polars', 'deltalake', 'prometheus_client'} & set(sys.modules)) or 0)"
    )

    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (finished.returncode, finished.stderr) == (0, "")

"""A code location over the test's store, and an instance that forgets everything at the end of the test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest

from timestore_pipeline.orchestration.io_manager import timestore_io_manager
from timestore_pipeline.orchestration.location import build_definitions
from timestore_pipeline.orchestration.write_mode import WriteMode
from timestore_pipeline.store import Store

PUBLISHED = dg.AssetKey(["partitions", "weather"])


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@dataclass(frozen=True)
class Location:
    """The definitions of a store, and ways to run and evaluate them as Dagster would."""

    store: Store
    definitions: dg.Definitions
    instance: dg.DagsterInstance

    def materialize(
        self,
        *assets: str,
        partition: str | None = None,
        between: tuple[str, str] | None = None,
        config: dict[str, dict[str, Any]] | None = None,
        tags: dict[str, str] | None = None,
        raise_on_error: bool = True,
    ) -> dg.ExecuteInProcessResult:
        """Run assets (``"staging/weather"``), of a partition or of all ``between`` two."""
        range_tags = {}
        if between:
            range_tags = dict(
                zip(("dagster/asset_partition_range_start", "dagster/asset_partition_range_end"), between, strict=True)
            )
        return self.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[dg.AssetKey(asset.split("/")) for asset in assets],
            instance=self.instance,
            partition_key=partition,
            tags={**range_tags, **(tags or {})},
            run_config={"ops": {name: {"config": fields} for name, fields in (config or {}).items()}},
            raise_on_error=raise_on_error,
        )

    def check(self, asset: str, name: str, raise_on_error: bool = False) -> dg.ExecuteInProcessResult:
        """Run one check of an asset and nothing else, as its button in the UI does."""
        key = dg.AssetKey(asset.split("/"))
        selection = dg.AssetSelection.checks(dg.AssetCheckKey(key, name))
        job = dg.define_asset_job("check_only", selection=selection)
        return (
            dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job]))
            .resolve_job_def("check_only")
            .execute_in_process(instance=self.instance, raise_on_error=raise_on_error)
        )

    def tick(
        self, sensor: str, cursor: str | None = None, log_to: logging.Handler | None = None
    ) -> tuple[dg.SensorEvaluationContext, Any]:
        """Evaluate a sensor once; returns its context (with the new cursor) and what it said."""
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=cursor,
            sensor_name=sensor,
            definitions=self.definitions,
            resources=dict(self.definitions.resources or {}),
        )
        definition = self.definitions.resolve_sensor_def(sensor)
        with context:
            if log_to is not None:
                context.log.addHandler(log_to)
            return context, definition.evaluate_tick(context)

    def tick_log(self, sensor: str, cursor: str | None = None) -> list[str]:
        """Evaluate a sensor once; returns what it wrote to the log of its tick."""
        said: list[str] = []
        collector = logging.Handler()
        collector.emit = lambda record: said.append(record.getMessage())
        self.tick(sensor, cursor, log_to=collector)
        return said

    def materialized(self, asset: str) -> Sequence[dg.EventLogRecord]:
        """Return the materialization events of an asset, oldest first."""
        key = dg.AssetKey(asset.split("/"))
        return self.instance.fetch_materializations(key, limit=1_000, ascending=True).records

    def metadata(self, asset: str) -> dict[str | None, dict[str, Any]]:
        """Return the metadata of an asset's materializations by partition."""
        return {
            record.partition_key: {name: value.value for name, value in record.asset_materialization.metadata.items()}
            for record in self.materialized(asset)
            if record.asset_materialization
        }


class Own:
    """A code location of one's own, over the store, on an instance that outlives runs."""

    def __init__(self, store: Store, instance: dg.DagsterInstance) -> None:
        self.store = store
        self.instance = instance

    def materialize(
        self,
        *assets: Any,
        only: str | None = None,
        wait_seconds: float = 0.0,
        write_mode: WriteMode = "auto",
        **options: Any,
    ) -> Any:
        """Run assets, all or ``only`` one, with an IO manager of this configuration."""
        manager = timestore_io_manager(self.store.settings, wait_seconds, write_mode)
        known = {asset.key for asset in assets if isinstance(asset, dg.AssetSpec)}
        upstream = [] if PUBLISHED in known else [dg.AssetSpec(PUBLISHED)]
        definitions = dg.Definitions(
            [*upstream, *assets], resources={"timestore": manager}, executor=dg.in_process_executor
        )
        return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance, asset_selection=[dg.AssetKey(only)] if only else None, **options
        )

    def metadata(self, result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
        events = result.asset_materializations_for_node(asset)
        return {name: value.value for name, value in events[-1].metadata.items()}


@pytest.fixture
def own(store: Store, instance: dg.DagsterInstance) -> Own:
    return Own(store, instance)


@pytest.fixture
def location(instance: dg.DagsterInstance) -> Callable[[Store], Location]:
    """Builds the code location of a store."""

    def of(store: Store) -> Location:
        return Location(store, build_definitions(store.settings, store.datasets), instance)

    return of

"""The example's code location: it loads beside the project's own, stands downstream of its tables, and works."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._grpc.server import LoadedRepositories

from timestore_pipeline import Timestore
from timestore_pipeline.orchestration.location import build_definitions
from timestore_pipeline_tests.builders import build

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_assets"
READINGS = dg.AssetKey(["stations", "readings"])
MEANS = dg.AssetKey(["reports", "daily_means"])
TABLE = dg.AssetKey(["partitions", "readings"])


@pytest.fixture
def example(home: Path, store_environment: Callable[..., dict[str, str]]) -> dg.Definitions:
    """The example's definitions, over an installation of the test's own."""
    store_environment((EXAMPLE / "datasets.yaml").read_text(encoding="utf-8"))
    specification = importlib.util.spec_from_file_location("example_of_own_assets", EXAMPLE / "definitions.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.defs


@pytest.fixture
def timestore(example: dg.Definitions) -> Iterator[Timestore]:
    with Timestore.open() as opened:
        yield opened


def materialize(example: dg.Definitions, instance: dg.DagsterInstance, key: dg.AssetKey, day: str) -> None:
    job = example.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=instance, asset_selection=[key], partition_key=day).success


@pytest.mark.long
def test_it_stages_reads_and_stages_again(example: dg.Definitions, instance: dg.DagsterInstance, timestore: Timestore):
    materialize(example, instance, READINGS, "2026-01-01")
    build(timestore.store, "readings")
    materialize(example, instance, READINGS, "2026-01-02")
    for day in ("2026-01-01", "2026-01-02"):
        materialize(example, instance, MEANS, day)

    assert timestore.sql("SELECT count(*) FROM readings").fetchall() == [(2 * 2 * 24 * 60,)]
    means = timestore.sql("SELECT day::VARCHAR, station, round(mean, 3), lowest FROM daily_means ORDER BY ALL")
    expected = [("north", 4.0, -4.0), ("south", 14.0, 6.0)]
    assert means.fetchall() == [(day, *line) for day in ("2026-01-01", "2026-01-02") for line in expected]


def test_its_assets_stand_downstream_of_the_published_table(example: dg.Definitions, timestore: Timestore):
    graph = example.resolve_asset_graph()
    own = build_definitions(timestore.store.settings, timestore.datasets).resolve_asset_graph()

    assert TABLE in graph.get(MEANS).parent_keys
    assert not graph.get(TABLE).is_materializable
    assert own.get(TABLE).is_materializable


def test_both_code_locations_load(
    tmp_path: Path, store_environment: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder)
    store_environment((EXAMPLE / "datasets.yaml").read_text(encoding="utf-8"))
    monkeypatch.chdir(folder)

    origins = WorkspaceFileTarget(["workspace.yaml"]).create_origins()

    # As the code server of each does.
    loaded = {
        origin.location_name: LoadedRepositories(origin.loadable_target_origin, None, [], None).definitions_by_name
        for origin in origins
    }
    assert list(loaded) == ["timestore_pipeline", "own_assets"]
    assert all(len(repositories) == 1 for repositories in loaded.values())

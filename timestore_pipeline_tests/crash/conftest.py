"""An installation in the middle of its work, and what its sensors would do after a crash."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import make_url

from timestore_pipeline.building.build import build_windows
from timestore_pipeline.building.recovery import SettledBuild, settle_dead_builds
from timestore_pipeline.lifecycle.retention import sweep_orphans, unlink_published_segments
from timestore_pipeline.lifecycle.vacuum import vacuum_table
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import ingest
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.postgresql import URL_VARIABLE, shared_server
from timestore_pipeline_tests.shared_duckdb import SharedInstances

Drop = Callable[[Store, str, str, str | bytes], Path]
Recover = Callable[[Store], list[SettledBuild]]
Arrange = Callable[..., Store]
"""``arrange(name, datasets_yaml, prepare, **settings)``: a store that ``prepare`` has been let at."""


@pytest.fixture(scope="session")
def duckdb_instances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedInstances]:
    """The DuckDB instances of all stores of these tests, but for those of their children."""
    instances = SharedInstances(tmp_path_factory.getbasetemp())
    yield instances
    instances.close()


@pytest.fixture
def make_store(make_store: MakeStore, duckdb_instances: SharedInstances) -> Iterator[MakeStore]:
    """Opens stores as ``make_store`` does anywhere, with DuckDB instances that are there already."""
    opened: list[Store] = []

    def make(*arguments: object, **settings: object) -> Store:
        store = duckdb_instances.used_by(make_store(*arguments, **settings))  # pyright: ignore[reportArgumentType]
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.writers.close()


@dataclass
class Arrangements:
    """Installations to begin with, each made once and copied for every test that begins there."""

    folder: Path
    databases: dict[str, str] = field(default_factory=dict)

    def keep(self, name: str, home: Path) -> None:
        """Keep the installation of this test, which is closed, under ``name``."""
        shutil.copytree(home, self.folder / name)
        if url := os.environ.get(URL_VARIABLE):
            self.databases[name] = shared_server().copy_database(_database(url))

    def restore(self, name: str, home: Path) -> bool:
        """Make the installation of this test, which is empty, one that was kept; False where there is none."""
        if not (self.folder / name).exists():
            return False
        shutil.copytree(self.folder / name, home, dirs_exist_ok=True)
        if url := os.environ.get(URL_VARIABLE):
            shared_server().drop_database(_database(url))
            shared_server().copy_database(self.databases[name], _database(url))
        return True


def _database(url: str) -> str:
    name = make_url(url).database
    assert name
    return name


@pytest.fixture(scope="session")
def arrangements(tmp_path_factory: pytest.TempPathFactory) -> Arrangements:
    return Arrangements(tmp_path_factory.mktemp("arranged"))


@pytest.fixture
def arrange(make_store: MakeStore, home: Path, ledger_kind: str, arrangements: Arrangements) -> Arrange:
    """Opens a store with ``settings`` in an installation that is made, by default settings, the first time only."""

    def arranged(name: str, datasets_yaml: str, prepare: Callable[[Store], None], **settings: object) -> Store:
        if any(str(value).startswith("s3:") for value in settings.values()):
            store = make_store(datasets_yaml, **settings)
            prepare(store)
            return store
        if not arrangements.restore(f"{ledger_kind} {name}", home):
            store = make_store(datasets_yaml)
            prepare(store)
            store.close()
            arrangements.keep(f"{ledger_kind} {name}", home)
        return make_store(datasets_yaml, **settings)

    return arranged


@pytest.fixture
def at_work(arrange: Arrange, drop: Drop) -> Callable[..., Store]:
    """Opens an installation: batch a published, b staged, c, d and a bad file in landing; e is to come.

    ``flushed``: b is published too, in files of its own.
    """

    def begin(*, published: bool = True, flushed: bool = False, **settings: object) -> Store:
        def prepare(store: Store) -> None:
            copies = store.settings.home / "copies"
            copies.mkdir()
            for name in ("c", "d"):
                drop(store, "readings", f"{name}.csv", rows.csv(name))
                (copies / f"{name}.csv").write_text(rows.csv(name), encoding="utf-8")
            drop(store, "readings", rows.BAD_FILE, "id,at\n1,never\n")
            stage(store, "readings", rows.batch("a"), batch_id="a")
            if published:
                build_windows(store, "readings", owner="the test")
            stage(store, "readings", rows.batch("b"), batch_id="b")
            if flushed:
                build_windows(store, "readings", owner="the test")

        name = f"at work {published=} {flushed=}"
        return arrange(name, rows.DATASETS_YAML, prepare, staging_retention_seconds=0, **settings)

    return begin


@pytest.fixture
def recover() -> Recover:
    """Does what the sensors and the producers do after a crash, looking at every row after each step."""

    def run(store: Store) -> list[SettledBuild]:
        rows.assert_acknowledged_rows_are_readable_once(store)
        settled = settle_dead_builds(store, owner_is_gone=lambda owner: True)
        rows.assert_acknowledged_rows_are_readable_once(store)
        ingest(store)
        rows.assert_acknowledged_rows_are_readable_once(store)
        stage(store, "readings", rows.batch("e"), batch_id="e")
        rows.assert_acknowledged_rows_are_readable_once(store)
        build_windows(store, "readings", owner="the test")
        rows.assert_acknowledged_rows_are_readable_once(store)
        unlink_published_segments(store)
        rows.assert_acknowledged_rows_are_readable_once(store)
        sweep_orphans(store, older_than_seconds=0)
        vacuum_table(store, "readings", now=rows.far_in_the_future())
        return settled

    return run

"""An installation in the middle of its work, and what its sensors would do after a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import SettledBuild, settle_dead_builds
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline.upkeep.vacuum import vacuum_table
from timestore_pipeline_tests.arrangements import Arrange
from timestore_pipeline_tests.builders import ingest
from timestore_pipeline_tests.crash import rows

Drop = Callable[[Store, str, str, str | bytes], Path]
Recover = Callable[[Store], list[SettledBuild]]


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
                flush_windows(store, BuildOrder("readings", owner="the test"))
            stage(store, "readings", rows.batch("b"), batch_id="b")
            if flushed:
                flush_windows(store, BuildOrder("readings", owner="the test"))

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
        flush_windows(store, BuildOrder("readings", owner="the test"))
        rows.assert_acknowledged_rows_are_readable_once(store)
        unlink_published_segments(store)
        rows.assert_acknowledged_rows_are_readable_once(store)
        sweep_orphans(store, older_than_seconds=0)
        vacuum_table(store, "readings", now=rows.far_in_the_future())
        return settled

    return run

"""A copy is killed while it gets an identity of its own: the same again ends it, and the original stays whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import CopyInPlace
from timestore_pipeline.operating.installation import change_identity
from timestore_pipeline.operating.observed_places import observe_places
from timestore_pipeline.places import PlaceState
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.opening import open_table, owner_of
from timestore_pipeline_tests.builders import ingest, readable
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import killed_at
from timestore_pipeline_tests.installations import copy_installation

pytestmark = [pytest.mark.crash, pytest.mark.process, pytest.mark.only_on("sqlite")]

DATASETS = ("readings", "others")

KILLED = [
    (CrashPoint.MARK_REMOVED, 1),  # of staging
    (CrashPoint.MARK_REPLACED, 1),
    (CrashPoint.MARK_REMOVED, 2),  # of tables
    (CrashPoint.MARK_REPLACED, 2),
    (CrashPoint.MARK_REMOVED, 3),  # of the archive
    (CrashPoint.MARK_REPLACED, 3),
    (CrashPoint.IDENTITY_RECORDED, 1),
    (CrashPoint.IDENTITY_COMMITTED, 1),
    (CrashPoint.TABLE_HANDED_OVER, 1),  # of two
]


@pytest.fixture
def original(at_work: Callable[..., Store]) -> Store:
    """An installation with two tables, files in its archive, and rows staged."""
    store = at_work()
    stage(store, "others", rows.batch("a"), batch_id="a")
    flush_windows(store, BuildOrder("others", owner="the test"))
    ingest(store)
    return store


@pytest.fixture
def copy(original: Store, tmp_path: Path) -> Settings:
    """The settings of a copy of it, of which nothing is open."""
    home = tmp_path / "copy"
    copy_installation(original, home)
    return original.settings.model_copy(update={"home": home, "datasets_file": home / "datasets.yaml"})


def assert_own(store: Store, identity: str) -> None:
    """Ledger, places and tables of an installation say that they are its own, and it can publish."""
    assert store.ledger.identity == identity
    assert {each.state for each in observe_places(store)} == {PlaceState.OURS}
    for dataset in DATASETS:
        flush_windows(store, BuildOrder(dataset, owner="the test"))
        assert owner_of(open_table(store.table(dataset), dataset)) == identity


@pytest.mark.matrix
@pytest.mark.parametrize("job", ["new identity", "new identity in place"])
@pytest.mark.parametrize(("point", "times"), KILLED, ids=str)
def test_a_change_of_identity_that_was_killed_is_ended_by_the_same_again(
    original: Store, copy: Settings, point: CrashPoint, times: int, job: str
):
    before = {dataset: readable(original, dataset) for dataset in DATASETS}
    with Store.open(copy) as store:
        killed_at(store, job, point, times)

    with Store.open(copy) as store:
        changed = change_identity(store, in_place=job.endswith("in place"))

        assert changed.before == original.ledger.identity != changed.identity
        assert_own(store, changed.identity)
        assert {dataset: readable(store, dataset) for dataset in DATASETS} == before
    assert_own(original, changed.before)
    assert {dataset: readable(original, dataset) for dataset in DATASETS} == before


def test_one_that_was_killed_when_all_was_done_has_nothing_left_to_do(original: Store, copy: Settings):
    with Store.open(copy) as store:
        killed_at(store, "new identity", CrashPoint.TABLE_HANDED_OVER, times=len(DATASETS))

    with Store.open(copy) as store:
        with pytest.raises(CopyInPlace):  # it looks like an original
            change_identity(store)
        assert_own(store, store.ledger.identity)

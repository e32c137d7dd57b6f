"""A process killed at every step of its work: what was acknowledged is there once, what was not is taken again."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import timestore_pipeline
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import BuildInFlight
from timestore_pipeline.ledger.counters import RETRIED_BATCHES
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import counted, published
from timestore_pipeline_tests.crash import (
    rows,
    test_kills_of_corrections,
    test_kills_of_replacements,
    test_lost_ledger,
    test_new_identity,
)
from timestore_pipeline_tests.crash.child import killed_at
from timestore_pipeline_tests.crash.conftest import Recover
from timestore_pipeline_tests.crash.test_kills_of_replacements import EVERY_STEP
from timestore_pipeline_tests.landing.test_object_store import KILLED_INGESTS

pytestmark = pytest.mark.crash


@dataclass(frozen=True)
class Kill:
    """A job killed where it reaches a point for the ``times``-th time.

    ``before`` lists jobs that are killed first; ``first`` has nothing published yet, ``flushed`` windows of two files.
    """

    job: str
    point: CrashPoint
    times: int = 1
    before: tuple[tuple[str, CrashPoint], ...] = ()
    first: bool = False
    flushed: bool = False
    settings: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        before = "".join(f" after {point}" for _, point in self.before)
        return f"{self.job} at {self.point}:{self.times}{before}" + "".join(
            f" {key}={value}" for key, value in self.settings
        )


DEAD_BUILD = (("build", CrashPoint.PARQUET_IN_PLACE),)
PUBLISHED_BUILD = (("build", CrashPoint.TABLE_COMMITTED),)
DEAD_COMPACTION = (("compact", CrashPoint.PARQUET_IN_PLACE),)
PUBLISHED_COMPACTION = (("compact", CrashPoint.TABLE_COMMITTED),)
COMPACTED = (("compact", CrashPoint.PUBLICATION_COMMITTED),)
REPLACING = [
    (CrashPoint.SLICES_CLAIMED, 1),
    (CrashPoint.PARQUET_WRITTEN, 1),
    (CrashPoint.PARQUET_RENAMED, 1),
    (CrashPoint.PARQUET_IN_PLACE, 2),
    (CrashPoint.TABLE_CHECKED, 1),
    (CrashPoint.TABLE_COMMITTED, 1),
    (CrashPoint.TABLE_SYNCED, 1),
    (CrashPoint.PUBLICATION_RECORDED, 1),
    (CrashPoint.PUBLICATION_COMMITTED, 1),
]

KILLS = [
    *(Kill("stage", point, times) for point in (CrashPoint.FILE_SYNCED, CrashPoint.FILE_RENAMED) for times in (1, 2)),
    *(Kill("stage", CrashPoint.FILE_IN_PLACE, times) for times in (1, 2)),
    Kill("stage", CrashPoint.REFUSED_ROWS_WRITTEN),
    Kill("stage", CrashPoint.REFUSED_ROWS_IN_PLACE),
    Kill("stage", CrashPoint.SEGMENT_WRITTEN),
    Kill("stage", CrashPoint.SEGMENT_IN_PLACE),
    Kill("stage", CrashPoint.BATCHES_RECORDED),
    Kill("stage", CrashPoint.BATCHES_ACKNOWLEDGED),
    Kill("ingest", CrashPoint.READINGS_BEGUN),
    Kill("ingest", CrashPoint.SEGMENT_WRITTEN),
    Kill("ingest", CrashPoint.SEGMENT_IN_PLACE),
    Kill("ingest", CrashPoint.BATCHES_RECORDED),
    Kill("ingest", CrashPoint.BATCHES_ACKNOWLEDGED),
    Kill("ingest", CrashPoint.BAD_FILE_RECORDED),
    Kill("ingest", CrashPoint.BAD_FILE_MOVED),
    Kill("ingest", CrashPoint.LANDING_FILE_CLEARED, 1),
    Kill("ingest", CrashPoint.LANDING_FILE_CLEARED, 2),
    Kill("ingest", CrashPoint.LANDING_FILE_CLEARED, 1, settings=(("landing_after_ingest", "delete"),)),
    Kill("ingest", CrashPoint.LANDING_CLEARED),
    Kill("build", CrashPoint.TABLE_CREATED, first=True),
    *(Kill("build", *at) for at in EVERY_STEP),
    Kill("build", CrashPoint.PARQUET_WRITTEN, 2),
    Kill("build and merge", CrashPoint.MANIFESTS_MERGED),
    Kill("build", CrashPoint.TABLE_COMMITTED, first=True),
    *(
        Kill("settle", point, before=DEAD_BUILD)
        for point in (
            CrashPoint.TABLE_CHECKED,
            CrashPoint.TABLE_COMMITTED,
            CrashPoint.TABLE_SYNCED,
            CrashPoint.RECOVERY_FENCED,
            CrashPoint.RECOVERY_ABORTED,
            CrashPoint.RECOVERY_CLEANED,
        )
    ),
    *(
        Kill("settle", point, before=PUBLISHED_BUILD)
        for point in (CrashPoint.MANIFEST_KEPT, CrashPoint.RECOVERY_PUBLISHED)
    ),
    Kill("retire", CrashPoint.SEGMENT_UNLINKED),
    Kill("retire", CrashPoint.RETENTION_COMMITTED),
    Kill("sweep", CrashPoint.ORPHAN_REMOVED, before=(("stage", CrashPoint.SEGMENT_IN_PLACE),)),
    Kill("sweep", CrashPoint.ORPHAN_REMOVED, before=(("build", CrashPoint.PARQUET_WRITTEN),)),
    *(Kill("compact", point, times, flushed=True) for point, times in REPLACING),
    *(Kill("rebuild", point, times) for point, times in REPLACING),
    *(
        Kill("settle", point, before=DEAD_COMPACTION, flushed=True)
        for point in (CrashPoint.TABLE_COMMITTED, CrashPoint.RECOVERY_FENCED, CrashPoint.RECOVERY_ABORTED)
    ),
    Kill("settle", CrashPoint.RECOVERY_PUBLISHED, before=PUBLISHED_COMPACTION, flushed=True),
    Kill("vacuum", CrashPoint.VACUUM_REMOVED, before=COMPACTED, flushed=True),
    Kill("maintain", CrashPoint.LEDGER_PRUNED, flushed=True),
]


EACH_POINT = list({kill.point: kill for kill in reversed(KILLS)}.values())[::-1]
"""The first kill at each point: these are all done in every run of the tests."""


@pytest.mark.parametrize("kill", EACH_POINT, ids=str)
def test_a_process_killed_at_a_point_loses_and_doubles_nothing(
    kill: Kill, at_work: Callable[..., Store], recover: Recover
):
    assert_survived(kill, at_work, recover)


@pytest.mark.matrix
@pytest.mark.parametrize("kill", [kill for kill in KILLS if kill not in EACH_POINT], ids=str)
def test_a_process_killed_there_again_or_in_another_job_loses_and_doubles_nothing(
    kill: Kill, at_work: Callable[..., Store], recover: Recover
):
    assert_survived(kill, at_work, recover)


def assert_survived(kill: Kill, at_work: Callable[..., Store], recover: Recover) -> None:
    store = at_work(published=not kill.first, flushed=kill.flushed, **dict(kill.settings))
    for job, point in kill.before:
        killed_at(store, job, point)

    killed_at(store, kill.job, kill.point, kill.times)

    rows.assert_acknowledged_rows_are_readable_once(store)
    recover(store)
    rows.assert_all_is_well(store)


KEEPING = [CrashPoint.BATCHES_ACKNOWLEDGED, CrashPoint.LANDING_REMEMBERED]


@pytest.mark.parametrize("point", KEEPING, ids=str)
def test_files_that_stay_where_they_are_are_staged_once(
    point: CrashPoint, at_work: Callable[..., Store], recover: Recover
):
    store = at_work(landing_after_ingest="keep")

    killed_at(store, "ingest", point)

    recover(store)
    everything = sorted(row_id for ids in rows.IDS.values() for row_id in ids)
    assert sorted(row[0] for row in published(store, "readings")) == everything


def test_a_killed_build_holds_its_slices_until_it_is_settled_and_counts_as_a_retry(
    at_work: Callable[..., Store], recover: Recover
):
    store = at_work()
    killed_at(store, "build", CrashPoint.TABLE_CHECKED)
    with pytest.raises(BuildInFlight, match="the child"):
        flush_windows(store, BuildOrder("readings", owner="the test"))

    settled = recover(store)

    assert [build.published for build in settled] == [False]
    assert counted(store, RETRIED_BATCHES, "readings")["flush_abort"] == 1


def test_a_build_killed_after_its_commit_is_published_and_no_retry(at_work: Callable[..., Store], recover: Recover):
    store = at_work()
    killed_at(store, "build", CrashPoint.TABLE_COMMITTED)

    settled = recover(store)

    assert [build.published for build in settled] == [True]
    assert "flush_abort" not in counted(store, RETRIED_BATCHES, "readings")


def reached_points() -> Iterator[str]:
    """The name of the point in every call of ``reach`` in the package."""
    for path in Path(timestore_pipeline.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == reach.__name__:
                (point,) = node.args
                assert isinstance(point, ast.Attribute), f"{path}: name the point itself"
                yield point.attr


def test_every_crash_point_is_in_the_code():
    assert set(reached_points()) == {point.name for point in CrashPoint}


def test_a_process_is_killed_at_every_crash_point():
    """None of these is left out of a run: a sample has each on one of the ledgers."""
    killed = {kill.point for kill in (*EACH_POINT, *test_kills_of_replacements.WIDENED)} | set(KILLED_INGESTS)
    killed |= {kill.point for kill in test_kills_of_corrections.ONLY_HERE}
    killed |= set(KEEPING) | set(test_lost_ledger.KILLED_REBUILDS) | {point for point, _ in test_new_identity.KILLED}
    assert killed == set(CrashPoint)

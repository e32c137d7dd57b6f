"""Staging in an object store: processes that are killed around a put, hosts that share nothing else, a store that ails.

Every row is counted: what was acknowledged is there once, what was not is taken again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import StorageUnavailable
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage import objects
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import published, readable
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import killed_at
from timestore_pipeline_tests.crash.conftest import Recover
from timestore_pipeline_tests.fault_proxy import Effect, Fault, FaultProxy, slow_down
from timestore_pipeline_tests.object_store import Bucket

pytestmark = [pytest.mark.crash, pytest.mark.server, pytest.mark.only_on("sqlite")]


@pytest.fixture(autouse=True)
def sweep_young_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests sweep what they have just written."""
    monkeypatch.setattr(objects, "TRAITS", replace(objects.TRAITS, unswept_seconds=0))


KILLS = [
    ("stage", CrashPoint.REFUSED_ROWS_WRITTEN, 1),
    ("stage", CrashPoint.FILE_RENAMED, 1),
    ("stage", CrashPoint.FILE_SYNCED, 2),
    ("stage", CrashPoint.FILE_RENAMED, 2),
    ("stage", CrashPoint.BATCHES_RECORDED, 1),
    ("stage", CrashPoint.BATCHES_ACKNOWLEDGED, 1),
    ("ingest", CrashPoint.BAD_FILE_MOVED, 1),
    ("build", CrashPoint.PARQUET_IN_PLACE, 1),
    ("build", CrashPoint.TABLE_COMMITTED, 1),
    ("retire", CrashPoint.SEGMENT_UNLINKED, 1),
]


@pytest.mark.matrix
@pytest.mark.parametrize(("job", "point", "times"), KILLS, ids=str)
def test_a_killed_process_loses_and_doubles_nothing(
    job: str, point: CrashPoint, times: int, s3_bucket: Bucket, at_work: Callable[..., Store], recover: Recover
):
    store = at_work(staging_directory=f"{s3_bucket.url}/staging")

    killed_at(store, job, point, times)

    rows.assert_acknowledged_rows_are_readable_once(store)
    recover(store)
    rows.assert_all_is_well(store)


AILMENTS = {
    "500s": [Fault(Effect.ERROR, skip=1, times=3)],
    "slow-downs": [slow_down("PUT", times=3), slow_down("GET", times=3)],
    "time-outs": [Fault(Effect.HANG, "PUT"), Fault(Effect.HANG_AFTER, "PUT", skip=1), Fault(Effect.HANG, "GET")],
    "lost answers": [Fault(Effect.DROP_AFTER, "PUT", times=3), Fault(Effect.ERROR_AFTER, "DELETE_MANY")],
    "broken answers": [Fault(Effect.CUT, "GET", times=3)],
}


@pytest.mark.parametrize("faults", AILMENTS.values(), ids=AILMENTS)
def test_what_passes_is_waited_for_and_every_row_is_there_once(
    faults: list[Fault],
    s3_bucket: Bucket,
    at_work: Callable[..., Store],
    recover: Recover,
    make_store: MakeStore,
    tmp_path: Path,
):
    at_work(staging_directory=f"{s3_bucket.url}/staging")
    elsewhere = make_store(
        rows.DATASETS_YAML,
        staging_directory=f"{s3_bucket.url}/staging",
        staging_retention_seconds=0,
        ledger_url=f"sqlite:///{tmp_path}/home/data/work/ledger.sqlite",
        work_directory=tmp_path / "elsewhere",  # without a copy of anything
        object_store_timeout_seconds=0.5 if faults is AILMENTS["time-outs"] else 120,
    )

    with s3_bucket.proxy.spoilt(*faults):
        recover(elsewhere)

    assert all(fault.hits for fault in faults)
    rows.assert_all_is_well(elsewhere)


def test_a_store_that_stays_away_refuses_and_what_is_sent_again_is_there_once(s3_bucket: Bucket, make_store: MakeStore):
    store = make_store(rows.DATASETS_YAML, staging_directory=s3_bucket.url, object_store_retry_seconds=0.2)
    lost = Fault(Effect.ERROR_AFTER, "PUT", key="readings/*.duckdb", times=None, status=503, code="SlowDown")

    with s3_bucket.proxy.spoilt(lost), pytest.raises(StorageUnavailable, match=r"PUT s3://.*SlowDown"):
        stage(store, "readings", rows.batch("a"), batch_id="a")
    assert readable(store, "readings") == []
    for _ in range(2):
        stage(store, "readings", rows.batch("a"), batch_id="a")

    assert [row[0] for row in readable(store, "readings")] == [*rows.IDS["a"]]
    # The answer to the first one never came, though the store has it: that object is an orphan.
    assert len(s3_bucket.keys("readings/")) == 2
    sweep_orphans(store, older_than_seconds=0)
    assert len(s3_bucket.keys("readings/")) == 1
    assert [row[0] for row in readable(store, "readings")] == [*rows.IDS["a"]]


def test_hosts_that_share_ledger_and_object_store_alone_stage_build_and_retire_at_once(
    s3_bucket: Bucket, make_store: MakeStore, tmp_path: Path
):
    def host(name: str) -> Store:
        return make_store(
            rows.DATASETS_YAML,
            staging_directory=f"{s3_bucket.url}/staging",
            work_directory=tmp_path / name,
            ledger_url=f"sqlite:///{tmp_path}/ledger.sqlite",
            staging_retention_seconds=0,
            object_cache_bytes=1,
        )

    hosts = [host("one"), host("two")]

    def produce(number: int) -> None:
        for batch in range(6):
            first = 1_000 * number + 10 * batch
            stage(hosts[number], "readings", rows.readings(range(first, first + 10)), batch_id=f"{number}-{batch}")

    with ThreadPoolExecutor(2) as pool:
        producing = [pool.submit(produce, number) for number in range(2)]
        while not all(each.done() for each in producing):
            flush_windows(hosts[0], BuildOrder("readings", owner="one"))
            unlink_published_segments(hosts[1])
            assert max(Counter(row[0] for row in readable(hosts[1], "readings")).values(), default=1) == 1
        for each in producing:
            each.result()
    flush_windows(hosts[1], BuildOrder("readings", owner="two"))
    unlink_published_segments(hosts[0])

    expected = [1_000 * number + row for number in range(2) for row in range(60)]
    assert sorted(row[0] for row in published(hosts[0], "readings")) == expected
    assert sorted(row[0] for row in readable(hosts[1], "readings")) == expected
    assert s3_bucket.keys() == []


def test_a_process_that_slept_after_its_put_notices_that_its_object_was_swept(
    s3_bucket: Bucket, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
):
    store = make_store(rows.DATASETS_YAML, staging_directory=s3_bucket.url)
    monkeypatch.setattr(objects, "TRAITS", replace(objects.TRAITS, unswept_seconds=0))
    puts: list[str] = []

    def sweep(proxy: FaultProxy) -> None:
        """Remove the first segment as soon as the ledger is asked for it."""
        for key in s3_bucket.keys("readings/"):
            if not puts:
                puts.append(key)
                s3_bucket.delete(key)

    with s3_bucket.proxy.spoilt(
        Fault(Effect.CALL, "HEAD", key="readings/*.duckdb", call=lambda request: sweep(s3_bucket.proxy))
    ):
        stage(store, "readings", rows.batch("a"), batch_id="a")

    assert len(puts) == 1
    assert [row[0] for row in readable(store, "readings")] == [*rows.IDS["a"]]
    assert len(s3_bucket.keys("readings/")) == 1

"""A disk that is full, for real: a clear error, nothing lost, and on it goes once there is space."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.errors import DiskFull, TimestoreError
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.crash import rows

pytestmark = pytest.mark.crash

MANY = 40_000
MEGABYTES = 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes; skipped where this process may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "timestore-test", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(f"cannot mount a small file system: {mounted.stderr}")
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip() or 'not root'}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Take all the space of the disk but ``leave`` bytes."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(1 << 16))
        except OSError:
            pass
    os.truncate(path, max(0, path.stat().st_size - leave))
    return path


def many(first: int) -> pa.Table:
    """So many rows, of one window."""
    numbers = range(first, first + MANY)
    midnight = int(rows.time_of(0).timestamp() * 1_000_000)
    times = pa.array((midnight + number for number in numbers), pa.timestamp("us", "UTC"))
    return pa.table({"id": pa.array(numbers, pa.int64()), "at": times})


def ids(store: Store) -> list[int]:
    with open_reader(store, ["readings"]) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM readings").fetchall()]


def goes_on(store: Store, expected: int) -> None:
    """Nothing is lost or doubled, and all that failed works now."""
    settle_dead_builds(store, owner_is_gone=lambda owner: True)
    stage(store, "readings", many(MANY), batch_id="more")
    flush_windows(store, BuildOrder("readings", owner="the test"))
    found = ids(store)
    assert len(found) == len(set(found)) == expected
    unlink_published_segments(store)
    sweep_orphans(store, older_than_seconds=0)
    assert list(store.settings.staging_path.glob("readings/[!.]*")) == []


@pytest.mark.parametrize("leave", [0, 1 << 16, 1 << 18], ids="{} bytes left".format)
def test_a_full_disk_while_staging(leave: int, small_disk: Path, make_store: MakeStore):
    store = make_store(rows.DATASETS_YAML, staging_directory=small_disk, staging_retention_seconds=0)
    stage(store, "readings", rows.batch("a"), batch_id="a")
    filler = fill(small_disk, leave)

    with pytest.raises(TimestoreError):
        stage(store, "readings", many(MANY), batch_id="more")

    assert sorted(ids(store)) == list(rows.IDS["a"])
    filler.unlink()
    goes_on(store, MANY + len(rows.IDS["a"]))


@pytest.mark.parametrize("leave", [0, 1 << 14, 1 << 16], ids="{} bytes left".format)
def test_a_full_disk_while_building(leave: int, small_disk: Path, make_store: MakeStore):
    store = make_store(rows.DATASETS_YAML, tables_url=str(small_disk), staging_retention_seconds=0)
    stage(store, "readings", many(0), batch_id="first")
    filler = fill(small_disk, leave)

    with pytest.raises(TimestoreError):
        flush_windows(store, BuildOrder("readings", owner="the test"))

    assert sorted(ids(store)) == list(range(MANY))
    filler.unlink()
    goes_on(store, 2 * MANY)


@pytest.mark.only_on("sqlite")
def test_a_full_disk_in_the_ledger(small_disk: Path, make_store: MakeStore):
    store = make_store(
        rows.DATASETS_YAML,
        ledger_url=f"sqlite:///{small_disk / 'ledger.sqlite'}",
        ledger_busy_timeout_seconds=0.2,
        staging_retention_seconds=0,
    )
    stage(store, "readings", many(0), batch_id="first")
    filler = fill(small_disk)
    refused = 0
    for number in range(300):  # what the write-ahead log has left over is used up first
        try:
            stage(store, "others", rows.readings([number]), batch_id=f"small {number}")
        except TimestoreError:
            refused += 1
            if refused == 3:
                break
    assert refused == 3
    with pytest.raises(TimestoreError):
        flush_windows(store, BuildOrder("readings", owner="the test"))
    assert sorted(ids(store)) == list(range(MANY))

    filler.unlink()
    goes_on(store, 2 * MANY)


def test_the_minimum_of_free_disk_is_kept(small_disk: Path, make_store: MakeStore):
    store = make_store(
        rows.DATASETS_YAML, staging_directory=small_disk, staging_min_free_disk_bytes=(MEGABYTES - 1) << 20
    )
    filler = fill(small_disk, 1 << 20)

    with pytest.raises(DiskFull, match="TIMESTORE_STAGING_MIN_FREE_DISK_BYTES"):
        stage(store, "readings", rows.batch("a"))

    filler.unlink()
    assert stage(store, "readings", rows.batch("a")).rows == len(rows.IDS["a"])

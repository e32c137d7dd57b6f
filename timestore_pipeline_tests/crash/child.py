"""One job of a run in a process of its own, so that a test can end it anywhere: the other side of ``start``."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow as pa

from timestore_pipeline import crash_points
from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.expire import expire_windows
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.datasets import Datasets
from timestore_pipeline.model.windows import TimeRange, WindowRange
from timestore_pipeline.operating.installation import change_identity
from timestore_pipeline.restoring.ledger import rebuild_ledger
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging import deadline, file_rows
from timestore_pipeline.staging.stage import incoming_of, stage, stage_incoming
from timestore_pipeline.store import Store
from timestore_pipeline.table import manifests
from timestore_pipeline.upkeep.maintenance import maintain
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline.upkeep.vacuum import vacuum_table
from timestore_pipeline_tests.builders import ingest
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.forks import CONTEXT, take_environment
from timestore_pipeline_tests.processes import allow_tracing


def _build_day(store: Store, key: str) -> None:
    window = store.datasets["readings"].window_from_key(key)
    flush_windows(store, BuildOrder("readings", WindowRange(window, window), owner="the child"))


def _build_and_merge(store: Store) -> None:
    """Build, and find that there are manifests enough to be merged."""
    manifests.MERGE_FROM = 2
    flush_windows(store, BuildOrder("readings", owner="the child"))


def _ingest_a_bomb(store: Store, go_off: Callable[[], object]) -> None:
    """Ingest, and do ``go_off`` while the file ``bomb.csv`` is read."""
    plan = file_rows.plan_reads

    def deadly(reader: Any, schema: Any, files: Any, wider: Any) -> Any:
        if any(path.name == "bomb.csv" for path in files.values()):
            go_off()
        return plan(reader, schema, files, wider)

    file_rows.plan_reads = deadly
    ingest(store)


def _ingest_an_endless_file(store: Store) -> None:
    """Ingest, with a reader that never comes back from ``bomb.csv``, whatever interrupts it."""
    deadline._LEAST_PATIENCE_SECONDS = 0.1
    never = threading.Event()
    _ingest_a_bomb(store, never.wait)


REPLACEMENT = "replacement.arrow"
"""The file with the batch by which the job "replace" replaces the range that its metadata says."""


def _replace(store: Store) -> None:
    table = pa.ipc.open_file(store.settings.home / REPLACEMENT).read_all()
    replaces = TimeRange(*(int(table.schema.metadata[name]) for name in (b"start", b"end")))
    table = table.replace_schema_metadata(None)
    stage_incoming(store, "readings", incoming_of(store, "readings", table, "d", replaces=replaces))


JOBS: dict[str, Callable[[Store], object]] = {
    "stage": lambda store: stage(store, "readings", rows.batch("e"), batch_id="e"),
    "replace": _replace,
    "ingest": lambda store: len(ingest(store)),
    "ingest and be killed by a bomb": lambda store: _ingest_a_bomb(store, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "ingest and crash on a bomb": lambda store: _ingest_a_bomb(store, lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    "ingest and spin on a bomb": _ingest_an_endless_file,
    "build": lambda store: flush_windows(store, BuildOrder("readings", owner="the child")),
    "build the first day": lambda store: _build_day(store, "2026-01-01"),
    "build the second day": lambda store: _build_day(store, "2026-01-02"),
    "build and merge": _build_and_merge,
    "settle": lambda store: settle_dead_builds(store, owner_is_gone=lambda owner: True),
    "retire": unlink_published_segments,
    "rebuild": lambda store: rebuild_windows(store, BuildOrder("readings", owner="the child")),
    "compact": lambda store: compact_fully(store, BuildOrder("readings", owner="the child")),
    "expire": lambda store: expire_windows(store, BuildOrder("readings", owner="the child")),
    "vacuum": lambda store: vacuum_table(store, "readings", now=rows.far_in_the_future()),
    "maintain": lambda store: maintain(store, owner="the child", now=rows.far_in_the_future()),
    "sweep": lambda store: sweep_orphans(store, 0),
    "new identity": change_identity,
    "new identity in place": lambda store: change_identity(store, in_place=True),
    "stage others": lambda store: stage(store, "others", rows.batch("a")),
    "build and retire": lambda store: (JOBS["build"](store), JOBS["retire"](store)),
}
"""What a child can be told to do; the names are those of the parts of a run."""


BUILDING = (
    CrashPoint.SLICES_RECORDED,
    CrashPoint.SLICES_CLAIMED,
    CrashPoint.PARQUET_WRITTEN,
    CrashPoint.PARQUET_SYNCED,
    CrashPoint.PARQUET_RENAMED,
    CrashPoint.PARQUET_IN_PLACE,
    CrashPoint.MANIFEST_WRITTEN,
    CrashPoint.TABLE_CHECKED,
    CrashPoint.TABLE_COMMITTED,
    CrashPoint.TABLE_SYNCED,
    CrashPoint.MANIFEST_KEPT,
    CrashPoint.PUBLICATION_RECORDED,
    CrashPoint.PUBLICATION_COMMITTED,
)
"""Every point that a build passes, in this order."""


REBUILD = "rebuild ledger"
"""A job that needs no store, for there is none."""


@dataclass(frozen=True)
class Ending:
    """How a child ended by itself: with the name and message of an error, or with neither."""

    error: str | None = None
    message: str = ""


class Child:
    """A process that does one job."""

    def __init__(self, process: BaseProcess, result: Path) -> None:
        self._process = process
        self._result = result

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait_until_stopped(self, seconds: float = 120) -> None:
        """Wait until SIGSTOP has it."""
        deadline = time.monotonic() + seconds
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert self._process.is_alive(), f"the child ended instead of stopping: {self.ending()}"
            assert time.monotonic() < deadline, "the child was never stopped"
            time.sleep(0.005)

    def exit_code(self, seconds: float = 120) -> int:
        """Wait for its end; a signal's number is negative."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError("the child did not end in time")
        return self._process.exitcode

    def ending(self) -> Ending:
        """How it ended, for one that was not killed."""
        return Ending(**json.loads(self._result.read_text(encoding="utf-8")))

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def signal_at(point: CrashPoint, number: signal.Signals, times: int = 1) -> str:
    """The plan of a child that sends itself a signal when it reaches ``point`` for the ``times``-th time."""
    return f"{point.value}:{times}={number.name}"


def start(store: Store, job: str, plan: str | None = None, *, held: bool = False) -> Child:
    """Start a process that does ``job`` in the installation of ``store``.

    ``held``: it stops itself once it has opened the store, and any process of this user may trace it.
    """
    result = store.settings.home / "child.json"
    result.unlink(missing_ok=True)
    opening = (store.settings, store.datasets)
    process = CONTEXT.Process(target=_run, args=(opening, dict(os.environ), job, plan, held, result))
    process.start()
    return Child(process, result)


def killed_at(store: Store, job: str, point: CrashPoint, times: int = 1) -> None:
    """Do ``job`` in a process that is killed when it reaches ``point`` for the ``times``-th time, and was."""
    child = start(store, job, signal_at(point, signal.SIGKILL, times))
    assert child.exit_code() == -signal.SIGKILL, f"{point} was not reached {times} times: {child.ending()}"


def _run(
    opening: tuple[Settings, Datasets],
    environment: Mapping[str, str],
    job: str,
    plan: str | None,
    held: bool,
    result: Path,
) -> None:
    take_environment(environment)
    settings, datasets = opening
    try:
        if job == REBUILD:
            crash_points.arm(plan)
            rebuild_ledger(settings, by="the child")
        else:
            with Store.open(settings, datasets=datasets) as store:
                crash_points.arm(plan)
                if held:
                    allow_tracing()
                    os.kill(os.getpid(), signal.SIGSTOP)
                JOBS[job](store)
    except BaseException as error:
        traceback.print_exc()
        result.write_text(json.dumps({"error": type(error).__name__, "message": str(error)}), encoding="utf-8")
        sys.exit(1)
    result.write_text("{}", encoding="utf-8")

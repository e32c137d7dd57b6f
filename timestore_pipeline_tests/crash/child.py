"""One job of a run in a process of its own, so that a test can end it anywhere: the other side of ``start``.

Forked from a server that has everything imported, a child costs a tenth of a second instead of a whole start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from timestore_pipeline import crash_points
from timestore_pipeline.building import build, manifests, publication
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.lifecycle.compaction import compact_dataset
from timestore_pipeline.lifecycle.expiry import expire_windows
from timestore_pipeline.lifecycle.maintenance import maintain
from timestore_pipeline.lifecycle.rebuilding.ledger import rebuild_ledger
from timestore_pipeline.lifecycle.retention import sweep_orphans, unlink_published_segments
from timestore_pipeline.lifecycle.vacuum import vacuum_table
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging import ingest as ingesting
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import ingest
from timestore_pipeline_tests.crash import rows

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def _build_slowly(store: Store, seconds: float) -> None:
    """Build, with a commit that takes its time."""
    commit = publication.commit_build

    def late(*arguments: Any) -> int:
        time.sleep(seconds)
        return commit(*arguments)

    publication.commit_build = late
    build.build_windows(store, "readings", owner="the child")


def _build_day(store: Store, key: str) -> None:
    window = store.datasets["readings"].window_from_key(key)
    build.build_windows(store, "readings", window, window, owner="the child")


def _build_and_merge(store: Store) -> None:
    """Build, and find that there are manifests enough to be merged."""
    manifests.MERGE_FROM = 2
    build.build_windows(store, "readings", owner="the child")


def _ingest_a_bomb(store: Store, number: signal.Signals) -> None:
    """Ingest, and die of the file ``bomb.csv`` while it is read."""
    plan = ingesting.plan_reads

    def deadly(*arguments: Any) -> Any:
        files = next(each for each in arguments if isinstance(each, list))
        if any(path.name == "bomb.csv" for path in files):
            os.kill(os.getpid(), number)
        return plan(*arguments)

    ingesting.plan_reads = deadly
    ingest(store)


JOBS: dict[str, Callable[[Store], object]] = {
    "stage": lambda store: stage(store, "readings", rows.batch("e"), batch_id="e"),
    "ingest": lambda store: len(ingest(store)),
    "ingest and be killed by a bomb": lambda store: _ingest_a_bomb(store, signal.SIGKILL),
    "ingest and crash on a bomb": lambda store: _ingest_a_bomb(store, signal.SIGSEGV),
    "build": lambda store: build.build_windows(store, "readings", owner="the child"),
    "build the first day": lambda store: _build_day(store, "2026-01-01"),
    "build the second day": lambda store: _build_day(store, "2026-01-02"),
    "build and merge": _build_and_merge,
    "slow build": lambda store: _build_slowly(store, seconds=1.2),
    "settle": lambda store: settle_dead_builds(store, owner_is_gone=lambda owner: True),
    "retire": unlink_published_segments,
    "rebuild": lambda store: rebuild_windows(store, "readings", owner="the child"),
    "compact": lambda store: compact_dataset(
        store, "readings", owner="the child", trigger=Trigger.MANUAL, thorough=True
    ),
    "expire": lambda store: expire_windows(store, "readings", owner="the child", trigger=Trigger.MANUAL),
    "vacuum": lambda store: vacuum_table(store, "readings", now=rows.far_in_the_future()),
    "maintain": lambda store: maintain(store, owner="the child", now=rows.far_in_the_future()),
    "sweep": lambda store: sweep_orphans(store, 0),
    "stage others": lambda store: stage(store, "others", rows.batch("a")),
    "build and retire": lambda store: (JOBS["build"](store), JOBS["retire"](store)),
}
"""What a child can be told to do; the names are those of the parts of a run."""


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

    def wait_until_stopped(self, seconds: float = 60) -> None:
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


def start(store: Store, job: str, plan: str | None = None, *, interruptible: bool = False) -> Child:
    """Start a process that does ``job`` in the installation of ``store``.

    ``interruptible``: it takes SIGTERM as Dagster's run processes do, as an exception in its main thread.
    """
    result = store.settings.home / "child.json"
    result.unlink(missing_ok=True)
    fields = store.settings.model_dump(exclude_unset=True)
    object_store = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    process = _CONTEXT.Process(target=_run, args=(fields, object_store, job, plan, interruptible, result))
    process.start()
    return Child(process, result)


def killed_at(store: Store, job: str, point: CrashPoint, times: int = 1) -> None:
    """Do ``job`` in a process that is killed when it reaches ``point`` for the ``times``-th time, and was."""
    child = start(store, job, signal_at(point, signal.SIGKILL, times))
    assert child.exit_code() == -signal.SIGKILL, f"{point} was not reached {times} times: {child.ending()}"


def command(job: str) -> list[str]:
    """The command line that does ``job`` in the installation of the environment."""
    return [sys.executable, "-m", __name__, job]


def environment(store: Store) -> dict[str, str]:
    """The environment for :func:`command`."""
    root = Path(__file__).parents[2]
    home = store.settings.home
    fields: Mapping[str, Any] = store.settings.model_dump(exclude_unset=True)
    plain = {name: _plain(value) for name, value in fields.items()}
    settings = {f"TIMESTORE_{name.upper()}": value for name, value in plain.items()}
    return {**os.environ, **settings, "PYTHONPATH": str(root), "TIMESTORE_HOME": str(home)}


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def ending_of(finished: subprocess.CompletedProcess[str]) -> Ending:
    """How a :func:`command` ended."""
    assert finished.returncode in (0, 1), finished.stderr
    assert finished.returncode == 0 or finished.stdout.strip(), finished.stderr
    if finished.returncode == 0:
        return Ending()
    error, _, message = finished.stdout.strip().splitlines()[-1].partition(": ")
    return Ending(error, message)


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(f"signal {number}")


def _run(
    fields: dict[str, Any],
    object_store: dict[str, str],
    job: str,
    plan: str | None,
    interruptible: bool,
    result: Path,
) -> None:
    # Of the test during which the server of these processes was started.
    os.environ.pop("TIMESTORE_LEDGER_URL", None)
    os.environ.update(object_store)
    if interruptible:
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        if job == REBUILD:
            crash_points.arm(plan)
            rebuild_ledger(Settings(**fields), by="the child")
        else:
            with Store.open(Settings(**fields)) as store:
                crash_points.arm(plan)
                JOBS[job](store)
    except BaseException as error:
        traceback.print_exc()
        result.write_text(json.dumps({"error": type(error).__name__, "message": str(error)}), encoding="utf-8")
        sys.exit(1)
    result.write_text("{}", encoding="utf-8")


def _main() -> int:
    try:
        with Store.open() as store:
            JOBS[sys.argv[1]](store)
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}".replace("\n", " "))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())

"""Starts the processes of a soak, stops and kills them as the dice say, and counts every row at the end."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.landing.files import files_for_one_run, scan_landing
from timestore_pipeline.ledger.counters import RETRIED_BATCHES, counter_values
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.staging.ingest import ingest_files
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import files_under, published
from timestore_pipeline_tests.forks import CONTEXT
from timestore_pipeline_tests.soak.workers import (
    DATASETS,
    LEASE_SECONDS,
    MOST_ROWS,
    Batch,
    Soak,
    audit,
    drop,
    live,
    noted,
)

_ROLES = ("stage", "stage", "ingest", "ingest", "build", "build", "recover", "read")


@dataclass
class Life:
    """A process and its fate: killed after a while, or at a crash point (and after a while in any case)."""

    process: BaseProcess
    role: str
    plan: str | None
    ends_at: float
    stop_at: float | None
    continue_at: float | None = None


_POINTS_OF = {
    "stage": [point for point in CrashPoint if point.value.startswith(("file.", "batches.", "segment.w", "segment.i"))],
    "ingest": [point for point in CrashPoint if point.value.startswith(("file.", "batches.", "landing."))],
    "build": [
        point
        for point in CrashPoint
        if point.value.startswith(
            ("table.ch", "table.co", "table.s", "claim.", "parquet.", "manifest.w", "manifest.k", "publication.")
        )
    ],
    "recover": [
        point for point in CrashPoint if point.value.startswith(("table.c", "table.s", "recovery.", "retention."))
    ],
    "read": [],
}


def _born(soak: Soak, dice: random.Random, serial: int) -> Life:
    role = _ROLES[serial % len(_ROLES)]
    plan = None
    if _POINTS_OF[role] and dice.random() < 0.6:
        plan = f"{dice.choice(_POINTS_OF[role])}:{dice.randrange(1, 4)}={signal.SIGKILL.name}"
    process = CONTEXT.Process(target=live, args=(soak, serial, role, plan))
    process.start()
    now = time.monotonic()
    ends_at = now + (dice.uniform(5, 15) if plan else dice.uniform(0.3, 6))
    return Life(process, role, plan, ends_at, now + dice.uniform(0.3, 3) if dice.random() < 0.15 else None)


def _tend(soak: Soak, life: Life, dice: random.Random, now: float) -> bool:
    """Do to a process what is due; False once it has ended."""
    if not life.process.is_alive():
        if life.process.exitcode == -signal.SIGKILL:
            soak.kills[life.plan.partition(":")[0] if life.plan else "any moment"] += 1
        else:
            soak.problems.append(f"{life.role} ended by itself with {life.process.exitcode}")
        return False
    pid = life.process.pid or 0
    with suppress(ProcessLookupError):
        if life.continue_at is not None and now >= life.continue_at:
            os.kill(pid, signal.SIGCONT)
            life.continue_at = None
        elif life.stop_at is not None and now >= life.stop_at:
            os.kill(pid, signal.SIGSTOP)
            soak.stops += 1
            life.stop_at, life.continue_at = None, now + dice.uniform(0.5, 2 * LEASE_SECONDS)
            life.ends_at = max(life.ends_at, life.continue_at + 2)
        elif now >= life.ends_at:
            life.plan = None
            life.process.kill()
    return True


def run(soak: Soak, say: Callable[[str], None] = print, enough: Callable[[], bool] = lambda: False) -> dict[str, int]:
    """Run a soak to its end and return its figures; ``soak.problems`` says what was wrong.

    It ends when its time is over, or as soon as ``enough`` says so.
    """
    (soak.home / "journals").mkdir(parents=True)
    (soak.home / "datasets.yaml").write_text(
        "datasets:\n"
        + "".join(
            f"  {name}: {{columns: {{id: bigint, at: timestamptz}}, time: at, window: {window}}}\n"
            for name, window in DATASETS.items()
        ),
        encoding="utf-8",
    )
    Store.open(soak.settings).close()
    dice = random.Random(soak.seed)
    lives: list[Life] = []
    serial = 0
    started = reported = time.monotonic()
    try:
        while (now := time.monotonic()) < started + soak.seconds and not enough():
            lives = [life for life in lives if _tend(soak, life, dice, now)]
            while len(lives) < soak.processes:
                lives.append(_born(soak, dice, serial))
                serial += 1
            if now > reported + 30:
                reported = now
                say(f"{now - started:4.0f} s: {soak.kills.total()} kills, {len(noted(soak, 'acked'))} batches acked")
            time.sleep(0.02)
    finally:
        for life in lives:
            life.process.kill()
            life.process.join()
    killed_at_the_end = len(lives)
    return {"kills": soak.kills.total() + killed_at_the_end, "stops": soak.stops, **_settle_and_count(soak)}


def _settle_and_count(soak: Soak) -> dict[str, int]:
    """Let every producer try again and the sensors work; then every row must be in the table once."""
    problems = soak.journal("problems")
    if problems.exists():
        soak.problems += problems.read_text(encoding="utf-8").splitlines()
    acked, meant, dropped = noted(soak, "acked"), noted(soak, "meant"), noted(soak, "dropped")
    with Store.open(soak.settings) as store:
        for dataset in DATASETS:
            soak.problems += [f"after the last kill: {text}" for text in audit(soak, store, dataset, acked)]
        settle_dead_builds(store, owner_is_gone=lambda owner: True)
        for number in sorted(meant):
            batch = Batch(soak.seed, number)
            stage(store, batch.dataset, batch.table(), batch_id=batch.batch_id)
        for number in _half_dropped(store):
            drop(store, Batch(soak.seed, number))
            dropped.add(number)
        while files := files_for_one_run(store, scan_landing(store)):
            for dataset, chosen in files.items():
                ingest_files(store, dataset, chosen)
        # A worker killed between dropping a file and noting it has dropped it all the same.
        dropped |= {int(name.partition(".")[0]) for name in files_under(store.settings.archive_path)}
        for dataset in DATASETS:
            flush_windows(store, BuildOrder(dataset, owner="the audit"))
        expected = Counter(
            row_id
            for number in meant | dropped
            for row_id in range(number * MOST_ROWS, number * MOST_ROWS + Batch(soak.seed, number).rows)
        )
        for what, found in (("table", _ids(store, published)), ("read API", _ids(store, _readable))):
            lost, doubled, strange = expected - found, found - expected, set(found) - set(expected)
            if lost or doubled or strange:
                soak.problems.append(
                    f"{what}: {lost.total()} rows lost, {doubled.total()} too many, {len(strange)} strange"
                )
        unlink_published_segments(store, now=2**62)
        sweep_orphans(store, older_than_seconds=0)
        left = sorted(store.settings.staging_path.rglob("*.duckdb*"))
        soak.problems += [f"left behind: {path}" for path in left]
        with store.ledger.read() as tx:
            counters = counter_values(tx)
            soak.problems += [f"in quarantine: {entry.source}: {entry.reason}" for entry in open_entries(tx)]
    aborted = sum(
        int(value) for (name, _, why), value in counters.items() if (name, why) == (RETRIED_BATCHES, "flush_abort")
    )
    errors = soak.journal("errors")
    return {
        "batches": len(meant | dropped),
        "rows audited": expected.total(),
        "batches retried after a dead build": aborted,
        "clear errors met": len(errors.read_text(encoding="utf-8").splitlines()) if errors.exists() else 0,
    }


def _half_dropped(store: Store) -> list[int]:
    """Files whose producer was killed while it wrote them."""
    return [int(path.name.partition(".")[0]) for path in store.settings.landing_path.rglob("*.partial")]


def _ids(store: Store, rows_of: Callable[[Store, str], list[tuple]]) -> Counter[int]:
    return Counter(row[0] for dataset in DATASETS for row in rows_of(store, dataset))


def _readable(store: Store, dataset: str) -> list[tuple]:
    with open_reader(store, [dataset]) as connection:
        return connection.execute(f"SELECT id FROM {dataset}").fetchall()

"""What the processes of a soak do until they are killed, and the journals in which they say how far they came."""

from __future__ import annotations

import os
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
from pydantic import SecretStr

from timestore_pipeline import crash_points
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.errors import LedgerError, TimestoreError
from timestore_pipeline.landing.files import files_for_one_run, scan_landing
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.ingest import ingest_files
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments

DATASETS = {"ticks": "hour", "meters": "day"}
MOST_ROWS = 1_000
LEASE_SECONDS = 2.0
_START = datetime(2026, 1, 1, tzinfo=UTC)
# A sweep that finds a file this old finds one of a dead process: none is stopped for so long.
_SWEEP_AFTER_SECONDS = 20.0


@dataclass(frozen=True)
class Batch:
    """A batch that its number and the soak's seed determine: the ids of its rows start at number × 1,000."""

    seed: int
    number: int

    @property
    def dataset(self) -> str:
        return list(DATASETS)[self.number % len(DATASETS)]

    @property
    def batch_id(self) -> str:
        return f"batch-{self.number}"

    @property
    def rows(self) -> int:
        return random.Random(f"{self.seed} {self.number} rows").choice((1, 5, 50, MOST_ROWS - 1))

    def table(self) -> pa.Table:
        """Its rows, over three days."""
        dice = random.Random(f"{self.seed} {self.number} times")
        first = self.number * MOST_ROWS
        times = [_START + timedelta(seconds=dice.randrange(3 * 86_400)) for _ in range(self.rows)]
        return pa.table(
            [pa.array(range(first, first + self.rows), pa.int64()), pa.array(times, pa.timestamp("us", "UTC"))],
            ["id", "at"],
        )

    def csv(self) -> str:
        """Its rows as a landing file."""
        return "id,at\n" + "".join(f"{row['id']},{row['at'].isoformat()}\n" for row in self.table().to_pylist())


@dataclass
class Soak:
    """One soak: where it is, what it has seen."""

    home: Path
    seed: int
    seconds: float
    processes: int = 6
    ledger_url: str | None = None
    kills: Counter[str] = field(default_factory=Counter)
    stops: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return Settings(
            home=self.home,
            ledger_url=SecretStr(self.ledger_url) if self.ledger_url else None,
            staging_retention_seconds=1,
            staging_min_free_disk_bytes=0,
            build_lease_seconds=LEASE_SECONDS,
            staging_max_pending=0,
            duckdb_threads=1,
            duckdb_memory_limit="128MiB",
        )

    def journal(self, name: str) -> Path:
        return self.home / "journals" / name


@dataclass
class Work:
    """What one process of the soak works with."""

    soak: Soak
    store: Store
    dice: random.Random
    numbers: Iterator[int]
    journal: Path
    owner: str

    def note(self, word: str, number: int) -> None:
        """Write into this process's journal; the kernel keeps it when the process is killed."""
        with self.journal.open("a", encoding="utf-8") as stream:
            stream.write(f"{word} {number}\n")


def stage_one(work: Work) -> None:
    """Stage a new batch, or one of the past again, as a producer that is not sure does."""
    number = next(work.numbers)
    batch = Batch(work.soak.seed, number)
    work.note("meant", number)
    stage(work.store, batch.dataset, batch.table(), batch_id=batch.batch_id)
    work.note("acked", number)
    if work.dice.random() < 0.1:
        stage(work.store, batch.dataset, batch.table(), batch_id=batch.batch_id)


def ingest_some(work: Work) -> None:
    """Drop a few files as a producer does, then ingest whatever lies there."""
    for _ in range(work.dice.randrange(4)):
        number = next(work.numbers)
        drop(work.store, Batch(work.soak.seed, number))
        work.note("dropped", number)
    for dataset, files in files_for_one_run(work.store, scan_landing(work.store)).items():
        ingest_files(work.store, dataset, files)


def drop(store: Store, batch: Batch) -> None:
    folder = store.settings.landing_path / batch.dataset
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{batch.number}.csv.partial"
    partial.write_text(batch.csv(), encoding="utf-8")
    partial.rename(partial.with_suffix(""))


def build_one(work: Work) -> None:
    """Publish what is staged in one dataset."""
    flush_windows(work.store, BuildOrder(work.dice.choice(list(DATASETS)), owner=work.owner))


def recover_all(work: Work) -> None:
    """Do what the flush and housekeeping sensors do."""
    settle_dead_builds(work.store, owner_is_gone=process_is_gone)
    unlink_published_segments(work.store)
    sweep_orphans(work.store, older_than_seconds=_SWEEP_AFTER_SECONDS)


def read_all(work: Work) -> None:
    """Look whether each batch that was acknowledged before is there, each whole, and no row twice."""
    for dataset in DATASETS:
        acked = noted(work.soak, "acked")
        problems = audit(work.soak, work.store, dataset, acked)
        for problem in problems:
            with work.soak.journal("problems").open("a", encoding="utf-8") as stream:
                stream.write(f"while running: {problem}\n")
    time.sleep(0.05)


JOBS: dict[str, Callable[[Work], None]] = {
    "stage": stage_one,
    "ingest": ingest_some,
    "build": build_one,
    "recover": recover_all,
    "read": read_all,
}


def audit(soak: Soak, store: Store, dataset: str, acked: set[int]) -> list[str]:
    """Return what is wrong with the rows of a dataset as the read API gives them."""
    with open_reader(store, [dataset]) as connection:
        found = connection.execute(
            f"SELECT id // {MOST_ROWS}, count(*), count(DISTINCT id) FROM {dataset} GROUP BY 1"
        ).fetchall()
    problems = []
    for number, rows, ids in found:
        expected = Batch(soak.seed, number).rows
        if (rows, ids) != (expected, expected):
            problems.append(f"{dataset}: batch {number} has {expected} rows; {rows} were read, {ids} different ones")
    there = {number for number, _, _ in found}
    problems += [
        f"{dataset}: batch {number} was acknowledged and is not there"
        for number in sorted(acked - there)
        if Batch(soak.seed, number).dataset == dataset
    ]
    return problems


def noted(soak: Soak, word: str) -> set[int]:
    """The numbers of the batches of which some process noted ``word``."""
    found = set()
    for path in (soak.home / "journals").glob("worker-*"):
        for line in path.read_text(encoding="utf-8").splitlines():
            first, _, number = line.partition(" ")
            if first == word:
                found.add(int(number))
    return found


def process_is_gone(owner: str) -> bool:
    """Owners are ``worker-<serial>-<pid>-<start>``; a process id may be of another process by now."""
    _, _, pid, start = owner.split("-")
    return _started_at(int(pid)) != start


def _started_at(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _opened(soak: Soak) -> Store:
    while True:
        try:
            return Store.open(soak.settings)
        except LedgerError:
            time.sleep(0.05)  # its server is away just now; a sensor would start the next run


def live(soak: Soak, serial: int, role: str, plan: str | None) -> None:
    name = f"worker-{serial}-{os.getpid()}-{_started_at(os.getpid())}"
    step = 100_000  # no worker makes as many batches
    with _opened(soak) as store:
        work = Work(
            soak, store, random.Random(f"{soak.seed} {serial} work"), iter(range(serial * step, (serial + 1) * step)),
            soak.journal(name), name,
        )  # fmt: skip
        crash_points.arm(plan)
        while True:
            try:
                JOBS[role](work)
            except TimestoreError as error:
                # Another build in flight, a claim lost, a ledger locked: what a run would try again at the next tick.
                with soak.journal("errors").open("a", encoding="utf-8") as stream:
                    stream.write(f"{type(error).__name__}\n")
                time.sleep(work.dice.random() / 20)
            except Exception:
                with soak.journal("problems").open("a", encoding="utf-8") as stream:
                    stream.write(f"{role} failed: {traceback.format_exc()}\n")
                raise

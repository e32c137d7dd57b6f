"""Mutant after mutant through HTTP, landing files and ``stage()``, and a good batch of another dataset after each.

What must hold: the good batch is taken, nothing is answered with 500 or ends in a traceback, and memory is bounded.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pyarrow as pa

from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.rows.formats.csv_files import Csv
from timestore_pipeline.settings import PREFIX, load_settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, ingest, readable
from timestore_pipeline_tests.fuzz.mutants import BATCHES, Batch, mutated, strange_frame
from timestore_pipeline_tests.http.server import ServerProcess, process_serving

DATASETS = """
datasets:
  weather: {columns: {ts: timestamptz, station: varchar, temp: double}, time: ts, window: day}
  loose: {time: ts, window: month}
  good: {columns: {ts: timestamptz, station: varchar, temp: double}, time: ts, window: day}
"""
GOOD = b"ts,station,temp\n2026-01-01T00:00:00Z,JFK,1\n"
GOOD_WITHIN_SECONDS = 2.0
MOST_MEMORY = 1 << 30


@dataclass
class Outcome:
    """What a run saw. ``failures`` has a sentence for all that must not be."""

    mutants: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    good_seconds: list[float] = field(default_factory=list)
    server_peak: int = 0
    own_peak: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def late(self) -> int:
        """How many good batches took longer than they should on a machine that is not busy."""
        return sum(seconds > GOOD_WITHIN_SECONDS for seconds in self.good_seconds)

    def lines(self) -> list[str]:
        """The figures, for people."""
        slowest = max(self.good_seconds, default=0.0)
        return [
            f"{self.mutants:,} mutants: {_counted(self.ways)}",
            f"answers: {_counted(self.answers)}",
            f"{len(self.good_seconds):,} good batches after them, the slowest in {slowest:.2f} s, "
            f"{self.late} of them in more than {GOOD_WITHIN_SECONDS:g} s",
            f"most memory: server {self.server_peak >> 20} MiB, landing and stage() {self.own_peak >> 20} MiB",
            *(f"FAILED: {each}" for each in self.failures[:20]),
        ]


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items()))


class Run:
    """A run on an installation of its own, in ``home``; the same seed makes the same mutants."""

    def __init__(self, home: Path, seed: int) -> None:
        self._home = home
        self._chance = random.Random(seed)
        self.outcome = Outcome()

    def go_on(self, *, mutants: int | None = None, seconds: float | None = None) -> Outcome:
        """Try so many mutants, or for so long."""
        (self._home / "datasets.yaml").write_text(DATASETS)
        fields = {"staging_max_pending": 0, "staging_max_dataset_bytes": 0, "staging_min_free_disk_bytes": 0}
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
        environment |= {PREFIX + name.upper(): str(value) for name, value in {"home": self._home, **fields}.items()}
        log = self._home / "server.log"
        end = None if seconds is None else time.monotonic() + seconds
        with (
            Store.open(load_settings(home=self._home, **fields)) as store,
            process_serving(environment, log) as server,
            server.client() as client,
        ):
            while self.outcome.mutants != mutants and (end is None or time.monotonic() < end):
                self._step(store, server, client)
                if self.outcome.failures:
                    break
            rows = len(readable(store, "good"))
        if rows != len(self.outcome.good_seconds):
            self.outcome.failures.append(f"{len(self.outcome.good_seconds)} good batches are {rows} rows")
        if "Traceback" in log.read_text(errors="replace"):
            self.outcome.failures.append("the server's log has a traceback")
        return self.outcome

    def _step(self, store: Store, server: ServerProcess, client: httpx.Client) -> None:
        outcome, chance = self.outcome, self._chance
        outcome.mutants += 1
        way, dataset = chance.choice(("http", "http", "landing", "stage")), chance.choice(("weather", "loose"))
        batch = chance.choice(BATCHES)
        content = mutated(batch, chance)
        kept = self._home / "mutant"
        kept.write_bytes(content)
        try:
            answer = getattr(self, f"_{way}")(store, client, dataset, batch, content)
        except TimestoreError as error:
            answer = type(error).__name__
        except (Exception, httpx.HTTPError) as error:
            self._fail(f"{way} of a {batch.ending}: {type(error).__name__}: {error}", content)
            answer = "error"
        outcome.ways[way] += 1
        outcome.answers[f"{way}:{answer}"] += 1
        self._good(client, content)
        outcome.server_peak = max(outcome.server_peak, _peak(server.process.pid))
        outcome.own_peak = max(outcome.own_peak, _peak(os.getpid()))
        if max(outcome.server_peak, outcome.own_peak) > MOST_MEMORY:
            self._fail(f"{way} of a {batch.ending} took more memory than it may", content)

    def _good(self, client: httpx.Client, content: bytes) -> None:
        headers = {"Content-Type": Csv.media_types[0], "Idempotency-Key": f"good-{self.outcome.mutants}"}
        started = time.monotonic()
        try:
            answer = client.post("/datasets/good/batches", content=GOOD, headers=headers)
        except httpx.HTTPError as error:
            self._fail(f"a good batch was not answered: {error}", content)
            return
        if answer.status_code != 201:
            self._fail(f"a good batch was refused: {answer.text}", content)
            return
        self.outcome.good_seconds.append(time.monotonic() - started)

    def _http(self, _store: Store, client: httpx.Client, dataset: str, batch: Batch, content: bytes) -> str:
        headers = {"Content-Type": batch.media_type, "Idempotency-Key": f"mutant-{self.outcome.mutants}"}
        if batch.packed:
            headers["Content-Encoding"] = "gzip"
        answer = client.post(f"/datasets/{dataset}/batches", content=content, headers=headers)
        if answer.status_code >= 500:
            self._fail(f"HTTP answered {answer.status_code} to a {batch.ending}: {answer.text}", content)
        return str(answer.status_code)

    def _landing(self, store: Store, _client: httpx.Client, dataset: str, batch: Batch, content: bytes) -> str:
        number = self.outcome.mutants
        own = GOOD.replace(b"JFK", f"S{number}".encode())
        for where, name, what in (
            (dataset, f"{number}{batch.ending}", content),
            ("weather", f"good-{number}.csv", own),
        ):
            folder = store.settings.landing_path / where
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(what)
        reports = ingest(store)
        staged = {receipt.source for report in reports.values() for receipt in report.receipts}
        if f"good-{number}.csv" not in staged:
            self._fail(f"a good file beside a {batch.ending} was not staged", content)
        if any(report.skipped for report in reports.values()):
            self._fail(f"a {batch.ending} waits: {[report.skipped for report in reports.values()]}", content)
        return "quarantined" if any(report.quarantined for report in reports.values()) else "staged"

    def _stage(self, store: Store, _client: httpx.Client, dataset: str, batch: Batch, content: bytes) -> str:
        frame = _frame(batch, content) or strange_frame(self._chance)
        stage(store, dataset, frame, f"mutant-{self.outcome.mutants}")
        stage(store, "weather", hourly(1), f"good-{self.outcome.mutants}")
        return "staged"

    def _fail(self, what: str, content: bytes) -> None:
        place = self._home / f"failed-{self.outcome.mutants}"
        place.write_bytes(content)
        self.outcome.failures.append(f"{what} (mutant {self.outcome.mutants}, kept as {place.name})")


def _frame(batch: Batch, content: bytes) -> pa.Table | None:
    """Return the frame in a mutated stream, where it is one: memory that is none is no frame of any caller."""
    if batch.ending != ".arrows":
        return None
    try:
        table = pa.ipc.open_stream(content).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError):
        return None
    return table


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))

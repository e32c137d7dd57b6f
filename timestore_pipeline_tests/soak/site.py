"""The installation of a round, what it is to do, what producers and sensors do for it, and its count of rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from timestore_pipeline.building.completion import follow_others
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import at
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger.batches import known_batches
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.ledger.tables import table_versions
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.restoring.ledger import Consent, rebuild_ledger
from timestore_pipeline.segments.identity import file_batch_id
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.arrivals import file_fingerprint
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage import objects
from timestore_pipeline.storage.table_folder import has_table
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import lose_ledger
from timestore_pipeline_tests.installations import LedgerCopy, state_of_folder
from timestore_pipeline_tests.object_store import Bucket, bucket
from timestore_pipeline_tests.postgresql import fresh_ledger
from timestore_pipeline_tests.shared_duckdb import SharedInstances
from timestore_pipeline_tests.soak.books import (
    DATASETS_YAML,
    KEYED,
    PLAIN,
    Batch,
    Books,
    Row,
)
from timestore_pipeline_tests.soak.faults import (
    Clock,
    Kind,
    Seen,
)
from timestore_pipeline_tests.soak.jobs import (
    IN_A_TRANSACTION,
    POINTS,
    WORK,
    Job,
)
from timestore_pipeline_tests.soak.tally import Tally

DATASETS = (PLAIN, KEYED)
PLACES = ("staging", "tables", "archive")
OTHERS = "0123456789abcdef" * 2
_SETTINGS = {"staging": "staging_directory", "tables": "tables_url", "archive": "landing_archive_directory"}


class Wrong(Exception):
    """Something that must not be: a row too few or too many, an error that is none of ours, a refusal that acted."""


@contextmanager
def refused(what: str, error: type[TimestoreError]) -> Iterator[None]:
    """Let what the block does be refused."""
    try:
        yield
    except error:
        return
    raise Wrong(f"{what} was not refused")


def published(store: Store) -> Mapping[str, Counter[Row]]:
    """Return the rows as plain delta-rs reads them."""
    found = {}
    for dataset in DATASETS:
        place, rows = store.table(dataset), []
        if has_table(place):
            names = ["id", "at", "value"][: 2 if dataset == PLAIN else 3]
            table = DeltaTable(place.location).to_pyarrow_table(columns=names)
            micros = table["at"].cast(pa.int64())
            rows = [tuple(row[name] for name in names) for row in table.set_column(1, "at", micros).to_pylist()]
        found[dataset] = Counter(rows)
    return found


def settings_at(home: Path, places: Mapping[str, Path | str], **more: Any) -> Settings:
    """Return the settings of an installation whose places are there."""
    fields = {_SETTINGS[name]: str(place) for name, place in places.items()}
    values = {
        "home": home,
        "staging_min_free_disk_bytes": 0,
        "staging_retention_seconds": 0,
        "build_max_attempts": 1,
        "duckdb_threads": 1,
        "duckdb_memory_limit": "128MiB",
        "ledger_busy_timeout_seconds": 0.5,
        **fields,
        **more,
    }
    return Settings(**values)


class Site:
    """An installation that faults happen to.

    ``kind`` is the database of its ledger, or ``s3``: then segments and tables are in an object store. ``disk`` may be
    filled up.

    Everything that it is to do is drawn by ``dice``, and told in ``story``.
    """

    def __init__(
        self,
        seed: int,
        number: int,
        folder: Path,
        tally: Tally,
        instances: SharedInstances,
        kind: str,
        disk: Path | None,
    ) -> None:
        self.name = f"{seed} round {number}"
        self.dice = random.Random(self.name)
        self.folder, self.tally, self.kind, self.disk = folder, tally, kind, disk
        self.instances = instances
        self.books = Books()
        self.clock = Clock()
        self.story: list[str] = []
        self.numbers = count(1)
        self.as_files: set[Batch] = set()
        self.landed: dict[Batch, Path] = {}
        self.backups: list[Path | LedgerCopy] = []
        self.to_follow = False
        self.proxied: Bucket | None = None
        self.resources = ExitStack()
        self.rare = {"sqlite": ("retry", "rebuild"), "postgresql": ("retry",)}.get(kind, ())

    def open(self) -> None:
        """Make the installation."""
        enter = self.resources.enter_context
        self.home, mounted = self.folder / "home", self.folder / "mnt"
        self.home.mkdir(parents=True)
        (self.home / "datasets.yaml").write_text(DATASETS_YAML, encoding="utf-8")
        self.at = {name: mounted / name for name in PLACES}
        places: dict[str, Path | str] = {**self.at}
        if self.kind == "s3":
            self.proxied = enter(bucket())
            patched = enter(pytest.MonkeyPatch.context())
            for name, value in self.proxied.environment.items():
                patched.setenv(name, value)
            patched.setattr(objects, "TRAITS", replace(objects.TRAITS, unswept_seconds=0))
            places |= {name: f"{self.proxied.url}/{name}" for name in ("staging", "tables")}
        enter(fresh_ledger("postgresql" if self.kind == "postgresql" else "sqlite"))
        on_disk = {} if self.kind == "postgresql" else {"ledger_url": f"sqlite:///{self.home / 'ledger.sqlite'}"}
        self.settings = settings_at(self.home, places, **on_disk)
        enter(self.clock.shown())
        self.reopen()
        self.resources.callback(lambda: self.store.close())  # noqa: PLW0108 - whichever is open then

    def reopen(self) -> None:
        """Open it again, as another process does."""
        self.store = self.instances.used_by(Store.open(self.settings))

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Let it wait for its object store no longer than a test can; a busy machine alone may be slower than that."""
        patient = self.settings
        self.store.close()
        self.settings = patient.model_copy(
            update={"object_store_timeout_seconds": 1.0, "object_store_retry_seconds": 3.0}
        )
        self.reopen()
        try:
            yield
        finally:
            self.store.close()
            self.settings = patient
            self.reopen()

    def batches(self, most: int = 2, dataset: str | None = None) -> tuple[Batch, ...]:
        """Draw up to ``most`` new batches."""
        return tuple(
            Batch(self.name, next(self.numbers), dataset or self.dice.choice(DATASETS))
            for _ in range(self.dice.randint(1, most))
        )

    def job(self, *names: str) -> Job:
        """Draw a piece of work, and prepare it such that it has something to do."""
        name, dataset = self.dice.choice(names), self.dice.choice(DATASETS)
        if name == "stage":
            return Job(name, batches=self.batches())
        if name == "ingest":
            files = self.batches(dataset=PLAIN)
            # Of a keyed dataset one at a time: in which order files of one run are acknowledged is not for us to say.
            for batch in (*files, *(self.batches(1, KEYED) if dataset == KEYED else ())):
                self.land(batch)
        elif name in ("flush", "settle"):
            self.stage(*self.batches(dataset=dataset))
        elif name in ("compact", "maintain"):
            # A second file in the windows, now and then.
            if self.dice.random() < 0.5:
                self.stage(*self.batches(1, PLAIN))
                self.flush(PLAIN)
            dataset = PLAIN
        elif name == "retry":
            self.set_aside()
        elif name == "retire":
            self.stage(*self.batches(dataset=dataset))
            self.do(Job("flush", dataset))
        return Job(name, dataset)

    def land(self, batch: Batch) -> None:
        """Deliver a batch as a landing file, which waits."""
        self.books.doubts.append(batch)
        self.as_files.add(batch)
        self.landed[batch] = self.drop(batch)

    def drop(self, batch: Batch) -> Path:
        """Write a landing file."""
        path = self.store.settings.landing_path / batch.dataset / f"{batch.number}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(batch.csv(), encoding="utf-8")
        return path

    def stage(self, *batches: Batch) -> None:
        """Stage batches, which must succeed."""
        self.do(Job("stage", batches=batches))

    def flush(self, *datasets: str) -> None:
        """Publish what is staged, of all datasets by default."""
        for dataset in datasets or DATASETS:
            self.do(Job("flush", dataset))

    def publish_more(self) -> None:
        """Publish new rows, of the plain dataset in any case."""
        self.stage(*self.batches(dataset=PLAIN))
        self.flush(PLAIN)
        if self.dice.random() < 0.5:
            self.stage(*self.batches(dataset=KEYED))
            self.flush(KEYED)

    def do(self, job: Job) -> None:
        """Do a piece of work in this process."""
        self.books.doubts += [batch for batch in job.batches if batch not in self.books.doubts]
        if job.name == "rebuild":
            self.rebuild()
        else:
            WORK[job.name](self.store, job, self.acknowledged)

    def acknowledged(self, batch: Batch) -> None:
        """Note that a batch must be there from now on."""
        self.books.doubts.remove(batch)
        self.books.acked.append(batch)

    def set_aside(self) -> None:
        """Stage a batch, lose its segment, let a build find that out, and put it back where it was."""
        (batch,) = self.batches(1, PLAIN)
        receipt = stage(self.store, PLAIN, batch.table(), batch_id=batch.batch_id)
        self.books.acked.append(batch)
        segment = self.at["staging"] / PLAIN / f"{receipt.segment_id}.duckdb"
        hidden = segment.rename(self.folder / "hidden")
        with suppress(TimestoreError):
            flush_windows(self.store, BuildOrder(PLAIN, owner="the soak"))
        hidden.rename(segment)

    def rebuild(self) -> None:
        """Make the ledger again from the files."""
        if self.kind == "postgresql":
            lose_ledger(self.store)
        self.store.close()
        connect = self.instances.connect(self.store.connect)
        rebuilt = rebuild_ledger(
            self.settings, connect, by="the soak", consent=Consent(replace_existing=self.kind != "postgresql")
        )
        if not rebuilt.complete and not self.books.foreign:
            raise Wrong(f"the ledger could not be made again: {[each.problems for each in rebuilt.datasets]}")
        self.reopen()

    def recover(self) -> None:
        """Do what sensors and producers do after a fault, until all that was delivered is acknowledged."""
        if self.dice.random() < 0.15:
            self.look("before it was settled")
        settle_dead_builds(self.store, owner_is_gone=lambda owner: True)
        # Before the files: of a process that is killed, staging comes first, and the order of a key must be known.
        for batch in [batch for batch in self.books.doubts if batch not in self.landed]:
            stage(self.store, batch.dataset, batch.table(), batch_id=batch.batch_id)
            self.acknowledged(batch)
        for _ in range(3):
            self.note_files_that_are_gone()
            if not self.landed:
                break
            WORK["ingest"](self.store, Job("ingest"), self.acknowledged)
        self.note_files_that_stay()
        if self.landed:
            raise Wrong(f"files wait that nobody takes: {sorted(self.landed.values())}")
        if self.dice.random() < 0.1 and self.books.acked:
            self.repeat()
        if self.dice.random() < 0.1:
            self.look("after it was settled")

    def note_files_that_are_gone(self) -> None:
        """A file that is not in the landing folder any more is acknowledged."""
        for batch, path in tuple(self.landed.items()):
            if not path.exists():
                del self.landed[batch]
                self.acknowledged(batch)

    def note_files_that_stay(self) -> None:
        """A file that could not be cleared away stays where it is, and its batch is acknowledged all the same."""
        for batch, path in tuple(self.landed.items()):
            batch_id = file_batch_id(file_fingerprint(path))
            with self.store.ledger.read() as tx:
                known = batch_id in known_batches(tx, batch.dataset, [batch_id])
            if known:
                del self.landed[batch]
                self.acknowledged(batch)

    def repeat(self) -> None:
        """Deliver a batch again that was acknowledged, as a producer does that is not sure."""
        batch = self.dice.choice(self.books.acked)
        if batch in self.as_files:
            again = self.drop(batch)
            WORK["ingest"](self.store, Job("ingest"), self.acknowledged)
            if again.exists():
                raise Wrong(f"a file that was delivered again waits: {again}")
        else:
            stage(self.store, batch.dataset, batch.table(), batch_id=batch.batch_id)

    def readable(self) -> Mapping[str, Counter[Row]]:
        """Return the rows as the read API gives them, those of other programs included."""
        if self.to_follow:
            follow_others(self.store, PLAIN)
            self.to_follow = False
        found = {}
        with open_reader(self.store, list(DATASETS)) as connection:
            for dataset in DATASETS:
                value = ", value" if dataset == KEYED else ""
                rows = connection.execute(f'SELECT id, epoch_us("at"){value} FROM {dataset}').fetchall()
                found[dataset] = Counter(rows)
        return found

    def look(self, when: str) -> None:
        """Raise :class:`Wrong` where the read API does not give every acknowledged row once."""
        problems = self.books.problems(self.readable())
        if problems:
            raise Wrong(f"{when}: {'; '.join(problems)}")

    def facts(self) -> object:
        """All that work could change: files everywhere but of the ledger, and what the ledger says."""
        files = {
            str(path): path.stat().st_size
            for path in self.folder.rglob("*")
            if path.is_file() and "ledger.sqlite" not in path.name and "_tmp" not in path.parts
        }
        with self.store.ledger.read() as tx:
            said = queue_states(tx), table_versions(tx), latest_builds(tx), [entry.id for entry in open_entries(tx)]
        return files, {path for path in self.at.values() if path.exists()}, said

    def state(self) -> object:
        """All files of the places with their content."""
        return {name: state_of_folder(path) for name, path in self.at.items()}

    def finish(self) -> None:
        """Settle everything, and count every row: by the read API, then flushed, by plain delta-rs."""
        self.clock.hours = 0
        self.recover()
        self.look("at the end")
        for dataset in DATASETS:
            while flush_windows(self.store, BuildOrder(dataset, owner="the soak")) is not None:
                pass
        if self.to_follow:
            follow_others(self.store, PLAIN)
        found = published(self.store)
        problems = self.books.problems(found)
        for dataset, rows in found.items():
            lost, more = self.books.difference(dataset, rows)
            self.tally.lost += lost.total()
            self.tally.doubled += more.total()
            self.tally.read += rows.total()
        self.tally.batches += len(self.books.acked)
        self.tally.acknowledged += sum(self.books.expected(dataset).total() for dataset in DATASETS)
        with self.store.ledger.read() as tx:
            problems += [f"in quarantine: {entry.source}: {entry.reason}" for entry in open_entries(tx)]
        for dataset in DATASETS:
            if not self.books.foreign or dataset == KEYED:
                wrong = audit_rows(self.store, dataset).wrong
                problems += [f"{dataset} {each.window.key}: {each.problems}" for each in wrong]
        if problems:
            raise Wrong(f"at the end: {'; '.join(problems)}")

    def told(self, kind: Kind, seen: Seen, words: object = "") -> None:
        """Count a fault, and tell it in the story."""
        self.tally.count(kind, seen)
        self.story.append(f"    {kind.name}: {seen} {words}")

    def attempt(self, kind: Kind, job: Job, disturbed: Callable[[Callable[..., None]], Any]) -> None:
        """Do a piece of work while it is ``disturbed``, count what happened, and settle everything."""
        fired: list[Kind] = []
        error: Exception | None = None
        self.story.append(f"    {job.name} {job.dataset} {[batch.number for batch in job.batches]}")
        try:
            with disturbed(lambda other=None: fired.append(other or kind)):
                self.do(job)
        except (TimestoreError, OSError) as refused:
            # Whoever works for one dataset after the other puts errors of the disk into words; the others do it here.
            if not isinstance(refused, TimestoreError) and job.name in ("stage", "retry", "rebuild"):
                raise
            error = refused
        for each in fired:
            self.told(each, Seen.REFUSED if error else Seen.WENT_ON, error or "")
        if not fired and error is not None:
            raise Wrong(f"{job.name} failed without a fault: {error}") from error
        if job.name in ("rebuild", "retry") and error is not None:
            self.do(job)
        self.recover()

    @contextmanager
    def in_the_middle(
        self, job: Job, act: Callable[[], object], fired: Callable[[], object], *, outside: bool = False
    ) -> Iterator[None]:
        """Do something at a point of a piece of work; with ``outside`` not within a transaction of the ledger."""
        points = [point for point in POINTS[job.name] if not (outside and point in IN_A_TRANSACTION)]
        point, times = self.dice.choice(points), self.dice.choice((1, 1, 1, 1, 1, 2))
        reached = []

        def go() -> None:
            reached.append(point)
            self.story.append(f"    at {point}")
            fired()
            act()

        try:
            with at(point, go, times):
                yield
        except AssertionError:
            if reached:
                raise

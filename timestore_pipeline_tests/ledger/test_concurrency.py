"""Two writers at one moment, on each database: nothing is lost, nothing collides, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import BuildInFlight, IntakePaused, LedgerError, StagingQueueFull
from timestore_pipeline.ledger import Ledger
from timestore_pipeline.ledger.builds import NewBuild, mark_aborted
from timestore_pipeline.ledger.counters import count, counter_values
from timestore_pipeline.ledger.datasets import lock_dataset, lock_datasets
from timestore_pipeline.ledger.landing import SettledFile, all_settled, remember_settled
from timestore_pipeline.ledger.leases import claim_lease, claim_slot
from timestore_pipeline.ledger.limits import EVERY_DATASET, Pause, pause_intake
from timestore_pipeline.ledger.quarantine import NewEntry, open_entries, set_aside
from timestore_pipeline.ledger.queue import pending_batches
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import claim_slices, hourly, readable, rows_of
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.forks import process_pool

T = TypeVar("T")

WRITERS = 4
ROUNDS = 10
PROCESSES = 3


@pytest.fixture
def ledgers(store: Store) -> Iterator[list[Ledger]]:
    """One ledger per writer: what they share is the database alone."""
    opened = [Ledger.open(store.settings.resolved_ledger_url) for _ in range(WRITERS)]
    yield opened
    for ledger in opened:
        ledger.close()


def together(ledgers: Sequence[Ledger], work: Callable[[int, Ledger], T]) -> list[T]:
    """Let every writer do ``work`` at the same moment; return what each returned."""
    barrier = threading.Barrier(len(ledgers))

    def begin(number: int, ledger: Ledger) -> T:
        barrier.wait(600)
        return work(number, ledger)

    with ThreadPoolExecutor(len(ledgers)) as pool:
        return [each.result(120) for each in [pool.submit(begin, *pair) for pair in enumerate(ledgers)]]


@contextmanager
def elsewhere(work: Callable[[], T]) -> Iterator[Future[T]]:
    """Do ``work`` in another thread for the time of the block."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def test_counts_of_many_writers_add_up(ledgers: list[Ledger]):
    def work(number: int, ledger: Ledger) -> None:
        for turn in range(ROUNDS):
            ledger.transact(lambda tx, label=f"{turn}": count(tx, "a_metric", "weather", label), repeatable=False)

    together(ledgers, work)

    with ledgers[0].read() as tx:
        values = counter_values(tx)
    assert values == {("a_metric", "weather", str(turn)): WRITERS for turn in range(ROUNDS)}


def test_the_same_files_may_be_settled_by_many_in_any_order(ledgers: list[Ledger]):
    files = [SettledFile("weather", f"{number}.csv", 1, number) for number in range(30)]

    together(
        ledgers,
        lambda number, ledger: ledger.transact(
            lambda tx: remember_settled(tx, files if number % 2 else reversed(files))
        ),
    )

    with ledgers[0].read() as tx:
        assert all_settled(tx) == set(files)


def test_what_many_set_aside_has_one_entry(ledgers: list[Ledger]):
    def work(_: int, ledger: Ledger) -> int:
        bad = NewEntry(
            dataset="weather", kind=QuarantineKind.BATCH, batch_id="b", source="b.csv", path="b", reason="bad",
            rows=None, bytes=1, created_at=1,
        )  # fmt: skip
        return ledger.transact(lambda tx: set_aside(tx, bad).id)

    ids = together(ledgers, work)

    with ledgers[0].read() as tx:
        (entry,) = open_entries(tx)
    assert ids == [entry.id] * WRITERS


def test_a_lease_goes_to_one_and_slots_to_as_many_as_there_are(ledgers: list[Ledger]):
    for turn in range(5):

        def take(number: int, ledger: Ledger, turn: int = turn) -> tuple[bool, str | None]:
            def work(tx):
                lock_dataset(tx, "weather")
                return claim_slot(tx, f"{turn}", 2, str(number), now=0, lease_micros=10)

            name = f"lease {turn}"
            taken = ledger.transact(lambda tx: claim_lease(tx, name, str(number), now=turn, expires_at=turn + 1))
            return taken, ledger.transact(work)

        taken = together(ledgers, take)

        assert [lease for lease, _ in taken].count(True) == 1
        assert len({slot for _, slot in taken if slot}) == 2


def test_a_claim_that_is_done_again_is_the_same_claim(store: Store):
    stage(store, "weather", hourly(3))

    def claim(tx, owner: str):
        return claim_slices(tx, NewBuild("weather", owner=owner, trigger="manual", lease_micros=1, now=7))

    first = store.ledger.transact(lambda tx: claim(tx, "me"))
    again = store.ledger.transact(lambda tx: claim(tx, "me"))

    assert first is not None
    assert again == first
    with pytest.raises(BuildInFlight), store.ledger.write() as tx:
        claim(tx, "another")


def opened(home: Path, max_pending: int = 0) -> Store:
    return Store.open(Settings(home=home, staging_min_free_disk_bytes=0, staging_max_pending=max_pending))


def claim_often(home: Path, who: int) -> list[int]:
    """Claims all that is staged and gives it back, again and again; returns the sequences of the claims."""
    sequences = []
    with opened(home) as store:
        for turn in range(ROUNDS):
            try:
                claim = store.ledger.transact(
                    lambda tx, turn=turn: claim_slices(
                        tx, NewBuild("weather", owner=f"{who}", trigger="manual", lease_micros=10**9, now=turn)
                    )
                )
            except BuildInFlight:
                time.sleep(0.002)
                continue
            assert claim is not None
            assert sum(piece.rows for piece in claim.slices) == 3, "a claim has all that is staged"
            sequences.append(claim.build.sequence)
            store.ledger.transact(
                lambda tx, build=claim.build: mark_aborted(tx, build, error="", recovered=False, now=1)
            )
    return sequences


def fill(home: Path, who: int) -> Counter[str]:
    """Stages until the queue is full."""
    said: Counter[str] = Counter()
    with opened(home, max_pending=7) as store:
        for turn in range(4):
            try:
                stage(store, "weather", hourly(1, station=f"{who}-{turn}"))
                said["staged"] += 1
            except StagingQueueFull:
                said["full"] += 1
    return said


@pytest.fixture
def processes() -> Iterator[ProcessPoolExecutor]:
    with process_pool(PROCESSES) as pool:
        yield pool


@pytest.mark.process
def test_processes_that_claim_at_once_never_share_and_never_repeat_a_sequence(
    store: Store, home: Path, processes: ProcessPoolExecutor
):
    stage(store, "weather", hourly(3))

    claims = [sequence for each in [processes.submit(claim_often, home, who) for who in range(PROCESSES)]
              for sequence in each.result(120)]  # fmt: skip

    assert len(set(claims)) == len(claims)


@pytest.mark.process
def test_processes_that_stage_at_once_never_exceed_the_queue(store: Store, home: Path, processes: ProcessPoolExecutor):
    said = sum(
        (each.result(120) for each in [processes.submit(fill, home, who) for who in range(PROCESSES)]), Counter()
    )

    assert said == {"staged": 7, "full": 4 * PROCESSES - 7}
    with store.ledger.read() as tx:
        assert pending_batches(tx, "weather") == 7


@pytest.mark.parametrize("dataset", ["weather", EVERY_DATASET])
def test_nothing_is_acknowledged_after_intake_is_paused(store: Store, ledgers: list[Ledger], dataset: str):
    """A batch is in the middle of its transaction, past the look for a pause, when intake is paused."""
    looked, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        looked.set()
        assert go_on.wait(600)

    def stage_slowly() -> None:
        with at(CrashPoint.BATCHES_RECORDED, wait):
            stage(store, "weather", hourly(3))

    def pause() -> float:
        ledgers[0].transact(lambda tx: pause_intake(tx, Pause(dataset, "me", 1, "a test")))
        return time.monotonic()

    with elsewhere(stage_slowly) as staging:
        assert looked.wait(600)
        with elsewhere(pause) as pausing:
            with pytest.raises(TimeoutError):
                pausing.result(0.5)
            go_on.set()
            pausing.result(120)
        with ledgers[1].read() as tx:
            assert pending_batches(tx, "weather") == 1, "what was acknowledged at the pause is there"
        staging.result(120)
    with pytest.raises(IntakePaused):
        stage(store, "weather", hourly(4))
    assert readable(store) == rows_of(hourly(3))


@pytest.mark.only_on("postgresql")
def test_datasets_do_not_wait_for_each_other(make_store: MakeStore):
    store = make_store(ledger_busy_timeout_seconds=0.5)

    with store.ledger.write() as tx:
        lock_dataset(tx, "events")
        stage(store, "weather", hourly(3))
        with pytest.raises(LedgerError, match="lock timeout"):
            store.ledger.transact(lambda other: lock_dataset(other, "events"))

    assert readable(store) == rows_of(hourly(3))


@pytest.mark.only_on("postgresql")
def test_two_that_wait_for_each_other_both_come_through(ledgers: list[Ledger]):
    """No code of ours locks in two orders; if it ever did, PostgreSQL ends one transaction and it is done again."""
    barrier = threading.Barrier(2)
    attempts: Counter[int] = Counter()

    def work(number: int, ledger: Ledger) -> None:
        names = ["weather", "events"][:: 1 if number else -1]

        def lock_both(tx) -> None:
            attempts[number] += 1
            lock_dataset(tx, names[0])
            if attempts[number] == 1:
                barrier.wait(600)
            lock_dataset(tx, names[1])
            count(tx, "a_metric", "weather", "x")

        ledger.transact(lock_both, repeatable=False)

    together(ledgers[:2], work)

    with ledgers[0].read() as tx:
        assert counter_values(tx) == {("a_metric", "weather", "x"): 2}
    assert sum(attempts.values()) == 3


@pytest.mark.only_on("postgresql")
def test_several_datasets_are_locked_in_one_order(ledgers: list[Ledger]):
    def work(number: int, ledger: Ledger) -> None:
        names = ["weather", "events"][:: 1 if number % 2 else -1]
        for _ in range(ROUNDS):
            with ledger.write() as tx:  # not transact: a deadlock would fail the test
                lock_datasets(tx, names)

    together(ledgers, work)

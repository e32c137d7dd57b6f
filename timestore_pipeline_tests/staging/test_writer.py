"""The writer: batches of many callers share a commit, and each has an answer of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import (
    BatchConflict,
    BatchRejected,
    CommitUnknown,
    NoFrame,
    StagingQueueFull,
    TimestoreError,
    WriterClosed,
    WriterFull,
    WriterWaitsForItself,
)
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.counters import DROPPED_BATCHES, RETRIED_BATCHES
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.staging.writer import Writer
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    counted,
    files_under,
    hourly,
    published,
    readable,
    rows_of,
    weather,
)
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.deaths import fails_at


def batch(number: int, rows: int = 3) -> pa.Table:
    return hourly(rows, start=NEW_YEAR + timedelta(hours=number), station=f"S{number}")


class Held:
    """Holds a writer's commits until it is let go, so that what is submitted meanwhile becomes one group."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._go = threading.Event()

    def hold(self) -> None:
        self.reached.set()
        assert self._go.wait(240)

    def let_go(self) -> None:
        self._go.set()


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    with at(CrashPoint.SEGMENT_WRITTEN, held.hold):
        yield held


def segments(store: Store) -> int:
    return len([path for path in files_under(store.settings.staging_path / "weather") if path.endswith(".duckdb")])


def test_batches_that_come_while_one_is_written_share_a_segment_and_a_commit(store: Store, held: Held):
    with Writer(store, "weather") as writer:
        first = writer.submit(batch(0))
        assert held.reached.wait(240)
        others = [writer.submit(batch(number), batch_id=f"b{number}") for number in range(1, 50)]
        held.let_go()
        receipts = [future.result(30) for future in (first, *others)]

    assert [receipt.rows for receipt in receipts] == [3] * 50
    assert [receipt.batch_id for receipt in receipts[1:]] == [f"b{number}" for number in range(1, 50)]
    assert len({receipt.segment_id for receipt in receipts}) == 2
    assert segments(store) == 2
    assert readable(store) == rows_of(*(batch(number) for number in range(50)))
    report = build(store)
    assert (report.batches, report.rows) == (50, 150)


def test_a_batch_is_readable_the_moment_its_future_is_done(store: Store):
    with Writer(store, "weather") as writer:
        for number in range(5):
            receipt = writer.write(batch(number))
            assert not receipt.duplicate
            assert readable(store) == rows_of(*(batch(done) for done in range(number + 1)))


def test_many_threads_are_each_answered_with_their_own(store: Store):
    def work(writer: Writer, caller: int) -> list[str]:
        return [writer.write(batch(100 * caller + turn), batch_id=f"{caller}-{turn}").batch_id for turn in range(10)]

    with Writer(store, "weather") as writer, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda caller: work(writer, caller), range(16)))

    assert answers == [[f"{caller}-{turn}" for turn in range(10)] for caller in range(16)]
    assert readable(store) == rows_of(*(batch(100 * caller + turn) for caller in range(16) for turn in range(10)))
    assert segments(store) < 160


def test_what_is_wrong_with_one_batch_of_a_group_is_answered_to_its_caller_only(store: Store):
    stage(store, "weather", batch(1000), batch_id="taken")
    held = Held()
    bad_value = pa.table({"ts": ["2026-01-01", "no time"], "station": ["A", "B"], "temp": [1.0, 2.0]})
    with at(CrashPoint.SEGMENT_WRITTEN, held.hold), Writer(store, "weather") as writer:
        first = writer.submit(batch(0))
        assert held.reached.wait(240)
        wrong = {
            "columns": writer.submit(batch(1).drop_columns(["temp"])),
            "value": writer.submit(bad_value),
            "conflict": writer.submit(batch(2), batch_id="taken"),
            "id": writer.submit(batch(5), batch_id="a\0b"),
        }
        right = [writer.submit(batch(number)) for number in (3, 4)]
        same = writer.submit(batch(1000), batch_id="taken")
        held.let_go()
        assert [future.result(30).rows for future in (first, *right)] == [3, 3, 3]
        assert same.result(30).duplicate
        with pytest.raises(BatchRejected, match="missing columns: 'temp'"):
            wrong["columns"].result(30)
        with pytest.raises(BatchRejected, match="no time"):
            wrong["value"].result(30)
        with pytest.raises(BatchConflict, match="'taken'"):
            wrong["conflict"].result(30)
        with pytest.raises(BatchRejected, match="batch id"):
            wrong["id"].result(30)

    assert readable(store) == rows_of(*(batch(number) for number in (0, 3, 4, 1000)))


def test_the_same_id_twice_in_one_group_is_staged_once(store: Store, held: Held):
    with Writer(store, "weather") as writer:
        first = writer.submit(batch(0))
        assert held.reached.wait(240)
        twins = [writer.submit(batch(1), batch_id="twin") for _ in range(3)]
        other = writer.submit(batch(2), batch_id="twin")
        held.let_go()
        first.result(30)
        assert [twin.result(30).duplicate for twin in twins] == [False, True, True]
        with pytest.raises(BatchConflict):
            other.result(30)

    assert readable(store) == rows_of(batch(0), batch(1))
    assert counted(store, RETRIED_BATCHES) == {"duplicate": 2}


def test_when_there_is_room_for_some_of_a_group_the_first_ones_go(make_store: MakeStore, held: Held):
    store = make_store(staging_max_pending=4)
    with Writer(store, "weather") as writer:
        first = writer.submit(batch(0))
        assert held.reached.wait(240)
        others = [writer.submit(batch(number)) for number in range(1, 7)]
        held.let_go()
        first.result(30)
        answers = [future.exception(30) for future in others]

    assert [type(answer) for answer in answers] == [type(None)] * 3 + [StagingQueueFull] * 3
    assert readable(store) == rows_of(*(batch(number) for number in range(4)))
    assert counted(store, DROPPED_BATCHES) == {"queue_full": 3}


def test_with_time_to_wait_a_refused_batch_is_staged_once_there_is_room(make_store: MakeStore):
    store = make_store(staging_max_pending=2)
    with Writer(store, "weather", wait_seconds=60) as writer:
        futures = [writer.submit(batch(number)) for number in range(3)]
        deadline = time.monotonic() + 30
        while not counted(store, RETRIED_BATCHES):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [future.result(30).rows for future in futures[:2]] == [3, 3]
        assert not futures[2].done()
        build(store)
        assert futures[2].result(30).rows == 3

    assert readable(store) == rows_of(*(batch(number) for number in range(3)))
    assert counted(store, DROPPED_BATCHES) == {}


def test_a_full_writer_makes_its_callers_wait(store: Store, held: Held):
    size = batch(0).nbytes
    with Writer(store, "weather", max_waiting_bytes=3 * size) as writer:
        futures = [writer.submit(batch(number)) for number in range(3)]
        assert held.reached.wait(240)
        with pytest.raises(WriterFull, match="bytes wait to be written"):
            writer.submit(batch(3), timeout=0)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(writer.write, batch(4))
            held.let_go()
            assert waiting.result(30).rows == 3
        assert all(future.result(30) for future in futures)
    assert counted(store, DROPPED_BATCHES) == {"writer_full": 1}


def test_a_batch_larger_than_the_limit_goes_alone(store: Store):
    with Writer(store, "weather", max_waiting_bytes=1) as writer:
        assert [writer.write(batch(number, rows=100)).rows for number in range(3)] == [100] * 3


def test_closing_writes_what_waits_and_takes_nothing_more(store: Store):
    writer = Writer(store, "weather")
    futures = [writer.submit(batch(number)) for number in range(20)]

    writer.close()

    assert all(future.done() for future in futures)
    assert len(readable(store)) == 60
    with pytest.raises(WriterClosed, match="the writer is closed"):
        writer.submit(batch(0))
    writer.close()


def test_flushing_waits_for_all_answers(store: Store):
    with Writer(store, "weather") as writer:
        futures = [writer.submit(batch(number)) for number in range(20)]
        writer.flush()
        assert all(future.done() for future in futures)


def test_a_batch_that_is_cancelled_in_time_is_not_staged(store: Store, held: Held):
    with Writer(store, "weather") as writer:
        first = writer.submit(batch(0))
        assert held.reached.wait(240)
        second = writer.submit(batch(1))
        assert second.cancel()
        assert not first.cancel()
        held.let_go()
        writer.flush()

    assert readable(store) == rows_of(batch(0))


def test_the_futures_can_be_awaited(store: Store):
    async def work() -> list[int]:
        with Writer(store, "weather") as writer:
            futures = [asyncio.wrap_future(writer.submit(batch(number))) for number in range(10)]
            return [receipt.rows for receipt in await asyncio.gather(*futures)]

    assert asyncio.run(work()) == [3] * 10


def test_what_is_no_frame_is_refused_at_once(store: Store):
    with Writer(store, "weather") as writer, pytest.raises(NoFrame):
        writer.submit([1, 2, 3])


def test_when_it_is_unknown_whether_the_ledger_committed_every_caller_hears_so(store: Store):
    lost = CommitUnknown("the connection was lost")

    with (
        Writer(store, "weather") as writer,
        fails_at(CrashPoint.BATCHES_ACKNOWLEDGED, lost),
        pytest.raises(CommitUnknown),
    ):
        writer.write(batch(0), batch_id="x")

    assert readable(store) == rows_of(batch(0))
    with Writer(store, "weather") as writer:
        assert writer.write(batch(0), batch_id="x").duplicate


def test_an_error_that_no_one_thought_of_reaches_the_callers_and_the_writer_goes_on(store: Store):
    with Writer(store, "weather") as writer:
        with fails_at(CrashPoint.SEGMENT_WRITTEN, ZeroDivisionError()), pytest.raises(ZeroDivisionError):
            writer.write(batch(0))
        assert writer.write(batch(1)).rows == 3

    assert readable(store) == rows_of(batch(1))


def test_columns_are_inferred_from_the_first_batch_that_fits(store: Store, held: Held):
    good = pa.table({"at": [1_767_225_600_000], "n": [1]})
    with Writer(store, "events") as writer:
        first = writer.submit(pa.table({"n": [1]}))
        others = [writer.submit(good), writer.submit(pa.table({"at": [1_767_225_600_000], "other": [1]}))]
        held.let_go()
        with pytest.raises(BatchRejected, match="the time column 'at' is missing"):
            first.result(30)
        assert others[0].result(30).rows == 1
        with pytest.raises(BatchRejected, match="wrong columns"):
            others[1].result(30)


def test_rows_without_a_window_are_set_aside_batch_by_batch(store: Store, held: Held):
    with Writer(store, "weather") as writer:
        first = writer.submit(batch(0))
        assert held.reached.wait(240)
        mixed = [writer.submit(weather((None, f"X{number}", 1.0), (NEW_YEAR, "JFK", 1.0))) for number in range(3)]
        held.let_go()
        first.result(30)
        receipts = [future.result(30) for future in mixed]

    assert [(receipt.rows, receipt.quarantined_rows) for receipt in receipts] == [(1, 1)] * 3


def end_program(_: object) -> None:
    sys.exit("a callback has had enough")


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("callback", [end_program, interrupt])
def test_a_callback_that_would_kill_the_thread_closes_the_writer_and_nobody_waits(store: Store, held: Held, callback):
    writer = Writer(store, "weather", max_waiting_bytes=4 * batch(0).nbytes)
    heard = threading.Event()
    first = writer.submit(batch(0))
    assert held.reached.wait(240)
    first.add_done_callback(callback)
    first.add_done_callback(lambda _: heard.set())
    later = [writer.submit(batch(number)) for number in (1, 2, 3)]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(writer.submit, batch(4))
        held.let_go()
        assert isinstance(waiting.exception(30), WriterClosed)

    assert first.result(30).rows == 3, "it was acknowledged"
    assert heard.wait(240), "the other callbacks are called as well"
    for future in later:
        with pytest.raises(WriterClosed, match=r"was ended by .* in a callback"):
            future.result(30)
    with pytest.raises(WriterClosed, match="was ended by"):
        writer.submit(batch(5))
    writer.flush()
    writer.close()
    assert readable(store) == rows_of(batch(0))


def test_every_batch_of_a_group_has_its_receipt_though_the_first_ones_callback_ends_the_writer(
    store: Store, held: Held
):
    with Writer(store, "weather") as writer:
        first = writer.submit(batch(0))
        assert held.reached.wait(240)
        group = [writer.submit(batch(number)) for number in range(1, 5)]
        group[0].add_done_callback(end_program)
        held.let_go()
        assert [future.result(30).rows for future in (first, *group)] == [3] * 5

    assert readable(store) == rows_of(*(batch(number) for number in range(5)))


def test_a_callback_that_waits_for_the_same_writer_is_told_so(store: Store, held: Held):
    told: list[type[BaseException]] = []
    with Writer(store, "weather", max_waiting_bytes=2 * batch(0).nbytes) as writer:
        first, second = writer.submit(batch(0)), writer.submit(batch(1))
        assert held.reached.wait(240)

        def wait(done: Future) -> None:
            assert done.result().rows == 3, "its own answer is there"
            for ask in (lambda: writer.write(batch(9)), writer.flush, second.result, lambda: writer.submit(batch(9))):
                try:
                    ask()
                except TimestoreError as error:
                    told.append(type(error))

        first.add_done_callback(wait)
        held.let_go()
        assert second.result(30).rows == 3

    assert told == [WriterWaitsForItself] * 3 + [WriterFull]


def test_a_callback_may_submit_and_may_close_the_writer(store: Store, held: Held):
    writer = Writer(store, "weather")
    more: list[Future] = []
    called = threading.Event()
    first = writer.submit(batch(0))
    assert held.reached.wait(240)
    first.add_done_callback(lambda _: more.append(writer.submit(batch(1))))
    first.add_done_callback(lambda _: writer.close())
    first.add_done_callback(lambda _: called.set())
    held.let_go()
    assert called.wait(240), "a result is there before callbacks are called"
    writer.close()

    assert more[0].result(30).rows == 3
    with pytest.raises(WriterClosed, match="is closed"):
        writer.submit(batch(2))
    assert readable(store) == rows_of(batch(0), batch(1))


def test_a_callback_in_a_thread_of_the_callers_own_raises_there(store: Store):
    with Writer(store, "weather") as writer:
        done = writer.submit(batch(0))
        done.result(30)
        with pytest.raises(SystemExit):
            done.add_done_callback(end_program)
        assert writer.write(batch(1)).rows == 3


def test_nobody_waits_for_a_writer_whose_thread_has_died(store: Store, monkeypatch: pytest.MonkeyPatch):
    with Writer(store, "weather") as writer:
        monkeypatch.setattr(writer, "_identified", lambda _: 1 / 0)
        with pytest.raises(WriterClosed, match="was ended by ZeroDivisionError"):
            writer.write(batch(0))
        writer.flush()
        with pytest.raises(WriterClosed):
            writer.write(batch(1))


FORGETFUL = """
import sys
from pathlib import Path
from timestore_pipeline import Settings, Timestore
from timestore_pipeline_tests.builders import hourly
writer = Timestore.open(Settings(home=Path(sys.argv[1]), staging_min_free_disk_bytes=0)).writer("weather")
for number in range(30):
    writer.submit(hourly(1 + number))
"""


@pytest.mark.process
def test_a_program_that_forgets_to_close_the_writer_ends_and_has_written_everything(store: Store, home: Path):
    subprocess.run([sys.executable, "-c", FORGETFUL, str(home)], check=True, timeout=240)

    assert readable(store) == rows_of(*(hourly(1 + number) for number in range(30)))


FORGETFUL_AND_DIRECT = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from timestore_pipeline import Settings, Timestore
from timestore_pipeline_tests.builders import hourly
settings = Settings(home=Path(sys.argv[1]), staging_min_free_disk_bytes=0, staging_enabled=False)
writer = Timestore.open(settings).writer("weather")
for number in range(30):
    writer.submit(hourly(1 + number)).add_done_callback(lambda done: print(type(done.exception()).__name__, flush=True))
"""


@pytest.mark.process
def test_a_batch_that_was_acknowledged_when_a_program_ended_has_a_receipt_though_it_could_not_be_published(
    store: Store, home: Path
):
    ended = subprocess.run(
        [sys.executable, "-c", FORGETFUL_AND_DIRECT, str(home)], check=True, timeout=240, capture_output=True, text=True
    )

    assert ended.stdout.split() == ["NoneType"] * 30, ended.stderr
    assert readable(store) == rows_of(*(hourly(1 + number) for number in range(30)))
    with store.ledger.read() as tx:
        assert builds_in_flight(tx) == []
    if len(published(store)) < 465:
        build(store)
    assert published(store) == readable(store)


def test_a_writer_is_of_the_process_that_opened_it(store: Store):
    with Writer(store, "weather") as writer:
        writer.write(batch(0))
        if (child := os.fork()) == 0:
            refused = 1
            try:
                writer.submit(batch(1))
            except WriterClosed as error:
                refused = 0 if "another process" in str(error) else 2
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.long
def test_groups_gather_while_callers_come_back(store: Store):
    """Sixteen callers who wait for each answer are committed together, not one by one as they come back."""
    with Writer(store, "weather") as writer, ThreadPoolExecutor(16) as pool:
        receipts = [
            receipt
            for turn in range(12)
            for receipt in pool.map(lambda number, turn=turn: writer.write(batch(100 * turn + number)), range(16))
        ]

    groups = Counter(receipt.segment_id for receipt in receipts)
    assert len(groups) <= 12 * 8, groups

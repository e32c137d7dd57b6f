"""Ranges that are replaced, whatever else goes on: readers, tables and the row audit agree all the time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.expire import expire_windows
from timestore_pipeline.building.flush import flush_in_shares, flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import BatchRejected, BuildInFlight, CommitUnknown
from timestore_pipeline.ledger.corrected_windows import pending_corrections
from timestore_pipeline.ledger.corrections import recorded_corrections
from timestore_pipeline.ledger.counters import CORRECTED_ROWS, CORRECTIONS
from timestore_pipeline.ledger.quarantine import DamagedSegment, open_entries, set_slices_aside
from timestore_pipeline.ledger.queue import queue_of
from timestore_pipeline.ledger.slices import unclaimed_slices
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import Moment, TimeRange, WindowRange
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.drain import drain
from timestore_pipeline.operating.losses import accept_losses, missing_rows
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline.reading.lineage import trace_window
from timestore_pipeline.reading.rows import past_snapshots, query_rows
from timestore_pipeline.segments.slices import MOST_ATTACHED
from timestore_pipeline.staging.receipts import Receipt
from timestore_pipeline.staging.stage import incoming_of, stage, stage_incoming
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    Rows,
    build,
    counted,
    declared,
    flip_row,
    hourly,
    in_order,
    published,
    readable,
    rows_of,
    segment_file,
    weather,
)
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.deaths import dies_at
from timestore_pipeline_tests.forks import process_pool
from timestore_pipeline_tests.object_store import Bucket

PLAIN = declared(weather="")
KEYED = declared(weather="key: {columns: [ts, station]}")
ORDER = BuildOrder("weather", owner="the test")
BY_KEY = pytest.mark.parametrize("datasets_yaml", [PLAIN, KEYED], ids=["plain", "keyed"])


def hour(number: float) -> datetime:
    return NEW_YEAR + timedelta(hours=number)


def replaced(
    store: Store, start: Moment, end: Moment, table: pa.Table | None = None, name: str | None = None
) -> Receipt:
    """Replace a range of times by the rows of a table, by none without one."""
    rows = weather() if table is None else table
    incoming = incoming_of(store, "weather", rows, name, replaces=TimeRange.between(start, end))
    return stage_incoming(store, "weather", incoming)


def new(*hours: float, station: str = "NEW") -> pa.Table:
    """What comes in the place of other rows."""
    return weather(*((hour(each), station, 100.0 + each) for each in hours))


def flush(store: Store) -> None:
    flush_windows(store, ORDER)


def assert_has(store: Store, *tables: pa.Table) -> None:
    """Readers have these rows now, and after a flush the table has just these; all rows are accounted for."""
    expected = rows_of(*tables)
    assert readable(store) == expected
    assert audit_rows(store, "weather").wrong == ()
    flush(store)
    assert readable(store) == in_table(store) == expected
    assert audit_rows(store, "weather").wrong == ()
    assert pending(store) == {}


def in_table(store: Store) -> Rows:
    """The rows of the table, without the column that says where a row of a key stands."""
    width = 3 if store.datasets["weather"].key else None
    return in_order(row[:width] for row in published(store))


def pending(store: Store) -> dict[str, list[int]]:
    """Window key → the numbers of the corrections that its files wait for."""
    spec = store.datasets["weather"]
    with store.ledger.read() as tx:
        found = pending_corrections(tx, "weather")
    return {spec.window_at(start).key: [each.number for each in acting] for start, acting in found.items()}


def without(table: pa.Table, first: int, last: int) -> pa.Table:
    """An hourly batch without the rows of the hours ``first … last``."""
    rows = [row for row in table.to_pylist() if not hour(first) <= row["ts"] <= hour(last)]
    return pa.Table.from_pylist(rows, table.schema)


@BY_KEY
class TestOneRange:
    def test_staged_and_published_rows_of_it_go_and_those_beside_it_stay(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(48))
        build(store)
        stage(store, "weather", hourly(48, station="LGA"))

        receipt = replaced(store, hour(20), hour(30), new(20, 29.5))

        assert receipt.rows == 2
        kept = [without(hourly(48), 20, 29), without(hourly(48, station="LGA"), 20, 29)]
        assert_has(store, *kept, new(20, 29.5))
        (found,) = recorded(store)
        assert (found.rows, found.pending_windows) == (20, 0)

    def test_a_report_and_the_lineage_say_what_it_took(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(48))
        build(store)
        stage(store, "weather", hourly(22, station="LGA"))
        receipt = replaced(store, hour(20), hour(30), new(21))
        (waits,) = trace_window(store, "weather", "2026-01-01").corrections
        assert (waits.correction.batch_id, waits.rows, waits.pending) == (receipt.batch_id, 0, True)

        report = build(store)

        assert (report.rows, report.taken) == (21, 12)
        assert [(each.rows, each.taken) for each in report.windows] == [(21, 6), (0, 6)]
        lineage = trace_window(store, "weather", "2026-01-01")
        assert [(each.correction.number, each.rows, each.pending) for each in lineage.corrections] == [(1, 6, False)]
        assert lineage.forgotten_rows == 0
        assert counted(store, CORRECTIONS) == {"": 1}
        assert counted(store, CORRECTED_ROWS) == {"": 12}
        rebuild_windows(store, ORDER)
        assert counted(store, CORRECTED_ROWS) == {"": 12}
        accounts = [window.account for window in audit_rows(store, "weather").windows]
        assert [account.corrected for account in accounts if account] == [6, 6]

    def test_it_is_emptied_and_so_is_the_dataset(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(48))
        build(store)
        stage(store, "weather", hourly(30, station="LGA"))

        assert replaced(store, hour(0), hour(48)).rows == 0

        assert_has(store)
        assert live_files(open_table(store.table("weather"), "weather")) == []
        stage(store, "weather", hourly(2))
        assert_has(store, hourly(2))

    def test_there_was_nothing_in_it(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)

        replaced(store, hour(0), hour(24), new(3))
        assert_has(store, new(3))
        replaced(store, hour(240), hour(480))
        assert pending(store) == {}
        assert_has(store, new(3))
        replaced(store, hour(240), hour(480), new(300))
        assert_has(store, new(3), new(300))

    def test_it_is_all_time_that_there_is(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(60))
        build(store)
        stage(store, "weather", hourly(5, start=datetime(1970, 1, 1, tzinfo=UTC)))

        replaced(store, "0001-01-01", "9999-12-31T23:59:59.999999", new(7))

        assert_has(store, new(7))

    def test_what_comes_after_it_stays(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(24))
        build(store)
        replaced(store, hour(0), hour(24), new(3))
        stage(store, "weather", new(5, station="LATER"))

        assert_has(store, new(3), new(5, station="LATER"))
        replaced(store, hour(4), hour(6), new(4))
        stage(store, "weather", new(5, station="LAST"))
        assert_has(store, new(3), new(4), new(5, station="LAST"))

    def test_more_segments_are_staged_than_are_attached_at_once(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        batches = [hourly(3, station=f"S{number}") for number in range(MOST_ATTACHED + 3)]
        for batch in batches:
            stage(store, "weather", batch)

        replaced(store, hour(1), hour(2), new(1))

        assert_has(store, *(without(batch, 1, 1) for batch in batches), new(1))

    def test_files_without_such_rows_stay_as_they_are(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        for day in range(3):
            stage(store, "weather", hourly(24, start=hour(24 * day)))
        build(store)
        before = {file.path for file in live_files(open_table(store.table("weather"), "weather"))}

        replaced(store, hour(30), hour(31), new(30))
        flush(store)

        after = {file.path for file in live_files(open_table(store.table("weather"), "weather"))}
        assert len(before & after) == 2

    def test_a_rebuild_leaves_the_rows_out_again(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(24))
        build(store)
        replaced(store, hour(4), hour(8), new(5))
        expected = [without(hourly(24), 4, 7), new(5)]
        for _ in range(2):
            rebuild_windows(store, ORDER)
            assert_has(store, *expected)

    def test_as_of_the_version_before_it_is_what_had_been_published(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(24))
        build(store)
        before = open_table(store.table("weather"), "weather").version()
        replaced(store, hour(0), hour(24), new(5))
        flush(store)

        def rows_at(version: int) -> int:
            found = query_rows(store, "SELECT * FROM weather", lambda names: past_snapshots(store, names, version))
            return found.to_arrow().num_rows

        assert rows_at(before) == 24
        assert rows_at(open_table(store.table("weather"), "weather").version()) == 1


def recorded(store: Store):
    with store.ledger.read() as tx:
        return recorded_corrections(tx, "weather")


STEPS = [
    CrashPoint.SLICES_CLAIMED,
    CrashPoint.PARQUET_IN_PLACE,
    CrashPoint.TABLE_CHECKED,
    CrashPoint.TABLE_COMMITTED,
    CrashPoint.PUBLICATION_COMMITTED,
]


@BY_KEY
@pytest.mark.parametrize("point", STEPS, ids=str)
@pytest.mark.parametrize("act", [flush_windows, rebuild_windows, compact_fully], ids=["flush", "rebuild", "compaction"])
def test_a_range_is_replaced_while_a_build_is_on_its_way(
    make_store: MakeStore, datasets_yaml: str, act: Callable[[Store, BuildOrder], object], point: CrashPoint
):
    store = make_store(datasets_yaml)
    first, second = hourly(30), hourly(30, station="LGA")
    for batch in (first, second):
        stage(store, "weather", batch)
        build(store)
    third = hourly(30, station="EWR")
    stage(store, "weather", third)
    expected = [*(without(each, 20, 26) for each in (first, second, third)), new(22)]
    if act is compact_fully and datasets_yaml == KEYED:
        flush(store)
        pytest.skip("windows of a key have one file")

    def replace() -> None:
        replaced(store, hour(20), hour(27), new(22))
        assert readable(store) == rows_of(*expected)

    with at(point, replace):
        act(store, ORDER)

    assert_has(store, *expected)


@BY_KEY
@pytest.mark.parametrize("point", STEPS[:4], ids=str)
def test_a_build_dies_of_which_a_range_was_replaced_meanwhile(
    make_store: MakeStore, datasets_yaml: str, point: CrashPoint
):
    store = make_store(datasets_yaml)
    stage(store, "weather", hourly(30))
    with dies_at(point):
        flush(store)

    replaced(store, hour(20), hour(27), new(22))

    expected = [without(hourly(30), 20, 26), new(22)]
    assert readable(store) == rows_of(*expected)
    settle_dead_builds(store, lambda owner: True)
    assert_has(store, *expected)


def test_a_window_without_files_is_replaced_while_it_is_built_again(make_store: MakeStore):
    """An expired window has no files, and a rebuild brings it back."""
    store = make_store(PLAIN, table_retention_seconds=1)
    stage(store, "weather", hourly(24))
    build(store)
    expire_windows(store, ORDER)
    assert readable(store) == []

    with at(CrashPoint.SLICES_CLAIMED, lambda: replaced(store, hour(20), hour(27), new(22))):
        rebuild_windows(store, ORDER)

    assert_has(store, without(hourly(24), 20, 26), new(22))


@pytest.mark.parametrize("point", [CrashPoint.SLICES_CLAIMED, CrashPoint.TABLE_COMMITTED], ids=str)
def test_a_range_is_replaced_while_its_windows_expire(make_store: MakeStore, point: CrashPoint):
    store = make_store(PLAIN, table_retention_seconds=1)
    stage(store, "weather", hourly(48))
    build(store)
    stage(store, "weather", hourly(48, station="LGA"))

    with at(point, lambda: replaced(store, hour(20), hour(27), new(22))):
        expire_windows(store, ORDER)

    assert_has(store, without(hourly(48, station="LGA"), 20, 26), new(22))


def test_what_expires_before_it_is_corrected_is_accounted_for(make_store: MakeStore):
    store = make_store(PLAIN, table_retention_seconds=1)
    stage(store, "weather", hourly(48))
    build(store)
    replaced(store, hour(20), hour(27), new(22))

    expire_windows(store, ORDER)

    assert pending(store) == {}
    assert_has(store, new(22))


@BY_KEY
def test_a_compaction_leaves_windows_alone_that_are_to_be_corrected(make_store: MakeStore, datasets_yaml: str):
    store = make_store(datasets_yaml, build_target_file_bytes=1 << 30)
    batches = [hourly(48, station=f"S{number}") for number in range(3)]
    for batch in batches:
        stage(store, "weather", batch)
        build(store)
    replaced(store, hour(20), hour(22), new(21))

    compact_fully(store, ORDER)

    assert pending(store) == {"2026-01-01": [1]}
    expected = [*(without(each, 20, 21) for each in batches), new(21)]
    assert_has(store, *expected)
    compact_fully(store, ORDER)
    assert_has(store, *expected)


def test_a_range_is_replaced_between_the_plan_of_a_compaction_and_its_claim(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
):
    from timestore_pipeline.building import compact

    store = make_store(PLAIN)
    batches = [hourly(48, station=f"S{number}") for number in range(3)]
    for batch in batches:
        stage(store, "weather", batch)
        build(store)
    claim = compact.claim_published

    def late(*args, **options):
        monkeypatch.setattr(compact, "claim_published", claim)
        replaced(store, hour(20), hour(22), new(21))
        return claim(*args, **options)

    monkeypatch.setattr(compact, "claim_published", late)
    report = compact_fully(store, ORDER)

    assert (report.windows, pending(store)) == (1, {"2026-01-01": [1]})
    assert_has(store, *(without(each, 20, 21) for each in batches), new(21))


def test_a_column_becomes_wider_with_the_rows_that_replace_others(make_store: MakeStore):
    store = make_store(
        "datasets: {weather: {columns: {ts: timestamptz, station: varchar, temp: float}, evolve: true, "
        "time: ts, window: day}}"
    )
    narrow = hourly(48).schema.set(2, pa.field("temp", pa.float32()))
    stage(store, "weather", hourly(48).cast(narrow))
    build(store)
    more = new(22).append_column("wind", pa.array([1.0]))

    replaced(store, hour(20), hour(27), more)

    kept = without(hourly(48), 20, 26).append_column("wind", pa.nulls(41, pa.float64()))
    assert_has(store, kept, more)


@BY_KEY
def test_several_lanes_correct_windows_side_by_side(make_store: MakeStore, datasets_yaml: str):
    store = make_store(datasets_yaml, build_concurrent_builds=3, build_least_shared_rows=1)
    days = [hourly(24, start=hour(24 * day)) for day in range(6)]
    for day in days:
        stage(store, "weather", day)
    build(store)
    for day in days:
        stage(store, "weather", day.set_column(1, "station", pa.array(["LGA"] * 24)))
    others = [day.set_column(1, "station", pa.array(["LGA"] * 24)) for day in days]
    with ThreadPoolExecutor(3) as threads:
        going = [threads.submit(lambda: retried(lambda: flush_in_shares(store, ORDER))) for _ in range(3)]
        replaced(store, hour(20), hour(100), new(22, 90))
        for each in going:
            each.result()

    assert_has(store, *(without(day, 20, 99) for day in (*days, *others)), new(22, 90))


def retried(act: Callable[[], object]) -> None:
    for _ in range(20):
        try:
            act()
            return
        except BuildInFlight:
            pass


def test_a_window_that_a_lane_has_is_no_reason_to_flush_before_it_ends(make_store: MakeStore):
    store = make_store(PLAIN, build_concurrent_builds=2)
    stage(store, "weather", hourly(24))
    build(store)
    stage(store, "weather", hourly(24, station="LGA"))

    def replace() -> None:
        replaced(store, hour(20), hour(22))
        with store.ledger.read() as tx:
            assert queue_of(tx, "weather").corrections is None
        with pytest.raises(BuildInFlight):
            flush(store)

    with at(CrashPoint.SLICES_CLAIMED, replace):
        flush(store)

    with store.ledger.read() as tx:
        assert queue_of(tx, "weather").corrections is not None
    assert_has(store, without(hourly(24), 20, 21), without(hourly(24, station="LGA"), 20, 21))


@BY_KEY
class TestQuarantine:
    def test_rows_from_before_that_come_back_are_gone(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", pa.concat_tables([hourly(4), weather((hour(10**6), "JFK", 1.0))]))
        stage(store, "weather", hourly(4, station="LGA"))
        set_aside(store, "LGA")
        replaced(store, hour(0), hour(2 * 10**6), new(3))
        assert readable(store) == rows_of(new(3))

        retry_all(store, make_store, datasets_yaml)

        assert_has(store, new(3))

    def test_rows_of_the_replacing_batch_come_in(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(24))
        build(store)
        late = weather((hour(10**6), "NEW", 1.0))
        receipt = replaced(store, hour(0), hour(2 * 10**6), pa.concat_tables([new(3), late]))
        assert (receipt.rows, receipt.quarantined_rows) == (1, 1)
        flush(store)
        stage(store, "weather", hourly(1, station="LATER"))

        retry_all(store, make_store, datasets_yaml)

        assert_has(store, new(3), late, hourly(1, station="LATER"))

    def test_rows_of_a_replacing_batch_go_by_the_next_one(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        late = weather((hour(10**6), "NEW", 1.0))
        replaced(store, hour(0), hour(2 * 10**6), pa.concat_tables([new(3), late]))
        replaced(store, hour(0), hour(2 * 10**6), new(4))

        retry_all(store, make_store, datasets_yaml)

        assert_has(store, new(4))

    def test_a_segment_that_is_damaged_holds_the_others_up_no_longer(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        receipt = stage(store, "weather", hourly(24))
        flip_row(store, segment_file(store, receipt.segment_id), 3)

        replaced(store, hour(0), hour(24), new(3))

        assert_has(store, new(3))


def set_aside(store: Store, station: str) -> None:
    """Set the segment aside that was staged last, as if it could not be read."""
    with store.ledger.write() as tx:
        piece = max(unclaimed_slices(tx, "weather"), key=lambda piece: piece.staged_at)
        damaged = DamagedSegment("weather", piece.segment_id, piece.path, 1, f"lost {station}")
        set_slices_aside(tx, damaged, [piece.window_start], now_micros())


def retry_all(store: Store, make_store: MakeStore, datasets_yaml: str) -> None:
    """Retry all that is in quarantine, with no time too far in the future."""
    store = make_store(datasets_yaml, staging_max_future_ms=10**13)
    with store.ledger.read() as tx:
        entries = open_entries(tx)
    assert entries
    for entry in entries:
        assert retry_entry(store, entry.id, "the test").done


@BY_KEY
class TestTwoAtOnce:
    def test_of_threads_one_wins_whole(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(24))
        build(store)
        candidates = [new(*range(4), station=f"N{number}") for number in range(4)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda table: replaced(store, hour(0), hour(24), table), candidates))

        assert readable(store) in [rows_of(each) for each in candidates]
        (winner,) = [each for each in candidates if readable(store) == rows_of(each)]
        assert_has(store, winner)
        assert [each.correction.number for each in recorded(store)] == [4, 3, 2, 1]

    def test_of_which_the_other_comes_in_before_the_acknowledgement(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(24))

        def be_first() -> None:
            replaced(store, hour(0), hour(24), new(1, station="FIRST"))
            stage(store, "weather", new(2, station="BETWEEN"))

        with at(CrashPoint.SEGMENT_IN_PLACE, be_first):
            replaced(store, hour(0), hour(24), new(3, station="LAST"))

        assert_has(store, new(3, station="LAST"))

    def test_a_build_is_claimed_before_the_acknowledgement(self, make_store: MakeStore, datasets_yaml):
        store = make_store(datasets_yaml)
        stage(store, "weather", hourly(24))

        with at(CrashPoint.SEGMENT_IN_PLACE, lambda: flush(store)):
            replaced(store, hour(0), hour(12), new(3))

        assert_has(store, without(hourly(24), 0, 11), new(3))


def _replace_in_a_process(settings, number: int) -> None:
    with Store.open(settings) as store:
        for turn in range(3):
            replaced(store, hour(0), hour(24), new(*range(4), station=f"P{number}.{turn}"))
            retried(lambda: flush(store))


@pytest.mark.only_on("sqlite")
@pytest.mark.process
def test_of_processes_one_wins_whole(make_store: MakeStore):
    store = make_store(PLAIN)
    stage(store, "weather", hourly(24))
    with process_pool(3) as pool:
        for going in [pool.submit(_replace_in_a_process, store.settings, number) for number in range(3)]:
            going.result()

    settle_dead_builds(store, lambda owner: True)
    found: Rows = readable(store)
    assert len(found) == 4
    assert len({row[1] for row in found}) == 1
    assert_has(store, new(*range(4), station=found[0][1]))


class TestRepeats:
    def test_the_same_rows_for_the_same_range_change_nothing(self, make_store: MakeStore):
        store = make_store(PLAIN)
        stage(store, "weather", hourly(24))
        for expected in (False, True, True):
            assert replaced(store, hour(0), hour(24), new(3)).duplicate is expected
        flush(store)
        assert replaced(store, hour(0), hour(24), new(3)).duplicate
        stage(store, "weather", new(5))
        assert not replaced(store, hour(0), hour(24), new(3)).duplicate
        assert_has(store, new(3))

    def test_an_emptied_range_is_not_lost_where_nobody_knows_whether_the_ledger_committed(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ):
        store = make_store(PLAIN)
        stage(store, "weather", hourly(24))
        write = type(store.ledger).write
        doubts = iter([True])

        class Doubtful:
            """A transaction that is committed, and whose answer gets lost the first time."""

            def __init__(self) -> None:
                self._stack = ExitStack()

            def __enter__(self):
                return self._stack.enter_context(write(store.ledger))

            def __exit__(self, *error: object) -> None:
                self._stack.__exit__(*error)  # type: ignore[arg-type]
                if error[0] is None and recorded(store) and next(doubts, False):
                    raise CommitUnknown("the connection was lost")

        with monkeypatch.context() as patched:
            patched.setattr(store.ledger, "write", Doubtful)
            receipt = replaced(store, hour(0), hour(24), name="emptied")

        assert not receipt.duplicate
        assert next(doubts, None) is None
        names = [entry.key for entry in store.staging.entries("_corrections/")]
        assert [recorded(store)[0].correction.path] == names
        assert_has(store)

    def test_rows_outside_of_the_range_are_refused(self, make_store: MakeStore):
        store = make_store(PLAIN)
        stage(store, "weather", hourly(24))
        for outside in (new(-1, 3), new(3, 12)):
            with pytest.raises(BatchRejected, match="outside of it"):
                replaced(store, hour(0), hour(12), outside)
        assert_has(store, hourly(24))
        sweep_orphans(store, older_than_seconds=0)
        assert list(store.staging.entries("_corrections/")) == []


class TestDates:
    DATES = "datasets: {weather: {columns: {ts: date, temp: double}, time: ts, window: month}}"

    def table(self, *days: int, temp: float = 0.0) -> pa.Table:
        return pa.table(
            {"ts": pa.array([date(2026, 1, day) for day in days], pa.date32()), "temp": [temp] * len(days)},
            pa.schema([("ts", pa.date32()), ("temp", pa.float64())]),
        )

    def test_a_day_is_in_a_range_where_its_midnight_is(self, make_store: MakeStore):
        store = make_store(self.DATES)
        stage(store, "weather", self.table(1, 2, 3, 4))
        build(store)
        stage(store, "weather", self.table(1, 2, 3, 4, temp=1))

        replaced(store, "2026-01-01T12:00", "2026-01-03T00:00:00.000001", self.table(2, temp=9))

        assert_has(store, self.table(1, 4), self.table(1, 4, temp=1), self.table(2, temp=9))
        replaced(store, "2026-01-04T06:00", "2026-01-04T18:00", self.table())
        assert pending(store) == {"2026-01": [2]}
        assert_has(store, self.table(1, 4), self.table(1, 4, temp=1), self.table(2, temp=9))


class TestOtherPrograms:
    def test_files_that_they_merge_in_a_window_that_waits_are_corrected(self, make_store: MakeStore):
        store = make_store(PLAIN)
        for station in ("JFK", "LGA"):
            stage(store, "weather", hourly(24, station=station))
            build(store)
        replaced(store, hour(20), hour(22), new(21))

        DeltaTable(str(store.table("weather").root)).optimize.compact()

        assert_has(store, without(hourly(24), 20, 21), without(hourly(24, station="LGA"), 20, 21), new(21))

    def test_rows_that_they_append_in_a_window_that_waits_go_with_the_others(self, make_store: MakeStore):
        store = make_store(PLAIN)
        stage(store, "weather", hourly(24))
        build(store)
        replaced(store, hour(20), hour(22), new(21))
        foreign = new(20, 23, station="FOREIGN")

        path = str(store.table("weather").root)
        write_deltalake(path, foreign.append_column("window_key", pa.array(["2026-01-01"] * 2)), mode="append")
        flush(store)

        expected = rows_of(without(hourly(24), 20, 21), new(21), new(23, station="FOREIGN"))
        assert readable(store) == published(store) == expected
        write_deltalake(path, foreign.append_column("window_key", pa.array(["2026-01-01"] * 2)), mode="append")
        stage(store, "weather", hourly(1, station="LATER"))
        flush(store)
        assert readable(store) == published(store)
        assert len(readable(store)) == len(expected) + 3


def test_a_repair_leaves_out_what_is_to_be_corrected(make_store: MakeStore):
    store = make_store(PLAIN, staging_retention_seconds=0)
    for station in ("JFK", "LGA"):
        stage(store, "weather", hourly(24, station=station))
        build(store)
    unlink_published_segments(store)
    replaced(store, hour(20), hour(22), new(21))
    first = min(live_files(open_table(store.table("weather"), "weather")), key=lambda file: file.path)
    (store.table("weather").root / first.path).unlink()
    (missing,) = missing_rows(store, "weather")

    accept_losses(store, ORDER, None, rows=missing.rows, reason="the disk", by="the test")

    assert missing.rows == 24
    assert_has(store, without(hourly(24, station="LGA"), 20, 21), new(21))


def test_a_drain_corrects_what_is_published(make_store: MakeStore):
    store = make_store(PLAIN)
    stage(store, "weather", hourly(24))
    build(store)
    replaced(store, hour(20), hour(22))

    done = drain(store, ["weather"], owner="the test", by="the test", reason="", timeout_seconds=60)

    assert done.empty
    assert readable(store) == published(store) == rows_of(without(hourly(24), 20, 21))


def test_a_drain_that_has_no_time_says_that_windows_are_to_be_corrected(make_store: MakeStore):
    store = make_store(PLAIN, build_concurrent_builds=1)
    stage(store, "weather", hourly(24))
    build(store)
    replaced(store, hour(20), hour(22))
    with store.ledger.read() as tx:
        assert (state := queue_of(tx, "weather").corrections)
    assert (state.windows, state.first_window) == (1, state.last_window)

    from timestore_pipeline.operating.drain import what_remains

    (left,) = what_remains(store, ["weather"])
    assert not left.empty
    assert left.reasons == ("1 published windows are to be corrected",)


def test_only_the_windows_that_are_asked_for_are_corrected(make_store: MakeStore):
    store = make_store(PLAIN)
    stage(store, "weather", hourly(72))
    build(store)
    replaced(store, hour(20), hour(70))
    window = store.datasets["weather"].window_from_key("2026-01-02")

    flush_windows(store, BuildOrder("weather", WindowRange(window, window), owner="the test"))

    assert pending(store) == {"2026-01-01": [1], "2026-01-03": [1]}
    assert_has(store, without(hourly(72), 20, 69))


@pytest.mark.only_on("sqlite")
@pytest.mark.server
@pytest.mark.parametrize(
    "places", [("tables_url",), ("staging_directory",), ("tables_url", "staging_directory")], ids=" and ".join
)
def test_ranges_are_replaced_in_an_object_store(make_store: MakeStore, s3_bucket: Bucket, places: tuple[str, ...]):
    store = make_store(KEYED, **{place: f"{s3_bucket.url}/{place}" for place in places})
    stage(store, "weather", hourly(48))
    build(store)
    stage(store, "weather", hourly(48, station="LGA"))
    replaced(store, hour(20), hour(30), new(22))
    expected = [without(hourly(48), 20, 29), without(hourly(48, station="LGA"), 20, 29), new(22)]
    assert_has(store, *expected)
    replaced(store, hour(22), hour(23))
    assert_has(store, *expected[:2])
    assert [entry.key.endswith(".json") for entry in store.staging.entries("_corrections/")] == [True, True]

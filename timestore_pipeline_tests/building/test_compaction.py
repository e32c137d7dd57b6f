"""Compaction: few files of the target size in time order, and never another row."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.building.compact import (
    CompactionReport,
    CompactionRules,
    compact_fully,
    compact_windows,
    files_to_merge,
    merged_count,
)
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.errors import BuildInFlight, TableError
from timestore_pipeline.ledger.builds import NewBuild
from timestore_pipeline.ledger.counters import COMPACTED_FILES, FLUSH_ROWS
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.ledger.windows import window_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import WindowRange, to_micros
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import TableFile, live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.table.parquet import even_split
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    claim_slices,
    counted,
    declared,
    hourly,
    published,
    readable,
    rows_of,
)
from timestore_pipeline_tests.conftest import MakeStore

IN_THE_WINDOW = to_micros(NEW_YEAR + timedelta(hours=12))
TARGET = 1 << 20


def compact(store: Store, **options) -> CompactionReport:
    return compact_windows(store, BuildOrder("weather", owner="the test"), **options)


def flushed(store: Store, flushes: int, hours: int = 24, number_from: int = 0) -> list[pa.Table]:
    """Batches of their own that were published one by one: a file of each in every window."""
    tables = [hourly(hours, station=f"S{number_from + number}") for number in range(flushes)]
    for table in tables:
        stage(store, "weather", table)
        build(store)
    return tables


def files(store: Store) -> list[TableFile]:
    return live_files(open_table(store.table("weather"), "weather"))


def totals(store: Store) -> list[tuple[int, int, int]]:
    with store.ledger.read() as tx:
        return [(window.rows, window.bytes, window.files) for window in window_totals(tx, "weather")]


def of_sizes(*sizes: int) -> list[TableFile]:
    return [TableFile(f"{number:010d}-000.parquet", "2026-01-01", 1, size) for number, size in enumerate(sizes)]


@pytest.mark.long
def test_a_closed_window_gets_one_file_with_the_same_rows_in_time_order(store: Store):
    tables = flushed(store, 5, hours=48)
    before = totals(store)

    report = compact(store)

    assert (report.windows, report.files, report.merged_files, report.rows) == (2, 10, 2, 240)
    assert published(store) == readable(store) == rows_of(*tables)
    assert len(files(store)) == 2
    for file in files(store):
        times = pq.read_table(store.table("weather").root / file.path)["ts"].to_pylist()
        assert times == sorted(times)
    assert [(rows, count) for rows, _, count in totals(store)] == [(120, 1), (120, 1)]
    assert sum(size for _, size, _ in totals(store)) == sum(file.bytes for file in files(store))
    assert before != totals(store)
    assert compact(store) == CompactionReport("weather", duration_seconds=compact(store).duration_seconds) or True
    assert compact(store).builds == 0


def test_a_compaction_publishes_nothing_and_is_no_flush(store: Store):
    flushed(store, 3)
    with store.ledger.read() as tx:
        published_at = [window.published_at for window in window_totals(tx, "weather")]
        flush = latest_builds(tx)["weather"]
    rows = counted(store, FLUSH_ROWS)

    compact(store)

    with store.ledger.read() as tx:
        assert [window.published_at for window in window_totals(tx, "weather")] == published_at
        assert latest_builds(tx)["weather"] == flush
    assert counted(store, FLUSH_ROWS) == rows
    assert counted(store, COMPACTED_FILES) == {"": 3}


def test_whoever_follows_the_changes_of_the_table_sees_none(store: Store):
    flushed(store, 3)
    compact(store)

    entry = sorted((store.table("weather").root / "_delta_log").glob("*.json"))[-1].read_text()

    assert '"dataChange":false' in entry
    assert '"dataChange":true' not in entry


def test_an_open_window_is_compacted_when_it_has_too_many_small_files(make_store: MakeStore):
    store = make_store(compaction_max_small_files=4)
    tables = flushed(store, 4)
    assert compact(store, now=IN_THE_WINDOW).builds == 0

    tables += flushed(store, 1, number_from=4)
    report = compact(store, now=IN_THE_WINDOW)

    assert (report.files, report.merged_files) == (5, 1)
    assert readable(store) == rows_of(*tables)


@pytest.mark.long
def test_an_open_window_can_wait_until_it_closes(make_store: MakeStore):
    store = make_store(compaction_max_small_files=0)
    flushed(store, 6)

    assert compact(store, now=IN_THE_WINDOW).builds == 0
    assert compact(store).merged_files == 1


def test_a_window_closes_after_the_lateness_of_its_dataset(make_store: MakeStore):
    store = make_store(declared(weather="lateness: 36h, compaction: {max_small_files: 2}"))
    flushed(store, 2)
    end = NEW_YEAR + timedelta(days=1)

    assert compact(store, now=to_micros(end + timedelta(hours=35))).builds == 0
    assert compact(store, now=to_micros(end + timedelta(hours=36))).merged_files == 1


def test_an_operator_compacts_open_windows_too_and_only_those_asked_for(store: Store):
    flushed(store, 2, hours=72)
    window = store.datasets["weather"].window_from_key("2026-01-02")

    order = BuildOrder("weather", WindowRange(window, window), owner="the test")
    report = compact_fully(store, order)

    assert (report.windows, report.files, report.merged_files) == (1, 2, 1)
    assert [count for _, _, count in totals(store)] == [2, 1, 2]


def test_one_build_is_bounded_and_a_run_as_a_whole(make_store: MakeStore):
    store = make_store(compaction_max_bytes_per_build=1)
    flushed(store, 2, hours=72)

    report = compact(store, max_bytes=1)
    assert (report.builds, report.windows) == (1, 1)
    assert report.stopped

    report = compact(store)
    assert (report.builds, report.windows, report.stopped) == (2, 2, "")


def test_a_flush_that_is_due_goes_first(make_store: MakeStore):
    store = make_store(compaction_max_bytes_per_build=1, staging_flush_max_rows=1)
    flushed(store, 2, hours=72)
    stage(store, "weather", hourly(1, station="LATE"))

    report = compact(store)

    assert report.builds == 1
    assert "flush" in report.stopped
    assert compact_fully(store, BuildOrder("weather", owner="the test")).builds == 2


def test_nothing_is_compacted_while_a_build_is_in_flight(store: Store):
    flushed(store, 2)
    stage(store, "weather", hourly(1, station="NEW"))
    with store.ledger.write() as tx:
        claim_slices(tx, NewBuild("weather", owner="x", trigger="rows", lease_micros=10**9, now=now_micros()))

    with pytest.raises(BuildInFlight):
        compact(store)
    settle_dead_builds(store, owner_is_gone=lambda owner: True)
    assert compact(store).merged_files == 1


def test_a_damaged_file_leaves_everything_as_it_was(store: Store):
    tables = flushed(store, 3)
    path = store.table("weather").root / files(store)[1].path
    content = path.read_bytes()
    path.write_bytes(content[:-40] + bytes(40))

    with pytest.raises(Exception, match=r"weather"):
        compact(store)

    path.write_bytes(content)
    assert len(files(store)) == 3
    assert published(store) == readable(store) == rows_of(*tables)
    assert compact(store).merged_files == 1


def test_a_file_with_other_rows_than_the_table_says_is_not_merged(store: Store):
    flushed(store, 2)
    path = store.table("weather").root / files(store)[0].path
    pq.write_table(pq.read_table(path).slice(1), path)

    with pytest.raises(TableError, match="47 rows of window 2026-01-01 were read where the table has 48"):
        compact(store)

    assert len(files(store)) == 2


def test_files_of_another_tool_are_merged_too(store: Store):
    tables = flushed(store, 2)
    DeltaTable(str(store.table("weather").root)).optimize.compact()
    tables += [hourly(24, station="NEW")]
    stage(store, "weather", tables[-1])
    build(store)

    assert compact(store).merged_files == 1
    assert published(store) == readable(store) == rows_of(*tables)


@pytest.mark.long
def test_a_reader_keeps_its_rows_while_files_are_merged_under_it(store: Store):
    tables = flushed(store, 4)
    with open_reader(store, ["weather"]) as connection:
        compact(store)

        found = connection.execute("SELECT count(*) FROM weather").fetchone()
        assert found == (sum(table.num_rows for table in tables),)


@pytest.mark.long
def test_readers_see_every_row_once_while_builds_and_compactions_go_on(make_store: MakeStore):
    store, reading = make_store(), make_store()
    tables = [hourly(48, station=f"S{number}") for number in range(12)]
    for number, table in enumerate(tables):
        stage(store, "weather", table, batch_id=f"b{number}")
    done = threading.Event()

    def work() -> None:
        window = store.datasets["weather"].window_from_key
        for key in ("2026-01-01", "2026-01-02"):
            build(store, first=key, last=key)
            for number in range(4):
                stage(store, "weather", hourly(48, station="S0"), batch_id="b0")  # known, so it changes nothing
                compact_fully(store, BuildOrder("weather", owner="the test", target_file_bytes=1 << (21 - number % 2)))
                rebuild_windows(store, BuildOrder("weather", WindowRange(window(key), window(key)), owner="the test"))

    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(work)
        worker.add_done_callback(lambda _: done.set())
        expected, looks = rows_of(*tables), 0
        while not done.is_set():
            assert readable(reading) == expected
            looks += 1
        worker.result()
    assert looks > 3


@pytest.mark.long
def test_files_have_the_target_size_only(make_store: MakeStore):
    import numpy as np

    store = make_store(build_target_file_bytes=TARGET)
    random = np.random.default_rng(1)
    rows, flushes = 30_000, 12
    for number in range(flushes):
        start = np.datetime64("2026-01-01T00:00:00") + np.timedelta64(number * 7_000, "s")
        stage(
            store,
            "weather",
            pa.table(
                {
                    "ts": pa.array(start + np.arange(rows) * np.timedelta64(100, "ms"), pa.timestamp("us", "UTC")),
                    "station": pa.array(["JFK"] * rows),
                    "temp": random.random(rows),
                }
            ),
        )
        build(store)
    size = sum(file.bytes for file in files(store))
    assert size > 2 * TARGET

    report = compact(store)

    assert 1 < report.merged_files < report.files
    assert len(files(store)) == merged_count(files(store), TARGET)
    assert all(0.7 * TARGET <= file.bytes <= 1.2 * TARGET for file in files(store))
    ranges = sorted(
        (times[0], times[-1])
        for file in files(store)
        for times in [pq.read_table(store.table("weather").root / file.path, columns=["ts"])["ts"].to_pylist()]
    )
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(ranges))
    assert compact(store).builds == 0


sizes = st.lists(st.integers(1, 2 * TARGET), max_size=60)
rules = st.builds(CompactionRules, target_file_bytes=st.just(TARGET), max_small_files=st.integers(0, 20))


@given(sizes, rules)
def test_what_is_merged_of_an_open_window_is_small_and_becomes_fewer_files(some: list[int], rule: CompactionRules):
    all_files = of_sizes(*some)

    chosen = files_to_merge(all_files, rule, closed=False)

    assert set(chosen) <= set(all_files)
    assert all(file.bytes < TARGET / 2 for file in chosen)
    if chosen:
        assert rule.max_small_files
        assert merged_count(chosen, TARGET) < len(chosen)


@given(sizes)
def test_a_closed_window_ends_with_files_near_the_target_size_or_even_ones(some: list[int]):
    live = [TableFile(f"{number}", "2026-01-01", size // 10, size) for number, size in enumerate(some)]
    rule = CompactionRules(target_file_bytes=TARGET, max_small_files=0)
    for look in range(len(some) + 2):
        chosen = files_to_merge(live, rule, closed=True)
        if not chosen:
            break
        count = merged_count(chosen, TARGET)
        rows, size = (sum(counts) for counts in zip(*((file.rows, file.bytes) for file in chosen), strict=True))
        split = even_split(rows, count)
        left = [file for file in live if file not in chosen]
        for number in range(split.files(rows)):
            has = min(split.rows_per_file, rows - number * split.rows_per_file)
            left.append(TableFile(f"{look}-{number}", "2026-01-01", has, size * has // rows if rows else size))
        live = left
    else:
        pytest.fail("it does not come to an end")
    small = [file.bytes for file in live if file.bytes < 0.7 * TARGET]
    others = [file.bytes for file in live if 0.7 * TARGET <= file.bytes <= 1.5 * TARGET]
    # A small one is left only where there is nothing to even it with.
    assert not small or (len(small) == 1 and not others) or min(small) >= 0.5 * TARGET


def test_what_a_small_file_is_merged_with():
    def sizes_of(*shares: float) -> list[float]:
        some = [TableFile(f"{n}", "w", int(share * 1e6), int(share * TARGET)) for n, share in enumerate(shares)]
        rule = CompactionRules(target_file_bytes=TARGET, max_small_files=4)
        return sorted(round(file.bytes / TARGET, 2) for file in files_to_merge(some, rule, closed=True))

    assert sizes_of(0.54, 0.54, 0.54, 0.54, 0.54, 0.29) == [0.29, 0.54, 0.54, 0.54, 0.54, 0.54]
    assert sizes_of(1, 1, 1, 0.01) == [0.01, 1]
    assert sizes_of(1.1, 0.4) == [0.4, 1.1]  # two even ones
    assert sizes_of(0.8, 1.1, 1.2) == sizes_of(1.1) == sizes_of(0.1) == sizes_of(0.1, 9) == sizes_of() == []
    assert sizes_of(0.62, 0.62) == []


@given(st.integers(4, 32))
def test_a_thousand_flushes_write_each_byte_a_few_times_only(limit: int):
    rule = CompactionRules(target_file_bytes=128 << 20, max_small_files=limit)
    live: list[int] = []
    written = 0
    for _ in range(1_000):
        live.append(10_000)
        chosen = files_to_merge(of_sizes(*live), rule, closed=False)
        if chosen:
            written += sum(file.bytes for file in chosen)
            for file in chosen:
                live.remove(file.bytes)
            live.append(sum(file.bytes for file in chosen))
        assert len(live) <= limit
    assert written <= 12 * 1_000 * 10_000

"""Several builds of one dataset at once: in any order of their steps every row is readable exactly once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection

from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.completion import Committed, record_commit
from timestore_pipeline.building.flush import flush_in_shares, flush_windows, write_claim
from timestore_pipeline.building.lost_table import prepare_table
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.publication import WrittenFiles
from timestore_pipeline.building.recovery import settle_build, settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import BuildAborted, BuildInFlight
from timestore_pipeline.ledger.builds import Build, NewBuild, builds_in_flight
from timestore_pipeline.ledger.claims import Claim
from timestore_pipeline.ledger.history import failures_in_a_row
from timestore_pipeline.ledger.lanes import free_lane, parts, share
from timestore_pipeline.ledger.limits import LimitName, Override, set_override
from timestore_pipeline.ledger.lineage import contributions_of_build
from timestore_pipeline.ledger.tables import KnownTable, known_table, table_versions
from timestore_pipeline.ledger.windows import window_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import WindowRange
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage import Storage
from timestore_pipeline.store import Store
from timestore_pipeline.table import own_table
from timestore_pipeline.table.commit import commit_build, commit_fence, fence_all
from timestore_pipeline.table.delta import DeltaTable
from timestore_pipeline.table.manifests import write_manifest
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.replacement import SequenceTaken
from timestore_pipeline.table.sequences import last_sequence
from timestore_pipeline.upkeep.vacuum import vacuum_table
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    claim_slices,
    declared,
    hourly,
    in_order,
    published,
    readable,
    rows_of,
    weather,
)
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.machines import MachineOnALedger
from timestore_pipeline_tests.sampling import examples

GONE = (SequenceTaken, FileNotFoundError)
"""How the commit of a fenced build ends: it is refused, or its files are removed already."""

LANES = 3
DAYS = 4
DATASETS_YAML = declared(weather="", keyed="key: {columns: [ts, station]}")


@dataclass
class Flight:
    """A build of which a test takes each step by itself."""

    claim: Claim
    written: WrittenFiles | None = None
    version: int | None = None

    @property
    def build(self) -> Build:
        return self.claim.build


def claim(
    store: Store,
    dataset: str = "weather",
    first: int | None = None,
    last: int | None = None,
    *,
    leave_some: bool = False,
) -> Flight | None:
    """Claim what is staged of the days ``first … last``, counted from New Year."""
    spec = store.datasets[dataset]
    starts = [None if day is None else spec.window_from_key(f"{NEW_YEAR + timedelta(days=day):%Y-%m-%d}").start_micros
              for day in (first, last)]  # fmt: skip
    new = NewBuild(
        dataset, owner="the test", trigger="manual", lease_micros=10**12, now=now_micros(),
        replaces=spec.key is not None, lanes=LANES,
    )  # fmt: skip
    least_rows = 1 if leave_some else None
    found = store.ledger.transact(lambda tx: claim_slices(tx, new, *starts, least_rows=least_rows))
    return None if found is None else Flight(found)


def columns_of(store: Store, dataset: str) -> Any:
    spec = store.datasets[dataset]
    return spec.table_columns(spec.declared_columns or ())


def write(store: Store, flight: Flight) -> Flight:
    spec = store.datasets[flight.build.dataset]
    flight.written = write_claim(store, columns_of(store, spec.name), flight.claim, 1 << 30)
    with store.ledger.read() as tx:
        contributions = contributions_of_build(tx, flight.build.id)
    write_manifest(
        store.table(spec.name), flight.build.sequence, contributions, [columns_of(store, spec.name)], now_micros()
    )
    return flight


def commit(store: Store, flight: Flight) -> Flight:
    assert flight.written is not None
    own = OwnTable(store, flight.build.dataset)
    columns = columns_of(store, flight.build.dataset)
    flight.version = commit_build(own, flight.build, columns, flight.written.files, flight.written.replacement)
    return flight


def record(store: Store, flight: Flight) -> None:
    assert flight.written is not None
    assert flight.version is not None
    kept = flight.written.replacement.kept if flight.written.replacement else ()
    record_commit(store, Committed(flight.build, flight.version, flight.written.files, kept))


def in_flight(store: Store, dataset: str = "weather") -> list[int]:
    with store.ledger.read() as tx:
        return [build.lane for build in builds_in_flight(tx, dataset)]


def version_seen(store: Store, dataset: str = "weather") -> int | None:
    with store.ledger.read() as tx:
        return table_versions(tx)[dataset]


@pytest.fixture
def lanes(make_store: MakeStore) -> Store:
    """A table with one published day, and four days staged, for up to three builds at once."""
    store = make_store(DATASETS_YAML, build_concurrent_builds=LANES, build_least_shared_rows=1)
    stage(store, "weather", hourly(24, start=NEW_YEAR - timedelta(days=1)))
    flush_windows(store, BuildOrder("weather", owner="the test"))
    stage(store, "weather", hourly(24 * DAYS))
    return store


def everything(days: int = DAYS) -> list[tuple[Any, ...]]:
    return rows_of(hourly(24, start=NEW_YEAR - timedelta(days=1)), hourly(24 * days))


@pytest.mark.parametrize("when", ["before it is opened", "once it is opened"])
def test_a_table_to_which_another_lane_commits_while_it_is_looked_at_is_still_ours(
    lanes: Store, when: str, monkeypatch: pytest.MonkeyPatch
):
    """The ledger is asked first, so what a lane records after that is no commit that the table lacks."""

    def meanwhile(place: Storage, dataset: str) -> DeltaTable:
        monkeypatch.setattr(own_table, "open_table", open_table)
        opened = open_table(place, dataset)
        flight = claim(lanes)
        assert flight is not None
        record(lanes, commit(lanes, write(lanes, flight)))
        return opened if when == "once it is opened" else open_table(place, dataset)

    monkeypatch.setattr(own_table, "open_table", meanwhile)

    assert OwnTable(lanes, "weather").look().objection is None
    assert version_seen(lanes) == open_table(lanes.table("weather"), "weather").version()


def test_a_build_asks_the_ledger_once_what_it_knows_of_the_table(lanes: Store, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def known(tx: Connection, dataset: str) -> KnownTable:
        asked.append(dataset)
        return known_table(tx, dataset)

    monkeypatch.setattr(own_table, "known_table", known)
    spec = lanes.datasets["weather"]

    prepare_table(lanes, spec, spec.declared_columns or ())

    assert asked == ["weather"]


class TestVisibility:
    def test_whoever_completes_ends_all_builds_that_become_visible(self, lanes: Store):
        first, second, third = (write(lanes, claim(lanes, first=day, last=day)) for day in range(3))  # type: ignore[arg-type]
        commit(lanes, first)
        commit(lanes, second)
        assert readable(lanes) == everything()

        record(lanes, second)

        assert in_flight(lanes) == [third.build.lane]
        assert version_seen(lanes) == second.version
        assert readable(lanes) == everything()
        record(lanes, first)
        assert version_seen(lanes) == second.version, "it never goes back"
        record(lanes, commit(lanes, third))
        assert readable(lanes) == everything()

    def test_a_build_that_commits_later_stays_staged(self, lanes: Store):
        first, second = (write(lanes, claim(lanes, first=day, last=day)) for day in range(2))  # type: ignore[arg-type]
        commit(lanes, second)
        commit(lanes, first)

        record(lanes, second)

        assert in_flight(lanes) == [first.build.lane]
        assert version_seen(lanes) == second.version
        assert readable(lanes) == everything()

    def test_a_recovery_ends_the_others_too(self, lanes: Store):
        first, second = (write(lanes, claim(lanes, first=day, last=day)) for day in range(2))  # type: ignore[arg-type]
        commit(lanes, first)
        commit(lanes, second)

        assert settle_build(lanes, second.build, error="dead", recovered=True).table_version == second.version

        assert in_flight(lanes) == []
        assert readable(lanes) == everything()


class TestFences:
    """delta-rs must refuse a fenced build of one lane whatever the other lanes commit, and in whatever order."""

    @pytest.mark.parametrize(
        "meanwhile", ["fence", "other, fence", "fence, other", "fence of all", "other, fence of all"]
    )
    def test_a_commit_on_a_stale_handle_is_refused(self, lanes: Store, meanwhile: str):
        first, other = (write(lanes, claim(lanes, first=day, last=day)) for day in range(2))  # type: ignore[arg-type]
        place, columns = lanes.table("weather"), columns_of(lanes, "weather")
        acts: dict[str, Callable[[], object]] = {
            "other": lambda: commit(lanes, other),
            "fence": lambda: commit_fence(OwnTable(lanes, "weather"), first.build, columns),
            "fence of all": lambda: fence_all(place, "weather", 1 << 60, lanes.ledger.identity),
        }

        def act() -> None:
            for name in meanwhile.split(", "):
                acts[name]()

        with pytest.raises(SequenceTaken), at(CrashPoint.TABLE_CHECKED, act):
            commit(lanes, first)

        days = [0] * ("other" in meanwhile)
        assert len(published(lanes)) == 24 + 24 * len(days)

    def test_a_fence_of_one_lane_leaves_the_others_alone(self, lanes: Store):
        first, other = (write(lanes, claim(lanes, first=day, last=day)) for day in range(2))  # type: ignore[arg-type]

        assert not settle_build(lanes, first.build, error="dead", recovered=True).published

        record(lanes, commit(lanes, other))
        with pytest.raises(GONE):
            commit(lanes, first)
        assert readable(lanes) == everything()

    def test_a_new_lane_begins_above_every_fence(self, lanes: Store):
        table = fence_all(lanes.table("weather"), "weather", 1 << 60, lanes.ledger.identity)

        assert [last_sequence(table, "weather", lane) for lane in (0, 7, 31)] == [1 << 60] * 3
        assert last_sequence(table, "weather") == 1 << 60


class TestClaims:
    def test_no_window_is_in_two_builds(self, lanes: Store):
        claim(lanes, last=1)
        stage(lanes, "weather", hourly(24, station="LGA"))

        second = claim(lanes)

        assert second is not None
        assert {lanes.datasets["weather"].window_at(piece.window_start).key for piece in second.claim.slices} == {
            "2026-01-03", "2026-01-04"
        }  # fmt: skip
        with pytest.raises(BuildInFlight):
            claim(lanes)

    def test_there_are_no_more_builds_than_the_limit_says_now(self, lanes: Store):
        with lanes.ledger.write() as tx:
            set_override(tx, Override("weather", LimitName.CONCURRENT_BUILDS, 1, "the test", 1))
        held = claim(lanes, last=0)
        assert held is not None

        with pytest.raises(BuildInFlight):
            flush_windows(lanes, BuildOrder("weather", owner="another"))
        with lanes.ledger.write() as tx:
            set_override(tx, Override("weather", LimitName.CONCURRENT_BUILDS, 2, "the test", 1))

        report = flush_windows(lanes, BuildOrder("weather", owner="another"))
        assert report is not None
        assert [built.window.key for built in report.windows] == ["2026-01-02", "2026-01-03", "2026-01-04"]

    def test_new_columns_are_published_by_a_build_that_is_alone(self, make_store: MakeStore):
        store = make_store(build_concurrent_builds=LANES)

        def arrive(hour: int, **more: Any) -> None:
            at = int((NEW_YEAR + timedelta(hours=hour)).timestamp() * 1e3)
            stage(
                store, "events", pa.table({"at": [at], "a": [hour], **{name: [value] for name, value in more.items()}})
            )

        arrive(0)
        flush_windows(store, BuildOrder("events", owner="the test"))
        arrive(1)
        for hour in (2, 3):  # in flight is a build without the new column, and then one with it
            other = claim(store, "events")
            arrive(hour, b="new")
            assert other is not None
            with pytest.raises(BuildInFlight, match=f"build {other.build.id} "):
                flush_windows(store, BuildOrder("events", owner="another"))
            settle_build(store, other.build, error="dead", recovered=True)
        flush_windows(store, BuildOrder("events", owner="another"))
        arrive(4, b="new")
        arrive(5)
        assert claim(store, "events", leave_some=True) is not None
        assert claim(store, "events") is not None, "the columns are published now"
        assert len(published(store, "events")) == 4

    def test_failures_of_a_group_are_counted_whatever_other_groups_publish(self, lanes: Store):
        for _ in range(2):
            dead = claim(lanes, first=0, last=0)
            assert dead is not None
            lane = write(lanes, claim(lanes, first=1, last=1) or dead)
            settle_build(lanes, dead.build, error="damaged", recovered=False)
            record(lanes, commit(lanes, lane))
            stage(lanes, "weather", hourly(1, start=NEW_YEAR + timedelta(days=1)))

        with lanes.ledger.read() as tx:
            assert failures_in_a_row(tx, "weather") == 2
        flush_windows(lanes, BuildOrder("weather", owner="the test"))
        with lanes.ledger.read() as tx:
            assert failures_in_a_row(tx, "weather") == 0


def test_the_vacuum_spares_what_a_build_with_a_lower_sequence_publishes_later(lanes: Store):
    slow = write(lanes, claim(lanes, first=0, last=0))  # type: ignore[arg-type]
    flush_windows(lanes, BuildOrder("weather", owner="another"))
    later = now_micros() + 10**13

    assert vacuum_table(lanes, "weather", now=later).files == 0

    record(lanes, commit(lanes, slow))
    assert readable(lanes) == everything()


@pytest.mark.long
def test_builds_that_replace_windows_wait_for_nobody_and_fail_for_nobody(make_store: MakeStore):
    store = make_store(DATASETS_YAML, build_concurrent_builds=LANES)
    for station in ("A", "B", "C"):
        stage(store, "keyed", hourly(24 * LANES, station=station))

        def flush(day: int) -> None:
            window = store.datasets["keyed"].window_from_key(f"2026-01-0{day}")
            flush_windows(store, BuildOrder("keyed", WindowRange(window, window), owner=f"worker {day}"))

        with ThreadPoolExecutor(LANES) as pool:
            list(pool.map(flush, range(1, LANES + 1)))

    assert readable(store, "keyed") == rows_of(*(hourly(24 * LANES, station=station) for station in ("A", "B", "C")))
    with store.ledger.read() as tx:
        assert failures_in_a_row(tx, "keyed") == 0
        assert {total.rows for total in window_totals(tx, "keyed")} == {72}


@pytest.mark.parametrize("limit", [1, 2])
def test_workers_share_a_month(make_store: MakeStore, limit: int):
    store = make_store(DATASETS_YAML, build_concurrent_builds=limit, build_least_shared_rows=48)
    month = hourly(24 * 30)
    stage(store, "weather", month)

    def work(number: int) -> int:
        with Store.open(store.settings) as mine, suppress(BuildInFlight):
            report = flush_in_shares(mine, BuildOrder("weather", owner=f"worker {number}"))
            return report.rows if report else 0
        return 0

    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(work, range(2)))

    assert sum(rows) == 720
    assert published(store) == rows_of(month)
    if limit == 1:
        assert open_table(store.table("weather"), "weather").version() == 1, "one commit, as ever"


def test_shares_are_fair_and_not_too_small():
    days = [(day, 10) for day in range(12)]

    assert share(days, 3, 1) == [0, 1, 2, 3]
    assert share(days, 1, 1) == list(range(12))
    assert share(days, 3, 100) == list(range(12)), "others would get less than it is worth"
    assert share(days, 12, 50) == [0, 1, 2, 3, 4]
    assert share([(0, 1_000), (1, 1)], 2, 1) == [0]
    assert [len(part) for part in parts(days, 5, 1)] == [3, 3, 2, 2, 2]
    assert parts([], 3, 1) == []
    assert (free_lane({0, 2}, 3), free_lane({0, 1}, 2), free_lane({7}, 2)) == (1, None, 0)


class Lanes(MachineOnALedger):
    """Builds whose steps are taken in any order, beside compactions, recoveries and vacuums."""

    def __init__(self) -> None:
        super().__init__()
        (self.root / "datasets.yaml").write_text(DATASETS_YAML, encoding="utf-8")
        self.store = Store.open(
            Settings(
                home=self.root, staging_min_free_disk_bytes=0, build_concurrent_builds=LANES, vacuum_grace_seconds=0.001
            )
        )
        self.acked: list[pa.Table] = []
        self.flights: list[Flight] = []
        self.seen = -1
        self.dataset = "weather"

    @initialize(keyed=st.booleans())
    def begin(self, keyed: bool) -> None:
        self.dataset = "keyed" if keyed else "weather"
        self.stage_rows(0, DAYS)
        flush_windows(self.store, BuildOrder(self.dataset, owner="the test"))
        self.stage_rows(0, DAYS)

    @rule(first=st.integers(0, DAYS - 1), days=st.integers(1, DAYS))
    def stage_rows(self, first: int, days: int) -> None:
        station = f"S{len(self.acked)}"
        rows = weather(
            *((NEW_YEAR + timedelta(days=day), station, float(day)) for day in range(first, min(first + days, DAYS)))
        )
        stage(self.store, self.dataset, rows)
        self.acked.append(rows)

    @rule(first=st.none() | st.integers(0, DAYS - 1), days=st.integers(1, DAYS), leave_some=st.booleans())
    def claim(self, first: int | None, days: int, leave_some: bool) -> None:
        with suppress(BuildInFlight):
            last = None if first is None else min(first + days, DAYS) - 1
            flight = claim(self.store, self.dataset, first, last, leave_some=leave_some)
            self.flights += [flight] if flight else []

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """The next step of a build that may have been fenced meanwhile."""
        flight = data.draw(st.sampled_from(self.flights))
        try:
            if flight.written is None:
                write(self.store, flight)
            elif flight.version is None:
                commit(self.store, flight)
            else:
                record(self.store, flight)
                self.flights.remove(flight)
        except GONE:
            self.flights.remove(flight)

    @rule()
    def finish_all_commits(self) -> None:
        for flight in self.flights:
            with suppress(*GONE):
                if flight.written is not None and flight.version is None:
                    commit(self.store, flight)

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def recover_one(self, data: st.DataObject) -> None:
        flight = data.draw(st.sampled_from(self.flights))
        settled = settle_build(self.store, flight.build, error="taken for dead", recovered=True)
        assert settled.published == (flight.version is not None)
        if not settled.published and flight.written is None:
            self.flights.remove(flight)  # its segments may be anybody's now

    @rule()
    def compact(self) -> None:
        with suppress(BuildInFlight):
            compact_fully(self.store, BuildOrder(self.dataset, owner="the test"))

    @rule()
    def vacuum(self) -> None:
        vacuum_table(self.store, self.dataset)

    @invariant()
    def every_row_is_readable_once(self) -> None:
        assert readable(self.store, self.dataset) == rows_of(*self.acked)
        seen = version_seen(self.store, self.dataset) or 0
        assert seen >= self.seen
        self.seen = seen

    def teardown(self) -> None:
        settle_dead_builds(self.store, lambda owner: True)
        with suppress(BuildAborted):
            flush_windows(self.store, BuildOrder(self.dataset, owner="the test"))
        assert readable(self.store, self.dataset) == rows_of(*self.acked)
        in_table = [row[:3] for row in published(self.store, self.dataset)]  # behind them is the position of keyed rows
        assert in_order(in_table) == in_order(rows_of(*self.acked))
        assert not audit_rows(self.store, self.dataset).wrong
        self.store.close()
        super().teardown()


class LanesOnPostgreSQL(Lanes):
    """The same with the ledger on PostgreSQL."""

    ledger = "postgresql"


@pytest.mark.matrix
@pytest.mark.long
@pytest.mark.parametrize(
    ("machine", "count"),
    [(Lanes, 6), pytest.param(LanesOnPostgreSQL, 3, marks=pytest.mark.server)],
    ids=["sqlite", "postgresql"],
)
def test_builds_in_lanes_lose_and_double_nothing(machine: type[Lanes], count: int):
    # Without shrinking: it would take minutes, and the steps are few.
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(count),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=checks,
            phases=[Phase.generate],
        ),
    )

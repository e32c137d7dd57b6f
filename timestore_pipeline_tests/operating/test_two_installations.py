"""Whatever is put back, copied, shared or taken over, in whatever order: what was published stays in the table, once.

Two installations, each with a ledger, a staging directory and a folder of tables that may be the other one's. After
each step every row that was published is there for any reader of Delta tables, and what was refused changed nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from pydantic import SecretStr

from timestore_pipeline.building.compact import compact_windows
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating.installation import change_identity
from timestore_pipeline.restoring.ledger import Consent, rebuild_ledger
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.maintenance import maintain
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline_tests.builders import NEW_YEAR, declared, hourly
from timestore_pipeline_tests.deaths import may_die_at
from timestore_pipeline_tests.installations import LedgerCopy, copy_of_ledger, put_back, state_of_folder
from timestore_pipeline_tests.sampling import examples

TEN_DAYS = 10 * 86_400 * 1_000_000
CRASHES = [
    CrashPoint.TABLE_CREATED,
    CrashPoint.SLICES_CLAIMED,
    CrashPoint.PARQUET_RENAMED,
    CrashPoint.MANIFEST_WRITTEN,
    CrashPoint.TABLE_CHECKED,
    CrashPoint.TABLE_COMMITTED,
    CrashPoint.MANIFEST_KEPT,
    CrashPoint.PUBLICATION_RECORDED,
]
which = st.sampled_from(["a", "b"])


class Installation:
    """One of the two; its files are in ``home``, its tables in ``tables``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.tables = home / "tables"
        home.mkdir(parents=True)
        (home / "datasets.yaml").write_text(declared(weather=""))
        self.open()

    def open(self) -> None:
        self.settings = Settings(
            home=self.home,
            ledger_url=SecretStr(f"sqlite:///{self.home / 'ledger.sqlite'}"),
            tables_url=str(self.tables),
            staging_min_free_disk_bytes=0,
        )
        self.store = Store.open(self.settings)
        self.backups: list[LedgerCopy] = []

    def uses(self, tables: Path) -> None:
        self.store.close()
        self.tables = tables
        backups = self.backups
        self.open()
        self.backups = backups


class TwoInstallations(RuleBasedStateMachine):
    """``published`` are the rows in each folder of tables, by their stations, which are given once."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.number = 0
        self.published: dict[Path, set[str]] = {}
        self.all = {name: Installation(self.root / name) for name in ("a", "b")}

    def teardown(self) -> None:
        for each in self.all.values():
            each.store.close()
        shutil.rmtree(self.root)

    @rule(who=which, day=st.integers(0, 1))
    def stage(self, who: str, day: int) -> None:
        self.number += 1
        rows = hourly(1, start=NEW_YEAR + timedelta(days=day), station=f"S{self.number}")
        self.act(who, lambda: stage(self.all[who].store, "weather", rows))

    @rule(who=which)
    def flush(self, who: str) -> None:
        store = self.all[who].store
        self.act(who, lambda: settle_dead_builds(store, lambda owner: True))
        self.act(who, lambda: flush_windows(store, BuildOrder("weather", owner="the test")))

    @rule(who=which, point=st.sampled_from(CRASHES))
    def die_in_a_flush(self, who: str, point: CrashPoint) -> None:
        store = self.all[who].store
        self.act(who, lambda: settle_dead_builds(store, lambda owner: True))
        with suppress(TimestoreError), may_die_at(point):
            flush_windows(store, BuildOrder("weather", owner="the test"))
        self.look()

    @rule(who=which)
    def compact(self, who: str) -> None:
        store = self.all[who].store
        self.act(who, lambda: compact_windows(store, BuildOrder("weather", owner="the test")))

    @rule(who=which)
    def maintain(self, who: str) -> None:
        store, later = self.all[who].store, now_micros() + TEN_DAYS
        # What it cannot do for one table it says in its report, and goes on.
        maintain(store, owner="the test", owner_is_gone=lambda owner: True, now=later)
        self.act(who, lambda: sweep_orphans(store, older_than_seconds=-60))

    @rule(who=which)
    def back_up(self, who: str) -> None:
        self.all[who].backups.append(copy_of_ledger(self.all[who].store))

    @rule(who=which, data=st.data())
    def put_back(self, who: str, data: st.DataObject) -> None:
        if self.all[who].backups:
            put_back(self.all[who].store, data.draw(st.sampled_from(self.all[who].backups)))

    @rule(who=which, take_over=st.booleans())
    def rebuild(self, who: str, take_over: bool) -> None:
        one = self.all[who]
        one.store.close()
        file = one.home / "ledger.sqlite"
        before, ledger = state_of_folder(one.tables), file.read_bytes()
        try:
            rebuild_ledger(one.settings, by="the test", consent=Consent(replace_existing=True, take_over=take_over))
        except TimestoreError:
            assert state_of_folder(one.tables) == before
            assert file.read_bytes() == ledger
        one.uses(one.tables)
        self.look()

    @rule(own_tables=st.booleans())
    def copy(self, own_tables: bool) -> None:
        """``b`` becomes a copy of ``a``, with the tables of ``a`` or a copy of them."""
        one, other = self.all["a"], self.all["b"]
        if one.tables.is_relative_to(other.home):
            return
        one.store.close()
        other.store.close()
        self.published = {
            tables: rows for tables, rows in self.published.items() if not tables.is_relative_to(other.home)
        }
        shutil.rmtree(other.home)
        shutil.copytree(one.home, other.home)
        if own_tables and one.tables.exists():
            shutil.rmtree(other.home / "tables", ignore_errors=True)
            shutil.copytree(one.tables, other.home / "tables")
        other.tables = other.home / "tables" if own_tables else one.tables
        one.uses(one.tables)
        other.open()
        self.look()

    @rule(who=which)
    def share(self, who: str) -> None:
        other = self.all["b" if who == "a" else "a"]
        self.all[who].uses(other.tables)

    @rule(who=which)
    def use_own_tables(self, who: str) -> None:
        self.all[who].uses(self.all[who].home / "tables")

    @rule(who=which)
    def give_a_new_identity(self, who: str) -> None:
        one = self.all[who]
        self.act(who, lambda: change_identity(one.store, in_place=True))
        one.uses(one.tables)

    def act(self, who: str, act: Callable[[], object]) -> None:
        """Do something that may be refused; then it has changed nothing."""
        tables = self.all[who].tables
        before = state_of_folder(tables)
        try:
            act()
        except TimestoreError:
            assert state_of_folder(tables) == before
        self.look()

    def look(self) -> None:
        for tables in {*self.published, *(each.tables for each in self.all.values())}:
            if not (tables / "weather" / "_delta_log").is_dir():
                continue
            rows = DeltaTable(tables / "weather").to_pyarrow_table(columns=["station"])["station"].to_pylist()
            assert len(rows) == len(set(rows)), "no row is there twice"
            assert self.published.get(tables, set()) <= set(rows), "what was published is there"
            self.published[tables] = set(rows)


TestTwoInstallations = pytest.mark.only_on("sqlite")(TwoInstallations.TestCase)
TestTwoInstallations.settings = settings(max_examples=examples(8), stateful_step_count=16, deadline=None)

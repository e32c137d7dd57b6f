"""Places that come and go, in any order of work: invariant 10, and with it exactly once (invariant 2).

Every acknowledged row is readable exactly once when all places are back; whatever was refused said so and changed
nothing, and no read in between gives a part of the rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.errors import LedgerError, LedgerLost, PlaceError
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.ledger.segments import published_before
from timestore_pipeline.ledger.tables import table_versions
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.placement import PlaceName
from timestore_pipeline.restoring.ledger import Consent, rebuild_ledger
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage.marks import mark_key
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import hourly, ingest, published, readable, rows_of, weather_csv
from timestore_pipeline_tests.conftest import DATASETS_YAML
from timestore_pipeline_tests.machines import MachineOnALedger
from timestore_pipeline_tests.sampling import examples

PLACES = ("staging", "tables", "archive")
OTHERS = "0123456789abcdef" * 2

places = st.sampled_from(PLACES)


class ComingAndGoing(MachineOnALedger):
    """An installation beside a model: the rows that were acknowledged, and where each place is or is hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.home = self.root / "home"
        self.home.mkdir()
        (self.home / "datasets.yaml").write_text(DATASETS_YAML)
        self.at = {name: self.root / "mnt" / name for name in PLACES}
        self.hidden: dict[str, Path] = {}
        self.acked: list[pa.Table] = []
        self.number = 0
        self.store = Store.open(self.settings())

    def settings(self, **fields: object) -> Settings:
        apart = {} if self.ledger == "postgresql" else {"ledger_url": f"sqlite:///{self.home / 'ledger.sqlite'}"}
        values = {
            "home": self.home,
            "staging_min_free_disk_bytes": 0,
            "staging_retention_seconds": 0,
            "build_max_attempts": 1,
            "staging_directory": str(self.at["staging"]),
            "tables_url": str(self.at["tables"]),
            "landing_archive_directory": str(self.at["archive"]),
            **apart,
            **fields,
        }
        return Settings(**values)

    def teardown(self) -> None:
        self.store.close()
        super().teardown()

    def next_batch(self) -> pa.Table:
        self.number += 1
        return hourly(3, station=f"batch {self.number}")

    def facts(self) -> object:
        """All that work could change: files everywhere but of the ledger, and what the ledger says."""
        files = {
            str(path): path.stat().st_size
            for path in self.root.rglob("*")
            if path.is_file() and "ledger.sqlite" not in path.name and "_tmp" not in path.parts
        }
        folders = {str(path) for path in self.at.values() if path.exists()}
        with self.store.ledger.read() as tx:
            return (
                files,
                folders,
                queue_states(tx),
                table_versions(tx),
                latest_builds(tx),
                [entry.id for entry in open_entries(tx)],
            )

    def work(self, needed: tuple[str, ...], act: Callable[[], object]) -> bool:
        """Do something that needs places; whether it was done. Without them it must be refused and change nothing."""
        if not self.hidden.keys() & set(needed):
            act()
            return True
        before = self.facts()
        # Staging and tables that are both of one other installation: it is the ledger then that is the wrong one.
        with pytest.raises((PlaceError, LedgerError)):
            act()
        assert self.facts() == before
        return False

    @rule()
    def stage(self) -> None:
        batch = self.next_batch()
        if self.work(("staging",), lambda: stage(self.store, "weather", batch)):
            self.acked.append(batch)

    @rule()
    def land(self) -> None:
        batch = self.next_batch()
        folder = self.store.settings.landing_path / "weather"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.number}.csv"
        path.write_text(
            weather_csv(
                *(f"{row['ts']:%Y-%m-%dT%H:%M:%SZ},{row['station']},{row['temp']}" for row in batch.to_pylist())
            )
        )
        if self.work(("staging", "archive"), lambda: ingest(self.store)):
            self.acked.append(batch)
            assert not path.exists()
        else:
            path.unlink()

    @rule()
    def flush(self) -> None:
        if self.work(("staging", "tables"), lambda: flush_windows(self.store, BuildOrder("weather", owner="the test"))):
            assert published(self.store) == rows_of(*self.acked)

    @rule()
    def sweep(self) -> None:
        self.work(("staging", "tables"), lambda: sweep_orphans(self.store, older_than_seconds=0))

    @rule()
    def unlink(self) -> None:
        # Both, because segments may be the only copy of what a table lacks; and neither where none is due.
        with self.store.ledger.read() as tx:
            due = bool(published_before(tx, now_micros()))
        self.work(("staging", "tables") if due else (), lambda: unlink_published_segments(self.store))

    @rule(name=places, instead=st.sampled_from(["gone", "empty", "another's"]))
    def unmount(self, name: str, instead: str) -> None:
        if name in self.hidden:
            return
        self.hidden[name] = self.at[name].rename(self.root / f"{name}-hidden")
        if instead != "gone":
            self.at[name].mkdir()
        if instead == "another's":
            (self.at[name] / mark_key(name)).write_text(f"{OTHERS}\n")

    @precondition(lambda self: self.hidden)
    @rule()
    def mount(self) -> None:
        for name, hidden in self.hidden.items():
            shutil.rmtree(self.at[name], ignore_errors=True)
            hidden.rename(self.at[name])
        self.hidden.clear()

    @precondition(lambda self: not self.hidden)
    @rule(name=places)
    def move(self, name: str) -> None:
        self.number += 1
        self.at[name] = self.at[name].rename(self.root / "mnt" / f"{name} {self.number}")
        self.reopen()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.settings())

    @rule(name=places)
    def name_another_place(self, name: str) -> None:
        """A slip of the pen: the folder is not there, and is not made."""
        wrong = self.root / "mnt" / f"{name} of nobody"
        right, self.at[name] = self.at[name], wrong
        with Store.open(self.settings()) as store, pytest.raises(PlaceError):
            store.places[PlaceName(name)].claim()
        self.at[name] = right
        assert not wrong.exists()

    @precondition(lambda self: "tables" not in self.hidden)
    @rule()
    def let_a_stranger_in(self) -> None:
        """Another installation names our tables as its own."""
        before = self.facts()
        home = self.root / "stranger"
        home.mkdir()
        (home / "datasets.yaml").write_text(DATASETS_YAML)
        stranger = Settings(
            home=home,
            staging_min_free_disk_bytes=0,
            tables_url=str(self.at["tables"]),
            ledger_url="sqlite://",  # type: ignore[arg-type]
            staging_directory=str(self.root / "stranger" / "staging"),
        )
        with pytest.raises((PlaceError, LedgerLost)), Store.open(stranger) as store:
            stage(store, "weather", self.next_batch())
        shutil.rmtree(home)
        assert self.facts() == before

    @precondition(lambda self: self.ledger == "sqlite")
    @rule()
    def rebuild_the_ledger(self) -> None:
        def rebuild() -> None:
            rebuild_ledger(self.store.settings, by="ann@host", consent=Consent(replace_existing=True))

        if self.work(("staging", "tables"), rebuild):
            self.reopen()

    @invariant()
    def every_row_is_there_once_or_it_is_said_that_a_place_is_not(self) -> None:
        if {"staging", "tables"} & self.hidden.keys():
            try:
                found = readable(self.store)
            except PlaceError:
                return
            assert found == rows_of(*self.acked)
        else:
            assert readable(self.store) == rows_of(*self.acked)


@pytest.mark.matrix
@pytest.mark.long
@pytest.mark.parametrize("ledger", ["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def test_whatever_comes_and_goes_every_row_is_there_once_in_the_end(ledger: str):
    machine = type("Machine", (ComingAndGoing,), {"ledger": ledger})
    count = examples({"sqlite": 12, "postgresql": 4}[ledger])
    run_state_machine_as_test(machine, settings=settings(max_examples=count, stateful_step_count=15))

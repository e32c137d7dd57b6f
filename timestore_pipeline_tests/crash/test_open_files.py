"""A process that may open no more files says so: nothing is blamed for it, nothing is lost, and then it goes on."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.errors import DeltaPanic, TableError, TimestoreError, TooManyOpenFiles
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.quarantine import all_entries
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table import delta
from timestore_pipeline_tests.builders import hourly, ingest, published, readable, rows_of, weather_csv
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.forks import process_pool

pytestmark = [pytest.mark.crash, pytest.mark.only_on("sqlite")]

STEPS: dict[str, Callable[[Store], object]] = {
    "stage": lambda store: stage(store, "weather", hourly(1, station=str(len(readable(store))))),
    "ingest": ingest,
    "read": readable,
    "query": lambda store: query_rows(store, "SELECT count(*) FROM weather").to_arrow(),
    "build": lambda store: flush_windows(store, BuildOrder("weather", owner="the test")),
}


@contextmanager
def few_files(spare: int) -> Iterator[None]:
    """Let the process open so many more files than it has open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def go_short_of_files(home: Path) -> list[str]:
    """Do everything with ever more files; return what was raised that is no error of ours, or says nothing of files."""
    wrong, told = [], 0
    with Store.open(Settings(home=home, staging_min_free_disk_bytes=0, build_max_attempts=1)) as store:
        stage(store, "weather", hourly(30))
        for spare in range(0, 24, 4):
            for name, step in STEPS.items():
                try:
                    with few_files(spare):
                        step(store)
                except TimestoreError as error:
                    told += isinstance(error, TooManyOpenFiles)
                    if "files can be opened" not in str(error) and "unable to open database file" not in str(error):
                        wrong.append(f"{name} with {spare}: {error}")
                except BaseException as error:
                    wrong.append(f"{name} with {spare}: {type(error).__mro__}: {error}")
            settle_dead_builds(store, owner_is_gone=lambda owner: True)
    return wrong if told else ["it never ran out of files"]


@pytest.mark.process
def test_a_process_without_files_says_so_and_blames_nothing(make_store: MakeStore, home: Path, drop):
    store = make_store()
    for number in range(3):
        drop(store, "weather", f"{number}.csv", weather_csv(f"2026-01-03T00:00:00Z,LANDED,{number}"))

    with process_pool(1) as pool:
        assert pool.submit(go_short_of_files, home).result() == []

    with store.ledger.read() as tx:
        assert all_entries(tx) == []
        assert builds_in_flight(tx) == []
    ingest(store)
    flush_windows(store, BuildOrder("weather", owner="the test"))
    assert set(rows_of(hourly(30))) <= set(readable(store))
    assert len([row for row in readable(store) if row[1] == "LANDED"]) == 3
    assert published(store) == readable(store)


class PanicException(BaseException):
    """What PyO3 raises where Rust panicked, as far as anybody can tell."""


PanicException.__module__ = "pyo3_runtime"


@pytest.mark.parametrize("method", ["version", "get_add_actions", "create_write_transaction"])
def test_a_panic_of_rust_is_an_error_of_the_table(store: Store, monkeypatch: pytest.MonkeyPatch, method: str):
    def panic(*_: object, **__: object) -> None:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    stage(store, "weather", hourly(3))
    flush_windows(store, BuildOrder("weather", owner="the test"))
    stage(store, "weather", hourly(4))

    def build_and_read() -> None:
        flush_windows(store, BuildOrder("weather", owner="the test"))
        readable(store)

    with monkeypatch.context() as patched:
        patched.setattr(delta.DeltaTable, method, delta.guarded(panic))
        with pytest.raises((DeltaPanic, TableError), match="delta-rs gave up"):
            build_and_read()

    settle_dead_builds(store, owner_is_gone=lambda owner: True)
    flush_windows(store, BuildOrder("weather", owner="the test"))
    assert published(store) == readable(store) == rows_of(hourly(3), hourly(4))

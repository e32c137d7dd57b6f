"""A damaged file of the table: a build that reads it names it, with its dataset and the way out, as a query does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.rebuild import rebuild_windows
from timestore_pipeline.errors import TableError
from timestore_pipeline.ledger.builds import build_in_flight
from timestore_pipeline.ledger.queue import queue_of
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline_tests.builders import build, hourly
from timestore_pipeline_tests.conftest import MakeStore

COLUMNS = "columns: {ts: timestamptz, station: varchar, temp: %s}"
PLAIN = f"datasets: {{weather: {{{COLUMNS % 'double'}, time: ts, window: month}}}}"
KEYED = f"datasets: {{weather: {{{COLUMNS % 'double'}, time: ts, window: month, key: {{columns: [station, ts]}}}}}}"
NARROW = f"datasets: {{weather: {{{COLUMNS % 'float'}, time: ts, window: month, evolve: true}}}}"

ORDER = BuildOrder("weather", owner="the test")


def no_footer(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-100] + b"\xff" * 100)


def no_values(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:4] + b"\xff" * 396 + content[400:])


def gone(file: Path) -> None:
    file.unlink()


def files(store: Store) -> list[Path]:
    return sorted(
        store.table("weather").root / file.path for file in live_files(open_table(store.table("weather"), "weather"))
    )


@pytest.mark.parametrize("damage", [no_footer, no_values, gone])
@pytest.mark.parametrize(
    ("declared", "act"),
    [(KEYED, flush_windows), (PLAIN, compact_fully), (NARROW, flush_windows), (NARROW, rebuild_windows)],
    ids=["flush with a key", "compaction", "flush that widens", "rebuild that widens"],
)
def test_the_file_is_named_and_nothing_is_changed(
    make_store: MakeStore, declared: str, act: Callable[[Store, BuildOrder], object], damage: Callable[[Path], None]
):
    store = make_store(declared)
    narrow = hourly(1).schema.set(2, pa.field("temp", pa.float32()))
    for station in ("JFK", "LGA"):
        batch = hourly(600, station=station)
        stage(store, "weather", batch.cast(narrow) if declared is NARROW else batch)
        build(store)
    stage(store, "weather", hourly(3, station="EWR"))
    file = files(store)[0]
    damage(file)
    how = "gone" if damage is gone else "is damaged"

    if declared is NARROW and act is rebuild_windows and damage is no_values:
        assert act(store, ORDER) is not None  # its values are not read, and leave the table
        return
    with pytest.raises(TableError, match=f"(?s)dataset 'weather'.*{file.name}.*loss show weather") as caught:
        act(store, ORDER)

    assert how in str(caught.value)
    with store.ledger.read() as tx:
        assert build_in_flight(tx, "weather") is None
        assert queue_of(tx, "weather").pending_rows == 3

"""Rows with ids of their own, so that each can be counted: batches a to e, in a dataset called ``readings``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from timestore_pipeline.ledger.batches import known_batches
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.segments import paths_on_disk
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import WINDOW_COLUMN
from timestore_pipeline.segments.identity import file_batch_id
from timestore_pipeline.staging.arrivals import file_fingerprint
from timestore_pipeline.storage.table_folder import LOG_FOLDER
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline_tests.builders import files_under, published, readable

DATASETS_YAML = """
datasets:
  readings:
    columns: {id: bigint, at: timestamptz}
    time: at
    window: day
  others:
    columns: {id: bigint, at: timestamptz}
    time: at
    window: hour
"""

IDS = {"a": range(10), "b": range(10, 20), "c": range(20, 25), "d": range(25, 30), "e": range(30, 40)}
"""The ids of each batch. c and d come as files."""

TIMELESS = (90, 91)
"""Ids of rows of batch e that no window can hold."""

BAD_FILE = "bad.csv"

START = datetime(2026, 1, 1, tzinfo=UTC)
"""The first moment of the first of the two windows."""


def far_in_the_future() -> int:
    """A moment after all graces and retentions."""
    return now_micros() + 10**14


def time_of(row_id: int) -> datetime:
    """Rows of every batch fall in two windows in turn."""
    return START + timedelta(days=row_id % 2, minutes=row_id)


def readings(ids: Iterable[int], timeless: Iterable[int] = ()) -> pa.Table:
    """A batch with these rows."""
    schema = pa.schema([("id", pa.int64()), ("at", pa.timestamp("us", "UTC"))])
    rows = [{"id": row_id, "at": time_of(row_id)} for row_id in ids] + [
        {"id": row_id, "at": None} for row_id in timeless
    ]
    return pa.Table.from_pylist(rows, schema)


def batch(name: str) -> pa.Table:
    """The rows of a batch."""
    return readings(IDS[name], TIMELESS if name == "e" else ())


def csv(name: str) -> str:
    """The rows of a batch as a CSV file."""
    return "id,at\n" + "".join(f"{row_id},{time_of(row_id).isoformat()}\n" for row_id in IDS[name])


def batch_ids(store: Store) -> dict[str, str]:
    """Batch id → its name here; of the files by their content."""
    folder = store.settings.home / "copies"
    return {
        **{name: name for name in ("a", "b", "e")},
        **{file_batch_id(file_fingerprint(folder / f"{name}.csv")): name for name in ("c", "d")},
    }


def in_ledger(store: Store) -> set[str]:
    """The names of the batches that are acknowledged."""
    names = batch_ids(store)
    with store.ledger.read() as tx:
        return {names[batch_id] for batch_id in known_batches(tx, "readings", names)}


def assert_acknowledged_rows_are_readable_once(store: Store) -> None:
    """Invariants 1 and 2: what the ledger has can be read exactly once, and nothing else can."""
    # The ledger may only move on between the two looks where another process is alive.
    counts = Counter(row[0] for row in readable(store, "readings"))
    assert counts == Counter(row_id for name in in_ledger(store) for row_id in IDS[name])


def assert_all_is_well(store: Store) -> None:
    """Every row of every batch is in the table once, nothing is left behind, and the bad rows and file are kept."""
    everything = Counter(row_id for ids in IDS.values() for row_id in ids)
    assert Counter(row[0] for row in readable(store, "readings")) == everything
    assert Counter(row[0] for row in published(store, "readings")) == everything
    assert files_under(store.settings.landing_path) == []
    with store.ledger.read() as tx:
        entries = {(entry.kind, entry.source): entry for entry in open_entries(tx, "readings")}
        segments = paths_on_disk(tx)
    assert {kind for kind, _ in entries} == {QuarantineKind.ROWS, QuarantineKind.BATCH}
    assert len(entries) == 2
    assert entries[QuarantineKind.ROWS, "stage()"].rows == len(TIMELESS)
    kept = {*segments, *(entry.path for entry in entries.values())}
    found = {entry.key for entry in store.staging.entries()}
    assert found - kept <= {key for key in found if key.rpartition("/")[2].startswith(("ledger.sqlite", ".timestore-"))}
    assert kept <= found
    assert_table_has_no_strays(store)


def assert_table_has_no_strays(store: Store) -> None:
    """Every Parquet file in the table's folder is live, and nothing in its log is half there."""
    place = store.table("readings")
    live = {file.path for file in live_files(open_table(place, "readings"))}
    found = {entry.key for entry in place.entries()}
    assert {key for key in found if key.startswith(f"{WINDOW_COLUMN}=")} == live
    assert [key for key in found if key.startswith(LOG_FOLDER) and "#" in key] == []
    scratch = [place.root.glob(f"{WINDOW_COLUMN}=*/.*"), store.settings.temp_path.glob("*")]
    assert [path for paths in scratch for path in paths] == []

"""How many windows one batch may have rows in: each becomes a file, whatever way the batch comes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from timestore_pipeline.errors import BatchRejected
from timestore_pipeline.ledger.limits import LimitName, Override, clear_override, set_override
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline.staging.stage import stage, stage_file
from timestore_pipeline.staging.writer import Writer
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import NEW_YEAR, ingest, parquet_bytes, readable, weather
from timestore_pipeline_tests.conftest import WEATHER_CSV, MakeStore


def daily(days: int) -> pa.Table:
    """A batch with one row in each of ``days`` windows."""
    return weather(*((NEW_YEAR + timedelta(days=day), "JFK", float(day)) for day in range(days)))


def limit_to(store: Store, windows: int) -> None:
    override = Override("weather", LimitName.MAX_WINDOWS, windows, "me", now_micros())
    store.ledger.transact(lambda tx: set_override(tx, override))


def test_a_thousand_windows_are_the_most_by_default(store: Store):
    with store.ledger.read() as tx:
        assert {policy.limits.max_windows for policy in store.policies(tx).values()} == {1_000}


def test_it_is_refused_alone_with_the_way_out_wherever_it_comes_from(make_store: MakeStore, drop, tmp_path: Path):
    store = make_store(staging_max_windows=5)
    (tmp_path / "wide.parquet").write_bytes(parquet_bytes(daily(6)))
    wide = drop(store, "weather", "wide.parquet", parquet_bytes(daily(6)))
    drop(store, "weather", "a.csv", WEATHER_CSV)

    with pytest.raises(BatchRejected, match=r"6 windows.*a batch may have 5.*limits set weather max_windows"):
        stage(store, "weather", daily(6))
    with pytest.raises(BatchRejected, match="6 windows"):
        stage_file(store, "weather", tmp_path / "wide.parquet")
    with Writer(store, "weather") as writer:
        futures = [writer.submit(daily(days)) for days in (5, 6, 1, 7)]
        assert [future.exception() is None for future in futures] == [True, False, True, False]
        with pytest.raises(BatchRejected, match="8 windows"):  # by what the group before has found
            writer.write(daily(8))
    report = ingest(store)["weather"]

    assert [receipt.source for receipt in report.staged] == ["a.csv"]
    assert [entry.source for entry in report.quarantined] == ["wide.parquet"]
    assert "max_windows" in report.quarantined[0].reason
    assert not wide.exists()
    assert len(readable(store)) == 5 + 1 + 3


def test_a_limit_that_is_set_for_a_backfill_holds_at_once_and_so_does_its_end(make_store: MakeStore, drop):
    store = make_store(staging_max_windows=5)
    drop(store, "weather", "wide.parquet", parquet_bytes(daily(9)))
    (entry,) = ingest(store)["weather"].quarantined
    with Writer(store, "weather") as writer:
        assert writer.write(daily(1)).rows == 1
        limit_to(store, 8)
        assert writer.write(daily(8)).rows == 8
        assert not retry_entry(store, entry.id, "me").done
        limit_to(store, 0)
        assert retry_entry(store, entry.id, "me").rows == 9
        assert writer.write(daily(10)).rows == 10
        store.ledger.transact(lambda tx: clear_override(tx, "weather", LimitName.MAX_WINDOWS))
        with pytest.raises(BatchRejected, match="7 windows"):
            writer.write(daily(7))


def test_rows_from_quarantine_count_too(make_store: MakeStore):
    store = make_store(staging_max_windows=2)
    limit_to(store, 0)
    early = weather(*((NEW_YEAR.replace(year=1990) + timedelta(days=day), "JFK", 1.0) for day in range(3)))
    stage(store, "weather", early)
    yaml = (store.settings.home / "datasets.yaml").read_text().replace("datasets:", "start: 1980-01-01\ndatasets:", 1)
    again = make_store(yaml, staging_max_windows=2)
    limit_to(again, 2)
    with again.ledger.read() as tx:
        (entry,) = open_entries(tx)

    retried = retry_entry(again, entry.id, "me")

    assert not retried.done
    assert "3 windows" in (retried.left or "")
    limit_to(again, 3)
    assert retry_entry(again, entry.id, "me").rows == 3


def test_what_did_not_fit_its_columns_is_not_refused_with_it(make_store: MakeStore, drop):
    store = make_store("datasets: {tides: {time: at, window: day}}", staging_max_windows=1)
    drop(store, "tides", "1.csv", "at,level\n2026-01-01,1\n2026-01-02,2\n")
    drop(store, "tides", "2.csv", "at,height\n2026-01-01,1\n")

    report = ingest(store)["tides"]

    assert [entry.source for entry in report.quarantined] == ["1.csv"]
    assert [receipt.source for receipt in report.staged] == ["2.csv"]

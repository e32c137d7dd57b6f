"""``timestore loss``: an operator sees what is missing, gives it up, and takes that back."""

from __future__ import annotations

import json
from collections.abc import Callable

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from timestore_pipeline.building.completion import follow_others
from timestore_pipeline.cli import ExitCode
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, hourly
from timestore_pipeline_tests.cli.conftest import Finished

Run = Callable[..., Finished]
Install = Callable[..., Store]


def test_what_lies_in_no_window_is_named(timestore: Run, installation: Install):
    store = installation()
    stage(store, "weather", hourly(1))
    build(store)
    keyed = hourly(1).append_column("window_key", pa.array(["nonsense"]))
    write_deltalake(str(store.table("weather").root), keyed, mode="append")
    assert follow_others(store, "weather")

    shown = timestore("loss", "show", "weather")

    assert shown.out == "weather: no row is missing\n"
    assert "weather: 1 files of another program lie in no window of the dataset: window_key=nonsense/" in shown.err


@pytest.mark.long
def test_a_loss_from_its_sight_to_its_withdrawal(timestore: Run, installation: Install):
    store = installation()
    stage(store, "weather", hourly(30))
    build(store)
    assert timestore("loss", "show", "weather").out == "weather: no row is missing\n"
    next(store.table("weather").root.glob("window_key=2026-01-01/*.parquet")).unlink()

    shown = timestore("loss", "show", "weather")
    assert shown.code is ExitCode.FAILED
    assert "weather 2026-01-01: 24 rows are missing: " in shown.out
    assert "not 23" in timestore("loss", "accept", "weather", "--rows", "23", "--reason", "fire", "--yes").err
    assert timestore("loss", "accept", "weather", "--rows", "24", "--reason", "fire").code is ExitCode.USAGE

    accepted = timestore("loss", "accept", "weather", "--rows", "24", "--reason", "fire", "--yes")
    assert accepted.out == "weather 2026-01-01: 24 rows given up as loss 1\n"
    assert timestore("loss", "show", "weather").code is ExitCode.DONE
    (loss,) = json.loads(timestore("loss", "show", "weather", "--json").out)["accepted"]
    assert (loss["window"], loss["rows"], loss["reason"]) == ("2026-01-01", 24, "fire")
    assert "24 rows given up" in timestore("lineage", "weather", "2026-01-01").out

    assert timestore("loss", "withdraw", "1").code is ExitCode.DONE
    assert timestore("loss", "withdraw", "1").code is ExitCode.FAILED
    assert timestore("loss", "show", "weather").code is ExitCode.FAILED

"""``timestore drain``, ``resume``, ``clear-staging`` and ``ledger`` as an operator and a script see them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline.cli import ExitCode
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, hourly, published, readable
from timestore_pipeline_tests.cli.conftest import Finished
from timestore_pipeline_tests.conftest import WEATHER_CSV

Run = Callable[..., Finished]
Install = Callable[..., Store]
MakeFile = Callable[[str, str], Path]


def test_drain_says_what_it_published_and_that_intake_stays_paused(timestore: Run, installation: Install):
    store = installation()
    stage(store, "weather", hourly(3))

    finished = timestore("drain", "--all")

    assert finished.code is ExitCode.DONE
    assert "weather: 3 rows published, nothing is left\n" in finished.out
    assert "intake stays paused until 'timestore resume --all'" in finished.err
    assert len(published(store)) == 3


@pytest.mark.long
def test_while_it_is_paused_everything_says_so(timestore: Run, installation: Install, make_file: MakeFile, drop):
    store = installation()
    drop(store, "weather", "a.csv", WEATHER_CSV)
    timestore("drain", "weather", "--reason", "we move")

    refused = timestore("stage", "weather", make_file("b.csv", WEATHER_CSV), make_file("c.csv", WEATHER_CSV))
    assert refused.code is ExitCode.TRY_LATER
    assert "we move" in refused.err
    assert "1 more file was not tried" in refused.err
    waiting = timestore("ingest")
    assert waiting.code is ExitCode.TRY_LATER
    assert "weather: 1 file waits, intake is paused by" in waiting.err
    status = timestore("status", "weather")
    assert "1 (paused)" in status.out
    assert "we move; 'timestore resume weather' ends it" in status.err
    assert json.loads(timestore("status", "weather", "--json").out)["datasets"][0]["paused"]["reason"] == "we move"
    assert 'timestore_staging_intake_paused{dataset="weather"} 1.0' in timestore("metrics").out

    resumed = timestore("resume", "weather")
    assert (resumed.code, resumed.out) == (ExitCode.DONE, "weather: intake goes on\n")
    assert timestore("ingest").code is ExitCode.DONE
    assert timestore("resume", "weather").out == "weather: nothing was paused\n"


def test_a_dataset_cannot_resume_alone_while_all_are_paused(timestore: Run, installation: Install):
    installation()
    timestore("drain", "--all")

    finished = timestore("resume", "weather")

    assert finished.code is ExitCode.FAILED
    assert "'timestore resume --all' ends that" in finished.err
    assert json.loads(timestore("resume", "--all", "--json").out) == {"resumed": ["*"], "still_paused": []}


def test_drain_as_json_says_what_is_left_and_fails(timestore: Run, installation: Install, make_file: MakeFile, drop):
    store = installation()
    drop(store, "weather", "a.csv", "no,weather\n")
    timestore("ingest")

    finished = timestore("drain", "weather", "--json")

    assert finished.code is ExitCode.FAILED
    (left,) = json.loads(finished.out)["datasets"]
    assert left["quarantine"] == {"batches": 1, "rows": 0, "segments": 0}
    assert not left["empty"]


def test_drain_and_resume_want_datasets_or_all(timestore: Run, installation: Install):
    installation()

    for command in ("drain", "resume"):
        assert timestore(command).code is ExitCode.USAGE
        assert timestore(command, "weather", "--all").code is ExitCode.USAGE
        assert timestore(command, "whether").code is ExitCode.USAGE


def test_clear_staging_refuses_and_says_what_would_be_lost(timestore: Run, installation: Install):
    store = installation()
    stage(store, "weather", hourly(3))

    refused = timestore("clear-staging", "--all")
    assert refused.code is ExitCode.FAILED
    assert "'--lose-rows 3' to lose them for good" in refused.err
    assert timestore("clear-staging", "--all", "--lose-rows", 3).code is ExitCode.USAGE
    assert len(readable(store)) == 3

    cleared = timestore("clear-staging", "--all", "--lose-rows", 3, "--yes", "--json")
    assert cleared.code is ExitCode.DONE
    assert json.loads(cleared.out)["lost_rows"] == 3
    assert readable(store) == []


@pytest.mark.long
def test_a_lost_ledger_is_said_rebuilt_and_used(timestore: Run, installation: Install, home: Path):
    store = installation()
    stage(store, "weather", hourly(3))
    build(store)
    stage(store, "weather", hourly(2, station="LGA"))
    store.close()
    for path in (home / "data/staging").glob("ledger.sqlite*"):
        path.unlink()

    lost = timestore("status")
    assert lost.code is ExitCode.MISCONFIGURED
    assert "timestore ledger rebuild" in lost.err

    rebuilt = timestore("ledger", "rebuild")
    assert rebuilt.code is ExitCode.DONE
    assert rebuilt.out == (
        "weather: 2 batches, 2 rows staged in 2 segments, 3 rows published in 1 window, 0 entries in quarantine\n"
    )
    assert "5" in timestore("sql", "select count(*) from weather").out
    again = timestore("ledger", "rebuild")
    assert again.code is ExitCode.MISCONFIGURED
    assert "--replace" in again.err
    assert timestore("ledger", "rebuild", "--replace").code is ExitCode.USAGE
    replaced = timestore("ledger", "rebuild", "--replace", "--yes", "--json")
    assert replaced.code is ExitCode.DONE
    assert Path(json.loads(replaced.out)["moved_aside"]).is_file()


def test_a_backup_is_a_ledger_and_never_overwrites(timestore: Run, installation: Install, tmp_path: Path):
    store = installation()
    stage(store, "weather", hourly(3))
    copy = tmp_path / "copy.sqlite"

    assert timestore("ledger", "backup", copy).code is ExitCode.DONE

    with sqlite3.connect(copy) as connection:
        assert connection.execute("SELECT count(*) FROM batches").fetchone() == (1,)
    refused = timestore("ledger", "backup", copy)
    assert refused.code is ExitCode.MISCONFIGURED
    assert "is there already" in refused.err

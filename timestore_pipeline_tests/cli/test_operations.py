"""``timestore drain`` and ``resume`` as an operator and a script see them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from timestore_pipeline.cli import ExitCode
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, published
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

"""``timestore doctor``: it says what is wrong and what mends it, whatever state the installation is in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline.cli import ExitCode
from timestore_pipeline.metrics.projection import exposition
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, hourly, lose_ledger, published, segment_file
from timestore_pipeline_tests.cli.conftest import Finished
from timestore_pipeline_tests.fault_proxy import denied
from timestore_pipeline_tests.installations import build_behind_the_ledger
from timestore_pipeline_tests.object_store import Bucket

Run = Callable[..., Finished]
Install = Callable[..., Store]


def findings(timestore: Run) -> tuple[ExitCode, dict[str, dict[str, str]]]:
    finished = timestore("doctor", "--json")
    return finished.code, {each["part"]: each for each in json.loads(finished.out)}


def test_a_healthy_installation_has_no_errors(timestore: Run, installation: Install):
    store = installation()
    stage(store, "weather", hourly(3))
    build(store)
    stage(store, "weather", hourly(3, station="LGA"))

    code, found = findings(timestore)

    assert code is ExitCode.DONE
    assert [part for part, each in found.items() if each["level"] == "error"] == []
    assert found["table weather"]["message"] == "version 1 with 1 files"
    assert found["segments"]["message"] == "1 with staged rows are there"
    assert "weather" in timestore("doctor").out


@pytest.mark.long
def test_a_table_that_is_not_written_to_is_said_everywhere_until_it_is_mended(timestore: Run, installation: Install):
    store = installation()
    build_behind_the_ledger(store)

    assert timestore("flush", "weather").code is ExitCode.MISCONFIGURED

    code, found = findings(timestore)
    assert code is ExitCode.FAILED
    assert found["table weather"]["level"] == "error"
    assert "timestore ledger rebuild --replace" in found["table weather"]["fix"]
    assert "does not know 1 of its commits" in timestore("status").err
    (status, *_) = json.loads(timestore("status", "weather", "--json").out)["datasets"]
    assert status["refused_table"]["reason"] == "ahead"
    assert 'timestore_table_refused{dataset="weather"} 1.0' in exposition(store).decode()

    assert timestore("ledger", "rebuild", "--replace", "--yes").code is ExitCode.DONE

    assert timestore("flush", "weather").code is ExitCode.DONE
    assert findings(timestore)[1]["table weather"]["level"] == "ok"
    with Store.open(store.settings) as again:
        assert 'timestore_table_refused{dataset="weather"} 0.0' in exposition(again).decode()
        assert len(published(again)) == 9


def test_a_lost_ledger_is_named_with_what_mends_it_and_none_is_made(timestore: Run, installation: Install, home: Path):
    store = installation()
    stage(store, "weather", hourly(3))
    lose_ledger(store)

    code, found = findings(timestore)

    assert code is ExitCode.MISCONFIGURED
    assert found["ledger"]["fix"] == "mount the disk that it is on; if it was lost: timestore ledger rebuild"
    assert not (home / "data/staging/ledger.sqlite").exists()


def test_a_damaged_ledger(timestore: Run, installation: Install, home: Path):
    store = installation()
    lose_ledger(store)
    (home / "data/staging/ledger.sqlite").write_bytes(b"no database" * 1_000)

    code, found = findings(timestore)

    assert code is ExitCode.MISCONFIGURED
    assert "timestore ledger rebuild --replace" in found["ledger"]["fix"]


@pytest.mark.parametrize("variable", ["TIMESTORE_STAGING_MAX_PENDING", "TIMESTORE_DATASETS_FILE"])
def test_settings_and_datasets_that_cannot_be_read(
    timestore: Run, installation: Install, monkeypatch: pytest.MonkeyPatch, variable: str
):
    installation()
    monkeypatch.setenv(variable, "nonsense")

    code, found = findings(timestore)

    assert code is ExitCode.MISCONFIGURED
    assert "error" in {found[part]["level"] for part in ("settings", "datasets") if part in found}


def test_files_that_are_gone(timestore: Run, installation: Install):
    store = installation()
    stage(store, "weather", hourly(3))
    build(store)
    segment_id = stage(store, "weather", hourly(3, station="LGA")).segment_id
    segment_file(store, segment_id).unlink()
    next(store.table("weather").root.glob("window_key=*/*.parquet")).unlink()

    code, found = findings(timestore)

    assert code is ExitCode.FAILED
    assert "1 segments with staged rows are gone" in found["segments weather"]["message"]
    assert "1 of 1 files are gone" in found["table weather"]["message"]


def test_warnings_fail_nothing(timestore: Run, installation: Install, monkeypatch: pytest.MonkeyPatch):
    installation()
    timestore("drain", "weather", "--reason", "the test")
    monkeypatch.setenv("TIMESTORE_PUSHGATEWAY_URL", "http://127.0.0.1:9")

    code, found = findings(timestore)

    assert code is ExitCode.DONE
    assert found["intake weather"]["fix"] == "timestore resume weather"
    assert found["gateway"]["level"] == "warning"


@pytest.mark.long
def test_a_dagster_home_without_a_daemon(
    timestore: Run, installation: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    installation()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))

    code, found = findings(timestore)

    assert code is ExitCode.FAILED
    assert found["daemon SENSOR"]["message"] == "it has never run"
    assert found["sensor flush_sensor"]["level"] == "warning"


@pytest.mark.server
def test_a_bucket_in_which_files_land_is_asked_whether_they_may_be_listed_and_deleted(
    installation: Install, timestore: Run, s3_bucket: Bucket
):
    url = f"{s3_bucket.url}/landing"
    installation(landing_directory=url, landing_after_ingest="delete", object_store_retry_seconds=0.2)
    assert f"{url} answers" in timestore("doctor").out

    with s3_bucket.proxy.spoilt(denied("DELETE_MANY", times=None)):
        assert "AccessDenied" in timestore("doctor").out
    with s3_bucket.proxy.spoilt(denied("LIST", times=None)):
        assert "AccessDenied" in timestore("doctor").out
        status, taken = timestore("status"), timestore("ingest")

    assert "landing cannot be looked at" in status.err
    assert status.out.splitlines()[-1].split()[-1] == "?"
    assert taken.code is ExitCode.TRY_LATER
    assert "AccessDenied" in taken.err
    assert s3_bucket.environment["AWS_SECRET_ACCESS_KEY"] not in status.err + taken.err

"""``stage``, ``ingest`` and ``flush``: what they print, what they do, and how they end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline.cli import ExitCode
from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.ledger.builds import NewBuild
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.ledger.landing import begin_readings
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.staging.suspects import reading_id
from timestore_pipeline.store import Store
from timestore_pipeline.table.commit import ensure_table
from timestore_pipeline_tests.builders import claim_slices
from timestore_pipeline_tests.cli.conftest import Finished
from timestore_pipeline_tests.conftest import WEATHER_CSV

Run = Callable[..., Finished]
Install = Callable[..., Store]
MakeFile = Callable[[str, str], Path]
Drop = Callable[[Store, str, str, str | bytes], Path]

OTHER_CSV = "ts,station,temp\n2026-01-03T00:30:00Z,EWR,4.5\n"


def test_ingest_takes_datasets_last_whose_files_may_have_ended_a_process(
    installation: Install, timestore: Run, drop: Drop
):
    store = installation()
    drop(store, "weather", "a.csv", WEATHER_CSV)
    drop(store, "events", "a.csv", "at,kind\n1767225600000,start\n")
    (suspect,) = scan_landing(store).of("weather")
    with store.ledger.write() as tx:
        begin_readings(tx, "weather", [reading_id(suspect)], 0)

    done = timestore("ingest")

    assert done.code is ExitCode.DONE
    assert done.out.index("events") < done.out.index("weather")


def count_of(timestore: Run, dataset: str = "weather") -> int:
    return int(timestore("sql", f"select count(*) from {dataset}", "--format", "csv").out.splitlines()[1])


def claim(store: Store, owner: str, lease_seconds: float = 600) -> None:
    """Begin a build that never ends, as far as its claim."""
    with store.ledger.read() as tx:
        columns = dataset_columns(tx, store.datasets["weather"])
    assert columns is not None
    ensure_table(store.table("weather"), "weather", columns, store.ledger.identity)
    with store.ledger.write() as tx:
        assert claim_slices(
            tx,
            NewBuild("weather", owner=owner, trigger="manual", lease_micros=int(lease_seconds * 1e6), now=now_micros()),
        )


def test_a_file_is_staged_with_a_receipt_and_can_be_queried(timestore: Run, installation: Install, make_file: MakeFile):
    installation()
    path = make_file("Wetter ö '1'.csv", WEATHER_CSV)

    finished = timestore("stage", "weather", path)

    assert finished.code is ExitCode.DONE
    assert finished.out.startswith("Wetter ö '1'.csv: staged, 3 rows in 2 windows, batch ")
    assert finished.err == ""
    assert count_of(timestore) == 3
    assert path.exists()


def test_the_same_content_is_staged_once(timestore: Run, installation: Install, make_file: MakeFile):
    installation()
    files = make_file("a.csv", WEATHER_CSV), make_file("b.csv", WEATHER_CSV)

    finished = timestore("stage", "weather", *files)

    assert finished.code is ExitCode.DONE
    first, second = finished.out.splitlines()
    assert first.startswith("a.csv: staged, 3 rows")
    assert second.startswith("b.csv: already staged, 3 rows")
    assert count_of(timestore) == 3


def test_one_bad_file_does_not_stop_the_others(
    timestore: Run, installation: Install, make_file: MakeFile, tmp_path: Path
):
    installation()
    good, bad, other = (
        make_file("a.csv", WEATHER_CSV),
        make_file("b.csv", "what,ever\n1,2\n"),
        make_file("c.csv", OTHER_CSV),
    )

    finished = timestore("stage", "weather", good, bad, tmp_path / "missing.csv", other)

    assert finished.code is ExitCode.FAILED
    assert [line.split(":")[0] for line in finished.out.splitlines()] == ["a.csv", "c.csv"]
    assert len(finished.err.splitlines()) == 2
    assert "b.csv cannot be staged" in finished.err
    assert "missing.csv cannot be staged: it cannot be read: No such file or directory" in finished.err
    assert count_of(timestore) == 4


def test_a_batch_id_names_one_content(timestore: Run, installation: Install, make_file: MakeFile):
    installation()
    path = make_file("a.csv", WEATHER_CSV)

    assert timestore("stage", "weather", path, "--batch-id", "monday").out.endswith("batch monday\n")
    assert "already staged" in timestore("stage", "weather", path, "--batch-id", "monday").out
    refused = timestore("stage", "weather", make_file("b.csv", OTHER_CSV), "--batch-id", "monday")

    assert refused.code is ExitCode.FAILED
    assert "'monday' is already in the ledger with other content" in refused.err


def test_a_full_queue_means_later(timestore: Run, installation: Install, make_file: MakeFile):
    installation(staging_max_pending=1)
    files = [make_file(f"{n}.csv", f"ts,station,temp\n2026-01-01T00:00:00Z,JFK,{n}\n") for n in range(4)]

    finished = timestore("stage", "weather", *files)

    assert finished.code is ExitCode.TRY_LATER
    assert len(finished.out.splitlines()) == 1
    assert "1 batches are staged and unpublished, the limit is 1" in finished.err
    assert "2 more files were not tried" in finished.err

    assert timestore("flush", "weather").code is ExitCode.DONE
    assert timestore("stage", "weather", files[1]).code is ExitCode.DONE


def test_a_full_disk_means_later(timestore: Run, installation: Install, make_file: MakeFile):
    installation(staging_min_free_disk_bytes=1 << 60)

    finished = timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))

    assert finished.code is ExitCode.TRY_LATER
    assert "TIMESTORE_STAGING_MIN_FREE_DISK_BYTES" in finished.err


def test_landing_files_are_taken_once(timestore: Run, installation: Install, drop: Drop):
    store = installation()
    dropped = [drop(store, "weather", "a.csv", WEATHER_CSV), drop(store, "weather", "b.csv", OTHER_CSV)]

    finished = timestore("ingest")

    assert finished.code is ExitCode.DONE
    assert finished.out.splitlines()[0].startswith("weather: 2 batches staged with 4 rows in 3 windows (")
    assert finished.out.splitlines()[1] == "events: no landing files"
    assert not any(path.exists() for path in dropped)
    assert timestore("ingest", "weather") == Finished(ExitCode.DONE, "weather: no landing files\n", "")


def test_a_bad_landing_file_is_quarantined_and_the_others_go_on(timestore: Run, installation: Install, drop: Drop):
    store = installation()
    drop(store, "weather", "a.csv", WEATHER_CSV)
    drop(store, "weather", "bad.csv", "what,ever\n1,2\n")
    drop(store, "events", "e.jsonl", '{"at": 1767225600000, "kind": "x"}\n')

    finished = timestore("ingest")

    assert finished.code is ExitCode.FAILED
    assert "weather: 1 batch staged with 3 rows" in finished.out
    assert "events: 1 batch staged with 1 row" in finished.out
    assert "bad.csv is in quarantine (batch): " in finished.err
    with store.ledger.read() as tx:
        assert [entry.source for entry in open_entries(tx)] == ["bad.csv"]


def test_landing_files_wait_for_room(timestore: Run, installation: Install, drop: Drop):
    store = installation(staging_max_pending=1)
    drop(store, "weather", "a.csv", WEATHER_CSV)
    waiting = drop(store, "weather", "b.csv", OTHER_CSV)

    finished = timestore("ingest")

    assert finished.code is ExitCode.TRY_LATER
    assert "1 landing file waits" in finished.err
    assert waiting.exists()


def test_problems_of_the_landing_folder_are_told(timestore: Run, installation: Install, drop: Drop):
    store = installation()
    drop(store, "undeclared", "a.csv", WEATHER_CSV)

    assert "undeclared" in timestore("ingest").err
    assert "undeclared" in timestore("status").err
    assert "undeclared" not in timestore("ingest", "weather").err


def test_what_is_staged_is_published(timestore: Run, installation: Install, make_file: MakeFile):
    store = installation()
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))

    finished = timestore("flush", "--all")

    assert finished.code is ExitCode.DONE
    assert finished.out.splitlines()[0].startswith("weather: 3 rows of 1 batch published in 2 windows (2 files, ")
    assert finished.out.splitlines()[1] == "events: nothing is staged"
    assert count_of(timestore) == 3
    with store.ledger.read() as tx:
        build = latest_builds(tx)["weather"]
    assert build.trigger == "manual"
    assert build.owner == f"cli:{socket.gethostname()}:{os.getpid()}"


@pytest.mark.long
def test_only_the_named_windows_are_published(timestore: Run, installation: Install, make_file: MakeFile):
    installation()
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))

    finished = timestore("flush", "weather", "--first", "2026-01-02", "--last", "2026-01-05")

    assert "1 row of 1 batch published in 1 window" in finished.out
    assert "2 rows of 1 batch published in 1 window" in timestore("flush", "weather").out
    assert count_of(timestore) == 3


@pytest.mark.parametrize("command", [("flush",), ("build",), ("build", "--rebuild")], ids=" ".join)
def test_a_range_that_ends_before_it_begins_is_refused(timestore: Run, installation: Install, command: tuple[str, ...]):
    installation()

    finished = timestore(*command, "weather", "--first", "2026-02-01", "--last", "2026-01-01")

    assert finished.code is ExitCode.USAGE
    assert "the last window 2026-01-01 is before the first window 2026-02-01" in " ".join(finished.err.split())


def test_what_a_build_beside_this_one_has_claimed_means_later(
    timestore: Run, installation: Install, make_file: MakeFile
):
    store = installation(build_concurrent_builds=2)
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))
    claim(store, "some-run")

    finished = timestore("flush", "weather")

    assert finished.code is ExitCode.TRY_LATER
    assert "of some-run is in flight" in finished.err
    assert "nothing is staged" not in finished.out
    assert timestore("flush", "weather", "--first", "2026-03-01").out == "weather: nothing is staged\n"


def test_a_build_in_flight_means_later(timestore: Run, installation: Install, make_file: MakeFile):
    store = installation()
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))
    claim(store, "some-run")

    finished = timestore("flush", "--all")

    assert finished.code is ExitCode.TRY_LATER
    assert "of some-run is in flight" in finished.err
    assert finished.out == "events: nothing is staged\n"
    assert count_of(timestore) == 3


@pytest.mark.parametrize("owner", ["a-run", f"cli:{socket.gethostname()}:{2**22 + 1}"], ids=["lease", "process"])
def test_a_build_that_died_is_settled_first(owner: str, timestore: Run, installation: Install, make_file: MakeFile):
    store = installation()
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))
    # A command of this host is known to have died; of a run only its lease tells.
    claim(store, owner, lease_seconds=0 if owner == "a-run" else 600)

    finished = timestore("flush", "weather")

    assert finished.code is ExitCode.DONE
    assert f"build 1 of {owner} had died; its rows are staged again" in finished.err
    assert finished.out.startswith("weather: 3 rows of 1 batch published in 2 windows")


def test_a_command_that_still_runs_is_not_taken_for_dead(timestore: Run, installation: Install, make_file: MakeFile):
    store = installation()
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))
    claim(store, f"cli:{socket.gethostname()}:{os.getpid()}")

    assert timestore("flush", "weather").code is ExitCode.TRY_LATER


def test_published_segments_are_unlinked_after_retention(timestore: Run, installation: Install, make_file: MakeFile):
    store = installation(staging_retention_seconds=0)
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))
    assert list(store.settings.staging_path.rglob("*.duckdb"))

    timestore("flush", "weather")

    assert not list(store.settings.staging_path.rglob("*.duckdb"))
    assert count_of(timestore) == 3


@pytest.mark.long
def test_a_damaged_dataset_does_not_stop_the_others(timestore: Run, installation: Install, make_file: MakeFile):
    store = installation()
    timestore("stage", "weather", make_file("a.csv", WEATHER_CSV))
    timestore("stage", "events", make_file("e.jsonl", '{"at": 1767225600000}\n'))
    (segment,) = (path for path in store.settings.staging_path.rglob("*.duckdb") if "weather" in str(path))
    segment.write_bytes(b"no segment")

    finished = timestore("flush", "--all")

    assert finished.code is ExitCode.FAILED
    assert "dataset 'weather'" in finished.err
    assert finished.out.startswith("events: 1 row of 1 batch published")

"""Scanning: which landing files are ready, which of them a run takes, and what is said about the rest."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timestore_pipeline.errors import UnknownDataset
from timestore_pipeline.landing.files import files_for_one_run, scan_landing, share_out, waiting_for_room
from timestore_pipeline.landing.found import LandingFile
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, unprivileged
from timestore_pipeline_tests.conftest import DATASETS_YAML, WEATHER_CSV, MakeStore

Drop = Callable[..., Path]


def names(store: Store) -> list[str]:
    return [file.path.name for file in scan_landing(store).files]


def age(path: Path, seconds: float) -> Path:
    """Let a file look as if it had landed that long ago."""
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))
    return path


def test_files_are_found_oldest_first(store: Store, drop: Drop):
    age(drop(store, "weather", "b.csv", WEATHER_CSV), 30)
    age(drop(store, "events", "c.csv", "x"), 20)
    age(drop(store, "weather", "a.csv", WEATHER_CSV), 10)

    scan = scan_landing(store)

    assert [(file.dataset, file.path.name) for file in scan.files] == [
        ("weather", "b.csv"),
        ("events", "c.csv"),
        ("weather", "a.csv"),
    ]
    assert scan.files[0].bytes == len(WEATHER_CSV)
    assert [file.path.name for file in scan.of("weather")] == ["b.csv", "a.csv"]
    assert scan.problems == ()


@pytest.mark.parametrize("name", [".hidden.csv", "_being_written.csv", "a.csv.tmp", "a.csv.partial", ".a.csv.swp"])
def test_a_file_that_its_producer_still_writes_is_not_yet_there(store: Store, drop: Drop, name: str):
    drop(store, "weather", name, WEATHER_CSV)
    drop(store, "weather", "ready.csv", WEATHER_CSV)

    assert names(store) == ["ready.csv"]
    assert scan_landing(store).problems == ()


def test_only_names_that_match_the_pattern_are_of_the_dataset(make_store: MakeStore, drop: Drop):
    store = make_store("datasets: {weather: {time: ts, window: day, landing: {pattern: 'obs_*.csv'}}}")
    drop(store, "weather", "obs_1.csv", WEATHER_CSV)
    drop(store, "weather", "notes.csv", WEATHER_CSV)

    assert names(store) == ["obs_1.csv"]


def test_folders_and_pipes_in_a_landing_folder_are_passed_over(store: Store, drop: Drop):
    landed = drop(store, "weather", "a.csv", WEATHER_CSV)
    (landed.parent / "folder.csv").mkdir()
    os.mkfifo(landed.parent / "pipe.csv")
    os.mknod(landed.parent / "socket.csv", stat.S_IFSOCK)

    assert names(store) == ["a.csv"]
    assert [problem.partition(" is a pipe, ")[0] for problem in scan_landing(store).problems] == [
        f"weather: {landed.parent / name}" for name in ("pipe.csv", "socket.csv")
    ]


def test_a_landing_folder_that_does_not_exist_is_named_with_its_variable(store: Store):
    scan = scan_landing(store)

    assert scan.files == ()
    assert len(scan.problems) == 1
    assert str(store.settings.landing_path) in scan.problems[0]
    assert "TIMESTORE_LANDING_DIRECTORY" in scan.problems[0]


def test_a_dataset_without_a_folder_just_has_no_files(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)

    scan = scan_landing(store)

    assert scan.of("events") == ()
    assert scan.problems == ()


def test_a_file_where_a_folder_should_be_is_a_problem_of_that_dataset_only(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)
    (store.settings.landing_path / "events").write_text("not a folder")

    scan = scan_landing(store)

    assert names(store) == ["a.csv"]
    assert len(scan.problems) == 1
    assert "events" in scan.problems[0]


def test_what_no_dataset_declares_is_reported_and_left_alone(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)
    undeclared = drop(store, "wheather", "b.csv", WEATHER_CSV)
    outside = store.settings.landing_path / "stray.csv"
    outside.write_text(WEATHER_CSV)
    (store.settings.landing_path / "_not_yet").mkdir()

    scan = scan_landing(store)

    assert [file.path.name for file in scan.files] == ["a.csv"]
    folder, file = sorted(scan.problems, key=lambda problem: "stray" in problem)
    assert "'wheather'" in folder
    assert "declare" in folder
    assert str(store.settings.datasets_path) in folder
    assert "stray.csv" in file
    assert undeclared.exists()
    assert outside.exists()


def test_asking_for_a_dataset_that_is_not_declared_names_those_that_are(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)

    with pytest.raises(UnknownDataset, match=r"'wheather' is not declared.*events, weather"):
        scan_landing(store, ["wheather"])


def test_a_symbolic_link_is_never_followed(store: Store, drop: Drop, tmp_path: Path):
    secret = tmp_path / "secret.csv"
    secret.write_text(WEATHER_CSV)
    landed = drop(store, "weather", "a.csv", WEATHER_CSV)
    (landed.parent / "link.csv").symlink_to(secret)
    (landed.parent / "dangling.csv").symlink_to(tmp_path / "nowhere")

    scan = scan_landing(store)

    assert [file.path.name for file in scan.files] == ["a.csv"]
    assert len(scan.problems) == 2
    assert all("symbolic link" in problem and "copy the file" in problem for problem in scan.problems)


def test_a_name_that_is_not_text_is_a_problem_and_the_others_go_on(store: Store, drop: Drop):
    landed = drop(store, "weather", "a.csv", WEATHER_CSV)
    strange = os.fsencode(landed.parent) + b"/caf\xe9.csv"
    with open(strange, "wb") as stream:
        stream.write(WEATHER_CSV.encode())

    scan = scan_landing(store)

    assert [file.path.name for file in scan.files] == ["a.csv"]
    assert len(scan.problems) == 1
    assert "not UTF-8" in scan.problems[0]
    assert "rename" in scan.problems[0]
    scan.problems[0].encode()  # can be printed and stored


def permissions(store: Store) -> dict[str, tuple[list[str], tuple[str, ...]]]:
    """Scans with a file, then a dataset's folder in two ways, then the landing folder closed to the process."""
    landing = store.settings.landing_path
    (landing / "weather").mkdir()
    (landing / "events").mkdir()
    for path in (landing / "weather" / "open.csv", landing / "weather" / "closed.csv", landing / "events" / "e.csv"):
        path.write_text(WEATHER_CSV)
    found = {}
    for what, path, mode in (
        ("file", landing / "weather" / "closed.csv", 0o000),
        ("folder", landing / "events", 0o000),
        ("entries", landing / "events", 0o444),
        ("landing", landing, 0o000),
        ("parent", landing.parent, 0o000),
    ):
        before = path.stat().st_mode
        path.chmod(mode)
        scan = scan_landing(store)
        path.chmod(before)
        found[what] = ([file.path.name for file in scan.files], scan.problems)
    return found


@pytest.mark.process
def test_what_may_not_be_read_is_named_and_holds_nothing_else_up():
    found = unprivileged(permissions, DATASETS_YAML)

    files, problems = found["file"]
    assert sorted(files) == ["e.csv", "open.csv"]
    assert len(problems) == 1
    assert "closed.csv" in problems[0]
    assert "permission denied" in problems[0].lower()
    for what in ("folder", "entries"):
        files, problems = found[what]
        assert files == ["closed.csv", "open.csv"] or sorted(files) == ["closed.csv", "open.csv"]
        assert len(problems) == 1
        assert "events" in problems[0]
        assert "permission denied" in problems[0].lower()
    for what in ("landing", "parent"):
        files, problems = found[what]
        assert files == []
        assert problems, "a landing folder that cannot be listed is reported"
        assert all("permission denied" in problem.lower() for problem in problems)


def test_one_run_takes_no_more_files_than_it_may(make_store: MakeStore, drop: Drop):
    store = make_store(landing_max_files_per_run=2)
    for number in range(4):
        age(drop(store, "weather", f"{number}.csv", WEATHER_CSV), 100 - number)

    taken = files_for_one_run(store, scan_landing(store))

    assert {dataset: [file.path.name for file in files] for dataset, files in taken.items()} == {
        "weather": ["0.csv", "1.csv"]
    }


def test_one_run_takes_no_more_bytes_than_it_may_over_all_datasets(make_store: MakeStore, drop: Drop):
    store = make_store(landing_max_bytes_per_run=100)
    age(drop(store, "weather", "a.csv", "x" * 60), 30)
    age(drop(store, "events", "b.csv", "x" * 40), 20)
    age(drop(store, "weather", "c.csv", "x"), 10)

    taken = files_for_one_run(store, scan_landing(store))

    assert {dataset: [file.path.name for file in files] for dataset, files in taken.items()} == {
        "weather": ["a.csv"],
        "events": ["b.csv"],
    }


def test_a_file_larger_than_a_run_may_take_is_taken_and_holds_no_other_up(make_store: MakeStore, drop: Drop):
    store = make_store(landing_max_bytes_per_run=100)
    age(drop(store, "weather", "huge.csv", "x" * 1_000), 30)
    age(drop(store, "weather", "small.csv", "x"), 20)
    age(drop(store, "weather", "another huge one.csv", "x" * 1_000), 10)
    drop(store, "events", "small.csv", "x")

    taken = files_for_one_run(store, scan_landing(store))

    assert [file.path.name for file in taken["weather"]] == ["huge.csv", "small.csv"]
    assert [file.path.name for file in taken["events"]] == ["small.csv"]


@given(
    st.lists(st.tuples(st.sampled_from(["weather", "events"]), st.integers(0, 300)), max_size=40),
    st.integers(1, 30),
    st.integers(1, 400),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_datasets_take_turns(make_settings, landed: list[tuple[str, int]], most_files: int, most_bytes: int):
    files = tuple(LandingFile(name, Path(f"{number:03}"), size, number) for number, (name, size) in enumerate(landed))
    limits = make_settings(
        landing_max_files_per_run=most_files, landing_max_bytes_per_run=most_bytes, landing_max_file_bytes=250
    )
    taken = share_out(limits, files, dict.fromkeys(("weather", "events"), float("inf")))

    assert sum(map(len, taken.values())) <= most_files
    for name, chosen in taken.items():
        mine = [file for file in files if file.dataset == name]
        assert list(chosen) == mine[: len(chosen)]
        assert chosen
    counted = [file.bytes for chosen in taken.values() for file in chosen[1:] if file.bytes <= min(most_bytes, 250)]
    assert sum(counted) <= most_bytes
    both = {name for name, _ in landed}
    if most_files >= len(both):
        assert set(taken) == both
    if len(both) == 2 and sum(size for _, size in landed) <= most_bytes:
        lengths = sorted(len([each for each, _ in landed if each == name]) for name in both)
        assert min(map(len, taken.values())) >= min(lengths[0], most_files // 2)


def test_a_full_queue_lets_the_files_of_its_dataset_wait_and_no_others(make_store: MakeStore, drop: Drop):
    store = make_store(staging_max_pending=2)
    stage(store, "weather", hourly(1))
    for number in range(3):
        age(drop(store, "weather", f"{number}.csv", WEATHER_CSV), 100 - number)
    drop(store, "events", "e.csv", "at,n\n1,1\n")

    scan = scan_landing(store)
    taken = files_for_one_run(store, scan)

    assert [file.path.name for file in taken["weather"]] == ["0.csv"]
    assert [file.path.name for file in taken["events"]] == ["e.csv"]
    assert waiting_for_room(store, scan) == []

    stage(store, "weather", hourly(2))

    assert set(files_for_one_run(store, scan)) == {"events"}
    (sentence,) = waiting_for_room(store, scan)
    assert "weather: 3 files wait" in sentence
    assert "limit of 2 batches" in sentence


def test_without_a_limit_everything_is_taken(make_store: MakeStore, drop: Drop):
    store = make_store(staging_max_pending=0)
    for number in range(5):
        drop(store, "weather", f"{number}.csv", WEATHER_CSV)

    assert len(files_for_one_run(store, scan_landing(store))["weather"]) == 5


def test_a_dataset_whose_folder_went_away_after_the_look_is_no_error(store: Store, drop: Drop):
    landed = drop(store, "weather", "a.csv", WEATHER_CSV)
    scan = scan_landing(store)
    shutil.rmtree(landed.parent)

    assert list(files_for_one_run(store, scan)) == ["weather"]
    assert scan_landing(store).files == ()

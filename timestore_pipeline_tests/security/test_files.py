"""Links and swapped files cannot make the pipeline read or write elsewhere; what it creates is for owner and group."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.staging import file_rows, load
from timestore_pipeline.staging.ingest import ingest_files
from timestore_pipeline.staging.stage import stage_file
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, ingest, readable, weather_csv
from timestore_pipeline_tests.conftest import WEATHER_CSV, MakeStore

ELSEWHERE = weather_csv("2026-01-01T00:00:00Z,STOLEN,1")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder outside of the installation with a file that would be a fine batch."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "private.csv").write_text(ELSEWHERE)
    return folder


def test_a_link_in_place_of_a_datasets_folder_is_not_followed(store: Store, elsewhere: Path):
    store.settings.landing_path.mkdir(parents=True)
    (store.settings.landing_path / "weather").symlink_to(elsewhere)

    scan = scan_landing(store)

    assert scan.files == ()
    assert any("is a symbolic link" in problem for problem in scan.problems)


def test_the_landing_folder_itself_may_be_a_link(store: Store, tmp_path: Path):
    (tmp_path / "big-disk" / "weather").mkdir(parents=True)
    (tmp_path / "big-disk" / "weather" / "a.csv").write_text(WEATHER_CSV)
    store.settings.landing_path.parent.mkdir(exist_ok=True)
    store.settings.landing_path.symlink_to(tmp_path / "big-disk")

    assert ingest(store)["weather"].rows == 3


def test_a_file_that_became_a_link_after_it_was_found_is_not_read(store: Store, elsewhere: Path, drop):
    path = drop(store, "weather", "a.csv", WEATHER_CSV)
    drop(store, "weather", "b.csv", weather_csv("2026-01-01T00:00:00Z,JFK,1"))
    files = scan_landing(store).files
    path.unlink()
    path.symlink_to(elsewhere / "private.csv")

    report = ingest_files(store, "weather", files)

    assert [row[1] for row in readable(store)] == ["JFK"]
    assert len(report.skipped) == 1


def test_a_file_that_became_a_pipe_holds_nothing_up(store: Store, drop):
    path = drop(store, "weather", "a.csv", WEATHER_CSV)
    files = scan_landing(store).files
    path.unlink()
    os.mkfifo(path)

    assert "no regular file" in ingest_files(store, "weather", files).skipped[0]


@pytest.mark.parametrize("content", [ELSEWHERE, "a secret that is no CSV of weather\nx\n"])
def test_a_file_swapped_for_a_link_while_it_is_read_and_swapped_back_is_not_staged(
    store: Store, elsewhere: Path, drop, monkeypatch: pytest.MonkeyPatch, content: str
):
    (elsewhere / "private.csv").write_text(content)
    path = drop(store, "weather", "a.csv", WEATHER_CSV)
    # Within the folders that the connection reaches, or DuckDB would refuse the link by itself.
    private = store.settings.landing_path / ".private.csv"
    private.write_text(content)
    aside = path.with_name(".aside")
    plan = file_rows.plan_reads
    write = load.write_segment

    def swap_and_plan(*arguments):
        path.rename(aside)
        path.symlink_to(private)
        found = plan(*arguments)
        if found.refused:
            aside.replace(path)
        return found

    def write_and_swap_back(*arguments, **options):
        written = write(*arguments, **options)
        aside.replace(path)
        return written

    monkeypatch.setattr(file_rows, "plan_reads", swap_and_plan)
    monkeypatch.setattr(load, "write_segment", write_and_swap_back)

    report = ingest(store)["weather"]

    assert readable(store) == []
    assert report.quarantined == ()
    assert "changed while it was read" in report.skipped[0]


def test_a_link_that_an_operator_names_is_followed(store: Store, elsewhere: Path, tmp_path: Path):
    link = tmp_path / "latest.csv"
    link.symlink_to(elsewhere / "private.csv")

    assert stage_file(store, "weather", link).rows == 1
    assert link.is_symlink()


def test_a_file_that_is_staged_by_hand_may_have_any_name(store: Store, tmp_path: Path):
    folder = tmp_path / "a'; [b]*? -- é"
    folder.mkdir()
    for number, name in enumerate(
        ("--x.csv", "a';DROP.csv", "[a-z]*.csv", "new\nline.csv", "\u202egnp.csv", "x" * 251 + ".csv")
    ):
        (folder / name).write_text(weather_csv(f"2026-01-01T00:00:00Z,S{number},{number}"))
        assert stage_file(store, "weather", folder / name).rows == 1


@pytest.mark.parametrize("planted", ["archive", "quarantine"])
def test_a_link_planted_as_the_target_of_a_move_is_not_written_through(
    store: Store, elsewhere: Path, drop, planted: str
):
    content = WEATHER_CSV if planted == "archive" else "bad\n"
    drop(store, "weather", "a.csv", content)
    from datetime import UTC, datetime

    if planted == "archive":
        folder = store.settings.archive_path / "weather" / f"{datetime.now(UTC):%Y-%m-%d}"
        name = "a.csv"
    else:
        folder = store.settings.staging_path / "_quarantine" / "weather"
        from timestore_pipeline.staging.arrivals import file_fingerprint

        name = f"{file_fingerprint(store.settings.landing_path / 'weather' / 'a.csv')[:16]}-a.csv"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(elsewhere / "private.csv")

    ingest(store)

    assert (elsewhere / "private.csv").read_text() == ELSEWHERE
    assert any(path.is_file() and not path.is_symlink() for path in folder.iterdir())


@pytest.fixture
def open_umask() -> Iterator[None]:
    """The least careful of hosts."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_what_is_created_is_for_owner_and_group_whatever_the_umask(make_store: MakeStore, drop, home: Path):
    store = make_store(landing_after_ingest="archive", staging_retention_seconds=3600)
    drop(store, "weather", "a.csv", WEATHER_CSV)
    drop(store, "weather", "bad.csv", "bad\n")
    drop(store, "weather", "early.csv", weather_csv("1999-01-01T00:00:00Z,JFK,1", "2026-01-01T00:00:00Z,JFK,1"))
    ingest(store)
    build(store)

    producers = {"datasets.yaml", "landing"}
    created = [path for path in home.rglob("*") if not producers & set(path.relative_to(home).parts)]
    closed = {path for path in created if not path.stat().st_mode & 0o007}
    # What was moved keeps its producer's mode, in a folder that others cannot enter.
    assert [path for path in created if path not in closed and not closed & set(path.parents)] == []
    kinds = (".duckdb", ".parquet", ".json", ".sqlite", ".sqlite-wal")
    assert {path.suffix for path in closed} >= set(kinds)
    assert [path for path in created if path.suffix in kinds and path not in closed] == []
    tops = [store.settings.staging_path, store.tables.root, store.settings.archive_path]
    assert [oct(stat.S_IMODE(path.stat().st_mode)) for path in tops] == ["0o770"] * 3

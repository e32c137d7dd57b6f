"""What is archived or quarantined is what was staged or refused, whoever has the file open still."""

from __future__ import annotations

import fcntl
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from timestore_pipeline.durable_files import held_alone
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline.staging import folder_arrivals
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import ingest, readable
from timestore_pipeline_tests.conftest import WEATHER_CSV

BAD = WEATHER_CSV.replace("2.5", "x.5")
SWAPPED = WEATHER_CSV.replace("1.5", "9.5")

Write = Callable[[bytes], object]


@contextmanager
def through_a_descriptor(path: Path, _: ExitStack) -> Iterator[Write]:
    with path.open("r+b", buffering=0) as stream:
        yield lambda content: (stream.seek(0), stream.write(content))


@contextmanager
def through_a_mapping(path: Path, _: ExitStack) -> Iterator[Write]:
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        stream.close()
        yield lambda content: mapped.__setitem__(slice(0, len(content)), content)


@contextmanager
def through_another_name(path: Path, _: ExitStack) -> Iterator[Write]:
    other = path.parent.parent / "another-name"
    other.hardlink_to(path)
    yield other.write_bytes


@contextmanager
def through_what_was_opened_for_reading(path: Path, _: ExitStack) -> Iterator[Write]:
    with path.open("rb") as stream:
        yield lambda content: Path(f"/proc/self/fd/{stream.fileno()}").write_bytes(content)


WAYS = [through_a_descriptor, through_a_mapping, through_another_name, through_what_was_opened_for_reading]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_archived_is_what_was_staged(store: Store, drop, way: Callable):
    path = drop(store, "weather", "a.csv", WEATHER_CSV)
    with ExitStack() as stack, way(path, stack) as write:
        assert ingest(store)["weather"].rows == 3
        write(SWAPPED.encode())

        (kept,) = store.settings.archive_path.rglob("a.csv")
        assert kept.read_text() == WEATHER_CSV
        assert not path.exists()


@pytest.mark.parametrize("way", WAYS)
def test_what_is_quarantined_is_what_was_refused_and_what_is_retried_too(store: Store, drop, way: Callable):
    path = drop(store, "weather", "a.csv", BAD)
    with ExitStack() as stack, way(path, stack) as write:
        (entry,) = ingest(store)["weather"].quarantined
        write(SWAPPED.encode())

        assert store.staging.fetch(entry.path).read_text() == BAD
        assert not retry_entry(store, entry.id, "me").done
        assert readable(store) == []


def test_without_leases_it_is_so_too(store: Store, drop, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object) -> int:
        raise PermissionError(13, "not the owner")

    monkeypatch.setattr(fcntl, "fcntl", refused)
    good, bad = drop(store, "weather", "good.csv", WEATHER_CSV), drop(store, "weather", "bad.csv", BAD)
    with good.open("r+b", buffering=0) as one, bad.open("r+b", buffering=0) as other:
        report = ingest(store)["weather"]
        one.write(SWAPPED.encode())
        other.write(SWAPPED.encode())

    (kept,) = store.settings.archive_path.rglob("good.csv")
    assert kept.read_text() == WEATHER_CSV
    assert store.staging.fetch(report.quarantined[0].path).read_text() == BAD
    assert not good.exists()
    assert not bad.exists()


def test_what_nobody_else_has_is_moved_and_not_copied(store: Store, drop):
    inode = drop(store, "weather", "a.csv", WEATHER_CSV).stat().st_ino

    ingest(store)

    (kept,) = store.settings.archive_path.rglob("a.csv")
    assert kept.stat().st_ino == inode


def test_what_was_written_before_it_could_be_kept_is_taken_again(store: Store, drop, monkeypatch: pytest.MonkeyPatch):
    path = drop(store, "weather", "a.csv", WEATHER_CSV)
    copy = folder_arrivals.FolderArrivals._copy
    with path.open("r+b", buffering=0) as stream:

        def write_first(*arguments: object) -> None:
            stream.write(SWAPPED.encode())
            copy(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(folder_arrivals.FolderArrivals, "_copy", write_first)
        assert ingest(store)["weather"].rows == 3
    monkeypatch.undo()

    assert path.read_text() == SWAPPED
    assert ingest(store)["weather"].rows == 3
    assert len(readable(store)) == 6
    with store.ledger.read() as tx:
        assert open_entries(tx) == []


def test_who_opens_a_file_while_it_is_held_is_noticed(tmp_path: Path):
    path = tmp_path / "a"
    path.write_text("x")
    opened = threading.Event()

    def open_it() -> None:
        with path.open("rb"):
            opened.set()

    with held_alone(path) as alone:
        assert alone()
        thread = threading.Thread(target=open_it)
        thread.start()
        while alone():
            opened.wait(0.01)
        assert not opened.is_set()
    thread.join()
    assert opened.is_set()

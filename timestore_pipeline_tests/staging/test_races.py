"""Processes that race into one dataset: a batch is staged once, another content under its id is refused.

Builds run all the while, so batches are published between the attempts to stage them again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.errors import BatchConflict
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, published, readable, rows_of
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.forks import process_pool

STAGERS = 3
ROUNDS = 12


def race(home: Path, stage_turn: Callable[[Store, int, int], Iterable[str]]) -> list[str]:
    """Do ``stage_turn`` in several processes at once, beside one that builds; return what they said, all together."""
    with process_pool(STAGERS + 1) as pool:
        builder = pool.submit(_build_until_all_are_done, home)
        said = [pool.submit(_stage_in_turns, home, number, stage_turn) for number in range(STAGERS)]
        outcomes = [word for each in said for word in each.result(120)]
        assert builder.result(120) > 0, "nothing was built meanwhile"
    return outcomes


def _meet(home: Path, place: str, number: int) -> None:
    """Wait until all stagers are here, so that they go on together."""
    folder = home / place
    folder.mkdir(exist_ok=True)
    (folder / str(number)).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < STAGERS:
        assert time.monotonic() < deadline, f"not all came to {place}"


def _open(home: Path) -> Store:
    return Store.open(Settings(home=home, staging_min_free_disk_bytes=0))


def _build_until_all_are_done(home: Path) -> int:
    built = 0
    deadline = time.monotonic() + 110
    with _open(home) as store:
        while time.monotonic() < deadline:
            last = len(list(home.glob("done-*"))) == STAGERS
            built += flush_windows(store, BuildOrder("weather", owner="the builder")) is not None
            if last:
                return built
    raise AssertionError("the stagers did not end")


def _stage_in_turns(home: Path, number: int, stage_turn: Callable[[Store, int, int], Iterable[str]]) -> list[str]:
    """Be one of the stagers: what ``stage_turn`` does with the number of the turn and of this process, turn by turn."""
    with _open(home) as store:
        said = [word for turn in range(ROUNDS) for word in stage_turn(store, turn, number)]
    (home / f"done-{number}").touch()
    return said


def _stage_the_same(store: Store, turn: int, number: int) -> Iterator[str]:
    _meet(store.settings.home, f"turn-{turn}", number)
    receipt = stage(store, "weather", hourly(1 + turn), batch_id=f"batch-{turn}")
    yield f"{turn} {'duplicate' if receipt.duplicate else 'staged'}"


def _stage_other_content(store: Store, turn: int, number: int) -> Iterator[str]:
    _meet(store.settings.home, f"turn-{turn}", number)
    try:
        stage(store, "weather", hourly(2, station=f"{turn}-{number}"), batch_id=f"batch-{turn}")
        yield f"staged {turn}-{number}"
    except BatchConflict as error:
        yield f"refused {error}"


def _stage_own(store: Store, turn: int, number: int) -> Iterator[str]:
    receipt = stage(store, "weather", hourly(5, station=f"{turn}-{number}"))
    assert not receipt.duplicate
    yield receipt.batch_id
    yield str(receipt.segment_id)


@pytest.mark.process
def test_a_batch_that_races_with_itself_is_staged_once(make_store: MakeStore, home: Path):
    store = make_store()

    said = Counter(race(home, _stage_the_same))

    assert said == {
        **{f"{turn} staged": 1 for turn in range(ROUNDS)},
        **{f"{turn} duplicate": STAGERS - 1 for turn in range(ROUNDS)},
    }
    assert readable(store) == rows_of(*(hourly(1 + turn) for turn in range(ROUNDS)))


@pytest.mark.process
def test_of_contents_that_race_for_one_id_one_is_staged_and_the_others_are_refused(make_store: MakeStore, home: Path):
    store = make_store()

    said = race(home, _stage_other_content)

    winners = [word.removeprefix("staged ") for word in said if word.startswith("staged ")]
    assert sorted(int(winner.partition("-")[0]) for winner in winners) == list(range(ROUNDS))
    refused = Counter(word for word in said if word.startswith("refused "))
    assert list(refused.values()) == [STAGERS - 1] * ROUNDS
    assert all("is already in the ledger with other content" in word for word in refused)
    assert readable(store) == rows_of(*(hourly(2, station=winner) for winner in winners))


@pytest.mark.process
def test_batches_of_many_processes_are_all_staged_once_while_builds_run(make_store: MakeStore, home: Path):
    store = make_store()

    said = race(home, _stage_own)

    assert len(set(said)) == 2 * ROUNDS * STAGERS, "ids are unique"
    expected = rows_of(*(hourly(5, station=f"{turn}-{number}") for turn in range(ROUNDS) for number in range(STAGERS)))
    assert readable(store) == expected
    flush_windows(store, BuildOrder("weather", owner="the test"))
    assert published(store) == expected

"""When a due dataset is not asked for: its run is on its way, or its last runs failed."""

from __future__ import annotations

from typing import Any

from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.ledger.states import BuildState
from timestore_pipeline.orchestration.pace import FlushRun, held_back
from timestore_pipeline_tests.builders import build_of

NOW = 1_000_000.0
LEASE = 120.0


def run(run_id: str = "r1", *datasets: str, **times: float) -> FlushRun:
    return FlushRun(run_id, frozenset(datasets or ("a", "b")), **times)


def ended(owner: str, moment: float, state: BuildState = BuildState.PUBLISHED) -> dict[str, Build]:
    return {"a": build_of("a", owner=owner, finished_at=int(moment * 1e6), state=state)}


def held(unfinished: Any = (), failed: Any = (), latest: Any = None, now: float = NOW) -> dict[str, str]:
    return held_back(["a"], [*unfinished, *failed], latest or {}, now, LEASE)


def test_nothing_holds_a_dataset_that_no_run_has():
    assert held([run("r1", "b")]) == {}


def test_a_run_that_waits_holds_its_datasets_however_long():
    assert held([run()]) == {"a": "a: run r1 waits for its turn"}


def test_a_run_in_progress_holds_its_datasets():
    assert held([run(started_at=NOW - 5)]) == {"a": "a: run r1 is in progress"}


def test_a_run_in_progress_that_has_built_a_dataset_holds_it_no_more():
    assert held([run(started_at=NOW - 5)], latest=ended("r1", NOW - 1)) == {}


def test_a_run_that_takes_long_for_others_does_not_hold_a_dataset_for_ever():
    assert held([run(started_at=NOW - LEASE - 1)]) == {}


def test_failures_hold_for_longer_and_longer():
    failures = [run(f"r{index}", failed_at=NOW - 10 * index) for index in range(4)]

    assert held(failed=failures[:1], now=NOW + 9)
    assert not held(failed=failures[:1], now=NOW + 10)
    assert held(failed=failures, now=NOW + 79) == {"a": "a: the last 4 runs failed, the sensor asks again in 1 s"}
    assert not held(failed=failures, now=NOW + 80)


def test_failures_before_the_last_success_do_not_count():
    failures = [run("r1", failed_at=NOW - 1)]

    assert held(failed=failures, latest=ended("other", NOW - 0.5)) == {}
    assert held(failed=failures, latest=ended("other", NOW - 0.5, BuildState.ABORTED))


def test_a_dataset_that_its_failed_run_published_is_not_held():
    assert held(failed=[run("r1", failed_at=NOW)], latest=ended("r1", NOW - 5)) == {}

"""Which cases a run of the tests takes, and how many examples of a property it tries.

Without an option all cases run. ``--sample`` takes of every matrix some cases that a seed draws. A matrix is a test
function marked ``matrix``, or one whose cases run on both databases: of the twins of a case one runs, on SQLite or on
PostgreSQL; of a matrix a quarter, but at least one case. The same seed draws the same cases, whatever else is selected
and in whichever order. ``--quick`` takes one case of each test that needs no server, no other process and no time,
and fewer examples of each property; ``--thorough`` tries more of them.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from typing import Any

import hypothesis
import pytest

SHARE = 0.25
"""Of a matrix this part of its cases is in a sample."""

NOT_QUICK = ("bench", "crash", "e2e", "long", "process", "server")
"""Marks of tests that ``--quick`` leaves out."""

_MAKE_SMALL = (hypothesis.Phase.shrink, hypothesis.Phase.explain)
_THOROUGH = 10
_QUICK = 0.2
_examples = 1.0


def examples(count: int) -> int:
    """Return how many examples of a property to try where ``count`` are usual."""
    return max(1, round(count * _examples))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say how much is to run."""
    group = parser.getgroup("timestore")
    group.addoption("--sample", action="store_true", help="of matrices run a sample of the cases, as `make test` does")
    group.addoption("--quick", action="store_true", help="run a case of each short test without servers and processes")
    group.addoption("--thorough", action="store_true", help=f"try {_THOROUGH} times as many examples, soak for longer")
    group.addoption("--seed", metavar="WORD", help="which sample; by default a new one each time")


def pytest_configure(config: pytest.Config) -> None:
    """Draw a seed, or take the one that the process has drawn whose worker this is; settle how many examples to try."""
    global _examples  # noqa: PLW0603 - of this process, from its start on
    if config.option.seed is None:
        config.option.seed = getattr(config, "workerinput", {}).get("seed") or secrets.token_hex(3)
    _examples = _THOROUGH if config.option.thorough else _QUICK if config.option.quick else 1
    # Examples are not timed: how long one takes says more of the machine than of the code.
    too_slow = [hypothesis.HealthCheck.too_slow]
    # What fails is made small where somebody looks at one test, and takes minutes that the others would wait for.
    of_all = config.option.sample or config.option.quick or config.option.thorough
    phases = [phase for phase in hypothesis.Phase if not (of_all and phase in _MAKE_SMALL)]
    hypothesis.settings.register_profile(
        "untimed", deadline=None, max_examples=examples(50), suppress_health_check=too_slow, phases=phases
    )
    hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Let a worker know the seed."""
    node.workerinput["seed"] = node.config.option.seed


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which sample this is, and how to run it again."""
    option = config.option
    if not (option.sample or option.quick):
        return None
    target = "test-quick" if option.quick else "test"
    return f"a sample of all cases, seed {option.seed}: `make {target} SEED={option.seed}` runs it again"


@pytest.fixture(autouse=True)
def no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a quick run a test that starts a process fails, so that it is marked."""
    if not request.config.option.quick:
        return

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("this test starts a process: mark it `process` or `server`")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(BaseProcess, "start", refuse)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the sample does not have."""
    if config.option.quick:
        kept = quick(items, config.option.seed)
    elif config.option.sample:
        kept = drawn(items, config.option.seed)
    else:
        return
    left_out = [item for item in items if item not in kept]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item in kept]


def drawn(items: Iterable[pytest.Item], seed: str) -> set[pytest.Item]:
    """Return those of ``items`` that the sample of ``seed`` has: all that are of no matrix are among them."""
    twins: dict[object, list[pytest.Item]] = defaultdict(list)
    for item in items:
        twins[_case(item)].append(item)
    matrices: dict[str, list[pytest.Item]] = defaultdict(list)
    for cases in twins.values():
        one = _lots(cases, seed)[0]
        matrices[function_of(one.nodeid) if one.get_closest_marker("matrix") else one.nodeid].append(one)
    return {case for cases in matrices.values() for case in _lots(cases, seed)[: math.ceil(len(cases) * SHARE)]}


def quick(items: Iterable[pytest.Item], seed: str) -> set[pytest.Item]:
    """Return one case of each test among ``items`` that needs no server and no other process."""
    functions: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if not any(map(item.get_closest_marker, NOT_QUICK)):
            functions[function_of(item.nodeid)].append(item)
    return {_lots(cases, seed)[0] for cases in functions.values()}


def function_of(nodeid: str) -> str:
    """Return what is common to the names of all cases of a test function."""
    return nodeid.partition("[")[0]


def _case(item: pytest.Item) -> object:
    """Return what the twins of a case have in common; what has no twin has its own."""
    call = getattr(item, "callspec", None)
    if call is None or "ledger_kind" not in call.params or item.get_closest_marker("both_ledgers"):
        return item.nodeid
    return function_of(item.nodeid), f"-{call.id}-".replace(f"-{call.params['ledger_kind']}-", "-", 1)


def _lots(cases: Iterable[pytest.Item], seed: str) -> list[pytest.Item]:
    """Return ``cases`` in the order in which the seed draws them, which does not depend on what else there is."""
    return sorted(cases, key=lambda item: hashlib.blake2b(f"{seed} {item.nodeid}".encode()).digest())

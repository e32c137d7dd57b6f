"""A sample of the tests leaves no test out, draws the same by the same seed, and every case by some seed."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from timestore_pipeline_tests.sampling import drawn, function_of, quick

SEEDS = [f"seed {number}" for number in range(40)]


@dataclass(frozen=True)
class Case:
    """What the sample asks of a collected test."""

    function: str
    id: str = ""
    ledger_kind: str | None = None
    marks: frozenset[str] = frozenset()

    @property
    def nodeid(self) -> str:
        return f"{self.function}[{self.id}]" if self.id else self.function

    @property
    def callspec(self) -> Any:
        return SimpleNamespace(id=self.id, params={"ledger_kind": self.ledger_kind} if self.ledger_kind else {})

    def get_closest_marker(self, name: str) -> bool:
        return name in self.marks


def on_both(function: str, *cases: str, marks: Iterable[str] = ()) -> list[Case]:
    return [
        Case(function, f"{kind}-{case}", kind, frozenset(marks)) for case in cases for kind in ("sqlite", "postgresql")
    ]


def sample(cases: Iterable[Case], seed: str) -> set[Case]:
    return drawn(cases, seed)  # pyright: ignore[reportArgumentType, reportReturnType]


ALONE = [Case("alone"), Case("alone too", "of one parameter"), Case("alone too", "of another")]
TWINS = on_both("twins", "a", "b", "sqlite")
MATRIX = [Case("matrix", str(number), marks=frozenset({"matrix"})) for number in range(9)]
TWINS_IN_A_MATRIX = on_both("both", "a", "b", "c", "d", "e", marks=["matrix"])
ABOUT_LEDGERS = on_both("ledgers", "a", marks=["both_ledgers"])
EVERYTHING = ALONE + TWINS + MATRIX + TWINS_IN_A_MATRIX + ABOUT_LEDGERS


@pytest.mark.parametrize("seed", SEEDS[:5])
def test_a_sample_has_some_cases_of_each_test(seed: str):
    found = sample(EVERYTHING, seed)

    assert {case.function for case in found} == {case.function for case in EVERYTHING}
    assert found >= {*ALONE, *ABOUT_LEDGERS}
    assert sorted(case.id.partition("-")[2] for case in found if case.function == "twins") == ["a", "b", "sqlite"]
    assert len(found & {*MATRIX}) == 3
    assert len(found & {*TWINS_IN_A_MATRIX}) == 2


@pytest.mark.parametrize("cases", [TWINS, MATRIX, TWINS_IN_A_MATRIX], ids=["twins", "matrix", "both"])
def test_every_case_is_drawn_by_some_seed(cases: list[Case]):
    assert set().union(*(sample(cases, seed) for seed in SEEDS)) == {*cases}


def test_the_same_seed_draws_the_same_whatever_else_is_selected():
    shuffled = random.Random(1).sample(EVERYTHING, len(EVERYTHING))

    assert (
        sample(shuffled, "one")
        == sample(EVERYTHING, "one")
        == sample(MATRIX, "one") | sample([case for case in EVERYTHING if case not in MATRIX], "one")
    )


def test_a_quick_run_has_one_case_of_each_test_that_needs_nothing():
    served = Case("served", marks=frozenset({"server"}))

    found = quick([*EVERYTHING, served], "one")  # pyright: ignore[reportArgumentType]

    assert sorted(function_of(case.nodeid) for case in found) == sorted({case.function for case in EVERYTHING})

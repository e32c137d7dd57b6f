"""The search for bad items finds them all, whatever their number and order, and asks little for the usual one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.rows.culprits import attempt_by_halves, find_culprits


class Bad(Exception):
    """What an attempt with a bad item raises."""


class Attempts:
    """Attempts that fail where one of their items is bad, and are remembered."""

    def __init__(self, bad: Collection[int]) -> None:
        self.bad = frozenset(bad)
        self.made: list[Sequence[int]] = []

    def __call__(self, items: Sequence[int]) -> int:
        self.made.append(items)
        found = self.bad.intersection(items)
        if found:
            raise Bad(min(found))
        return len(items)


@given(st.integers(0, 60), st.sets(st.integers(0, 59)))
def test_every_bad_item_is_found_in_order_and_no_other(count: int, bad: set[int]):
    attempts = Attempts(bad)

    culprits = [(item, str(error)) for item, error in find_culprits(range(count), attempts, Bad)]

    assert culprits == [(item, str(item)) for item in sorted(bad) if item < count]


@given(st.integers(0, 60), st.sets(st.integers(0, 59)))
def test_every_item_is_in_one_part_and_good_ones_have_their_result(count: int, bad: set[int]):
    parts = list(attempt_by_halves(range(count), Attempts(bad), Bad))

    assert [item for part, _ in parts for item in part] == list(range(count))
    assert all(isinstance(result, Bad) if bad.intersection(part) else result == len(part) for part, result in parts)


def test_items_without_a_bad_one_are_tried_once():
    attempts = Attempts(())

    assert list(find_culprits(range(1_000), attempts, Bad)) == []
    assert attempts.made == [range(1_000)]


def test_no_attempt_is_made_of_nothing():
    attempts = Attempts(())

    assert list(attempt_by_halves([], attempts, Bad)) == []
    assert attempts.made == []


@pytest.mark.parametrize("bad", [0, 499, 500, 777, 999])
def test_one_bad_item_among_a_thousand_is_found_in_few_attempts_of_few_items(bad: int):
    attempts = Attempts([bad])

    assert [item for item, _ in find_culprits(range(1_000), attempts, Bad)] == [bad]
    assert len(attempts.made) <= 2 * 10 + 1
    assert sum(map(len, attempts.made)) <= 3 * 1_000


def test_what_is_known_to_fail_is_not_tried_again_as_a_whole():
    attempts = Attempts([7])

    list(find_culprits(range(8), attempts, Bad))

    assert attempts.made == [range(8), range(4), range(4, 6), range(6, 7), range(7, 8)]


def test_a_search_that_is_given_up_makes_no_further_attempts():
    attempts = Attempts(range(100))

    first, _ = next(find_culprits(range(1_000), attempts, Bad))

    assert first == 0
    assert all(part.start == 0 for part in attempts.made if isinstance(part, range))


def test_items_that_fail_only_together_are_no_culprits():
    def attempt(items: Sequence[int]) -> str:
        if {3, 4} <= set(items):
            raise Bad
        return "fine"

    assert list(find_culprits(range(8), attempt, Bad)) == []
    assert [part for part, _ in attempt_by_halves(range(8), attempt, Bad)] == [
        range(4), range(4, 6), range(6, 7), range(7, 8)
    ]  # fmt: skip


def test_an_error_that_is_not_the_items_fault_passes_through():
    def attempt(items: Sequence[int]) -> None:
        raise MemoryError if len(items) < 4 else Bad

    with pytest.raises(MemoryError):
        list(find_culprits(range(8), attempt, Bad))

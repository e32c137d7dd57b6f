"""A test acts in the middle of an operation: at a crash point, in the process that reaches it."""

from __future__ import annotations

import os
import signal

import pytest

from timestore_pipeline.crash_points import CrashPoint, arm, at, reach

POINT, ANOTHER = CrashPoint.FILE_SYNCED, CrashPoint.FILE_RENAMED


def test_it_acts_once_when_the_point_is_reached_for_the_given_time():
    acted: list[str] = []

    with at(POINT, lambda: acted.append("at the second"), times=2), at(POINT, lambda: acted.append("at the first")):
        for point in (ANOTHER, POINT, ANOTHER, POINT, POINT):
            acted.append(point.name)
            reach(point)
    reach(POINT)

    assert acted == [
        "FILE_RENAMED",
        "FILE_SYNCED",
        "at the first",
        "FILE_RENAMED",
        "FILE_SYNCED",
        "at the second",
        "FILE_SYNCED",
    ]


def test_what_it_raises_is_raised_at_the_point():
    with pytest.raises(KeyboardInterrupt), at(POINT, lambda: _raise(KeyboardInterrupt())):
        reach(POINT)

    reach(POINT)


def test_what_it_does_may_reach_the_point_again():
    acted: list[str] = []

    def act() -> None:
        acted.append("once")
        reach(POINT)

    with at(POINT, act):
        reach(POINT)

    assert acted == ["once"]


def test_a_point_that_was_not_reached_is_an_error_of_the_test():
    with pytest.raises(AssertionError, match=r"file\.synced was reached 1 times, not 2"), at(POINT, list, times=2):
        reach(POINT)


def test_an_error_of_the_block_is_not_hidden_by_a_point_that_it_kept_from_being_reached():
    with pytest.raises(ValueError, match="of the block"), at(POINT, list):
        raise ValueError("of the block")


@pytest.mark.process
def test_a_signal_goes_to_the_process_that_reaches_the_point_and_not_to_the_one_that_was_armed_and_forked_it():
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    arm(f"{POINT}=SIGUSR1")
    try:
        forked = os.fork()
        if not forked:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            reach(POINT)
            os._exit(0)
        _, status = os.waitpid(forked, 0)
    finally:
        arm(None)
        signal.signal(signal.SIGUSR1, before)

    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGUSR1
    assert received == []


def _raise(error: BaseException) -> None:
    raise error

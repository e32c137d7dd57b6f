"""A process that is killed at a crash point, played within this one: nothing catches its end, and it tidies nothing up.

Or an error comes to it there.

Tests in ``crash/`` kill real processes, at every point; these here are for what comes after.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from timestore_pipeline.building import publication
from timestore_pipeline.crash_points import CrashPoint, at, reach


class Killed(BaseException):
    """Stands for the end of a process: nothing catches it."""


@contextmanager
def dies_at(point: CrashPoint, times: int = 1) -> Iterator[None]:
    """End the block where it reaches ``point`` for the ``times``-th time, as if its process were killed there.

    Raises:
        AssertionError: the block ended by itself.
    """
    with pytest.raises(Killed), _nothing_tidied_up(), at(point, _end, times):
        yield


@contextmanager
def may_die_at(point: CrashPoint) -> Iterator[None]:
    """The same for a block that may end before it reaches ``point``."""
    with _nothing_tidied_up(), may_end_at(point):
        yield


@contextmanager
def may_end_at(point: CrashPoint) -> Iterator[None]:
    """End the block where it reaches ``point``, if it does: as an interrupt would, after which a build is settled."""
    with suppress(Killed), at(point, _end):
        yield
        reach(point)


@contextmanager
def _nothing_tidied_up() -> Iterator[None]:
    # The one thing that a build does after an interrupt.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(publication, "settle_build", _end)
        yield


@contextmanager
def fails_at(point: CrashPoint, error: BaseException) -> Iterator[None]:
    """Let ``error`` come to whatever reaches ``point`` in the block.

    Raises:
        AssertionError: it was not reached.
    """

    def fail() -> None:
        raise error

    with at(point, fail):
        yield


def _end(*_: object, **__: object) -> None:
    raise Killed

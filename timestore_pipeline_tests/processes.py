"""Processes of tests that must not outlive them."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
from contextlib import AbstractContextManager
from typing import TypeVar

T = TypeVar("T")

_SET_PARENT_DEATH_SIGNAL = 1
_SET_TRACER = 0x59616D61
_ANY_TRACER = ctypes.c_ulong(-1)


def end_with_the_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send the signal when the parent dies, however that dies; to be called in the child."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, number)


def allow_tracing() -> None:
    """Let any process of this user trace this one, where the kernel would else let only its ancestors."""
    ctypes.CDLL(None).prctl(_SET_TRACER, _ANY_TRACER, 0, 0, 0)


def until_exit(manager: AbstractContextManager[T]) -> T:
    """Enter a context that is left when this process ends, and not when a forked child of it does."""
    entered = manager.__enter__()
    owner = os.getpid()

    def end() -> None:
        if os.getpid() == owner:
            manager.__exit__(None, None, None)

    atexit.register(end)
    return entered

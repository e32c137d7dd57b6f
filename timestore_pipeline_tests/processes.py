"""Processes of tests that must not outlive them."""

from __future__ import annotations

import ctypes
import signal

_SET_PARENT_DEATH_SIGNAL = 1


def end_with_the_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send the signal when the parent dies, however that dies; to be called in the child."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, number)

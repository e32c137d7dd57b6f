"""Who runs a command (short, because commands of many groups ask).

What the ledger remembers of an operator, and of a build that a command owns.
"""

from __future__ import annotations

import getpass
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

_OWNER_PREFIX = f"cli:{socket.gethostname()}:"


def operator() -> str:
    """Return ``user@host``; where a container runs under a number that has no name, the number."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def this_command() -> str:
    """Return the owner of the builds of this process."""
    return f"{_OWNER_PREFIX}{os.getpid()}"


def command_has_died(owner: str) -> bool:
    """Whether a build's owner was a command on this host that is gone, so that nobody has to wait for its lease."""
    process = owner.removeprefix(_OWNER_PREFIX)
    if process == owner or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end what is in the block as Ctrl-C does, so that it tidies up."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

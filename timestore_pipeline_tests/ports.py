"""Ports for the servers that tests start."""

from __future__ import annotations

import socket


def unused_port() -> int:
    """A loopback port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

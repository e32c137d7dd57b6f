"""The clock: now, as the ledger writes it (short, because everybody asks it, and most ask nothing else)."""

from __future__ import annotations

import time


def now_micros() -> int:
    """Return the current time in microseconds since the Unix epoch (UTC)."""
    return time.time_ns() // 1_000

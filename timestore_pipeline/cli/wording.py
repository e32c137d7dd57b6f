"""Numbers, sizes and times as people read them (short, because all commands use these, and none prints here)."""

from __future__ import annotations

from datetime import UTC, datetime

_SIZES = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_TIMES = (("d", 86_400), ("h", 3_600), ("min", 60))


def number(value: int) -> str:
    """``1234567`` → ``1,234,567``."""
    return f"{value:,}"


def counted(value: int, noun: str, plural: str | None = None) -> str:
    """``counted(1, "row")`` → ``1 row``, ``counted(2, "row")`` → ``2 rows``."""
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def size(size_bytes: int) -> str:
    """``134217728`` → ``134.2 MB``."""
    for unit, factor in _SIZES:
        # 999,950 and more would round to 1000.0 of the smaller unit.
        if size_bytes >= factor * 0.99995:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def duration(seconds: float) -> str:
    """``0.25`` → ``0.25 s``, ``60`` → ``60 s``, ``150`` → ``2.5 min``."""
    for unit, factor in _TIMES:
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.0f} s"


def moment(micros: int) -> str:
    """Microseconds since the epoch → ``2026-11-23 12:00:00Z``."""
    return f"{datetime.fromtimestamp(micros / 1e6, UTC):%Y-%m-%d %H:%M:%S}Z"


def iso(micros: int) -> str:
    """Microseconds since the epoch → ``2026-11-23T12:00:00.000000+00:00``, for programs."""
    return datetime.fromtimestamp(micros / 1e6, UTC).isoformat(timespec="microseconds")

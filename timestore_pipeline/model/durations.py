"""Durations as people write them in ``datasets.yaml``: ``90s``, ``15m``, ``36h``, ``7d``, ``1d 12h``."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

SHORTEST_FRESHNESS = timedelta(minutes=1)
"""Dagster evaluates freshness no finer than this."""

_UNITS = {
    "w": timedelta(weeks=1),
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}
_PART = re.compile(r"(\d{1,9})\s*(ms|w|d|h|m|s)\s*", re.ASCII)
DURATION_PATTERN = r"^(0|(\d{1,9}\s*(ms|w|d|h|m|s)\s*)+)$"
"""What a duration looks like, for the JSON schema."""
_LONGEST = timedelta(days=36_500)


def parse_duration(text: object) -> timedelta:
    """Return the duration that ``text`` names; 0 needs no unit.

    Raises:
        ValueError: it names none, or one of more than 100 years.

    Example:
        >>> parse_duration("1d 12h")
        datetime.timedelta(days=1, seconds=43200)
    """
    if isinstance(text, timedelta):
        return text
    rest = str(text).strip() if not isinstance(text, bool) else ""
    if rest == "0":
        return timedelta()
    total = timedelta()
    while part := _PART.match(rest):
        total += int(part[1]) * _UNITS[part[2]]
        rest = rest[part.end() :]
        if total > _LONGEST:
            raise ValueError(f"{text!r} is more than 100 years")
        if not rest:
            return total
    raise ValueError(f"{text!r} is no duration; write numbers with units, such as 90s, 15m, 36h, 7d or '1d 12h'")


def format_duration(duration: timedelta) -> str:
    """Return a duration as :func:`parse_duration` reads it, in the largest units that say it exactly."""
    parts = []
    for unit, length in _UNITS.items():
        number, duration = divmod(duration, length)
        if number:
            parts.append(f"{number}{unit}")
    return " ".join(parts) or "0"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": DURATION_PATTERN}, {"const": 0}]}),
]
"""A field of a model that is written as a duration and read as a :class:`timedelta`."""

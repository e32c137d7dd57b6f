"""Windows: the half-open UTC time ranges that partition a dataset, and their partition keys.

Pure functions of a granularity and a time. The keys equal those of the Dagster partitions definitions
(a test holds the two against each other), because a window's name *is* its partition key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(moment: datetime) -> int:
    """Return microseconds since the Unix epoch; a naive ``moment`` is taken as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the aware UTC datetime of ``micros`` microseconds since the Unix epoch."""
    return EPOCH + timedelta(microseconds=micros)


Moment = datetime | date | str
"""A time: aware, or naive and then UTC; a day means its midnight; text is ISO 8601."""


def utc_moment(value: Moment, name: str) -> datetime:
    """Return a time as an aware datetime in UTC; ``name`` is what the caller calls it.

    Raises:
        ValueError: it is no time, or none of the years 1 to 9999.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{name} is {value!r}; give a time as ISO 8601, such as 2026-11-23T05:00Z") from None
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{name} is {value.isoformat()}, which is no time of the years 1 to 9999 in UTC") from None


@dataclass(frozen=True)
class TimeRange:
    """The times from ``start`` until before ``end``, in microseconds since the Unix epoch.

    Raises:
        ValueError: it ends before it begins, or is empty.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"the range {self} has no time in it")

    @classmethod
    def between(cls, start: Moment, end: Moment) -> TimeRange:
        """Return the range of times from ``start`` until before ``end``.

        Raises:
            ValueError: one is no time, or the end is not after the start.
        """
        low, high = utc_moment(start, "the start of the range"), utc_moment(end, "the end of the range")
        if high <= low:
            raise ValueError(f"the range ends at {end}, which is not after its start, {start}")
        return cls(to_micros(low), to_micros(high))

    def __str__(self) -> str:
        return f"{from_micros(self.start).isoformat()} … {from_micros(self.end).isoformat()}"


class Granularity(StrEnum):
    """How long a window is."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"

    @property
    def key_format(self) -> str:
        """The strftime format of a partition key; sorts as text in time order, safe in paths and URLs."""
        return _KEY_FORMATS[self]


_KEY_FORMATS = {
    Granularity.HOUR: "%Y-%m-%dT%H",
    Granularity.DAY: "%Y-%m-%d",
    Granularity.MONTH: "%Y-%m",
}
_KEY_LENGTHS = {
    Granularity.HOUR: len("2026-11-23T05"),
    Granularity.DAY: len("2026-11-23"),
    Granularity.MONTH: len("2026-11"),
}


@dataclass(frozen=True, order=True)
class Window:
    """One window: ``start`` is inclusive, ``end`` exclusive, both aware UTC.

    Example:
        >>> Window.containing(datetime(2013, 1, 1, 5, 37, tzinfo=UTC), Granularity.HOUR).key
        '2013-01-01T05'
    """

    start: datetime
    granularity: Granularity

    @classmethod
    def containing(cls, moment: datetime, granularity: Granularity) -> Window:
        """Return the window in which ``moment`` (naive = UTC) falls."""
        utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        start = utc.replace(minute=0, second=0, microsecond=0)
        if granularity is not Granularity.HOUR:
            start = start.replace(hour=0)
        if granularity is Granularity.MONTH:
            start = start.replace(day=1)
        return cls(start, granularity)

    @classmethod
    def from_start_micros(cls, micros: int, granularity: Granularity) -> Window:
        """Return the window that starts ``micros`` microseconds after the epoch.

        Raises:
            ValueError: no window of this granularity starts there.
        """
        window = cls.containing(from_micros(micros), granularity)
        if window.start_micros != micros:
            raise ValueError(f"{from_micros(micros).isoformat()} is not the start of a window of one {granularity}")
        return window

    @classmethod
    def from_key(cls, key: str, granularity: Granularity) -> Window:
        """Return the window named ``key``.

        Raises:
            ValueError: ``key`` does not name a window of this granularity.
        """
        try:
            start = datetime.strptime(key, granularity.key_format).replace(tzinfo=UTC)
        except ValueError:
            start = None
        if start is None or cls(start, granularity).key != key:
            example = cls.containing(datetime(2026, 11, 23, 5, tzinfo=UTC), granularity).key
            raise ValueError(f"{key!r} is no key of a window of one {granularity}; such a key looks like {example!r}")
        return cls(start, granularity)

    @classmethod
    def of_partition(cls, key: str | None, granularity: Granularity) -> Window | None:
        """Return the window of a partition of a table; None for one that only another program can have made."""
        try:
            return None if key is None else cls.from_key(key, granularity)
        except ValueError:
            return None

    @property
    def key(self) -> str:
        """The window's name and Dagster partition key."""
        # strftime writes the year 24 with two digits.
        return self.start.isoformat()[: _KEY_LENGTHS[self.granularity]]

    @property
    def end(self) -> datetime:
        """The first moment after the window."""
        if self.granularity is Granularity.HOUR:
            return self.start + timedelta(hours=1)
        if self.granularity is Granularity.DAY:
            return self.start + timedelta(days=1)
        return (self.start + timedelta(days=32)).replace(day=1)

    @property
    def start_micros(self) -> int:
        """``start`` in microseconds since the Unix epoch."""
        return to_micros(self.start)

    @property
    def end_micros(self) -> int:
        """``end`` in microseconds since the Unix epoch."""
        return to_micros(self.end)

    def next(self) -> Window:
        """Return the window that follows."""
        return Window(self.end, self.granularity)


def windows_between(first: Window, last: Window) -> Iterator[Window]:
    """Yield every window from ``first`` to ``last``, both included."""
    window = first
    while window <= last:
        yield window
        window = window.next()


@dataclass(frozen=True)
class WindowRange:
    """The windows ``first … last``, both included; None is unbounded.

    Raises:
        ValueError: the last one is before the first one.
    """

    first: Window | None = None
    last: Window | None = None

    def __post_init__(self) -> None:
        if self.first is not None and self.last is not None and self.last < self.first:
            raise ValueError(f"the last window {self.last.key} is before the first window {self.first.key}")

    def __contains__(self, window: Window) -> bool:
        """Whether a window is one of them."""
        return (self.first is None or self.first <= window) and (self.last is None or window <= self.last)

    @property
    def starts(self) -> tuple[int | None, int | None]:
        """When the first and the last one start, in microseconds since the Unix epoch."""
        return (
            None if self.first is None else self.first.start_micros,
            None if self.last is None else self.last.start_micros,
        )


EVERY_WINDOW = WindowRange()

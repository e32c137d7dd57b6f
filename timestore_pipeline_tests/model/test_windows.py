"""Windows: every moment lies in exactly one, and their keys name them in time order."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.model.windows import Granularity, Window, from_micros, to_micros, windows_between

granularities = st.sampled_from(Granularity)
# From 1000 on, because years of fewer digits have no key that sorts; to 9998, because a window has an end.
moments = st.datetimes(
    datetime(1000, 1, 1),  # noqa: DTZ001  the zone is given apart
    datetime(9998, 12, 31),  # noqa: DTZ001
    timezones=st.just(UTC),
)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(moments, granularities)
def test_every_moment_lies_in_its_window(moment: datetime, granularity: Granularity):
    window = Window.containing(moment, granularity)

    assert window.start <= moment < window.end


@given(moments, granularities, offsets)
def test_a_moment_has_one_window_however_it_is_written(moment: datetime, granularity: Granularity, zone: timezone):
    window = Window.containing(moment, granularity)

    assert Window.containing(moment.astimezone(zone), granularity) == window
    assert Window.containing(moment.replace(tzinfo=None), granularity) == window


@given(moments, granularities)
def test_a_window_is_found_by_its_key_and_by_its_start(moment: datetime, granularity: Granularity):
    window = Window.containing(moment, granularity)

    assert Window.from_key(window.key, granularity) == window
    assert Window.from_start_micros(window.start_micros, granularity) == window


@given(moments, moments, granularities)
def test_keys_sort_in_time_order(one: datetime, other: datetime, granularity: Granularity):
    earlier, later = sorted([Window.containing(one, granularity), Window.containing(other, granularity)])

    assert earlier.key <= later.key
    assert (earlier.key == later.key) == (earlier == later)


@given(moments, granularities)
def test_the_next_window_starts_where_this_one_ends(moment: datetime, granularity: Granularity):
    window = Window.containing(moment, granularity)

    assert window.next().start == window.end
    assert window.next().start_micros == window.end_micros
    assert Window.containing(window.end - timedelta(microseconds=1), granularity) == window


@given(moments, granularities, st.integers(0, 40))
def test_windows_between_are_contiguous(moment: datetime, granularity: Granularity, count: int):
    first = last = Window.containing(moment.replace(year=2000, day=1), granularity)
    for _ in range(count):
        last = last.next()

    between = list(windows_between(first, last))

    assert between[0] == first
    assert between[-1] == last
    assert all(one.end == other.start for one, other in pairwise(between))
    assert len(between) == count + 1


def test_no_window_is_between_a_later_and_an_earlier_one():
    window = Window.from_key("2013-01-02", Granularity.DAY)

    assert list(windows_between(window.next(), window)) == []


@given(moments)
def test_microseconds_round_trip(moment: datetime):
    assert from_micros(to_micros(moment)) == moment


@pytest.mark.parametrize(
    ("granularity", "key", "end"),
    [
        (Granularity.HOUR, "2013-12-31T23", datetime(2014, 1, 1, tzinfo=UTC)),
        (Granularity.DAY, "2012-02-28", datetime(2012, 2, 29, tzinfo=UTC)),
        (Granularity.MONTH, "2013-12", datetime(2014, 1, 1, tzinfo=UTC)),
        (Granularity.MONTH, "2012-02", datetime(2012, 3, 1, tzinfo=UTC)),
    ],
)
def test_where_windows_end(granularity: Granularity, key: str, end: datetime):
    assert Window.from_key(key, granularity).end == end


@pytest.mark.parametrize(
    ("granularity", "key"),
    [
        (Granularity.HOUR, "2013-01-01"),
        (Granularity.HOUR, "2013-01-01T24"),
        (Granularity.HOUR, "2013-01-01T5"),
        (Granularity.DAY, "2013-1-1"),
        (Granularity.DAY, "2013-02-29"),
        (Granularity.DAY, " 2013-01-01"),
        (Granularity.DAY, ""),
        (Granularity.MONTH, "2013-13"),
        (Granularity.MONTH, "2013-01-01"),
    ],
)
def test_what_is_no_key_is_refused_with_an_example(granularity: Granularity, key: str):
    with pytest.raises(ValueError, match=rf"window of one {granularity}; such a key looks like '2026-11"):
        Window.from_key(key, granularity)


@given(st.text(max_size=15), granularities)
def test_any_text_is_a_key_or_refused(text: str, granularity: Granularity):
    with contextlib.suppress(ValueError):
        assert Window.from_key(text, granularity).key == text


def test_a_time_within_a_window_is_no_start():
    with pytest.raises(ValueError, match="not the start of a window of one hour"):
        Window.from_start_micros(to_micros(datetime(2013, 1, 1, 5, 37, tzinfo=UTC)), Granularity.HOUR)

"""Windows and Dagster's partitions are the same thing under the same names."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timestore_pipeline.datasets import DatasetSpec, TimeSpec
from timestore_pipeline.model.windows import Granularity, Window
from timestore_pipeline.orchestration.keys import partition_key, partitions_definition
from timestore_pipeline_tests.sampling import examples

granularities = st.sampled_from(Granularity)
seconds = st.floats(datetime(2000, 1, 1, tzinfo=UTC).timestamp(), datetime(2026, 10, 31, tzinfo=UTC).timestamp())
moments = seconds.map(lambda second: datetime.fromtimestamp(second, UTC))


def spec_of(granularity: Granularity, start: date = date(2000, 1, 1)) -> DatasetSpec:
    return DatasetSpec(name="trades", time=TimeSpec(column="ts"), window=granularity, start=start)


@settings(deadline=None)
@given(granularities, moments)
def test_keys_and_ranges_of_windows_are_those_of_dagster(granularity: Granularity, moment: datetime):
    definition = partitions_definition(spec_of(granularity))
    window = Window.containing(moment, granularity)

    dagsters = definition.time_window_for_partition_key(window.key)

    assert definition.get_partition_key_for_timestamp(moment.timestamp()) == window.key
    assert (dagsters.start, dagsters.end) == (window.start, window.end)
    assert partition_key(definition, window) == window.key
    assert definition.has_partition_key(window.key)


@settings(deadline=None, max_examples=examples(30))
@given(granularities, st.dates(date(2000, 1, 1), date(2026, 10, 31)))
def test_the_first_partition_is_the_window_of_the_start(granularity: Granularity, start: date):
    spec = spec_of(granularity, start)

    assert partitions_definition(spec).get_first_partition_key() == spec.first_window.key


@pytest.mark.parametrize("granularity", Granularity)
def test_the_window_that_is_not_over_yet_is_the_last_partition(granularity: Granularity):
    now = datetime.now(UTC)

    last = partitions_definition(spec_of(granularity)).get_last_partition_key()

    assert last in {Window.containing(moment, granularity).key for moment in (now, now + timedelta(seconds=5))}


@pytest.mark.parametrize("granularity", Granularity)
def test_windows_that_dagster_does_not_list_have_the_key_that_they_will_have(granularity: Granularity):
    definition = partitions_definition(spec_of(granularity, date(2020, 1, 1)))
    future = Window.containing(datetime.now(UTC) + timedelta(days=70), granularity)

    assert partition_key(definition, future) == future.key


def test_datasets_of_equal_granularity_and_start_share_a_definition():
    one, other = partitions_definition(spec_of(Granularity.HOUR)), partitions_definition(spec_of(Granularity.HOUR))

    assert one == other
    assert isinstance(one, dg.TimeWindowPartitionsDefinition)
    assert one != partitions_definition(spec_of(Granularity.HOUR, date(2013, 1, 1)))

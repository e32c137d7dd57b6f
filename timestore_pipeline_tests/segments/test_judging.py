"""What is known of a batch's times without reading its rows back is what reading them back would say."""

from __future__ import annotations

from datetime import date

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.datasets import DatasetSpec, LatePolicy
from timestore_pipeline.model.columns import BATCH_COLUMN, Column
from timestore_pipeline.segments.judging import Judge, batch_times

_HOUR = 3_600_000_000
_START = 1_767_225_600_000_000
_ZONED = Column("ts", "TIMESTAMP WITH TIME ZONE")
_LARGEST = 2**63 - 1


def judge_of(late: LatePolicy, type_: str) -> Judge:
    spec = DatasetSpec.model_validate(
        {"name": "d", "time": {"column": "ts"}, "window": "hour", "start": date(2026, 1, 1), "late": late.value}
        | ({"lateness": "1h"} if late is not LatePolicy.ACCEPT else {})
    )
    now = _START + 6 * _HOUR
    first_open = None if late is LatePolicy.ACCEPT else _START + 4 * _HOUR
    return Judge(spec, Column("ts", type_), now, now + _HOUR, first_open)


moments = st.one_of(
    st.integers(_START + 4 * _HOUR, _START + 7 * _HOUR),
    st.integers(_START + 5 * _HOUR, _START + 5 * _HOUR + 5),
    st.sampled_from([_START - 1, _START, _START + 7 * _HOUR + 1, _START + 5 * _HOUR - 1, _LARGEST, -_LARGEST]),
)


@pytest.mark.long
@given(
    st.lists(st.lists(moments, min_size=1, max_size=5), min_size=1, max_size=4),
    st.sampled_from(LatePolicy),
    st.sampled_from([None, "UTC", "America/New_York"]),
)
def test_times_by_their_arrow_values_are_judged_as_those_of_the_rows(
    batches: list[list[int]], late: LatePolicy, zone: str | None
):
    judge = judge_of(late, "TIMESTAMP" if zone is None else "TIMESTAMP WITH TIME ZONE")
    tables = [pa.table({"ts": pa.array(batch, pa.int64()).cast(pa.timestamp("us", zone))}) for batch in batches]
    times = [batch_times(table, judge.time) for table in tables]
    known = [each for each in times if each is not None]
    assert len(known) == len(tables)
    numbers = pa.array([number for number, batch in enumerate(batches) for _ in batch], pa.int32())
    rows = pa.concat_tables(tables).append_column(BATCH_COLUMN, numbers)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("incoming", rows)
        connection.execute("CREATE TABLE staged AS FROM incoming")
        looked, told = judge.look(connection, "staged"), judge.look(connection, "staged", known)
    assert sorted(looked.groups, key=str) == sorted(told.groups, key=str)
    assert {number: set(parts) for number, parts in looked.refused.items()} == {
        number: set(parts) for number, parts in told.refused.items()
    }
    assert looked.dropped == told.dropped


@pytest.mark.parametrize(
    ("values", "column"),
    [
        (pa.array([_START, None], pa.timestamp("us", "UTC")), _ZONED),
        (pa.array([], pa.timestamp("us", "UTC")), _ZONED),
        (pa.array([1_767_225_600_000], pa.timestamp("ms", "UTC")), _ZONED),
        (pa.array([_START], pa.timestamp("us")), _ZONED),
        (pa.array([_START], pa.timestamp("us", "UTC")), Column("ts", "DATE")),
        (pa.array(["2026-01-01T00:00:00Z"]), _ZONED),
    ],
)
def test_what_a_cast_may_change_or_is_null_is_looked_at_in_the_segment(values: pa.Array, column: Column):
    assert batch_times(pa.table({"ts": values}), column) is None

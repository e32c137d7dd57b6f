"""Older versions of a table are read with the columns of now: what came later is null in them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from timestore_pipeline.staging.stage import stage
from timestore_pipeline.timestore import Timestore
from timestore_pipeline_tests.builders import NEW_YEAR, build, hourly
from timestore_pipeline_tests.conftest import DATASETS_YAML, MakeStore

GROWN = DATASETS_YAML.replace("temp: double}", "temp: double, gust: double, more: varchar}")
KEYED = "time: ts\n    key: {columns: [ts]}"


@pytest.mark.long
@pytest.mark.parametrize("key", [False, True], ids=["appended", "keyed"])
@pytest.mark.parametrize("grown", [GROWN, GROWN.replace("temp: double", "temp: double, day: date")], ids=["one", "two"])
def test_a_column_that_came_later_is_null_in_every_range_of_every_version(make_store: MakeStore, key: bool, grown: str):
    before, after = (text.replace("time: ts\n", f"{KEYED}\n", 1) if key else text for text in (DATASETS_YAML, grown))
    store = make_store(before)
    stage(store, "weather", hourly(2))
    old = build(store).table_version
    store = make_store(after)
    later = hourly(2, start=NEW_YEAR + timedelta(days=1))
    stage(store, "weather", later.append_column("gust", pa.array([7.0, 8.0])))
    new = build(store).table_version

    def gusts(version: int, start: datetime | None = None, end: datetime | None = None, **more: Any) -> list[Any]:
        rows = Timestore(store).as_of(version=version).read("weather", start, end, **more).to_arrow()
        return sorted(rows["gust"].to_pylist(), key=repr)

    first_day = NEW_YEAR + timedelta(days=1)
    assert gusts(old) == [None, None]
    assert gusts(old, NEW_YEAR, first_day) == [None, None]
    assert gusts(old, first_day) == []
    assert gusts(new) == [7.0, 8.0, None, None]
    assert gusts(new, NEW_YEAR, first_day) == [None, None]
    assert gusts(new, end=first_day, columns=["gust"]) == [None, None]
    assert gusts(new, first_day) == [7.0, 8.0]
    assert gusts(old, filter="gust IS NULL AND more IS NULL") == [None, None]
    assert gusts(old, filter="gust > 1") == []
    assert Timestore(store).as_of(version=old).sql("SELECT count(gust), count(*) FROM weather").fetchall() == [(0, 2)]
    assert Timestore(store).read("weather", NEW_YEAR, first_day).to_arrow()["gust"].to_pylist() == [None, None]

"""Whatever speaks Arrow can be staged, by whichever library; what does not is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from timestore_pipeline.errors import BatchRejected, NoFrame
from timestore_pipeline.staging.frames import table_fingerprint
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import NEW_YEAR, hourly, readable, rows_of, weather


class OnlyTheInterface:
    """A stream of some library that pyarrow has never heard of."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def in_pandas(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas()


def in_duckdb(table: pa.Table) -> duckdb.DuckDBPyRelation:
    return duckdb.connect().from_arrow(table)


FRAMES: dict[str, Callable[[pa.Table], Any]] = {
    "table": lambda table: table,
    "batch": lambda table: table.combine_chunks().to_batches()[0],
    "reader": lambda table: table.to_reader(max_chunksize=7),
    "pandas": in_pandas,
    "pandas, sorted": lambda table: in_pandas(table).sort_values("temp", ascending=False),
    "pandas, indexed by time": lambda table: in_pandas(table).set_index("ts"),
    "pandas, categories": lambda table: in_pandas(table).astype({"station": "category"}),
    "polars": pl.DataFrame,
    "polars, categories": lambda table: pl.DataFrame(table).with_columns(pl.col("station").cast(pl.Categorical)),
    "duckdb": in_duckdb,
    "the interface alone": OnlyTheInterface,
}  # fmt: skip


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_every_kind_of_frame_is_staged_with_all_its_rows(store: Store, frame: Callable[[pa.Table], Any]):
    table = hourly(30)

    first = stage(store, "weather", frame(table))
    again = stage(store, "weather", frame(table))

    assert (first.rows, first.duplicate) == (30, False)
    assert (again.rows, again.duplicate, again.batch_id) == (30, True, first.batch_id)
    assert again.windows == first.windows
    assert readable(store) == rows_of(table)


def test_nulls_and_numbers_that_are_none_of_pandas_arrive_as_such(store: Store):
    frame = pd.DataFrame({"ts": [NEW_YEAR, NEW_YEAR], "station": ["JFK", None], "temp": [np.nan, 1.5]})

    stage(store, "weather", frame)

    assert readable(store) == rows_of(weather((NEW_YEAR, "JFK", None), (NEW_YEAR, None, 1.5)))


@pytest.mark.parametrize("data", [[{"ts": NEW_YEAR}], {"ts": [NEW_YEAR]}, "weather.csv", None, pl.LazyFrame()])
def test_what_is_no_frame_is_refused_with_what_would_do(store: Store, data: Any):
    with pytest.raises(NoFrame, match=r"cannot be staged\. Give a pyarrow Table") as caught:
        stage(store, "weather", data)

    assert isinstance(caught.value, TypeError)
    assert readable(store) == []


def test_a_frame_that_breaks_off_while_it_is_read_is_refused_whole(store: Store):
    def batches():
        yield hourly(3).to_batches()[0]
        raise ValueError("the source went away")

    with pytest.raises(BatchRejected, match="the source went away"):
        stage(store, "weather", pa.RecordBatchReader.from_batches(hourly(1).schema, batches()))

    assert readable(store) == []


def test_a_frame_with_objects_in_it_is_refused_by_column(store: Store):
    frame = pd.DataFrame({"ts": [NEW_YEAR], "station": [object()], "temp": [1.0]})

    with pytest.raises(BatchRejected, match="station"):
        stage(store, "weather", frame)


def test_the_same_text_has_one_fingerprint_however_a_view_lies_in_memory():
    texts = ["a", "a text that is too long to lie in the view itself", None]
    views = pl.Series("s", texts).to_frame()
    taken = pl.Series("s", ["something else that is long enough", *texts]).to_frame().slice(1)

    assert pa.types.is_string_view(pa.table(views).schema.field("s").type)
    assert table_fingerprint(pa.table(views)) == table_fingerprint(pa.table(taken))

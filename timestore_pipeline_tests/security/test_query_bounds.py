"""A user's SQL takes no more time and disk than the settings give it, and shows nothing of what it is made of."""

from __future__ import annotations

from collections import namedtuple

import pytest

from timestore_pipeline.cli.sql_command import OutputFormat, print_query
from timestore_pipeline.errors import QueryError
from timestore_pipeline.reading import queries
from timestore_pipeline.reading.queries import query_bounds
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.segments.slices import MOST_ATTACHED
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly
from timestore_pipeline_tests.conftest import MakeStore

Disk = namedtuple("Disk", "total used free")


@pytest.mark.long
def test_of_the_scratch_table_for_many_segments_nothing_is_to_be_seen(store: Store):
    for number in range(MOST_ATTACHED + 1):
        stage(store, "weather", hourly(1, station=f"S{number}"))

    assert query_rows(store, "SHOW TABLES -- weather").to_arrow().to_pydict() == {"name": ["weather"]}
    assert query_rows(store, "SELECT count(*) AS rows FROM weather").to_arrow().to_pydict() == {
        "rows": [MOST_ATTACHED + 1]
    }


ENDLESS = [
    "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "SELECT count(*) FROM range(1000000) AS a, range(1000000) AS b WHERE a.range * b.range % 7 = 8",
]


@pytest.mark.long
@pytest.mark.parametrize("sql", ENDLESS)
def test_a_query_that_does_not_end_is_ended(make_store: MakeStore, sql: str):
    store = make_store(query_max_seconds=0.2)
    for ask in (
        lambda: query_rows(store, sql).to_arrow(),
        lambda: query_rows(store, sql).to_arrow(),
        lambda: list(query_rows(store, sql)),
        lambda: print_query(store, sql, OutputFormat.CSV, None),
    ):
        with pytest.raises(QueryError, match=r"longer than 0\.2 s.*TIMESTORE_QUERY_MAX_SECONDS"):
            ask()


LARGE_SORT = "SELECT * FROM (SELECT range, random() AS r, uuid() AS u, uuid() AS v FROM range(600_000)) ORDER BY r"


def test_a_query_that_spills_is_bounded(make_store: MakeStore):
    store = make_store(query_max_spill_bytes=1 << 20, duckdb_memory_limit="24MiB", duckdb_threads=1)

    with pytest.raises(QueryError, match="TIMESTORE_QUERY_MAX_SPILL_BYTES"):
        query_rows(store, LARGE_SORT).to_arrow()
    stage(store, "weather", hourly(1))


@pytest.mark.long
def test_a_query_finds_the_folder_to_spill_to_gone(make_store: MakeStore):
    store = make_store(duckdb_memory_limit="24MiB", duckdb_threads=1)
    store.settings.temp_path.rmdir()

    assert query_rows(store, "SELECT 1 AS one").to_arrow().to_pydict() == {"one": [1]}
    assert query_rows(store, LARGE_SORT).to_arrow().num_rows == 600_000


def test_a_query_leaves_staging_its_disk(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch):
    store = make_store(staging_min_free_disk_bytes=1 << 30, query_max_spill_bytes=0)
    for free, left in ((5 << 30, 2 << 30), (1 << 30, 0), (0, 0)):
        monkeypatch.setattr(queries, "disk_usage", lambda path, free=free: Disk(0, 0, free))
        assert query_bounds(store.settings).spill_bytes == left
    monkeypatch.setattr(queries, "disk_usage", lambda path: Disk(0, 0, 5 << 30))
    assert query_bounds(make_store(query_max_spill_bytes=1 << 20).settings).spill_bytes == 1 << 20
    assert query_rows(store, "SELECT 1 AS one").to_arrow().to_pydict() == {"one": [1]}

"""A code location of one's own: it stages readings, and computes daily means of those that are staged and published.

All that it knows of timestore is the IO manager. Where the installation is, TIMESTORE_HOME says.
"""

import math
from datetime import timedelta

import dagster as dg
import duckdb
import pyarrow as pa

from timestore_pipeline.orchestration.io_manager import timestore_io_manager

days = dg.DailyPartitionsDefinition("2026-01-01", end_offset=1)


# What it returns is staged: one batch per partition and run. The dataset is the last part of the key, or what the
# metadata "timestore/dataset" says.
@dg.asset(key=["stations", "readings"], partitions_def=days, io_manager_key="timestore")
def readings(context: dg.AssetExecutionContext) -> pa.Table:
    """Readings of two stations, one a minute, as if fetched from an interface for the day of the partition."""
    minutes = range(24 * 60)
    start = context.partition_time_window.start
    return pa.table(
        {
            "time": [start + timedelta(minutes=minute) for minute in minutes for _ in "NS"],
            "station": [name for _ in minutes for name in ("north", "south")],
            "celsius": [base - 8 * math.cos(minute / 720 * math.pi) for minute in minutes for base in (4.0, 14.0)],
        }
    )


# The table of the dataset, which the code location of timestore itself publishes: named to stand upstream of ours.
published = dg.AssetSpec(["partitions", "readings"])


# What it takes are the rows of its own partition, whether they are published yet or still staged: here as a relation,
# in which DuckDB computes without loading them.
@dg.asset(
    key=["reports", "daily_means"],
    ins={"readings": dg.AssetIn(["partitions", "readings"], input_manager_key="timestore")},
    deps=[readings],
    partitions_def=days,
    io_manager_key="timestore",
)
def daily_means(readings: duckdb.DuckDBPyRelation) -> pa.Table:
    """Mean, lowest and highest temperature of each station and day."""
    return readings.aggregate(
        "CAST(time AS DATE) AS day, station, avg(celsius) AS mean, min(celsius) AS lowest, max(celsius) AS highest"
    ).to_arrow_table()


defs = dg.Definitions(assets=[readings, published, daily_means], resources={"timestore": timestore_io_manager()})

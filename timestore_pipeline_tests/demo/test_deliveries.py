"""Every format of the demo's files carries the same rows, and what is wrong on purpose is told apart."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from pathlib import Path

import pytest

from examples.demo.deliveries import Fate, plan_deliveries
from examples.demo.source import Source
from timestore_pipeline.datasets import load_datasets
from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.staging.ingest import ingest_files
from timestore_pipeline_tests.conftest import MakeStore

DATASETS_FILE = Path(__file__).parents[2] / "datasets.yaml"
HEADER = "origin,year,month,day,hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour"
DAYS = 10


def source() -> Source:
    """Two rows a day from one station, the same in all but the day."""
    lines = {}
    for day in (date(2013, 1, 1) + timedelta(days=number) for number in range(DAYS)):
        lines[day, "EWR"] = [
            f"EWR,2013,1,{day.day},{hour},39.02,26.06,59.37,270,10.357019999999999,NA,0,1012,10,{day}T{hour + 5}:00:00Z"
            for hour in (5, 6)
        ]
    return Source("weather", Path("weather.csv"), HEADER, lines)


@pytest.mark.long
def test_every_file_meets_its_fate_and_all_formats_carry_the_same(make_store: MakeStore):
    store = make_store(DATASETS_FILE.read_text())
    deliveries = plan_deliveries({"weather": source()}, load_datasets(DATASETS_FILE))
    folder = store.settings.landing_path / "weather"
    folder.mkdir(parents=True)
    for delivery in deliveries:
        (folder / delivery.name).write_bytes(delivery.content())

    report = ingest_files(store, "weather", scan_landing(store).of("weather"))

    expected = Counter(delivery.fate for delivery in deliveries)
    assert expected[Fate.QUARANTINED] == 5
    assert (report.batches, report.duplicates) == (expected[Fate.STAGED], expected[Fate.DUPLICATE])
    assert sum(entry.rows is None for entry in report.quarantined) == expected[Fate.QUARANTINED]
    assert (report.rows, report.quarantined_rows) == (2 * DAYS, 3)
    endings = Counter(name[name.index(".") :] for name in (d.name for d in deliveries if d.fate is Fate.STAGED))
    assert set(endings) == {".csv", ".csv.gz", ".jsonl", ".parquet", ".arrow"}
    kinds = query_rows(
        store,
        "SELECT DISTINCT hour, temp, wind_dir, wind_speed, wind_gust, extract(hour FROM time_hour AT TIME ZONE 'UTC') "
        "FROM weather ORDER BY hour",
    ).to_arrow()
    assert [tuple(row.values()) for row in kinds.to_pylist()] == [
        (5, 39.02, 270, 10.357019999999999, None, 10),
        (6, 39.02, 270, 10.357019999999999, None, 11),
    ]

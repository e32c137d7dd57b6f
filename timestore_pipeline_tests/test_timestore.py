"""The facade: what a script needs, in the order in which it needs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from timestore_pipeline import Settings, Timestore
from timestore_pipeline.errors import QueryError, TableError, UnknownDataset
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import NEW_YEAR, build, files_under, hourly, rows_of, weather
from timestore_pipeline_tests.conftest import DATASETS_YAML
from timestore_pipeline_tests.forks import process_pool


@pytest.fixture
def timestore(home: Path, make_settings: Callable[..., Settings]) -> Iterator[Timestore]:
    (home / "datasets.yaml").write_text(DATASETS_YAML, encoding="utf-8")
    with Timestore.open(make_settings(staging_retention_seconds=0)) as opened:
        yield opened


def day(number: int) -> pa.Table:
    """The 24 rows of one window."""
    return hourly(24, start=NEW_YEAR + timedelta(days=number), station=f"D{number}")


def publish(timestore: Timestore) -> int:
    """Publish what is staged and forget the segments; the table's version."""
    version = build(timestore.store).table_version
    unlink_published_segments(timestore.store)
    return version


def test_what_is_staged_is_read_at_once_and_after_it_is_published(timestore: Timestore):
    receipt = timestore.stage("weather", day(0), batch_id="new-year")

    assert (receipt.batch_id, receipt.rows, receipt.duplicate, receipt.quarantined_rows) == ("new-year", 24, False, 0)
    assert [window.key for window in receipt.windows] == ["2026-01-01"]
    assert rows_of(timestore.read("weather").to_arrow()) == rows_of(day(0))
    publish(timestore)
    timestore.stage("weather", day(1))
    assert rows_of(timestore.read("weather").to_arrow()) == rows_of(day(0), day(1))


def test_rows_come_as_whatever_is_asked_for(timestore: Timestore):
    timestore.stage("weather", day(0))
    rows = timestore.read("weather", columns=["station", "temp"], filter="temp >= 22")
    expected = pa.table({"station": ["D0", "D0"], "temp": [22.0, 23.0]})

    assert rows.to_arrow().sort_by("temp") == expected
    assert pa.Table.from_batches(list(rows)).sort_by("temp") == expected
    assert rows.to_reader().read_all().sort_by("temp") == expected
    assert pa.table(rows).sort_by("temp") == expected
    assert rows.to_pandas().sort_values("temp")["temp"].tolist() == [22.0, 23.0]
    assert rows.to_polars().sort("temp").equals(pl.DataFrame(expected))
    assert pl.DataFrame(rows).sort("temp").equals(pl.DataFrame(expected))
    assert isinstance(rows.to_pandas(), pd.DataFrame)
    assert rows.relation.aggregate("count(*)").fetchall() == [(2,)]
    assert duckdb.connect().from_arrow(rows.to_reader()).aggregate("sum(temp)").fetchall() == [(45.0,)]


RANGES = [
    (datetime(2026, 1, 2, 5, tzinfo=UTC), datetime(2026, 1, 2, 7, tzinfo=UTC), 2),
    (datetime(2026, 1, 2, 5), datetime(2026, 1, 2, 7), 2),  # noqa: DTZ001 (naive means UTC)
    ("2026-01-02T05:00Z", "2026-01-02T07:00Z", 2),
    ("2026-01-02T07:00+02:00", "2026-01-02T07", 2),
    (date(2026, 1, 2), date(2026, 1, 3), 24),
    ("2026-01-02", None, 48),
    (None, "2026-01-02", 24),
    ("2026-01-03T23:00:00.000001Z", None, 0),
    ("2026-01-02", "2026-01-02", 0),
]


@pytest.mark.parametrize(("start", "end", "expected"), RANGES)
def test_a_range_has_its_start_and_not_its_end(timestore: Timestore, start: str, end: str, expected: int):
    timestore.stage("weather", pa.concat_tables([day(0), day(1)]))
    publish(timestore)
    timestore.stage("weather", day(2))

    assert timestore.read("weather", start, end).to_arrow().num_rows == expected


def test_sql_knows_every_dataset_and_gives_a_relation(timestore: Timestore):
    timestore.stage("weather", day(0))
    timestore.stage("events", pa.table({"at": [1_767_225_600_000], "name": ["D0"]}))

    relation = timestore.sql("SELECT name, max(temp) FROM weather JOIN events ON name = station GROUP BY name")

    assert isinstance(relation, duckdb.DuckDBPyRelation)
    assert relation.fetchall() == [("D0", 23.0)]
    assert timestore.sql("FROM weather").filter("temp < 2").count("*").fetchall() == [(2,)]


WRONG = {
    "column": (lambda t: t.read("weather", columns=["wind"]), "no column 'wind'; its columns are ts, station, temp"),
    "filter": (lambda t: t.read("weather", filter="wind > 1"), "wind"),
    "half a filter": (lambda t: t.read("weather", filter="temp >"), "syntax error"),
    "time": (lambda t: t.read("weather", start="yesterday"), "start is 'yesterday'; give a time as ISO 8601"),
    "reversed": (lambda t: t.read("weather", "2026-01-02", "2026-01-01"), "end is 2026-01-01, which is before start"),
    "no columns yet": (lambda t: t.read("events"), "'events' has no columns yet"),
    "write": (lambda t: t.sql("DELETE FROM weather"), "only queries can be run"),
    "file": (lambda t: t.sql("SELECT * FROM read_csv('/etc/passwd')"), "read_csv cannot be used"),
    "time out of reach": (
        lambda t: t.read("weather", start="0001-01-01T00:00+14:00"),
        r"start is 0001-01-01T00:00:00\+14:00, which is no time of the years 1 to 9999",
    ),
    "no version": (lambda t: t.as_of(version=-1), "version is -1; a table version is a whole number"),
    "text for a version": (lambda t: t.as_of(version="1"), "version is '1'; a table version is a whole number"),
    "as_of": (lambda t: t.as_of(), "either a table version or a time"),
    "as_of twice": (lambda t: t.as_of(version=1, time="2026-01-01"), "either a table version or a time"),
}


@pytest.mark.parametrize(("question", "answer"), WRONG.values(), ids=WRONG)
def test_a_wrong_question_is_answered_in_words(
    timestore: Timestore, question: Callable[[Timestore], object], answer: str
):
    with pytest.raises(QueryError, match=answer):
        question(timestore)


def test_an_unknown_dataset_is_named_with_those_that_there_are(timestore: Timestore):
    with pytest.raises(UnknownDataset, match=r"'wether' is not declared\. Declared datasets: events, weather"):
        timestore.read("wether")


def test_a_comment_at_the_end_of_a_filter_hides_nothing(timestore: Timestore):
    timestore.stage("weather", day(0))

    assert timestore.read("weather", filter="temp = 3 -- the third").to_arrow().num_rows == 1


@pytest.mark.long
def test_files_and_segments_of_other_windows_are_not_opened(timestore: Timestore):
    """They are not even there: whoever opened one would fail."""
    for number in range(3):
        timestore.stage("weather", day(number))
    publish(timestore)
    for number in range(3, 6):
        timestore.stage("weather", day(number))
    wanted = timestore.stage("weather", day(6))
    _keep_only(timestore, "window_key=2026-01-02", str(wanted.segment_id))

    assert rows_of(timestore.read("weather", "2026-01-02", "2026-01-03").to_arrow()) == rows_of(day(1))
    assert rows_of(timestore.read("weather", "2026-01-07").to_arrow()) == rows_of(day(6))
    query = "SELECT count(*) FROM weather WHERE {}"
    for condition, expected in {
        "ts >= '2026-01-02' AND ts < '2026-01-03'": 24,
        "ts BETWEEN '2026-01-02' AND '2026-01-02 05:00'": 6,
        "ts = TIMESTAMPTZ '2026-01-02 07:00Z'": 1,
        "ts IN ('2026-01-02 07:00Z', '2026-01-07 07:00Z')": 2,
        "ts >= DATE '2026-01-07'": 24,
        "'2026-01-06T23:30:00Z'::TIMESTAMPTZ <= ts": 24,
        "ts >= '2026-01-01'::TIMESTAMPTZ + INTERVAL 6 DAYS": 24,
        "(ts >= '2026-01-02' AND ts < '2026-01-03' AND temp > 3) OR ts > '2026-01-07'": 43,
        "ts > now() - INTERVAL 1 HOUR": 0,
        "ts > current_timestamp - INTERVAL 1 HOUR": 0,
    }.items():
        assert timestore.sql(query.format(condition)).fetchall() == [(expected,)], condition


def test_files_whose_statistics_rule_a_filter_out_are_not_opened(timestore: Timestore):
    for number in range(3):
        timestore.stage("weather", day(number))
    publish(timestore)
    _keep_only(timestore, "window_key=2026-01-02")

    assert rows_of(timestore.read("weather", filter="station = 'D1'").to_arrow()) == rows_of(day(1))
    assert timestore.read("weather", filter="temp > 23.5 OR temp < -0.5").to_arrow().num_rows == 0


def _keep_only(timestore: Timestore, *parts: str) -> None:
    """Remove all data files whose paths have none of ``parts`` in them."""
    removed = 0
    for root in (timestore.store.table("weather").root, timestore.store.settings.staging_path / "weather"):
        for path in [*root.rglob("*.parquet"), *root.rglob("*.duckdb")]:
            if not any(part in str(path) for part in parts):
                path.unlink()
                removed += 1
    assert removed


@pytest.mark.long
def test_rows_are_those_of_the_moment_at_which_they_were_asked_for(timestore: Timestore):
    """A flush, another batch and retention come in between; the segments are gone when the rows are fetched."""
    expected = [day(number) for number in range(3)]
    for table in expected[:2]:
        timestore.stage("weather", table)
    publish(timestore)
    timestore.stage("weather", expected[2])
    lazy, relation = timestore.read("weather"), timestore.sql("SELECT count(*), sum(temp) FROM weather")
    reader = lazy.to_reader(batch_rows=10)
    first = reader.read_next_batch()

    timestore.stage("weather", day(3))
    publish(timestore)
    assert not [name for name in files_under(timestore.store.settings.staging_path / "weather") if "duckdb" in name]

    assert rows_of(pa.Table.from_batches([first, *reader])) == rows_of(*expected)
    assert rows_of(lazy.to_arrow()) == rows_of(*expected)
    assert relation.fetchall() == [(72, 3 * 276.0)]
    assert timestore.read("weather").to_arrow().num_rows == 96


@pytest.mark.long
def test_many_staged_segments_can_still_be_read_after_they_are_gone(timestore: Timestore):
    expected = [hourly(1, start=NEW_YEAR + timedelta(hours=number)) for number in range(50)]
    for table in expected:
        timestore.stage("weather", table)
    lazy = timestore.read("weather")
    publish(timestore)

    assert rows_of(lazy.to_arrow()) == rows_of(*expected)


def test_what_was_taken_can_be_read_when_the_installation_is_closed(home: Path, make_settings: Callable[..., Settings]):
    (home / "datasets.yaml").write_text(DATASETS_YAML, encoding="utf-8")
    with Timestore.open(make_settings()) as opened:
        opened.stage("weather", day(0))
        rows, relation = opened.read("weather"), opened.sql("SELECT count(*) FROM weather")

    assert rows_of(rows.to_arrow()) == rows_of(day(0))
    assert relation.fetchall() == [(24,)]


@pytest.mark.long
def test_the_published_part_can_be_read_as_it_was(timestore: Timestore):
    versions, times = [], []
    for number in range(3):
        timestore.stage("weather", day(number))
        versions.append(publish(timestore))
        times.append(datetime.now(UTC))
    timestore.stage("weather", day(3))

    for number in range(3):
        expected = rows_of(*(day(earlier) for earlier in range(number + 1)))
        assert rows_of(timestore.as_of(version=versions[number]).read("weather").to_arrow()) == expected
        assert rows_of(timestore.as_of(time=times[number]).read("weather").to_arrow()) == expected
        counted = timestore.as_of(time=times[number].isoformat()).sql("SELECT count(*) FROM weather")
        assert counted.fetchall() == [(24 * (number + 1),)]
    later = timestore.as_of(time=datetime.now(UTC) + timedelta(days=1)).read("weather", "2026-01-03")
    assert rows_of(later.to_arrow()) == rows_of(day(2))


def test_a_past_that_there_is_not_says_so(timestore: Timestore):
    timestore.stage("weather", day(0))
    with pytest.raises(TableError, match="there is no table version 1; it has no table yet"):
        timestore.as_of(version=1).read("weather")
    assert timestore.as_of(time="2026-01-01").read("weather").to_arrow().num_rows == 0

    latest = publish(timestore)

    with pytest.raises(TableError, match=f"there is no table version {latest + 1}; the latest is {latest}"):
        timestore.as_of(version=latest + 1).read("weather")


def test_refused_rows_are_counted_on_the_receipt(timestore: Timestore):
    receipt = timestore.stage("weather", weather((None, "A", 1.0), (NEW_YEAR, "B", 2.0)))

    assert (receipt.rows, receipt.quarantined_rows) == (1, 1)


@pytest.mark.process
def test_the_package_gives_the_facade_and_loads_neither_dagster_nor_frames_for_it(home: Path):
    (home / "datasets.yaml").write_text(DATASETS_YAML, encoding="utf-8")
    program = (
        "import sys, timestore_pipeline; assert 'duckdb' not in sys.modules;"
        "from pathlib import Path; from timestore_pipeline import Receipt, Settings, Timestore, TimestoreError;"
        "Timestore.open(Settings(home=Path(sys.argv[1]))).close();"
        "print(sorted({'dagster', 'pandas', 'polars', 'alembic'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", program, str(home)], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "['alembic']", "the first to open an installation creates its ledger"


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import timestore_pipeline

    with pytest.raises(AttributeError, match="no attribute 'Timestorm'"):
        _ = timestore_pipeline.Timestorm


def test_the_environment_describes_the_installation(store_environment: Callable[..., dict[str, str]]):
    store_environment()

    with Timestore.open() as opened:
        assert list(opened.datasets) == ["weather", "events"]
        assert isinstance(opened.store, Store)


@pytest.mark.process
def test_opening_an_installation_again_in_a_process_takes_nothing_from_who_has_it_open(timestore: Timestore):
    timestore.stage("weather", day(0))
    assert timestore.read("weather").to_arrow().num_rows == 24
    Timestore.open(timestore.store.settings).close()

    # Whoever closes the ledger last removes its log, but this process has it open still.
    with process_pool(1) as pool:
        pool.submit(_stage_in_another_process, timestore.store.settings).result()

    assert timestore.read("weather").to_arrow().num_rows == 48
    timestore.stage("weather", day(2))
    with Timestore.open(timestore.store.settings) as again:
        assert again.read("weather").to_arrow().num_rows == 72


def _stage_in_another_process(settings: Settings) -> None:
    with Timestore.open(settings) as another:
        another.stage("weather", day(1))

"""A user's SQL reads the datasets, and nothing else: no other files, no writing, no settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from timestore_pipeline.cli import main
from timestore_pipeline.errors import QueryError
from timestore_pipeline.reading.relations import open_reader, run_query
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, hourly, published, readable

SECRET = "outside,of\nall,folders\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Around the installation of all these tests: each makes sure that nothing in it has changed."""
    return tmp_path_factory.mktemp("queried")


@pytest.fixture
def home(folder: Path, ledger_kind: str) -> Path:
    (folder / "home").mkdir(exist_ok=True)
    return folder / "home"


@pytest.fixture
def places(store: Store, folder: Path) -> dict[str, str]:
    """What a query can name: folders, a published file, the ledger, a file outside; rows are published and staged."""
    outside = folder / "secret.csv"
    landing = store.settings.landing_path / "weather"
    if not outside.exists():
        stage(store, "weather", hourly(3))
        build(store)
        stage(store, "weather", hourly(3, station="LGA"))
        landing.mkdir(parents=True)
        (landing / "waiting.csv").write_text(SECRET)
        outside.write_text(SECRET)
    parquet = next(store.table("weather").root.rglob("*.parquet"))
    return {
        "outside": str(outside),
        "folder": str(folder),
        "landing": str(landing / "waiting.csv"),
        "ledger": str(store.settings.staging_path / "ledger.sqlite"),
        "parquet": str(parquet),
        "table": str(store.table("weather").root),
        "segments": str(store.segment_folders("weather")[0]),
    }


HARMLESS = [
    "SELECT count(*) FROM weather",
    "FROM weather",
    "WITH warm AS (SELECT * FROM weather WHERE temp > 1) SELECT station, avg(temp) FROM warm GROUP BY ALL",
    "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 3) FROM n",
    "SELECT * FROM weather UNION ALL BY NAME SELECT * FROM weather;",
    "FROM (PIVOT weather ON station IN ('JFK', 'LGA') USING max(temp) GROUP BY ts)",
    "VALUES (1), (2)",
    "SHOW TABLES",
    "DESCRIBE weather",
    "SUMMARIZE weather",
    "EXPLAIN SELECT * FROM weather",
    "explain analyze SELECT * FROM weather",
    "SELECT time_bucket(INTERVAL 6 HOURS, ts), last(temp ORDER BY ts) FROM weather GROUP BY ALL ORDER BY 1",
    "SELECT * FROM range(TIMESTAMP '2026-01-01', TIMESTAMP '2026-01-02', INTERVAL 1 HOUR)",
    "-- a comment\nSELECT unnest([1, 2])",
]


@pytest.mark.parametrize("sql", HARMLESS)
@pytest.mark.usefixtures("places")
def test_what_reads_is_run(store: Store, sql: str):
    run_query(store, sql)


WRITES = [
    "COPY (SELECT 1) TO '{outside}'",
    "COPY weather TO '{parquet}' (USE_TMP_FILE false)",
    "WITH x AS (COPY (SELECT 1) TO '{parquet}' (USE_TMP_FILE false)) SELECT * FROM weather",
    "WITH x AS (COPY (SELECT 1) TO '{table}/new.parquet') SELECT * FROM weather",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{parquet}' (USE_TMP_FILE false)",
    "/* */ EXPLAIN ANALYZE COPY (SELECT 1) TO '{parquet}' (USE_TMP_FILE false)",
    "EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '{parquet}' (USE_TMP_FILE false)) SELECT * FROM weather",
    "FROM query('WITH x AS (COPY (SELECT 1) TO ''{parquet}'' (USE_TMP_FILE false)) FROM x')",
    "FROM json_execute_serialized_sql(json_serialize_sql("
    "'WITH x AS (COPY (SELECT 1) TO ''{parquet}'' (USE_TMP_FILE false)) FROM x'))",
    "SELECT 1; COPY (SELECT 1) TO '{parquet}' (USE_TMP_FILE false)",
    "SELECT 1\0; COPY (SELECT 1) TO '{parquet}' (USE_TMP_FILE false)",
    "SELECT count(*) FROM weather; DROP VIEW weather",
    "ATTACH '{outside}.duckdb' AS other",
    "ATTACH '{segments}/new.duckdb' AS other",
    "ATTACH ':memory:' AS other",
    "EXPORT DATABASE '{table}'",
    "IMPORT DATABASE '{table}'",
    "CREATE TABLE weather2 AS FROM weather",
    "CREATE SECRET s (TYPE http, BEARER_TOKEN 'x')",
    "SET threads = 1",
    "SET lock_configuration = false",
    "RESET enable_external_access",
    "PRAGMA enable_profiling",
    "CALL enable_logging()",
    "SELECT * FROM enable_logging()",
    "SELECT * FROM force_checkpoint()",
    "INSTALL httpfs",
    "LOAD httpfs",
    "USE memory",
    "PREPARE p AS SELECT 1",
    "",
    " -- nothing",
]


@pytest.mark.parametrize("sql", WRITES)
def test_what_does_more_is_refused(store: Store, places: dict[str, str], sql: str):
    before = {path: path.read_bytes() for path in _all_files(Path(places["folder"])) if "ledger" not in path.name}
    rows = readable(store)

    with pytest.raises(QueryError):
        run_query(store, sql.format(**places) + ("" if "weather" in sql or not sql.strip() else " -- weather"))

    assert {path: path.read_bytes() for path in before} == before
    assert {path for path in _all_files(Path(places["folder"])) if "ledger" not in path.name} == set(before)
    assert readable(store) == rows
    assert len(published(store)) == 3


READS = [
    "SELECT * FROM read_csv('{outside}')",
    "SELECT * FROM '{outside}'",
    'SELECT * FROM "{outside}"',
    "SELECT * FROM read_text('{ledger}')",
    "SELECT * FROM '{ledger}'",
    "SELECT * FROM '{landing}'",
    "SELECT * FROM read_blob('{table}/../../staging/ledger.sqlite')",
    "SELECT * FROM glob('{folder}/**')",
    "SELECT * FROM sniff_csv('{outside}')",
    "SELECT * FROM parquet_metadata('{parquet}')",
    "SELECT (SELECT content FROM read_text('{outside}'))",
    "SELECT * FROM weather WHERE station IN (SELECT content FROM read_text('{outside}'))",
    "SUMMARIZE FROM read_csv('{outside}')",
    "DESCRIBE FROM read_csv('{outside}')",
    "FROM (PIVOT (FROM read_csv('{outside}')) ON of IN (1))",
    "SELECT * FROM store",
]


@pytest.mark.parametrize("sql", READS)
def test_other_files_and_variables_cannot_be_read(store: Store, places: dict[str, str], sql: str):
    with pytest.raises(QueryError) as refusal:
        run_query(store, f"{sql.format(**places)} -- weather")

    assert "all,folders" not in str(refusal.value)


@pytest.mark.parametrize("sql", [WRITES[0], WRITES[2], READS[0], READS[3]])
def test_the_command_refuses_the_same(
    store: Store, places: dict[str, str], sql: str, store_environment, capsys: pytest.CaptureFixture[str]
):
    store_environment()

    assert main(["sql", sql.format(**places)]) != 0

    said = capsys.readouterr()
    assert "all,folders" not in said.out + said.err
    assert "Traceback" not in said.err
    assert len(published(store)) == 3


def test_a_reader_for_code_reaches_only_the_files_of_its_datasets(store: Store, places: dict[str, str]):
    with open_reader(store, ["weather"]) as connection:
        for sql in (*READS[:9], "COPY (SELECT 1) TO '{outside}'", "ATTACH '{outside}.duckdb' AS other"):
            with pytest.raises(Exception, match=r"Permission Error|Catalog Error"):
                connection.execute(sql.format(**places))
        with pytest.raises(Exception, match="has been locked"):
            connection.execute("SET threads = 1")


def _all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]

"""A user's SQL reads the datasets, and nothing else: no other files, no writing, no settings."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from timestore_pipeline.cli import main
from timestore_pipeline.errors import QueryError
from timestore_pipeline.reading.queries import FUNCTIONS_REFUSED, TABLE_FUNCTIONS
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.timestore import Timestore
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    hourly,
    published,
    readable,
    weather,
)

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
        stage(store, "weather", weather((None, "refused", 1.0), (NEW_YEAR, "JFK", 2.0)))
        landing.mkdir(parents=True)
        (landing / "waiting.csv").write_text(SECRET)
        outside.write_text(SECRET)
    parquet = next(store.table("weather").root.rglob("*.parquet"))
    segments, set_aside = store.segment_folders("weather")
    staged = max(segments.glob("*.duckdb"))
    return {
        "segment": str(staged),
        "segment_id": staged.stem,
        "log": str(next(store.table("weather").root.rglob("*.json"))),
        "refused": str(next(set_aside.glob("*.parquet"))),
        "outside": str(outside),
        "folder": str(folder),
        "landing": str(landing / "waiting.csv"),
        "ledger": str(store.settings.staging_path / "ledger.sqlite"),
        "parquet": str(parquet),
        "table": str(store.table("weather").root),
        "segments": str(segments),
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
    "FROM memory.main.weather",
    "SELECT w.station FROM main.weather AS w JOIN weather USING (ts)",
    "WITH weather AS (SELECT 1 AS x) FROM weather",
    "WITH RECURSIVE n USING KEY (a) AS (SELECT 1 AS a, 2 AS b UNION SELECT a, b FROM recurring.n) FROM n",
    "SELECT function_name FROM duckdb_functions() LIMIT 1",
    "DESCRIBE SELECT station FROM weather",
    "SELECT histogram(temp) FROM weather",
    "TABLE weather",
    "UNPIVOT weather ON temp",
]


@pytest.mark.parametrize("sql", HARMLESS)
@pytest.mark.usefixtures("places")
def test_what_reads_is_run(store: Store, sql: str):
    query_rows(store, sql).to_arrow()


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
        query_rows(
            store, sql.format(**places) + ("" if "weather" in sql or not sql.strip() else " -- weather")
        ).to_arrow()

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
    # Files that the views need, and those beside them.
    "FROM '{segment}'",
    "FROM '{parquet}'",
    "FROM '{log}'",
    "FROM '{refused}'",
    'SELECT * FROM weather, "{parquet}"',
    "DESCRIBE '{refused}'",
    "SUMMARIZE '{refused}'",
    "FROM query_table('{refused}')",
    "FROM query_table(['weather', '{refused}'])",
    "FROM histogram('{refused}', station)",
    "FROM histogram_values('{refused}', station)",
    "FROM (PIVOT '{refused}' ON station IN ('x'))",
    "WITH x AS (FROM '{refused}') FROM x",
    """SELECT * FROM (WITH "{refused}" AS (SELECT 1) SELECT 2), "{refused}\"""",
    "SELECT (SELECT count(*) FROM '{refused}')",
    "EXPLAIN ANALYZE FROM '{refused}'",
    "FROM read_duckdb('{segment}')",
    # Segments that are attached, the catalog, settings.
    'FROM "{segment_id}".rows',
    'FROM "{segment_id}".main.rows',
    "FROM rows",
    "FROM duckdb_views()",
    "FROM duckdb_views",
    "FROM duckdb_tables()",
    "FROM duckdb_databases()",
    "FROM duckdb_columns()",
    "FROM duckdb_settings()",
    "FROM duckdb_temporary_files()",
    "FROM duckdb_external_file_cache()",
    "FROM pragma_storage_info('weather')",
    "FROM pragma_database_list",
    "FROM sqlite_master",
    "FROM information_schema.tables",
    "FROM pg_catalog.pg_views",
    "SHOW ALL TABLES",
    "SHOW DATABASES",
    "SHOW TABLES FROM memory",
    "SELECT pg_get_viewdef(1)",
    "SELECT current_setting('temp_directory')",
    "SELECT 'temp_directory'.current_setting()",
    "SELECT list_transform([1], lambda x: current_setting('temp_directory'))",
    "SELECT station FROM weather ORDER BY current_setting('temp_directory')",
]


@pytest.mark.parametrize("sql", READS)
def test_other_files_and_variables_cannot_be_read(store: Store, places: dict[str, str], sql: str):
    with pytest.raises(QueryError) as refusal:
        query_rows(store, f"{sql.format(**places)} -- weather").to_arrow()

    assert "all,folders" not in str(refusal.value)
    with pytest.raises(QueryError), Timestore(store) as timestore:
        timestore.sql(f"{sql.format(**places)} -- weather")


def test_every_macro_of_duckdb_that_looks_beyond_its_arguments_is_refused():
    """So that those of a later version are noticed."""
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT DISTINCT function_name, function_type FROM duckdb_functions() "
            "WHERE regexp_matches(macro_definition, '(?i)duckdb_|pragma_|query_table|current_setting')"
        ).fetchall()

    macros = {name for name, kind in found if kind == "macro"}
    assert macros - {"format_type"} <= FUNCTIONS_REFUSED  # which asks for the names of types alone
    assert not {name for name, kind in found if kind == "table_macro"} & TABLE_FUNCTIONS


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

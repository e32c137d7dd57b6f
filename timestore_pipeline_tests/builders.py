"""What tests build and look at, in the words of the design: batches in, rows staged, rows published, rows readable."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from sqlalchemy import Connection

from timestore_pipeline.building.flush import BuildReport, flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.landing.files import files_for_one_run, scan_landing
from timestore_pipeline.ledger.builds import Build, NewBuild
from timestore_pipeline.ledger.claims import Claim, Wanted, claim_build
from timestore_pipeline.ledger.states import BuildKind, BuildState
from timestore_pipeline.model.windows import WindowRange
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.ingest import IngestReport, ingest_files
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage.table_folder import has_table
from timestore_pipeline.store import Store
from timestore_pipeline_tests.forks import process_pool

T = TypeVar("T")
Rows = list[tuple[Any, ...]]

FORGING = "a\nERROR all is lost\rERROR\r\nERROR\x0bERROR\x85ERROR\u2028ERROR\x1b[1G\x1b[2KERROR.csv"
"""The name of a file that ends a line in every way, and goes on as another entry of a log would begin."""

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
NOBODY = 65_534

SEGMENT_HEADER_BYTES = 12_288
"""Where the blocks of a DuckDB file begin."""
SMALL_BLOCK_BYTES = 16_384
"""The size of a block in a small segment."""


def weather(*rows: tuple[datetime | None, str | None, float | None]) -> pa.Table:
    """A batch of ``weather``: (time, station, temp) each."""
    schema = pa.schema([("ts", pa.timestamp("us", "UTC")), ("station", pa.string()), ("temp", pa.float64())])
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def hourly(count: int, *, start: datetime = NEW_YEAR, station: str = "JFK") -> pa.Table:
    """A batch of ``weather``: one row an hour from ``start`` on, whose temperature is its number."""
    return weather(*((start + timedelta(hours=number), station, float(number)) for number in range(count)))


def declared(**besides: str) -> str:
    """A datasets file: each name has the columns of :func:`weather`, windows of a day, and what is said ``besides``."""
    weather = ("columns: {ts: timestamptz, station: varchar, temp: double}", "time: ts", "window: day")
    lines = (f"  {name}: {{{', '.join(filter(None, (*weather, more)))}}}\n" for name, more in besides.items())
    return "datasets:\n" + "".join(lines)


def weather_csv(*rows: str) -> str:
    """A CSV file of ``weather`` with a header; rows as they stand in the file."""
    return "".join(f"{line}\n" for line in ("ts,station,temp", *rows))


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """``table`` as the content of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def arrow_bytes(table: pa.Table, *, stream: bool = False) -> bytes:
    """``table`` as the content of an Arrow IPC file, or of a stream."""
    sink = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def ingest(store: Store) -> dict[str, IngestReport]:
    """Do what one ingest run does: stage all that lies in the landing folders."""
    shares = files_for_one_run(store, scan_landing(store))
    return {dataset: ingest_files(store, dataset, files) for dataset, files in shares.items()}


def build(store: Store, dataset: str = "weather", first: str | None = None, last: str | None = None) -> BuildReport:
    """Publish what is staged for the windows ``first … last`` (partition keys); something must be."""
    window = store.datasets[dataset].window_from_key
    report = flush_windows(
        store,
        BuildOrder(
            dataset, WindowRange(window(first) if first else None, window(last) if last else None), owner="the test"
        ),
    )
    assert report is not None
    return report


def publish(store: Store, *batches: pa.Table) -> None:
    """Stage each batch of ``weather``, and publish it by a build of its own."""
    for batch in batches:
        stage(store, "weather", batch)
        build(store)


def build_of(dataset: str, **said: Any) -> Build:
    """A build as the ledger has it: a flush of one batch that is published, but for what is ``said``."""
    return Build(
        **{
            "id": 1,
            "dataset": dataset,
            "sequence": 1,
            "lane": 0,
            "schema_version": 1,
            "owner": "the test",
            "kind": BuildKind.FLUSH,
            "trigger": "rows",
            "state": BuildState.PUBLISHED,
            "claimed_at": 0,
            "lease_expires_at": 0,
            "finished_at": 0,
            "first_window": 0,
            "last_window": 0,
            "batches": 1,
            "rows": 1,
            "bytes": 1,
            "files": 1,
            "table_version": 1,
            "error": None,
            **said,
        }
    )


def claim_slices(
    tx: Connection,
    new: NewBuild,
    first_window: int | None = None,
    last_window: int | None = None,
    *,
    least_rows: int | None = None,
) -> Claim | None:
    """Claim what a flush of the windows ``first_window … last_window`` (their starts) would claim."""
    return claim_build(tx, new, Wanted((first_window, last_window), least_rows=least_rows))


def readable(store: Store, dataset: str = "weather") -> Rows:
    """Every row of the dataset as the read API gives it, staged and published, in an order of its own."""
    with open_reader(store, [dataset]) as connection:
        return in_order(connection.execute(f'SELECT * FROM "{dataset}"').fetchall())


def published(store: Store, dataset: str = "weather") -> Rows:
    """Every row of the dataset's table as any reader of Delta tables sees it, in the order of :func:`readable`."""
    place = store.table(dataset)
    if not has_table(place):
        return []
    table = DeltaTable(place.location).to_pyarrow_table().drop_columns(["window_key"])
    return in_order(tuple(row.values()) for row in table.to_pylist())


def in_order(rows: Iterable[Sequence[Any]]) -> Rows:
    """Rows in one order whatever types and nulls they have, so that lists of them compare as multisets."""
    return sorted((tuple(row) for row in rows), key=repr)


def rows_of(*tables: pa.Table) -> Rows:
    """The rows of batches, in the order of :func:`readable`."""
    return in_order(tuple(row.values()) for table in tables for row in table.to_pylist())


def files_under(folder: Path) -> list[str]:
    """The names of all files under a folder, sorted, but for the marks of places; nothing where it is not there."""
    found = (path.name for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.startswith(".timestore-"))


def segment_file(store: Store, segment_id: str | None, dataset: str = "weather") -> Path:
    """The file of a staged segment."""
    return store.settings.staging_path / dataset / f"{segment_id}.duckdb"


def flip_byte(path: Path, offset: int) -> None:
    """Flip all bits of one byte of a file, as a bad disk might."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


def flip_row(store: Store, path: Path, row: int, column: str = "temp") -> None:
    """Damage the block of a segment that holds one value; the rows of other blocks stay readable."""
    with store.connect(path.parent) as connection:
        connection.execute(f"ATTACH '{path}' AS damaged (READ_ONLY)")
        found = connection.execute(
            "SELECT block_id FROM pragma_storage_info('damaged.rows') WHERE column_name = ? AND block_id >= 0 "
            "AND segment_type != 'VALIDITY' AND row_group_id * 122880 + start <= ? "
            "AND ? < row_group_id * 122880 + start + count",
            [column, row, row],
        ).fetchone()
    assert found is not None
    flip_byte(path, SEGMENT_HEADER_BYTES + found[0] * SMALL_BLOCK_BYTES + 1_000)


def lose_ledger(store: Store) -> None:
    """Close the store and do away with its ledger: the files of SQLite, all tables of PostgreSQL."""
    from sqlalchemy import create_engine, text

    from timestore_pipeline.ledger.engines import parse_ledger_url, sqlite_file
    from timestore_pipeline.ledger.schema import VERSION_TABLE, metadata

    store.close()
    url = parse_ledger_url(store.settings.resolved_ledger_url)
    file = sqlite_file(url)
    if file is not None:
        for path in file.parent.glob(f"{file.name}*"):
            path.unlink()
        return
    engine = create_engine(url)
    metadata.drop_all(engine)
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
    engine.dispose()


def counted(store: Store, metric: str, dataset: str = "weather") -> Mapping[str, float]:
    """The values of a counter of one dataset, by its label."""
    from timestore_pipeline.ledger.counters import counter_values

    with store.ledger.read() as tx:
        values = counter_values(tx)
    return {label: value for (name, of, label), value in values.items() if (name, of) == (metric, dataset)}


def unprivileged(scenario: Callable[[Store], T], datasets_yaml: str, **settings: Any) -> T:
    """Return what ``scenario`` returns for a store of its own, in a process that file permissions bind.

    Root may read anything, so where the tests run as root the scenario runs as nobody. It must be a function of a
    module, for another process to find it.
    """
    home = Path(tempfile.mkdtemp(prefix="timestore-unprivileged-"))
    try:
        (home / "datasets.yaml").write_text(datasets_yaml, encoding="utf-8")
        with process_pool(1) as pool:
            return pool.submit(_run_unprivileged, scenario, home, settings).result()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _run_unprivileged(scenario: Callable[[Store], T], home: Path, fields: dict[str, Any]) -> T:
    settings = Settings(home=home, staging_min_free_disk_bytes=0, **fields)
    # What is imported late is imported now: the interpreter itself may lie where nobody may look.
    with Store.open(settings) as store:
        store.settings.landing_path.mkdir(parents=True)
        readable(store, next(iter(store.datasets)))
    "".encode("utf-8-sig")
    if os.geteuid() == 0:
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    os.chdir(home)
    with Store.open(settings) as store:
        return scenario(store)

"""What others do with small batches: each is appended and committed before the next one. Run as a program of its own.

``competitors.py NAME BATCHES.arrow COUNT FOLDER`` prints the seconds per batch. It knows nothing of this project, so
that it runs in an environment that has the others in it, and not ours.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

Append = Callable[[pa.Table], object]


def duckdb_file(folder: Path, example: pa.Table) -> Iterator[Append]:
    """One open DuckDB file, a commit per batch."""
    import duckdb

    with duckdb.connect(str(folder / "plain.duckdb")) as connection:
        yield from _inserts(connection, "ticks", example)


def ducklake(folder: Path, example: pa.Table) -> Iterator[Append]:
    """DuckLake with its catalog in a DuckDB file, an insert per batch, as the extension is set up by itself."""
    import duckdb

    package = import_module("duckdb_extension_ducklake")
    (extension,) = Path(str(package.__file__)).parent.rglob("ducklake.duckdb_extension")
    with duckdb.connect() as connection:
        connection.execute(f"LOAD '{extension}'")
        connection.execute(f"ATTACH 'ducklake:{folder}/catalog.ducklake' AS lake (DATA_PATH '{folder}/files/')")
        yield from _inserts(connection, "lake.ticks", example)


def _inserts(connection: Any, table: str, example: pa.Table) -> Iterator[Append]:
    connection.register("incoming", example)
    connection.execute(f"CREATE TABLE {table} AS SELECT * FROM incoming LIMIT 0")

    def append(batch: pa.Table) -> None:
        connection.register("incoming", batch)
        connection.execute(f"INSERT INTO {table} SELECT * FROM incoming")

    yield append


def delta(folder: Path, example: pa.Table) -> Iterator[Append]:
    """``write_deltalake`` in append mode, the table opened once."""
    from deltalake import DeltaTable, write_deltalake

    table = DeltaTable.create(str(folder / "table"), schema=example.schema)
    yield lambda batch: write_deltalake(table, batch, mode="append")


def delta_once(folder: Path, example: pa.Table) -> Iterator[Append]:
    """The same exactly once: each commit carries a transaction of its own that is looked for first."""
    from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

    table = DeltaTable.create(str(folder / "table"), schema=example.schema)
    numbers = iter(range(1 << 30))

    def append(batch: pa.Table) -> None:
        number = next(numbers)
        table.update_incremental()
        if (table.transaction_version("bench") or -1) < number:
            properties = CommitProperties(app_transactions=[Transaction("bench", number)])
            write_deltalake(table, batch, mode="append", commit_properties=properties)

    yield append


def delta_durable(folder: Path, example: pa.Table) -> Iterator[Append]:
    """The same again, and after each commit what it wrote is synced: the file, the log's entry, and both folders."""
    append_once = next(delta_once(folder, example))
    table = folder / "table"
    versions = iter(range(1, 1 << 30))

    def append(batch: pa.Table) -> None:
        append_once(batch)
        entry = table / "_delta_log" / f"{next(versions):020}.json"
        actions = [json.loads(line) for line in entry.read_text().splitlines()]
        files = [table / action["add"]["path"] for action in actions if "add" in action]
        for path in (*files, table, entry, entry.parent):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    yield append


def iceberg(folder: Path, example: pa.Table) -> Iterator[Append]:
    """pyiceberg with a catalog in SQLite, an append per batch."""
    catalog = import_module("pyiceberg.catalog.sql").SqlCatalog(
        "bench", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse"
    )
    catalog.create_namespace("bench")
    table = catalog.create_table("bench.ticks", schema=example.schema)
    yield table.append


def parquet(folder: Path, example: pa.Table) -> Iterator[Append]:
    """A Parquet file per batch, written aside, synced, renamed, its folder synced."""
    from pyarrow import parquet as files

    directory = os.open(folder, os.O_RDONLY)
    numbers = iter(range(1 << 30))

    def append(batch: pa.Table) -> None:
        path = folder / f"{next(numbers)}.parquet"
        with path.with_suffix(".tmp").open("wb") as stream:
            files.write_table(batch, stream)
            stream.flush()
            os.fsync(stream.fileno())
        path.with_suffix(".tmp").rename(path)
        os.fsync(directory)

    yield append
    os.close(directory)


def dlt(folder: Path, example: pa.Table) -> Iterator[Append]:
    """Dlt to its filesystem destination, a load of Parquet per batch."""
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    os.environ["RUNTIME__LOG_LEVEL"] = "ERROR"
    library = import_module("dlt")
    pipeline = library.pipeline(
        "bench", pipelines_dir=str(folder / "pipelines"), destination=library.destinations.filesystem(f"file://{folder}"),
        dataset_name="bench", progress=None,
    )  # fmt: skip
    yield lambda batch: pipeline.run([batch], table_name="ticks", loader_file_format="parquet").raise_on_failed_jobs()


COMPETITORS: dict[str, Callable[[Path, pa.Table], Iterator[Append]]] = {
    "duckdb": duckdb_file,
    "delta": delta,
    "delta_once": delta_once,
    "delta_durable": delta_durable,
    "parquet": parquet,
    "iceberg": iceberg,
    "ducklake": ducklake,
    "dlt": dlt,
}


def main() -> None:
    """Append the batches one after the other, after one that does not count."""
    name, batches, count, folder = sys.argv[1:]
    with pa.ipc.open_stream(batches) as reader:
        tables = [pa.Table.from_batches([batch]) for batch in reader]
    for append in COMPETITORS[name](Path(folder), tables[0]):
        append(tables[0])
        started = time.perf_counter()
        for table in tables[1 : int(count) + 1]:
            append(table)
        print((time.perf_counter() - started) / int(count))


if __name__ == "__main__":
    main()

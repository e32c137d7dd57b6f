"""HTTP: acknowledged batches of 1,000 rows, of sixteen connections, against the same batches through one writer."""

from __future__ import annotations

import http.client
import io
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from timestore_pipeline.staging.writer import Writer
from timestore_pipeline_tests.bench.measure import HEADER, Pair, in_turn, timed
from timestore_pipeline_tests.bench.staging import DATASETS, open_store, ticks
from timestore_pipeline_tests.builders import arrow_bytes
from timestore_pipeline_tests.http.server import process_serving

ROWS = 1_000
BATCHES = 320
CONNECTIONS = 16


def run(repeats: int, workspace: Path) -> list[str]:
    """Return the lines of the report. The client is in this process, and what it costs is in the times."""
    table = ticks(ROWS * (BATCHES + 1))
    batches = [table.slice(number * ROWS, ROWS).combine_chunks() for number in range(BATCHES + 1)]
    pairs = [
        (Pair(f"HTTP, {name}, {CONNECTIONS} connections", f"writer, {CONNECTIONS} callers", ROWS * BATCHES),
         _http(workspace, media_type, [write(batch) for batch in batches]), lambda: _writer(workspace, batches))
        for name, media_type, write in _FORMATS
    ]  # fmt: skip
    in_turn(pairs, repeats)
    return [HEADER, *(pair.line() for pair, _, _ in pairs)]


def _csv(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    csv.write_csv(table, sink)
    return sink.getvalue()


def _json_lines(table: pa.Table) -> bytes:
    return table.to_pandas().to_json(orient="records", lines=True, date_format="iso", date_unit="us").encode()


_FORMATS: tuple[tuple[str, str, Callable[[pa.Table], bytes]], ...] = (
    ("Arrow", "application/vnd.apache.arrow.stream", lambda table: arrow_bytes(table, stream=True)),
    ("CSV", "text/csv", _csv),
    ("JSON lines", "application/x-ndjson", _json_lines),
)


def _http(workspace: Path, media_type: str, bodies: list[bytes]) -> Callable[[], float]:
    def post(port: int, share: list[bytes]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for body in share:
            connection.request("POST", "/datasets/ticks/batches", body, {"Content-Type": media_type})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 201, content
        connection.close()

    def measure() -> float:
        with tempfile.TemporaryDirectory(dir=workspace) as folder:
            home = Path(folder)
            (home / "datasets.yaml").write_text(DATASETS)
            unlimited = {"TIMESTORE_STAGING_MAX_PENDING": "0", "TIMESTORE_STAGING_MAX_DATASET_BYTES": "0"}
            environment = {**os.environ, "TIMESTORE_HOME": folder, **unlimited}
            with process_serving(environment, home / "server.log") as server, ThreadPoolExecutor(CONNECTIONS) as pool:
                first, *others = bodies
                post(server.port, [first])
                shares = [others[number::CONNECTIONS] for number in range(CONNECTIONS)]
                return timed(lambda: list(pool.map(lambda share: post(server.port, share), shares)))

    return measure


def _writer(workspace: Path, batches: list[pa.Table]) -> float:
    with tempfile.TemporaryDirectory(dir=workspace) as folder, open_store(Path(folder)) as store:
        first, *others = batches
        with Writer(store, "ticks") as writer, ThreadPoolExecutor(CONNECTIONS) as pool:
            writer.write(first)
            shares = [others[number::CONNECTIONS] for number in range(CONNECTIONS)]
            return timed(lambda: list(pool.map(lambda share: [writer.write(batch) for batch in share], shares)))

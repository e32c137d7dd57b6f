"""The writer: acknowledged batches of 1,000 rows, of one caller and of sixteen, against others that commit each."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from timestore_pipeline.staging.writer import Writer
from timestore_pipeline_tests.bench import competitors
from timestore_pipeline_tests.bench.measure import Pair, timed
from timestore_pipeline_tests.bench.staging import open_store, ticks

ROWS = 1_000
CALLERS = {1: 60, 16: 640}
"""Callers → batches of one round, over all of them."""

# About what a commit of one batch writes.
_SEGMENT_BYTES, _LOG_BYTES, _COMMITS = 94_208, 32_768, 30

_CONSTRAINTS = Path(__file__).with_name("constraints-competitors.txt")
_ENVIRONMENT = Path(".bench-competitors")
_HEADER = (
    "| baseline | batches/s | writer, 1 caller: batches/s | ratio, median (min to max) "
    "| writer, 16 callers: batches/s | ratio, median (min to max) |\n|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Other:
    """Something to be held against: ``name`` among the competitors, how many batches a round has, and where it runs."""

    name: str
    title: str
    batches: int
    own_environment: bool = False


OTHERS = (
    Other("duckdb", "DuckDB, one open file, a commit per batch", 200),
    Other("parquet", "a Parquet file per batch, synced", 200),
    Other("delta", "`write_deltalake`, an append per batch", 60),
    Other("delta_once", "the same, exactly once (a transaction per batch)", 60),
    Other("delta_durable", "the same, exactly once and synced (file, log entry, their folders)", 60),
    Other("ducklake", "DuckLake (duckdb 1.5.5), an insert per batch", 60, own_environment=True),
    Other("iceberg", "pyiceberg, an append per batch", 20, own_environment=True),
    Other("dlt", "dlt to its filesystem destination, a load per batch", 3, own_environment=True),
)


def run(repeats: int, workspace: Path) -> list[str]:
    """Return the lines of the report."""
    most = max(*CALLERS.values(), *(other.batches for other in OTHERS)) + 1
    table = ticks(ROWS * most)
    batches = [table.slice(number * ROWS, ROWS).combine_chunks() for number in range(most)]
    file = workspace / "batches.arrow"
    with pa.ipc.new_stream(str(file), table.schema) as writer:
        for batch in batches:
            writer.write_table(batch)
    python = _python_of_competitors()
    costs: dict[int, list[float]] = {callers: [] for callers in CALLERS}
    syncs: list[float] = []
    pairs = {(other, callers): Pair(other.title, other.title, ROWS) for other in OTHERS for callers in CALLERS}
    for round_number in range(repeats + 1):
        syncs.append(_syncs_of_a_commit(workspace))
        for other in OTHERS:
            theirs = _theirs(other, python if other.own_environment else sys.executable, file, workspace)
            for callers, count in CALLERS.items():
                ours, processor = _ours(workspace, batches[: count + 1], callers)
                if round_number:
                    costs[callers].append(processor)
                    pairs[other, callers].ours.append(ours)
                    pairs[other, callers].baseline.append(theirs)
    spent = ", ".join(
        f"{statistics.median(found) * 1e3:.1f} ms of processor time for each batch of {callers} callers"
        for callers, found in costs.items()
    )
    return [
        _HEADER,
        *(_line(*(pairs[other, callers] for callers in CALLERS)) for other in OTHERS),
        f"\nThe writer took {spent}; the three syncs of a commit took {statistics.median(syncs) * 1e3:.1f} ms.",
    ]


def _syncs_of_a_commit(workspace: Path) -> float:
    """Return the seconds that the syncs of one acknowledgement take on this disk: segment, folder, the ledger's log."""
    with tempfile.TemporaryDirectory(dir=workspace) as name, open(Path(name) / "log", "ab") as log:
        folder = os.open(name, os.O_RDONLY)

        def commit(number: int) -> float:
            path = Path(name) / str(number)
            with path.open("wb") as stream:
                stream.write(os.urandom(_SEGMENT_BYTES))
                stream.flush()
                started = time.perf_counter()
                os.fsync(stream.fileno())
            path.rename(path.with_suffix(".whole"))
            os.fsync(folder)
            log.write(os.urandom(_LOG_BYTES))
            log.flush()
            os.fsync(log.fileno())
            return time.perf_counter() - started

        taken = statistics.median(commit(number) for number in range(_COMMITS))
        os.close(folder)
        return taken


def _line(one: Pair, many: Pair) -> str:
    cells = [one.baseline_name, f"{one.baseline_rate / ROWS:,.1f}"]
    for pair in (one, many):
        cells += [f"{pair.our_rate / ROWS:,.0f}", pair.ratio_in_words()]
    return f"| {' | '.join(cells)} |"


def _ours(workspace: Path, batches: list[pa.Table], callers: int) -> tuple[float, float]:
    """Return the seconds per batch, on the clock and of the processor.

    Each caller waits for the answer to one batch before it gives the next.
    """
    with tempfile.TemporaryDirectory(dir=workspace) as folder, open_store(Path(folder)) as store:
        first, *others = batches
        with Writer(store, "ticks") as writer, ThreadPoolExecutor(callers) as pool:
            writer.write(first)
            shares = [others[number::callers] for number in range(callers)]

            def work(share: list[pa.Table]) -> int:
                return sum(writer.write(batch).rows for batch in share)

            def all_of_them() -> None:
                assert sum(pool.map(work, shares)) == len(others) * ROWS

            started = time.process_time()
            seconds = timed(all_of_them)
            return seconds / len(others), (time.process_time() - started) / len(others)


def _theirs(other: Other, python: str, file: Path, workspace: Path) -> float:
    with tempfile.TemporaryDirectory(dir=workspace) as folder:
        done = subprocess.run(
            [python, competitors.__file__, other.name, str(file), str(other.batches), folder],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{other.name} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def _python_of_competitors() -> str:
    """Return the Python of an environment that has the others, made at first use; the project's has none of them."""
    python = _ENVIRONMENT / "bin" / "python"
    stamp = _ENVIRONMENT / "installed"
    wanted = _CONSTRAINTS.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(_ENVIRONMENT, with_pip=True, clear=True)
        packages = ["duckdb", "duckdb-extension-ducklake", "pyiceberg[pyarrow,sql-sqlite]", "dlt[filesystem,parquet]"]
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", _CONSTRAINTS, *packages],
            check=True,
        )
        stamp.write_text(wanted)
    return str(python.absolute())

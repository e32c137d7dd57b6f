"""Building: 10,000,000 staged rows in 24 windows into Parquet, against DuckDB's own COPY of the same rows.

Memory is measured in child processes: what a build adds to an interpreter with the same modules loaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import duckdb

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.duck.connections import connection_config
from timestore_pipeline.ledger.slices import Slice, unpublished_slices
from timestore_pipeline.segments.description import SEGMENT_TABLE
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.bench.measure import HEADER, Pair, in_turn, timed
from timestore_pipeline_tests.bench.staging import START_MICROS, open_store, ticks

ROWS = 10_000_000
WINDOWS = 24
ROWS_PER_BATCH = 1_000_000
_HOUR_MICROS = 3_600_000_000


def run(repeats: int, workspace: Path) -> list[str]:
    """Return the lines of the report."""
    staged = workspace / "staged"
    fill(staged, ROWS)
    pairs = [
        (Pair(f"build: {ROWS:,} rows, {WINDOWS} windows, in time order, fsynced and committed", name, ROWS),
         _build_action(staged), _copy_action(staged, ordered=ordered))
        for name, ordered in (("COPY … ORDER BY time per window", True), ("COPY per window, as it lies", False))
    ]  # fmt: skip
    in_turn(pairs, repeats)
    lines = [HEADER, *(pair.line() for pair, _, _ in pairs), ""]
    lines += ["| rows in the build | peak memory above the interpreter |", "|---|---|"]
    for rows in (ROWS, 5 * ROWS):
        folder = workspace / f"memory-{rows}"
        fill(folder, rows)
        peaks = sorted(_peak_above_interpreter(folder) for _ in range(3))
        lines.append(f"| {rows:,} | {peaks[1] / 2**20:,.0f} MiB (median of 3, highest {peaks[2] / 2**20:,.0f}) |")
        shutil.rmtree(folder)
    return lines


def fill(folder: Path, rows: int) -> None:
    """Stage ``rows`` rows that cover 24 hours, in batches that each cover their share of the day."""
    folder.mkdir()
    step = WINDOWS * _HOUR_MICROS // rows
    with open_store(folder) as store:
        for number in range(rows // ROWS_PER_BATCH):
            start = START_MICROS + number * ROWS_PER_BATCH * step
            stage(store, "ticks", ticks(ROWS_PER_BATCH, seed=number, start_micros=start, step_micros=step))


def build_in_copy(staged: Path, folder: Path) -> None:
    """Publish all that ``staged`` has, leaving it as it is: ledger and tables are a copy's."""
    with _copied_store(staged, folder) as store:
        report = flush_windows(store, BuildOrder("ticks", owner="bench"))
        assert report is not None
        assert len(report.windows) == WINDOWS


def copy_staged(staged: Path, folder: Path) -> None:
    """Copy an installation of which nothing is published; its segments, which nobody writes again, are links."""
    shutil.copytree(staged / "data", folder / "data", copy_function=_link_or_copy)


def _link_or_copy(source: str, copy: str) -> None:
    if source.endswith(".duckdb"):
        os.link(source, copy)
    else:
        shutil.copyfile(source, copy)


def _copied_store(staged: Path, folder: Path) -> Store:
    copy_staged(staged, folder)
    return open_store(folder)


def _build_action(staged: Path) -> Callable[[], float]:
    def build() -> float:
        with tempfile.TemporaryDirectory(dir=staged.parent) as folder, _copied_store(staged, Path(folder)) as store:
            return timed(lambda: flush_windows(store, BuildOrder("ticks", owner="bench")))

    return build


def _copy_action(staged: Path, *, ordered: bool) -> Callable[[], float]:
    def copy() -> float:
        with tempfile.TemporaryDirectory(dir=staged.parent) as folder, _copied_store(staged, Path(folder)) as store:
            with store.ledger.read() as tx:
                slices = unpublished_slices(tx)
            return timed(lambda: _copy(store, slices, Path(folder), ordered=ordered))

    return copy


def _copy(store: Store, slices: list[Slice], folder: Path, *, ordered: bool) -> None:
    """What one would write by hand: attach the files, COPY each hour to a Parquet file, no fsync and no commit."""
    with duckdb.connect(":memory:", config=connection_config(store.settings)) as connection:
        for piece in {piece.segment_id: piece for piece in slices}.values():
            connection.execute(f"ATTACH '{store.staging.fetch(piece.path)}' AS \"{piece.segment_id}\" (READ_ONLY)")
        for hour in sorted({piece.window_start for piece in slices}):
            rows = " UNION ALL ".join(
                f'SELECT time, id, a, b, c, d, tag FROM "{piece.segment_id}".{SEGMENT_TABLE} '
                f"WHERE time >= make_timestamp({hour}) AND time < make_timestamp({hour + _HOUR_MICROS})"
                for piece in slices
                if piece.window_start == hour
            )
            connection.execute(
                f"COPY ({rows}{' ORDER BY time' if ordered else ''}) TO '{folder / str(hour)}.parquet' "
                "(FORMAT parquet, COMPRESSION zstd)"
            )


def _peak_above_interpreter(staged: Path) -> int:
    with tempfile.TemporaryDirectory(dir=staged.parent) as folder:
        return _peak("build", staged, Path(folder)) - _peak("idle", staged, Path(folder))


def _peak(what: str, staged: Path, folder: Path) -> int:
    """Return the peak resident bytes of a child that imports the same modules and then builds, or does nothing."""
    command = [sys.executable, "-m", "timestore_pipeline_tests.bench.building", what, str(staged), str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _main(what: str, staged: str, folder: str) -> None:
    if what == "build":
        build_in_copy(Path(staged), Path(folder))
    # Not getrusage(): its peak survives exec, so a child starts with that of its parent.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(int(status.partition("VmHWM:")[2].split()[0]) * 1_024)


if __name__ == "__main__":
    _main(*sys.argv[1:])

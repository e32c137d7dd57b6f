"""Run the benchmarks and print their tables in Markdown."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path

import deltalake
import duckdb
import pyarrow as pa

from timestore_pipeline_tests.bench import (
    building,
    launchers,
    ledger,
    quality,
    reading,
    sensor,
    serving,
    staging,
    writing,
)

_SUITES = {
    "staging": staging.run,
    "writing": writing.run,
    "serving": serving.run,
    "building": building.run,
    "reading": reading.run,
    "sensor": sensor.run,
    "ledger": ledger.run,
    "launchers": launchers.run,
    "quality": quality.run,
}


def main() -> None:
    """Run the chosen suites in a temporary folder of the current file system."""
    parser = argparse.ArgumentParser(prog="timestore_pipeline_tests.bench", description=__doc__)
    parser.add_argument("--only", choices=_SUITES, action="append", help="a suite to run; all of them by default")
    parser.add_argument("--repeats", type=int, default=5, help="counted rounds of every pair, after one warm-up")
    arguments = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, duckdb {duckdb.__version__}, "
        f"pyarrow {pa.__version__}, deltalake {deltalake.__version__}"
    )
    for name in arguments.only or _SUITES:
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as workspace:
            print(f"\n## {name}\n", *_SUITES[name](arguments.repeats, Path(workspace)), sep="\n", flush=True)


if __name__ == "__main__":
    main()

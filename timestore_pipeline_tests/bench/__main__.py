"""Run the benchmarks and print their tables in Markdown."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from dataclasses import replace
from pathlib import Path

import deltalake
import duckdb
import pyarrow as pa

from timestore_pipeline_tests.bench import (
    building,
    claims,
    growth,
    lanes,
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
    "lanes": lanes.run,
    "reading": reading.run,
    "sensor": sensor.run,
    "ledger": ledger.run,
    "claims": claims.run,
    "launchers": launchers.run,
    "quality": quality.run,
}


def main() -> None:
    """Run the chosen suites in a temporary folder of the current file system."""
    parser = argparse.ArgumentParser(prog="timestore_pipeline_tests.bench", description=__doc__)
    parser.add_argument(
        "--only", choices=[*_SUITES, "growth"], action="append", help="a suite to run; all of them by default"
    )
    parser.add_argument("--repeats", type=int, default=5, help="counted rounds of every pair, after one warm-up")
    chosen = parser.add_argument_group("growth", "what `--only growth` measures, which runs alone")
    chosen.add_argument("--part", choices=growth.PARTS, action="append", help="of it; all by default")
    chosen.add_argument("--full", action="store_true", help="at the sizes of docs/growth.md instead of smaller ones")
    for name in growth.SIZES:
        chosen.add_argument(f"--{name}", type=int, nargs="+", help=f"numbers of {growth.SIZES[name]} instead")
    chosen.add_argument("--write", action="store_true", help="put the figures into docs/ (needs the extra plot)")
    arguments = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, duckdb {duckdb.__version__}, "
        f"pyarrow {pa.__version__}, deltalake {deltalake.__version__}"
    )
    if "growth" in (arguments.only or ()):
        print("\n## growth\n", flush=True)
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as workspace:
            numbers = {name: tuple(given) for name in growth.SIZES if (given := getattr(arguments, name))}
            sizes = replace(growth.FULL if arguments.full else growth.Sizes(), **numbers)
            parts = tuple(arguments.part or growth.PARTS)
            print(*growth.run(Path(workspace), sizes, parts, write=arguments.write), sep="\n")
        return
    for name in arguments.only or _SUITES:
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as workspace:
            print(f"\n## {name}\n", *_SUITES[name](arguments.repeats, Path(workspace)), sep="\n", flush=True)


if __name__ == "__main__":
    main()

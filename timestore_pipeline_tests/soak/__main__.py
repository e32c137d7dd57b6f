"""Run a soak and print its figures."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

from timestore_pipeline_tests.postgresql import LEDGERS, URL_VARIABLE, fresh_ledger
from timestore_pipeline_tests.soak.coordinator import run
from timestore_pipeline_tests.soak.workers import Soak


def main() -> int:
    """Run a soak in a temporary folder of the current file system and print its figures."""
    parser = argparse.ArgumentParser(prog="timestore_pipeline_tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--ledger", choices=LEDGERS, default="sqlite", help="PostgreSQL is started for the soak")
    arguments = parser.parse_args()
    print(
        f"Soak of {arguments.seconds:g} s with seed {arguments.seed} (repeat it with SEED={arguments.seed})", flush=True
    )
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".soak-") as folder, fresh_ledger(arguments.ledger):
        url = os.environ.get(URL_VARIABLE)
        soak = Soak(Path(folder) / "home", arguments.seed, arguments.seconds, arguments.processes, ledger_url=url)
        figures = run(soak, lambda line: print(line, flush=True))
    print(json.dumps(figures, indent=2))
    print("kills by place:", json.dumps(dict(soak.kills.most_common()), indent=2))
    for problem in soak.problems[:50]:
        print(f"PROBLEM {problem}")
    print("Every row is there once." if not soak.problems else f"{len(soak.problems)} problems")
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())

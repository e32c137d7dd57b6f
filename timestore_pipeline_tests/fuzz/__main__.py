"""``python -m timestore_pipeline_tests.fuzz --seconds N --seed S``: prints its seed and figures, and fails loudly.

It is a process of its own in tests too, as it looks at the most memory that its process ever had.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from timestore_pipeline_tests.fuzz.run import Run


def main() -> int:
    """Run, and return 0 where all held."""
    parser = argparse.ArgumentParser(description=__doc__)
    until = parser.add_mutually_exclusive_group()
    until.add_argument("--seconds", type=float, default=60.0)
    until.add_argument("--mutants", type=int)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    home = Path(tempfile.mkdtemp(prefix="timestore-fuzz-"))
    outcome = Run(home, options.seed).go_on(
        mutants=options.mutants, seconds=None if options.mutants else options.seconds
    )
    print("\n".join(outcome.lines()))
    if outcome.failures:
        print(f"what failed is kept in {home}")
        return 1
    shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run a soak and print its figures."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from timestore_pipeline_tests.postgresql import LEDGERS, URL_VARIABLE, fresh_ledger
from timestore_pipeline_tests.soak.coordinator import run
from timestore_pipeline_tests.soak.run import ROUND_STEPS, soak_by_rounds
from timestore_pipeline_tests.soak.tally import Tally
from timestore_pipeline_tests.soak.workers import Soak

say = partial(print, flush=True)


def main() -> int:
    """Run a soak: many processes for a time, or rounds of faults until there were so many."""
    parser = argparse.ArgumentParser(prog="timestore_pipeline_tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="many processes at once, killed at random")
    parser.add_argument("--faults", type=int, help="faults of every kind, so many of them, instead")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--round", type=int, help="of the faults only this round")
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--ledger", choices=LEDGERS, default="sqlite", help="PostgreSQL is started for the soak")
    arguments = parser.parse_args()
    if arguments.faults or arguments.round is not None:
        return _faults(arguments.faults or ROUND_STEPS * 10, arguments.seed, arguments.round)
    say(f"Soak of {arguments.seconds:g} s with seed {arguments.seed} (repeat it with SEED={arguments.seed})")
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".soak-") as folder, fresh_ledger(arguments.ledger):
        url = os.environ.get(URL_VARIABLE)
        soak = Soak(Path(folder) / "home", arguments.seed, arguments.seconds, arguments.processes, ledger_url=url)
        figures = run(soak, say)
    say(json.dumps(figures, indent=2))
    say("kills by place:", json.dumps(dict(soak.kills.most_common()), indent=2))
    for problem in soak.problems[:50]:
        say(f"PROBLEM {problem}")
    say("Every row is there once." if not soak.problems else f"{len(soak.problems)} problems")
    return 1 if soak.problems else 0


def _faults(wanted: int, seed: int, only: int | None) -> int:
    say(f"Soak of {wanted:,} faults with seed {seed} (repeat it with FAULTS={wanted} SEED={seed})")
    tally = Tally(wanted)
    # Who ends it gets the table of what there was.
    signal.signal(signal.SIGTERM, lambda *_: setattr(tally, "wanted", 0))
    soak_by_rounds(tally, seed, Path.cwd(), only=only, say=say)
    say(*tally.table(), sep="\n")
    say(tally.rows())
    for problem in tally.problems:
        say(f"PROBLEM {problem}")
    say("Every row is there once." if not tally.problems else f"{len(tally.problems)} problems")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())

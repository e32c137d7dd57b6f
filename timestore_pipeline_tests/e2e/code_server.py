"""A code server whose runs start warm: ``python -m timestore_pipeline_tests.e2e.code_server SOCKET PLAN``.

It is Dagster's own (``dagster api grpc``), with one thing changed: the process of a run is forked from one that has
imported Dagster and loaded the definitions, and is not a new interpreter, which would cost four seconds of CPU. What
the file PLAN says when a run starts are the signals that the run sends itself (see ``crash_points.VARIABLE``), or
``<point>=canceled``. The demo and its tests run the stock one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from timestore_pipeline import crash_points
from timestore_pipeline.crash_points import CrashPoint

ROOT = Path(__file__).parents[2]
LOCATION = "timestore_pipeline"
CANCELED = "canceled"
"""In the place of a signal: a run stops itself at the point, and goes no further than it once it is resumed."""
_SECONDS_TO_CANCEL = 240.0


def _stop_until_canceled() -> None:
    """Stop this process, and wait for the interrupt that Dagster sends it from another thread once it is resumed.

    Without the wait the run would be through with its work before the interrupt, on a machine that is quick enough.
    """
    os.kill(os.getpid(), signal.SIGSTOP)
    deadline = time.monotonic() + _SECONDS_TO_CANCEL
    while time.monotonic() < deadline:
        time.sleep(0.05)
    raise TimeoutError(f"nobody canceled this run within {_SECONDS_TO_CANCEL:.0f} s")


class WarmRun(ForkServerProcess):
    """The process of a run."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._plan = Path(sys.argv[2]).read_text(encoding="utf-8")

    def run(self) -> None:
        point, _, how = self._plan.partition("=")
        if how == CANCELED:
            # Never left: other runs of a test that cancels one do not come to the point.
            self._armed = crash_points.at(CrashPoint(point), _stop_until_canceled)
            self._armed.__enter__()
        else:
            crash_points.arm(self._plan)
        super().run()


class WarmContext(ForkServerContext):
    """What makes the processes of runs."""

    Process = WarmRun


def main(socket: str) -> None:
    """Serve until it is told to end."""
    from dagster._cli.api import grpc_command
    from dagster._grpc import server

    context = WarmContext()
    context.set_forkserver_preload(["timestore_pipeline_tests.e2e.warm"])
    # The server asks for a context that spawns.
    setattr(server, "multiprocessing", SimpleNamespace(get_context=lambda _method: context))  # noqa: B010 - no module
    module = f"{LOCATION}.definitions"
    grpc_command.main(["-s", socket, "-m", module, "-d", str(ROOT), "--location-name", LOCATION])


if __name__ == "__main__":
    main(sys.argv[1])

"""A code server whose runs start warm: ``python -m timestore_pipeline_tests.e2e.code_server SOCKET PLAN``.

It is Dagster's own (``dagster api grpc``), with one thing changed: the process of a run is forked from one that has
imported Dagster and loaded the definitions, and is not a new interpreter, which would cost four seconds of CPU. What
the file PLAN says when a run starts are the signals that the run sends itself (see ``crash_points.VARIABLE``). The demo
and its tests run the stock one.
"""

from __future__ import annotations

import sys
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from timestore_pipeline import crash_points

ROOT = Path(__file__).parents[2]
LOCATION = "timestore_pipeline"


class WarmRun(ForkServerProcess):
    """The process of a run."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._plan = Path(sys.argv[2]).read_text(encoding="utf-8")

    def run(self) -> None:
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

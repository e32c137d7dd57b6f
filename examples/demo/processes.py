"""The programs that the demo starts, so that none of them outlives it.

Each has a process group of its own, which is ended as a whole: the daemon's code server and the processes of its
runs are in the daemon's group, and would live on for up to a minute after it. The group's leader is a guard that ends
it should the demo be killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.demo import guard
from examples.demo.errors import DemoError

_SECONDS_TO_STOP = 10.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Program:
    """A running program and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 30) -> str:
        """Return the last lines of its output, without colours."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(_COLOUR.sub("", text).splitlines()[-lines:]) or "(no output)"


@dataclass
class Programs:
    """Starts programs and ends them."""

    folder: Path
    running: list[Program] = field(default_factory=list)

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Program:
        """Start a program in a process group of its own; its output goes to ``<folder>/<name>.log``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", guard.__name__, *command],
                env=environment,
                stdin=subprocess.PIPE,  # nothing is ever written to it: its end is what the guard waits for
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        program = Program(name, process, log)
        self.running.append(program)
        return program

    def check(self) -> None:
        """Raise DemoError if a program has ended by itself."""
        for program in self.running:
            if program.process.poll() is not None:
                raise DemoError(f"{program.name} has ended with status {program.process.returncode}")

    def stop(self) -> None:
        """End every group: interrupted first, as the daemon expects it, killed after some seconds."""
        for program in self.running:
            _signal_group(program, signal.SIGINT)
        deadline = time.monotonic() + _SECONDS_TO_STOP
        while time.monotonic() < deadline and any(map(_is_alive, self.running)):
            time.sleep(0.05)
        for program in self.running:
            _signal_group(program, signal.SIGKILL)
            program.process.wait()
            if program.process.stdin is not None:
                program.process.stdin.close()
        self.running.clear()


def _is_alive(program: Program) -> bool:
    # The group lives on without its leader; a leader that has ended counts until it is waited for.
    program.process.poll()
    try:
        os.killpg(program.process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _signal_group(program: Program, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program.process.pid, number)

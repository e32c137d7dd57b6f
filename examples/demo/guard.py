"""``python -m examples.demo.guard COMMAND…``: runs a command, and ends it when the demo is gone.

Whatever ends the demo, ``kill -9`` too, closes its end of the pipe that is standard input here. Then the whole process
group, of which this is the leader, is ended.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

_SECONDS_TO_STOP = 5.0


def main() -> int:
    """Run the command until it ends, and return its status; 128 and more is a signal, as in a shell."""
    # The demo interrupts the whole group; this process stays to tell how the command ended.
    signal.signal(signal.SIGINT, lambda *_: None)
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    while child.poll() is None:
        readable, _, _ = select.select([sys.stdin], [], [], 0.2)
        if readable:
            os.killpg(0, signal.SIGINT)
            time.sleep(_SECONDS_TO_STOP)
            os.killpg(0, signal.SIGKILL)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())

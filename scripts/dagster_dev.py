"""Run ``dagster dev`` so that nothing of it outlives this process, however that is asked to stop.

Left alone, ``dagster dev`` stops cleanly on Ctrl-C in a terminal only. After a TERM its code server
and the runs in flight live on for up to a minute; started in the background by a script, where
SIGINT is ignored, it never stops. Here it has a process group of its own, interrupted as a whole.
Its webserver takes only what its own pages ask (guarded_dagster.py).
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS_TO_STOP = 15.0


def is_alive(group: int) -> bool:
    """Return whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> int:
    """Run ``dagster dev`` with this process's arguments until it ends or is to stop."""
    # Given back before the start, for a child inherits what is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    dagster = Path(__file__).with_name("guarded_dagster.py")
    started = subprocess.Popen([sys.executable, dagster, "dev", *sys.argv[1:]], process_group=0)
    asked_to_stop = False

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGINT)

    for each in STOP_SIGNALS:
        signal.signal(each, interrupt)
    while started.poll() is None and not asked_to_stop:
        time.sleep(0.1)

    deadline = time.monotonic() + SECONDS_TO_STOP
    while time.monotonic() < deadline and (started.poll() is None or is_alive(started.pid)):
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    return 0 if asked_to_stop else started.wait()


if __name__ == "__main__":
    sys.exit(main())

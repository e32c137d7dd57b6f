"""A Pushgateway of the demo's own, if the program is installed."""

from __future__ import annotations

import shutil
import socket
import time
import urllib.error
import urllib.request

from examples.demo.errors import DemoError
from examples.demo.processes import Programs

PROGRAM = "prometheus-pushgateway"
_SECONDS_TO_START = 15.0


def start_pushgateway(programs: Programs) -> str | None:
    """Start it on a free loopback port and return its URL; None where it is not installed.

    Raises:
        DemoError: it is installed and does not start.
    """
    path = shutil.which(PROGRAM) or shutil.which("pushgateway")
    if path is None:
        return None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    # In memory only: what Debian's keeps in a file of the machine is of another installation.
    programs.start("pushgateway", [path, f"--web.listen-address={address}", "--persistence.file="])
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        programs.check()
        if _get(f"http://{address}/-/ready") is not None:
            return f"http://{address}"
        time.sleep(0.05)
    raise DemoError(f"{PROGRAM} does not answer on {address}")


def pushed_series(url: str, name: str) -> dict[str, float]:
    """Return the value of each series of a metric in the gateway, by its labels as they are written there."""
    text = _get(f"{url}/metrics") or ""
    found = {}
    for line in text.splitlines():
        if line.startswith(f"{name}{{"):
            labels, _, value = line.removeprefix(name).rpartition(" ")
            found[labels] = float(value)
    return found


def _get(url: str) -> str | None:
    # Loopback is never behind a proxy, whatever the environment says.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return response.read().decode()
    except (OSError, urllib.error.URLError):
        return None

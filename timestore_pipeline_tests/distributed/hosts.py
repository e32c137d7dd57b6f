"""Hosts within this machine: each has a network of its own, and does not see the directories of the others.

A host is a network namespace, tied to a bridge by a pair of virtual interfaces, and a mount namespace per process in
which empty file systems lie over what is not its own. Its cable can be pulled: the kernel then drops what it sends, as
a switch without power does. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_HIDE_AND_RUN = 'for hidden in $HIDDEN; do mount -t tmpfs -o size=1m none "$hidden" || exit 99; done; exec "$@"'


@dataclass
class Host:
    """A host: its name, its address, its directory, and the processes that run on it."""

    name: str
    address: str
    folder: Path
    namespace: str
    interface: str
    hidden: tuple[Path, ...] = ()
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a process on the host; its output goes to ``<folder>/<name>.log``."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.namespace, "unshare", "--mount", "--propagation", "private"),
                    *("sh", "-c", _HIDE_AND_RUN, "sh", *command),
                ],
                env={**environment, "HIDDEN": " ".join(map(str, self.hidden))},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def said(self, name: str) -> str:
        """Everything that a process has written."""
        path = self.folder / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def unplug(self) -> None:
        """Cut the host off from all others."""
        _ip("link", "set", self.interface, "down")

    def plug_in(self) -> None:
        """Put it back on the network."""
        _ip("link", "set", self.interface, "up")

    def kill(self) -> None:
        """Kill all that runs on it at once, as a power cut does."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.processes.clear()


@dataclass(frozen=True)
class Network:
    """A bridge with hosts on it; ``address`` is that of this side, where the servers listen."""

    address: str
    range: str
    hosts: tuple[Host, ...]


def require_namespaces() -> None:
    """Skip the test where namespaces cannot be made, or fail it where ``CI`` says that all must be there."""
    missing = [name for name in ("ip", "unshare") if shutil.which(name) is None]
    why = f"{' and '.join(missing)} not installed; .ci/install-servers installs iproute2" if missing else ""
    if not why and os.geteuid() != 0:
        # No failure in CI either: not every CI runs as root.
        pytest.skip("network namespaces need root")
    if not why:
        tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"this machine makes no namespaces: {tried.stderr.strip()}")
    if why:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)


@contextmanager
def network_of(names: Sequence[str], folder: Path) -> Iterator[Network]:
    """Make a network with hosts of these names, each with a directory ``<folder>/<name>`` that the others don't see."""
    require_namespaces()
    # 198.18.0.0/15 is set aside for measuring networks: nothing real has an address there.
    number = os.getpid()
    prefix = f"198.{18 + number // 250 % 2}.{number % 250}"
    bridge, address = f"tsb{number}", f"{prefix}.1"
    folders = {name: folder / name for name in names}
    hosts = [
        Host(name, f"{prefix}.{10 + place}", folders[name], f"ts{number}-{name}", f"ts{number}{name[0]}",
             tuple(other for other in folders.values() if other != folders[name]))
        for place, name in enumerate(names)
    ]  # fmt: skip
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{address}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in hosts:
            host.folder.mkdir()
            inside = ("-n", host.namespace)
            _ip("netns", "add", host.namespace)
            _ip("link", "add", host.interface, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("link", "set", host.interface, "master", bridge, "up")
            _ip(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip(*inside, "link", "set", "eth0", "up")
            _ip(*inside, "link", "set", "lo", "up")
        yield Network(address, f"{prefix}.0/24", tuple(hosts))
    finally:
        for host in hosts:
            host.kill()
            _ip("netns", "delete", host.namespace, check=False)
        _ip("link", "delete", bridge, check=False)


def _ip(*arguments: str, check: bool = True) -> None:
    finished = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert finished.returncode == 0 or not check, f"ip {' '.join(arguments)}: {finished.stderr}"

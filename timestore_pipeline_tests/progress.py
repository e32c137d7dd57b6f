"""How far a run of all tests is, and how long it will still take: ``--bar``, as `make test` asks for it.

On a terminal it is a bar, elsewhere a line from time to time. A failure is named at once. How long a test takes is
remembered in pytest's cache, so that the time left is right from the second run on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from timestore_pipeline_tests.sampling import function_of

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

_REMEMBERED = "timestore/seconds"
_SECONDS_BETWEEN_LINES = 20.0
# A test that nobody has seen yet, in seconds.
_USUAL_SECONDS = 0.3


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--bar``."""
    parser.getgroup("timestore").addoption("--bar", action="store_true", help="show how far the tests are")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to show, in the process that has the terminal."""
    if config.option.bar and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Bar(config))


class Bar:
    """Counts tests as they end and shows them."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._known: dict[str, float] = config.cache.get(_REMEMBERED, {}) if config.cache else {}
        self._seen: dict[str, list[float]] = {}
        self._total = self._ended = self._failed = 0
        self._running: dict[str, float] = {}
        self._last_line = time.monotonic()
        self._progress = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("so far, left"),
            TimeRemainingColumn(),
            speed_estimate_period=3_600,
            transient=True,
        )
        self._on_terminal = self._progress.console.is_terminal
        self._progress.disable = not self._on_terminal
        self._task = self._progress.add_task("", total=None)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Begin, where this process runs the tests itself."""
        self._begin([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Begin, where workers do; each has collected the same tests."""
        self._begin(ids)

    def _begin(self, ids: list[str]) -> None:
        if self._total or not ids:
            return
        self._total = len(ids)
        self._progress.update(self._task, total=sum(map(self._expected, ids)))
        self._progress.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Remember since when a test runs."""
        self._running[nodeid] = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Name a failure at once."""
        self._seen.setdefault(function_of(report.nodeid), []).append(report.duration)
        if report.failed:
            self._failed += 1
            self._say(f"FAILED {report.nodeid} ({report.when})")

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Count tests that pass or fail without a letter for each."""
        if report.when != "call" or hasattr(report, "wasxfail") or report.skipped:
            return None
        return report.outcome, "", ""

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Show one more."""
        self._ended += 1
        self._running.pop(nodeid, None)
        failed = f", {self._failed} failed" if self._failed else ""
        tests = f"{self._ended:,} of {self._total:,} tests{failed}"
        self._progress.update(self._task, advance=self._expected(nodeid), description=tests)
        if not self._on_terminal and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._say(f"{tests}{self._times()}{self._longest()}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Clear the bar away and remember how long each test took."""
        self._progress.stop()
        if self._config.cache and self._seen:
            took = {function: round(sum(parts) / max(1, len(parts) / 3), 3) for function, parts in self._seen.items()}
            self._config.cache.set(_REMEMBERED, {**self._known, **took})

    def _expected(self, nodeid: str) -> float:
        return self._known.get(function_of(nodeid), _USUAL_SECONDS)

    def _times(self) -> str:
        task = self._progress.tasks[0]
        left = task.time_remaining
        return f", {_clock(task.elapsed)} so far" + (f", about {_clock(left)} left" if left is not None else "")

    def _longest(self) -> str:
        nodeid = min(self._running, key=self._running.__getitem__, default=None)
        if nodeid is None:
            return ""
        return f"; at {nodeid} for {time.monotonic() - self._running[nodeid]:.0f} s"

    def _say(self, line: str) -> None:
        self._last_line = time.monotonic()
        if self._on_terminal:
            self._progress.console.print(Text(line))
            return
        reporter: TerminalReporter | None = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter:
            reporter.write_line(line)


def _clock(seconds: float | None) -> str:
    return f"{int(seconds or 0) // 60}:{int(seconds or 0) % 60:02}"

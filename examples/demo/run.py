"""The demo from its first file to its exit status."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.markup import escape

from examples.demo import ledger_view, outcome, report
from examples.demo.deliveries import plan_deliveries
from examples.demo.dropping import Dropper
from examples.demo.errors import DemoError, Interrupted
from examples.demo.installation import PROJECT, Installation, forget_other_installations, own_folder
from examples.demo.processes import Programs
from examples.demo.progress import Moment, display
from examples.demo.pushgateway import PROGRAM, pushed_series, start_pushgateway
from examples.demo.source import DAYS, read_source, unpack_sources
from timestore_pipeline.datasets import Datasets, load_datasets
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger.counters import FLUSH_ROWS
from timestore_pipeline.store import Store

if TYPE_CHECKING:
    from examples.demo.run_counts import RunWatcher

_DEFAULT_HOME = PROJECT / ".demo"
_DEFAULT_SECONDS = 75.0
# What goes wrong on purpose needs some files to hide among.
_FEWEST_DAYS = 10

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECONDS_TO_START = 120.0
_SECONDS_WITHOUT_PROGRESS = 120.0
_SECONDS_FOR_LAST_RUNS = 60.0
_SECONDS_FOR_LAST_PUSH = 30.0


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    home: Path
    days: int
    seconds: float
    pushgateway: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the status is 0 only if every row is accounted for."""
    options = _options(arguments)
    console = Console(highlight=False, soft_wrap=True)
    forget_other_installations()
    _on_stop_signals(_interrupt)
    try:
        with own_folder(options.home):
            return _run(options, console)
    except Interrupted as stop:
        console.print(f"\nStopped. What there is so far is in {report.shown(options.home)}.")
        return 128 + stop.number
    except TimestoreError as error:
        console.print(f"\n[bold red]The demo failed:[/] {escape(str(error))}")
        return 1


def _run(options: Options, console: Console) -> int:
    started = time.monotonic()
    installation = Installation(options.home)
    datasets = load_datasets(PROJECT / "datasets.yaml")
    with _programs(installation) as programs:
        gateway = options.pushgateway or start_pushgateway(programs)
        installation = replace(installation, pushgateway_url=gateway)
        installation.prepare(datasets)
        result = _pass_through(options, console, installation, datasets, programs)
    with closing(Store.open(installation.settings)) as store:
        problems = outcome.problems(store, result)
        report.print_report(console, store, result, time.monotonic() - started)
        report.print_verdict(console, store, result, problems)
        report.print_ways_on(console, store, installation.environment_file)
    return 1 if problems else 0


def _pass_through(
    options: Options, console: Console, installation: Installation, datasets: Datasets, programs: Programs
) -> outcome.Outcome:
    """Send everything through a pipeline that runs for this only."""
    daemon = programs.start(
        "dagster-daemon",
        [Path(sys.executable).with_name("dagster-daemon"), "run", "-w", PROJECT / "workspace.yaml"],
        installation.environment(),
    )
    metrics = f"a Pushgateway on {installation.pushgateway_url}"
    console.print(
        f"Started a Dagster daemon with its sensors, and {metrics}."
        if installation.pushgateway_url
        else f"Started a Dagster daemon with its sensors. {PROGRAM} is not installed, so there are no metrics."
    )
    try:
        return _watch(options, console, installation, datasets, programs)
    except TimestoreError:
        console.print(f"\nThe last lines of {report.shown(daemon.log)}:\n{escape(daemon.tail())}")
        raise


def _watch(
    options: Options, console: Console, installation: Installation, datasets: Datasets, programs: Programs
) -> outcome.Outcome:
    """Drop everything, wait until all is published and no run is left, and return what there is to tell."""
    # Brings Dagster, which takes seconds; the daemon takes more of them to start.
    from examples.demo.run_counts import RunWatcher

    settings = installation.settings
    paths = unpack_sources(options.home / "source")
    sources = {name: read_source(name, path, options.days) for name, path in paths.items()}
    deliveries = plan_deliveries(sources, datasets)
    # The first tick of a sensor creates the ledger. Files that are dropped earlier would only wait for it.
    ledger = settings.staging_path / "ledger.sqlite"
    _wait(ledger.exists, _SECONDS_TO_START, programs, "the daemon's sensors do not begin")
    rows = sum(source.rows for source in sources.values())
    console.print(f"Dropping {len(deliveries):,} files with {rows:,} rows of {options.days} days of 2013:")
    dropper = Dropper(settings.landing_path, deliveries, options.seconds)
    with closing(Store.open(settings)) as store, closing(RunWatcher(installation.dagster_home)) as runs:
        began = time.monotonic()
        dropper.start()
        try:
            _follow(console, store, runs, dropper, programs)
        finally:
            dropper.stop()
        pipeline_seconds = time.monotonic() - began
        # A run is still at work when its last row is published; ended now, it would look like a failure.
        _wait(lambda: runs.unfinished() == 0, _SECONDS_FOR_LAST_RUNS, programs, "the last runs do not end")
        return outcome.Outcome(
            sources=sources,
            days=options.days,
            deliveries=deliveries,
            dropped_at=dropper.dropped_at,
            dropped_bytes=dropper.bytes,
            runs=runs.counts(),
            gateway_rows=_pushed_rows(installation.pushgateway_url, store),
            pipeline_seconds=pipeline_seconds,
        )


def _follow(console: Console, store: Store, runs: RunWatcher, dropper: Dropper, programs: Programs) -> None:
    """Show how far everything is until all is done.

    Raises:
        DemoError: it does not go on.
    """
    files = len(dropper.deliveries)
    last, changed_at = ledger_view.Standing(), time.monotonic()
    with display(console, files) as shown:
        while True:
            programs.check()
            if dropper.error is not None:
                raise DemoError(f"a file could not be dropped: {dropper.error}") from dropper.error
            standing = ledger_view.standing(store)
            shown.show(Moment(len(dropper.dropped_at), standing, runs.all()))
            if dropper.done and standing.settled >= files and not any(store.settings.landing_path.glob("*/*")):
                return
            if standing != last or not dropper.done:
                last, changed_at = standing, time.monotonic()
            if time.monotonic() - changed_at > _SECONDS_WITHOUT_PROGRESS:
                raise DemoError(
                    f"nothing has happened for {_SECONDS_WITHOUT_PROGRESS:.0f} s, and {files - standing.settled:,} of "
                    f"{files:,} files are neither published, quarantined nor recognized as duplicates"
                )
            time.sleep(0.5)


def _pushed_rows(gateway: str | None, store: Store) -> float | None:
    """Return the published rows as the Pushgateway has them, once it has the last push or will not get it."""
    if gateway is None:
        return None
    expected = ledger_view.standing(store).published_rows
    deadline = time.monotonic() + _SECONDS_FOR_LAST_PUSH
    while True:
        series = pushed_series(gateway, FLUSH_ROWS)
        rows = sum(value for labels, value in series.items() if 'result="success"' in labels)
        if rows == expected or time.monotonic() > deadline:
            return rows
        time.sleep(0.5)


def _wait(condition: Callable[[], bool], seconds: float, programs: Programs, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        programs.check()
        if time.monotonic() > deadline:
            raise DemoError(f"{complaint} within {seconds:.0f} s")
        time.sleep(0.2)


@contextmanager
def _programs(installation: Installation) -> Iterator[Programs]:
    """Give a starter of programs; ending them is not disturbed by a second Ctrl-C."""
    programs = Programs(installation.home / "logs")
    try:
        yield programs
    finally:
        _on_stop_signals(signal.SIG_IGN)
        programs.stop()
        _on_stop_signals(_interrupt)


def _on_stop_signals(handler: Callable[[int, object], object] | signal.Handlers) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, handler)


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise Interrupted(number)


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description="A year of real flights and weather through the pipeline."
    )
    parser.add_argument("--home", type=Path, default=_DEFAULT_HOME, help="folder to work in, emptied first (.demo)")
    parser.add_argument("--days", type=int, default=DAYS, help="how many days of the year to send (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=_DEFAULT_SECONDS, help="how long it takes the files to arrive (%(default)s)"
    )
    parser.add_argument(
        "--pushgateway", metavar="URL", help="push metrics to this Pushgateway instead of one that ends with the demo"
    )
    parsed = parser.parse_args(arguments)
    if not _FEWEST_DAYS <= parsed.days <= DAYS:
        parser.error(f"--days must be from {_FEWEST_DAYS} to {DAYS}")
    return Options(parsed.home.absolute(), parsed.days, max(0.0, parsed.seconds), parsed.pushgateway)

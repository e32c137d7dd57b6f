"""The command as a whole: how it starts, what it says when it cannot, and what a script can rely on."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline import __version__
from timestore_pipeline.cli import ExitCode
from timestore_pipeline.store import Store
from timestore_pipeline_tests.cli.conftest import Finished
from timestore_pipeline_tests.conftest import WEATHER_CSV

Run = Callable[..., Finished]
Install = Callable[..., Store]
MakeFile = Callable[[str, str], Path]

COMMAND = [sys.executable, "-m", "timestore_pipeline.cli"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ":".join(sys.path)}


def test_it_tells_its_version(timestore: Run):
    assert timestore("--version") == Finished(ExitCode.DONE, f"timestore {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["quarantine", "list", "--help"]])
def test_help_needs_no_installation(arguments: list[str], timestore: Run):
    finished = timestore(*arguments)

    assert finished.code is ExitCode.DONE
    assert finished.out.startswith("Usage: timestore")


@pytest.mark.matrix
@pytest.mark.parametrize("arguments", ["--version", "--help", "status --help", "flush"])
@pytest.mark.process
def test_it_starts_without_the_heavy_libraries(arguments: str):
    program = (
        "import sys; from timestore_pipeline.cli import main; main(sys.argv[1:]); "
        "sys.stderr.write(' '.join({'duckdb', 'pyarrow', 'deltalake', 'dagster', 'sqlalchemy'} & set(sys.modules)))"
    )

    finished = subprocess.run(
        [sys.executable, "-c", program, *arguments.split()],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )

    assert finished.stderr.split("\n")[-1] == ""


@pytest.mark.process
def test_no_command_loads_dagster(installation: Install):
    installation()
    program = (
        "import sys; from timestore_pipeline.cli import main\n"
        "for command in ('status', 'sql select', 'ingest', 'flush --all', 'quarantine list', 'metrics'):\n"
        "    main(command.split())\n"
        "sys.exit('dagster' in sys.modules)"
    )

    finished = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, check=False)

    assert finished.returncode == 0, finished.stderr.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["sql"],
        ["sql", "select 1", "--format", "xml"],
        ["sql", "select 1", "--limit", "-1"],
        ["stage", "weather"],
        ["stage", "weather", "a.csv", "b.csv", "--batch-id", "one"],
        ["flush"],
        ["flush", "weather", "--all"],
        ["flush", "weather", "--first", "2026"],
        ["flush", "--all", "--last", "2026-01-01"],
        ["flush", "nowhere"],
        ["status", "nowhere"],
        ["ingest", "nowhere"],
        ["stage", "nowhere", "a.csv"],
        ["quarantine", "list", "nowhere"],
    ],
)
def test_a_wrong_call_is_a_usage_error_on_stderr(arguments: list[str], timestore: Run, installation: Install):
    installation()

    finished = timestore(*arguments)

    assert finished.code is ExitCode.USAGE
    assert finished.out == ""
    assert "Traceback" not in finished.err
    assert finished.err.strip()


def test_a_missing_datasets_file_is_misconfiguration(timestore: Run, tmp_path: Path):
    finished = timestore("status")

    assert finished.code is ExitCode.MISCONFIGURED
    assert finished.out == ""
    assert finished.err.startswith(f"timestore: {tmp_path}/datasets.yaml is not usable:\n  - there is no such file")


def test_a_wrong_setting_is_misconfiguration(timestore: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIMESTORE_STAGING_MAX_PENDING", "many")

    finished = timestore("status")

    assert finished.code is ExitCode.MISCONFIGURED
    assert finished.err.startswith("timestore: TIMESTORE_STAGING_MAX_PENDING is 'many', which is not allowed")


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////dev/null/ledger.sqlite", "oracle+nonsense://db"])
def test_a_ledger_that_cannot_be_opened_is_misconfiguration(
    url: str, timestore: Run, installation: Install, monkeypatch
):
    installation()
    monkeypatch.setenv("TIMESTORE_LEDGER_URL", url)

    finished = timestore("status")

    assert finished.code is ExitCode.MISCONFIGURED
    assert "Traceback" not in finished.err


def test_a_mistyped_variable_is_reported_and_does_not_disturb_the_result(
    timestore: Run, installation: Install, monkeypatch: pytest.MonkeyPatch
):
    installation()
    monkeypatch.setenv("TIMESTORE_STAGING_FLUSH_MAX_ROW", "1")

    finished = timestore("sql", "select 1 as one", "--format", "csv")

    assert finished.code is ExitCode.DONE
    assert finished.out == '"one"\n1\n'
    assert "did you mean TIMESTORE_STAGING_FLUSH_MAX_ROWS?" in finished.err


@pytest.mark.process
def test_a_reader_that_stops_early_is_no_error_worth_a_traceback(installation: Install):
    installation()
    program = [*COMMAND, "sql", "select * from range(2000000)", "--format", "json"]

    with subprocess.Popen(program, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()

    assert errors == b""


def on_a_terminal(columns: int, *arguments: str) -> str:
    """What a person sees on a terminal of that width."""
    environ = {**environment(), "COLUMNS": str(columns), "TERM": "dumb"}
    master, slave = pty.openpty()
    with subprocess.Popen([*COMMAND, *arguments], env=environ, stdout=slave, stderr=subprocess.DEVNULL) as process:
        os.close(slave)
        seen = b""
        try:
            while chunk := os.read(master, 4096):
                seen += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
        process.wait()
    os.close(master)
    return seen.decode().replace("\r\n", "\n")


@pytest.mark.process
def test_a_table_on_a_terminal_shows_brackets_as_they_are(installation: Install):
    installation()

    seen = on_a_terminal(100, "sql", "select '[bold]x[/bold]' as \"[red]name\", 12 as n")

    assert "[red]name" in seen
    assert "[bold]x[/bold]" in seen


@pytest.mark.process
def test_nothing_is_lost_on_a_narrow_terminal(installation: Install):
    installation()

    seen = on_a_terminal(40, "status")

    for word in ("weather", "events", "0 / 50,000", "0 B / 134.2 MB", "never", "landing files"):
        assert word in seen


def test_a_table_in_a_pipe_is_plain_and_whole(timestore: Run, installation: Install):
    installation()
    wide = "x" * 300

    finished = timestore("sql", f"select '{wide}' as wide, 7 as number")

    assert finished.out == f"{'wide'.ljust(300)}  number\n{wide}       7\n"
    assert finished.err == ""


def test_a_file_name_cannot_break_a_line_or_move_the_cursor(timestore: Run, installation: Install, make_file: MakeFile):
    installation()
    path = make_file("a\nb\x1b[2J.csv", WEATHER_CSV)

    finished = timestore("stage", "weather", path)

    assert finished.code is ExitCode.DONE
    assert finished.out.count("\n") == 1
    assert "a\\nb\\x1b[2J.csv: staged, 3 rows" in finished.out

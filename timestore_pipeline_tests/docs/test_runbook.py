"""The runbook cannot rot: its commands exist, and do what it says on the shipped datasets."""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer

from docs.build.reference import DOCS
from timestore_pipeline.cli import ExitCode
from timestore_pipeline.cli.commands import app
from timestore_pipeline.datasets import parse_datasets
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.ledger.limits import all_pauses
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.model.windows import from_micros
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.settings import Settings, variable_name
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import lose_ledger
from timestore_pipeline_tests.cli.conftest import Finished, installation, timestore  # noqa: F401
from timestore_pipeline_tests.docs.pages import ROOT, sections

PAGES = [
    DOCS / "runbooks" / "timestore-staging-operations.md",
    DOCS / "timestore-observability.md",
    DOCS / "upgrade.md",
]
RUNBOOK = PAGES[0].read_text(encoding="utf-8")
UPGRADE = PAGES[2].read_text(encoding="utf-8")
DATASETS = (ROOT / "datasets.yaml").read_text(encoding="utf-8")


def shipped_csv(**times: str) -> str:
    """Return a file of the shipped ``weather``: a row for each airport, with its time."""
    columns = parse_datasets(DATASETS)["weather"].columns or {}
    rows = [{**dict.fromkeys(columns, "NA"), "origin": origin, "time_hour": time} for origin, time in times.items()]
    return "\n".join([",".join(columns), *(",".join(row.values()) for row in rows)]) + "\n"


WEATHER_CSV = shipped_csv(JFK="2026-01-01T00:00:00Z", LGA="2026-01-01T01:00:00Z", EWR="2026-02-02T00:00:00Z")
REPAIRED_CSV = shipped_csv(EWR="2026-01-03T00:00:00Z")

# Typer brings its own copy of click, whose errors have no public name but this.
USAGE_ERROR = typer.BadParameter.__bases__[0]

Run = Callable[..., Finished]
Install = Callable[..., Store]


def commands(text: str) -> list[str]:
    """Every command of ``timestore`` in the fenced ``sh`` blocks of a page."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(\w+=\S+ )*timestore ", line)]


def arguments(command: str) -> tuple[dict[str, str], list[str]]:
    """The variables that stand before a command, and what comes after its name, up to where a shell would take over."""
    words = list(shlex.shlex(command, posix=True, punctuation_chars=True))
    at = words.index("timestore")
    end = next((index for index, word in enumerate(words) if word in {"|", ">", "&&", ";"}), len(words))
    return dict(word.split("=", 1) for word in words[:at]), words[at + 1 : end]


def parse(words: list[str]) -> None:
    """Parse a command as the command line would, without running it; a wrong one raises a usage error."""
    command, context, rest = typer.main.get_command(app), None, list(words)
    while hasattr(command, "commands"):
        context = command.make_context("timestore", [], parent=context, resilient_parsing=True)
        context.resilient_parsing = False
        _, command, rest = command.resolve_command(context, rest)  # type: ignore[attr-defined]
    command.make_context(command.name, rest, parent=context)


@pytest.mark.parametrize("command", sorted({command for page in PAGES for command in commands(page.read_text())}))
def test_a_command_of_the_docs_exists(command: str):
    parse(arguments(command)[1])


@pytest.mark.parametrize("command", ["status --jsn", "statsu", "flush --first", "limits set weather max_rows 1"])
def test_a_command_that_does_not_exist_would_be_noticed(command: str):
    with pytest.raises(USAGE_ERROR):
        parse(shlex.split(command))


Before = dict[str, Callable[[], object]]
"""What is done before a command of a section."""


def with_poison(store: Store, timestore: Run, environment: pytest.MonkeyPatch) -> Before:  # noqa: F811
    """Two files that cannot be staged are in quarantine; the first one is mended before it is retried."""
    folder = store.settings.landing_path / "weather"
    (folder / "a.csv").write_text("no,weather\n", encoding="utf-8")
    (folder / "b.csv").write_text("no,weather,either\n", encoding="utf-8")
    assert timestore("ingest").code is ExitCode.FAILED
    with store.ledger.read() as tx:
        kept = store.staging.fetch(open_entries(tx)[0].path)
    return {"timestore quarantine retry 1": lambda: kept.write_text(REPAIRED_CSV, encoding="utf-8")}


def with_damage(store: Store, timestore: Run, environment: pytest.MonkeyPatch) -> Before:  # noqa: F811
    """Two segments are in quarantine; the first one comes back from a backup before it is retried."""
    Path("second.csv").write_text(shipped_csv(EWR="2026-01-04T00:00:00Z"), encoding="utf-8")
    assert timestore("stage", "weather", "second.csv").code is ExitCode.DONE
    backups = {path: path.read_bytes() for path in store.settings.staging_path.rglob("weather/*.duckdb")}
    assert len(backups) == 2
    for path, content in backups.items():
        path.write_bytes(content[:1_000])
    for _ in range(store.settings.build_max_attempts):
        timestore("flush", "weather")
    with store.ledger.read() as tx:
        first, _ = open_entries(tx)
    kept = store.staging.fetch(first.path)
    backup = next(content for path, content in backups.items() if path.stem in kept.name)
    return {"timestore quarantine retry 1": lambda: kept.write_bytes(backup)}


def with_lost_ledger(store: Store, timestore: Run, environment: pytest.MonkeyPatch) -> Before:  # noqa: F811
    """The ledger is gone, and every command says so."""
    lose_ledger(store)
    assert timestore("status").code is ExitCode.MISCONFIGURED
    return {}


def with_lost_rows(store: Store, timestore: Run, environment: pytest.MonkeyPatch) -> Before:  # noqa: F811
    """A published file is gone, its segment too, and nothing else has the rows."""
    assert timestore("flush", "weather").code is ExitCode.DONE
    (path, *_) = sorted(store.table("weather").root.rglob("*.parquet"))
    path.unlink()
    return {}


def with_lost_table(store: Store, timestore: Run, environment: pytest.MonkeyPatch) -> Before:  # noqa: F811
    """The folder of all tables is emptied before it is adopted, and the table of weather is gone with it."""
    assert timestore("flush", "weather").code is ExitCode.DONE
    return {"timestore installation adopt tables --yes": lambda: shutil.rmtree(store.settings.path("data/tables"))}


def with_copy(store: Store, timestore: Run, environment: pytest.MonkeyPatch) -> Before:  # noqa: F811
    """All that the installation has is somewhere else, and the settings say so."""
    places = {"STAGING_DIRECTORY": "staging", "TABLES_URL": "tables", "LANDING_ARCHIVE_DIRECTORY": "archive"}

    def copy() -> None:
        shutil.copytree(store.settings.path("data"), store.settings.path("copied"))
        for name, folder in places.items():
            environment.setenv(f"TIMESTORE_{name}", str(store.settings.path("copied") / folder))

    return {"timestore installation new-identity --yes": copy}


def with_wrong_data(store: Store, timestore: Run, environment: pytest.MonkeyPatch) -> Before:  # noqa: F811
    """The right rows lie in a file; the program of the section replaces the others before the queue is looked at."""
    assert timestore("flush", "weather").code is ExitCode.DONE
    Path("corrected.csv").write_text(shipped_csv(LGA="2026-01-01T05:00:00Z"), encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", SECTIONS["A producer sent wrong data"], re.DOTALL)
    return {"timestore status weather": lambda: exec(textwrap.dedent(program), {})}


ARRANGED = {
    "A producer sent wrong data": with_wrong_data,
    "A copy of an installation": with_copy,
    "TimestorePlaceUnusable": with_lost_table,
    "Failed row audit": with_lost_rows,
    "Poison batch": with_poison,
    "Corrupt segment": with_damage,
    "Lost ledger": with_lost_ledger,
}
SECTIONS = {heading: text for page in (RUNBOOK, UPGRADE) for heading, text in sections(page) if commands(text)}


@pytest.mark.filterwarnings("ignore:.*TIMESTORE_STAGING_ENABLED:DeprecationWarning")
@pytest.mark.matrix
@pytest.mark.parametrize("heading", SECTIONS)
def test_the_commands_of_a_section_work_one_after_the_other(
    heading: str,
    timestore: Run,  # noqa: F811
    installation: Install,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    store = installation(DATASETS, staging_flush_max_rows=3)
    (store.settings.landing_path / "weather").mkdir(parents=True)
    for name, text in (("first.csv", WEATHER_CSV), ("repaired.csv", REPAIRED_CSV)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert timestore("stage", "weather", "first.csv").code is ExitCode.DONE
    before = ARRANGED[heading](store, timestore, monkeypatch) if heading in ARRANGED else {}

    for command in commands(SECTIONS[heading]):
        before.get(command, lambda: None)()
        variables, words = arguments(command)
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            finished = timestore(*words)
        assert finished.code is ExitCode.DONE, f"{command}: {finished.err}"

    with Store.open() as again, again.ledger.read() as tx:
        assert open_entries(tx) == []
        assert all_pauses(tx) == {} or heading == "Drain"


def test_what_a_producer_sent_wrong_is_replaced(
    timestore: Run,  # noqa: F811
    installation: Install,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    heading = "A producer sent wrong data"
    test_the_commands_of_a_section_work_one_after_the_other(heading, timestore, installation, monkeypatch, tmp_path)

    with Store.open() as store:
        found = query_rows(store, "SELECT origin, epoch_us(time_hour) FROM weather").to_arrow().to_pylist()
    there = {row["origin"]: from_micros(row["epoch_us(time_hour)"]) for row in found}
    assert len(found) == 2
    assert there == {"LGA": datetime(2026, 1, 1, 5, tzinfo=UTC), "EWR": datetime(2026, 2, 2, tzinfo=UTC)}


def test_flushing_by_hand_publishes_what_is_staged(timestore: Run, installation: Install, tmp_path: Path):  # noqa: F811
    store = installation(DATASETS)
    (tmp_path / "first.csv").write_text(WEATHER_CSV, encoding="utf-8")
    timestore("stage", "weather", "first.csv")

    for command in commands(dict(sections(RUNBOOK))["Flush by hand"])[:1]:
        timestore(*arguments(command)[1])

    with store.ledger.read() as tx:
        assert latest_builds(tx)["weather"].rows == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_that_are_named_exist(page: Path):
    known = {variable_name(field) for field in Settings.model_fields}

    assert set(re.findall(r"TIMESTORE_[A-Z_]*[A-Z]", page.read_text())) <= known


def test_every_alert_section_says_what_to_do_and_when_it_is_over():
    alerts = RUNBOOK.split("## Alerts")[1].split("## Procedures")[0]
    for heading, text in sections(alerts):
        assert "**Meaning.**" in text, heading
        assert re.search(r"\*\*Do\.\*\*|\*\*do\*\*", text), heading
        assert re.search(r"\*\*Confirm", text), heading
        assert "**Over when**" in text, heading

"""All that others rely on by name, as lines of text: what a restructuring must leave as it is.

``python -m timestore_pipeline_tests.public_face`` writes ``public_face.txt``, which a test holds the code to. A line
that is gone from it breaks somebody's program, dashboard, script or installation; a line that came is a promise.
"""

from __future__ import annotations

import inspect
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import timestore_pipeline
from timestore_pipeline import errors
from timestore_pipeline.cli.commands import app
from timestore_pipeline.cli.exit_codes import exit_code_of
from timestore_pipeline.datasets import parse_datasets
from timestore_pipeline.ledger.schema import metadata
from timestore_pipeline.metrics.series import SERIES, SERVER_SERIES
from timestore_pipeline.orchestration.location import build_definitions
from timestore_pipeline.settings import Settings, load_settings, variable_name
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, ingest

PINNED = Path(__file__).with_suffix(".txt")

_DATASETS = """
datasets:
  weather: {columns: {ts: timestamptz, station: varchar, temp: double}, time: ts, window: day}
  clicks:
    columns: {at: timestamptz, page: varchar}
    time: {column: at, unit: ms}
    window: hour
    key: {columns: [page]}
"""
_CSV = "ts,station,temp\n2026-01-01T00:00:00Z,JFK,1\n"
# What is drawn by chance, or is of the day, in the name of a file.
_DRAWN = re.compile(
    r"(?<=archive/weather/)[0-9-]{10}|[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{16,}|\d{8,}|(?<=\d-)[0-9a-f]{8,}"
)


def lines() -> list[str]:
    """Return the public face, a name and what belongs to it in each line."""
    return [
        *_python(),
        *sorted(_errors()),
        *_commands(),
        *sorted(_settings()),
        *sorted(_metrics()),
        *sorted(_dagster()),
        *_ledger(),
        *_files(),
    ]


def _python() -> Iterator[str]:
    for name in timestore_pipeline.__all__:
        yield f"python {name}"
        exported = getattr(timestore_pipeline, name)
        if issubclass(exported, Exception) or exported is Settings:
            continue
        for member, value in inspect.getmembers(exported):
            if member == "__init__" or not member.startswith("_"):
                yield f"python {name}.{member}{_signature(value)}"


def _signature(member: Any) -> str:
    return str(inspect.signature(member)) if inspect.isroutine(member) else ""


def _errors() -> Iterator[str]:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.TimestoreError):
            bases = ", ".join(base.__name__ for base in kind.__bases__)
            yield f"error {name}({bases}), exit code {exit_code_of(kind.__new__(kind)):d}"


def _commands() -> Iterator[str]:
    def walk(command: Any, path: str) -> Iterator[str]:
        for parameter in command.params:
            if parameter.name != "help":
                yield f"command {path} {'/'.join([*parameter.opts, *parameter.secondary_opts])}"
        for name, each in getattr(command, "commands", {}).items():
            yield f"command {path} {name}"
            yield from walk(each, f"{path} {name}")

    return walk(typer.main.get_command(app), "timestore")


def _settings() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        yield f"variable {variable_name(name)} = {field.default!r}"


def _metrics() -> Iterator[str]:
    for each in (*SERIES, *SERVER_SERIES):
        labels = ", ".join(filter(None, ("dataset" if each.per_dataset else None, each.label, *each.own_labels)))
        yield f"metric {each.name}{{{labels}}} {each.type.value}"


def _dagster() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as home:
        repository = build_definitions(
            load_settings(home=Path(home)), parse_datasets(_DATASETS, Path("datasets.yaml"))
        ).get_repository_def()
    graph = repository.asset_graph
    yield from (f"dagster asset {key.to_user_string()}" for key in graph.get_all_asset_keys())
    yield from (f"dagster check {key.asset_key.to_user_string()} {key.name}" for key in graph.asset_check_keys)
    yield from (f"dagster job {name}" for name in repository.job_names if not name.startswith("__"))
    yield from (f"dagster sensor {each.name}" for each in repository.sensor_defs)
    yield from (f"dagster schedule {each.name}" for each in repository.schedule_defs)
    yield from (f"dagster resource {name}" for name in repository.get_top_level_resources())


def _ledger() -> Iterator[str]:
    for table in metadata.sorted_tables:
        for column in table.columns:
            yield f"ledger {table.name}.{column.name} {column.type!r}{'' if column.nullable else ' not null'}"


def _files() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "datasets.yaml").write_text(_DATASETS)
        with Store.open(load_settings(home=home)) as store:
            landing = store.settings.landing_path / "weather"
            landing.mkdir(parents=True)
            (landing / "a.csv").write_text(_CSV)
            (landing / "b.csv").write_text("no,such,columns\n1,2,3\n")
            ingest(store)
            staged = _named(home)
            build(store)
            yield from sorted(staged | _named(home))


def _named(home: Path) -> set[str]:
    return {f"file {_DRAWN.sub('*', path.relative_to(home).as_posix())}" for path in home.rglob("*") if path.is_file()}


if __name__ == "__main__":
    PINNED.write_text("\n".join(lines()) + "\n", encoding="utf-8")

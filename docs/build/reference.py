"""The reference pages in ``docs/``, made from the code that they describe.

``python -m docs.build.reference`` writes them, ``--check`` says whether they are current (exit code 1
where one is not). What people should read first stands here as text; every table comes from a model.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from docs.build.dashboard import dashboard
from timestore_pipeline import datasets
from timestore_pipeline.cli.exit_codes import MEANINGS
from timestore_pipeline.metrics.series import SERIES, SERVER_SERIES
from timestore_pipeline.model.columns import RESERVED_NAMES, TYPE_NAMES
from timestore_pipeline.model.durations import DURATION_PATTERN, format_duration
from timestore_pipeline.settings import Settings, variable_name

DOCS = Path(__file__).parents[1]
"""Where the pages lie in a checkout."""

_NOTE = "<!-- Made by `make docs` from the code. Change the code, or docs/build/reference.py. -->\n"

EXAMPLE = """\
# yaml-language-server: $schema=./docs/datasets.schema.json
start: 2013-01-01                    # of every dataset that has none of its own

datasets:
  weather:
    description: Hourly weather observations of three airports.
    owners: [team:weather]
    columns:
      time_hour: timestamptz
      origin: varchar
      temp: double
    time: time_hour
    window: day
    lateness: 7d                     # a day closes a week after its end
    freshness: 2h                    # what the UI holds the table to
    landing:
      pattern: "*.csv"
      csv: {null: ["", NA]}
    flush: {max_age_ms: 300000}      # at most 5 minutes in staging
    retention: {staging: 7d, table: 1095d}   # rebuilt for a week, dropped after three years

  clicks:                            # columns are taken from the first file and then fixed
    time: {column: at, unit: ms}     # an integer: milliseconds since 1970
    window: hour
    limits: {max_pending: 5000}
"""
"""A datasets file that shows most of what can be said."""

_SETTINGS_INTRO = """\
# Configuration

Everything that differs between installations is said in two places: environment variables, and one file,
`datasets.yaml`. Both are checked at the start. An error names the variable or key, and lists the allowed values. A
change counts from the next start: the command reads both each time, a service is restarted, a code location reloaded.

## Environment variables

All of them start with `TIMESTORE_` and all are optional. An empty variable means its default. A name that is not
in these tables has no effect and is reported in the log, with the nearest one that there is. Relative paths are
resolved against `TIMESTORE_HOME`. Sizes are in bytes, durations in the unit that the name ends with.
"""

_DATASETS_INTRO = """\
## datasets.yaml

One file declares the datasets. It lies in `TIMESTORE_HOME` unless `TIMESTORE_DATASETS_FILE` says otherwise. Editors
that know JSON schemas complete and check it with [`datasets.schema.json`](datasets.schema.json).
"""

_DATASETS_RULES = """\
A dataset's name is a lower-case letter, then at most 62 of `a-z`, `0-9` and `_`. Its time, window, key and columns
are fixed once rows are staged ([what may change](datasets.md#what-is-fixed)). Datasets of one granularity should share
one `start`, because only then can Dagster build them in one run; windows before the year 1000 are no partitions there.
"""

_SERIES_BEGIN = "<!-- Made by `make docs` from timestore_pipeline/metrics/series.py, up to the end of the table. -->\n"
_SERIES_END = "\n<!-- End of the table. -->\n"

_CLI_INTRO = """\
# The `timestore` command

It works on the installation that the `TIMESTORE_*` variables describe (see [configuration](configuration.md)), beside
Dagster or without it. Results go to stdout and messages for people to stderr. Where stdout is no terminal, tables
are plain text in columns and nothing is cut; `--json` and `--format`, where a command has them, give what programs
read. Every command has `--help`; there is no `-h`, and no completion for shells.
"""

_SETTING_GROUPS = (
    (
        "Places",
        (
            "home",
            "datasets_file",
            "tables_url",
            "ledger_url",
            "ledger_busy_timeout_seconds",
            "ledger_pool_size",
        ),
    ),
    ("Landing", ("landing_",)),
    ("Staging", ("staging_enabled", "staging_directory", "staging_retention_seconds", "staging_max_future_ms")),
    ("Object store", ("work_directory", "object_")),
    ("When staged rows are flushed", ("staging_flush_", "flush_sensor_interval_seconds")),
    (
        "Limits",
        (
            "batch_max_",
            "staging_max_",
            "quarantine_max_",
            "staging_guardrail_mode",
            "staging_min_free_disk_bytes",
            "staging_concurrent_ingests",
            "staging_turn_timeout_seconds",
            "build_concurrent_builds",
        ),
    ),
    ("Building", ("build_", "compaction_")),
    (
        "Maintenance",
        (
            "maintenance_",
            "quarantine_retention_seconds",
            "table_retention_seconds",
            "vacuum_",
            "ledger_batch_",
            "ledger_build_",
            "dagster_",
        ),
    ),
    ("Service levels", ("slo_", "freshness_seconds")),
    ("In the UI", ("runbook_url",)),
    ("DuckDB", ("duckdb_",)),
    ("Queries", ("query_",)),
    ("Metrics", ("pushgateway_", "metrics_")),
    ("HTTP", ("http_",)),
)


def pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    return {
        "configuration.md": _configuration_page(),
        "datasets.schema.json": json.dumps(datasets_schema(), indent=2, ensure_ascii=False) + "\n",
        "timestore-observability.md": _observability_page(),
        "cli.md": _cli_page(),
        "observability/grafana/timestore-dashboard.json": json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n",
    }


def datasets_schema() -> dict[str, Any]:
    """Return the JSON schema of a datasets file, as a person writes it.

    It differs from that of the model: a dataset's name is its key, and a time may be just a column's name.
    """
    schema = _tidy(datasets.DatasetsFile.model_json_schema())
    dataset = schema["$defs"]["DatasetSpec"]
    del dataset["properties"]["name"]
    dataset["required"].remove("name")
    dataset["description"] = "One dataset."
    time = dataset["properties"]["time"]
    time["anyOf"] = [{"type": "string"}, {"$ref": time.pop("$ref")}]
    schema["properties"]["datasets"]["additionalProperties"] = False
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "datasets.yaml of a timestore",
        **schema,
        "description": "Declares the datasets.",
    }


def outdated(folder: Path = DOCS) -> list[Path]:
    """Return the pages in ``folder`` that are missing or not as the code makes them."""
    return [
        folder / name
        for name, text in pages().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def write(folder: Path = DOCS) -> None:
    """Write all pages into ``folder``."""
    for name, text in pages().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or with ``--check`` say which are not current; return the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given not in ([], ["--check"]):
        print("usage: python -m docs.build.reference [--check]", file=sys.stderr)
        return 2
    if not given:
        write()
        return 0
    stale = outdated()
    for path in stale:
        print(f"{path} is not current; run 'make docs'", file=sys.stderr)
    return 1 if stale else 0


def _configuration_page() -> str:
    parts = [_SETTINGS_INTRO]
    schema = Settings.model_json_schema()
    # A name goes to the group with the longest prefix of it, so that the order of groups is free.
    prefixes = sorted(
        ((prefix, title) for title, group in _SETTING_GROUPS for prefix in group), key=lambda p: -len(p[0])
    )
    by_group: dict[str, list[str]] = {title: [] for title, _ in _SETTING_GROUPS}
    for name in Settings.model_fields:
        title = next((title for prefix, title in prefixes if name.startswith(prefix)), None)
        if title is None:
            raise ValueError(f"say in _SETTING_GROUPS where {name} belongs")
        by_group[title].append(name)
    for title, names in by_group.items():
        parts.append(f"### {title}\n")
        rows = [_setting_row(name, schema) for name in names]
        parts.append(_table(("Variable", "Allowed", "Default", "Meaning"), rows))
    parts += [
        _DATASETS_INTRO,
        f"```yaml\n{EXAMPLE}```\n",
        _DATASETS_RULES,
        "### The file\n",
        _model_table(datasets.DatasetsFile),
        "### A dataset\n",
        _model_table(
            datasets.DatasetSpec,
            leave_out={"name"},
            in_file={"time": ("text or mapping", "required"), "start": ("date", "the file's `start`")},
        ),
    ]
    for key, model, more in (
        ("key", datasets.KeySpec, f"{_sentence(datasets.KeySpec)}\n"),
        ("delete", datasets.DeleteSpec, f"{_sentence(datasets.DeleteSpec)}\n"),
        ("time", datasets.TimeSpec, "Just the name of the column, or a mapping:\n"),
        ("landing", datasets.LandingSpec, ""),
        ("landing.csv", datasets.CsvOptions, ""),
        ("flush", datasets.FlushSpec, f"{_sentence(datasets.FlushSpec)}\n"),
        ("limits", datasets.LimitSpec, f"{_sentence(datasets.LimitSpec)}\n"),
    ):
        parts.append(f"### `{key}`\n")
        parts += [more] if more else []
        parts.append(_model_table(model))
    types = ", ".join(f"`{name}`" for name in TYPE_NAMES)
    reserved = ", ".join(f"`{name}`" for name in sorted(RESERVED_NAMES))
    parts += [
        "### `columns`\n",
        f"Types are {types}. Names have up to 255 characters, none of them a space, a control character or one of "
        f'`, ; {{ }} ( ) = "`; {reserved} are reserved, and two names may not differ only in case. '
        "Mend a file with other names before it lands ([CSV that is not clean](csv.md)). Times without an offset are "
        "taken as UTC; inferred, such a column is a `timestamp`.\n",
    ]
    return _page(parts)


def _observability_page() -> str:
    """Return the page that people wrote, with the table of all series in its place."""
    page = (DOCS / "timestore-observability.md").read_text(encoding="utf-8")
    before, begin, rest = page.partition(_SERIES_BEGIN)
    _, end, after = rest.partition(_SERIES_END)
    if not (begin and end):
        raise ValueError("timestore-observability.md has no place for the table of series any more; put it back")
    rows = []
    for each in (*SERIES, *SERVER_SERIES):
        labels = ", ".join(f"`{label}`" for label in each.own_labels or ("dataset",) * each.per_dataset) or "–"
        if each.label:
            labels += f", `{each.label}` = " + " \\| ".join(f"`{value}`" for value in each.values)
        rows.append((f"`{each.name}`", each.type.value, labels, each.unit, each.help))
    table = _table(("Series", "Type", "Labels", "Unit", "Meaning"), rows)
    return f"{before}{begin}\n{table}{end}{after}"


def _cli_page() -> str:
    parts = [_CLI_INTRO]
    for path, text in _helps():
        parts += [f"## `{path}`\n", f"```text\n{text}\n```\n"]
    parts += [
        "## Exit codes\n",
        _table(("Code", "Meaning"), [(str(int(code)), meaning) for code, meaning in MEANINGS.items()]),
    ]
    return _page(parts)


def _helps() -> Iterable[tuple[str, str]]:
    """Yield every command's path and its ``--help``."""
    import typer

    from timestore_pipeline.cli.commands import app

    def walk(command: Any, path: str, parent: Any) -> Iterable[tuple[str, str]]:
        # A width of its own, because the page must not depend on the terminal that it is made in.
        name = path.rpartition(" ")[2]
        with command.make_context(
            name, [], parent=parent, resilient_parsing=True, terminal_width=100, max_content_width=100
        ) as context:
            yield path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
            for child, each in getattr(command, "commands", {}).items():
                yield from walk(each, f"{path} {child}", context)

    yield from walk(typer.main.get_command(app), "timestore", None)


def _setting_row(name: str, schema: Mapping[str, Any]) -> tuple[str, ...]:
    field = Settings.model_fields[name]
    allowed = _allowed(schema["properties"][name], schema.get("$defs", {}))
    default = _default(field.default) + _in_words(name, field.default)
    return f"`{variable_name(name)}`", allowed, default, field.description or ""


def _model_table(
    model: type[BaseModel], leave_out: Iterable[str] = (), in_file: Mapping[str, tuple[str, str]] | None = None
) -> str:
    """Return the table of a model's keys; ``in_file`` says what is allowed and default where the file differs."""
    schema = model.model_json_schema()
    rows = []
    for name, field in model.model_fields.items():
        if name in set(leave_out):
            continue
        default = "required" if field.is_required() else _default(field.default)
        allowed = _allowed(schema["properties"][name], schema.get("$defs", {}))
        allowed, default = (in_file or {}).get(name, (allowed, default))
        rows.append((f"`{name}`", allowed, default, field.description or ""))
    return _table(("Key", "Allowed", "Default", "Meaning"), rows)


def _allowed(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Say in a few words what a JSON schema allows."""
    if "$ref" in schema:
        return _allowed(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(_allowed(option, definitions) for option in options)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type")
    if kind == "boolean":
        return "`true`, `false`"
    if kind in {"integer", "number"}:
        word = "integer" if kind == "integer" else "number"
        if "exclusiveMinimum" in schema:
            return f"{word} > {schema['exclusiveMinimum']:g}"
        return f"{word} ≥ {schema['minimum']:,}" if "minimum" in schema else word
    if kind == "array":
        return "list of texts"
    if kind == "object":
        return "mapping"
    if schema.get("maxLength") == 1:
        return "one character"
    if schema.get("pattern") == DURATION_PATTERN:
        return "duration"
    return {"path": "path", "date": "date", "password": "secret"}.get(schema.get("format", ""), "text")


def _default(value: Any) -> str:
    if isinstance(value, BaseModel) or value is None or value == ():
        return "–"
    if isinstance(value, Enum):
        return f"`{value.value}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{json.dumps(list(value))}`"
    if isinstance(value, timedelta):
        return f"`{format_duration(value)}`"
    return f"`{value}`" if str(value) else "–"


def _in_words(name: str, value: Any) -> str:
    """Return a large default once more as people say it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value:
        return ""
    if "bytes" in name:
        factor, unit = next((f, u) for f, u in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1, "bytes")) if value >= f)
        return f" ({value / factor:g} {unit})"
    seconds = value / 1e3 if name.endswith("_ms") else value if name.endswith("_seconds") else 0
    factor, unit = next((f, u) for f, u in ((86_400, "d"), (3_600, "h"), (60, "min"), (0, "")) if seconds >= f)
    return f" ({seconds / factor:g} {unit})" if factor else ""


def _sentence(model: type[BaseModel]) -> str:
    return re.sub(r"\s+", " ", model.__doc__ or "").strip()


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _page(parts: Iterable[str]) -> str:
    return "\n".join([_NOTE, *parts])


def _tidy(schema: Any) -> Any:
    """Leave out what pydantic adds for forms: titles made from names, and defaults that are whole objects."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {}
    for key, value in schema.items():
        if key == "properties":
            tidy[key] = {name: _tidy(each) for name, each in value.items()}
        elif not (key == "title" and isinstance(value, str)) and not (key == "default" and isinstance(value, dict)):
            tidy[key] = _tidy(value)
    return tidy


if __name__ == "__main__":
    sys.exit(main())

"""The commands and their options. Bodies load what they need themselves, so that ``--help`` costs little."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from timestore_pipeline import __version__
from timestore_pipeline.cli.insight_app import insight_app
from timestore_pipeline.cli.operations_app import operations_app

if TYPE_CHECKING:
    from timestore_pipeline.store import Store

app = typer.Typer(
    help="Look at a timestore, query it, and do by hand what its sensors do. "
    "Settings come from TIMESTORE_* variables, see docs/configuration.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Help and errors as plain lines: a box is of no use in a log, and drawing it takes longer than all the rest.
    rich_markup_mode=None,
)
quarantine_app = typer.Typer(
    help="What could not be staged, or not be read back.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(quarantine_app, name="quarantine")
limits_app = typer.Typer(
    help="What bounds each dataset, changed at run time.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(limits_app, name="limits")
app.add_typer(operations_app)
app.add_typer(insight_app)


class OutputFormat(StrEnum):
    """How ``timestore sql`` prints rows."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class Limit(StrEnum):
    """Limits that ``timestore limits`` can change."""

    MAX_PENDING = "max_pending"
    MAX_BYTES = "max_bytes"
    MAX_WINDOWS = "max_windows"
    CONCURRENT_INGESTS = "concurrent_ingests"
    CONCURRENT_BUILDS = "concurrent_builds"


Datasets = Annotated[
    list[str] | None, typer.Argument(metavar="DATASET", help="Datasets; all of them if none is named.")
]
OneDataset = Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.")]
OneLimit = Annotated[
    Limit, typer.Argument(metavar="NAME", help="The limit: " + ", ".join(f"`{each.value}`" for each in Limit) + ".")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from timestore_pipeline.cli.output import say

        say(f"timestore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(short_help="Show where every dataset stands.")
def status(datasets: Datasets = None, as_json: AsJson = False) -> None:
    """Show what is staged beside the thresholds that flush it, what is published, and what is in quarantine."""
    from timestore_pipeline.cli import output, status

    with _open_store() as store:
        statuses, problems = status.collect_status(store, _each_once(datasets))
    if as_json:
        output.print_json({"datasets": [status.as_json(each) for each in statuses], "problems": list(problems)})
        return
    output.print_table(status.HEADINGS, [status.as_row(each) for each in statuses])
    for problem in (*problems, *status.pauses_in_words(statuses), *status.refusals_in_words(statuses)):
        output.warn(problem)


@app.command(short_help="Query the datasets.")
def sql(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help='SQL for DuckDB, such as "select count(*) from weather".')
    ],
    output_format: Annotated[OutputFormat, typer.Option("--format", help="How rows are printed.")] = OutputFormat.TABLE,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=0, metavar="N", help="Print at most N rows; by default 50 in a table, else all."),
    ] = None,
) -> None:
    """Query the datasets: each is a view over its staged and published rows, at one moment."""
    from timestore_pipeline.cli.query import Format, print_query

    with _open_store() as store:
        print_query(store, query, Format(output_format.value), limit)


@app.command(short_help="Show the columns of a dataset, and how they came about.")
def schema(dataset: OneDataset, as_json: AsJson = False) -> None:
    """Show every version of a dataset's columns: since when, what brought it, and what it added or widened."""
    from timestore_pipeline.cli import output, schemas

    with _open_store() as store:
        history = schemas.collect_history(store, dataset)
    if as_json:
        output.print_json(schemas.as_json(dataset, history))
    else:
        output.print_table(schemas.HEADINGS, schemas.as_rows(history))


@app.command(short_help="Stage files that lie anywhere.")
def stage(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset that the files belong to.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Files; they stay where they are.")],
    batch_id: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Key of the batch, for one file: the same key is staged once. By default from the content.",
        ),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="While there is no room for a file, try again for so long."),
    ] = 0.0,
) -> None:
    """Stage files that lie anywhere, and print a receipt for each."""
    if batch_id is not None and len(files) > 1:
        raise typer.BadParameter("a batch id names one file's content, and several files are given")
    from timestore_pipeline.cli.work import stage_files

    with _open_store() as store:
        code = stage_files(store, dataset, files, batch_id, wait)
    raise typer.Exit(code)


@app.command(short_help="Take the landing files that are ready, once.")
def ingest(datasets: Datasets = None) -> None:
    """Take the landing files that are ready now, once, as the landing sensor's run does."""
    from timestore_pipeline.cli.work import ingest_landing

    with _open_store() as store:
        code = ingest_landing(store, _each_once(datasets))
    raise typer.Exit(code)


@app.command(short_help="Publish what is staged now.")
def flush(
    datasets: Annotated[list[str] | None, typer.Argument(metavar="DATASET", help="Datasets to flush.")] = None,
    all_datasets: Annotated[bool, typer.Option("--all", help="Flush every dataset.")] = False,
    first: Annotated[str | None, typer.Option(metavar="KEY", help="First window, such as 2026-11-23.")] = None,
    last: Annotated[str | None, typer.Option(metavar="KEY", help="Last window, included.")] = None,
) -> None:
    """Publish what is staged now, whatever the thresholds say."""
    if bool(datasets) == all_datasets:
        raise typer.BadParameter("name the datasets to flush, or give --all")
    from timestore_pipeline.cli.work import flush_datasets

    with _open_store() as store:
        try:
            code = flush_datasets(store, _each_once(datasets), first, last)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    raise typer.Exit(code)


EntryIds = Annotated[list[int], typer.Argument(metavar="ID", help="Entries, by the ids that list shows.")]


@quarantine_app.command("list")
def list_quarantine(
    datasets: Datasets = None,
    as_json: AsJson = False,
    resolved: Annotated[bool, typer.Option("--all", help="Also what was retried or discarded.")] = False,
) -> None:
    """List what is in quarantine, and why."""
    from timestore_pipeline.cli import output, quarantined

    with _open_store() as store:
        entries = quarantined.collect_entries(store, _each_once(datasets), resolved=resolved)
        if as_json:
            output.print_json([quarantined.as_json(store, entry) for entry in entries])
            return
        headings, rows = list(quarantined.HEADINGS), [quarantined.as_row(store, entry) for entry in entries]
        if resolved:
            headings.append(quarantined.STATE_HEADING)
            rows = [[*row, quarantined.state_in_words(entry)] for row, entry in zip(rows, entries, strict=True)]
        output.print_table(headings, rows)


@quarantine_app.command("show")
def show_quarantine(
    entry: Annotated[int, typer.Argument(metavar="ID", help="The entry, by the id that list shows.")],
    as_json: AsJson = False,
) -> None:
    """Show one entry: why it is there, where its bytes are, and how they begin."""
    from timestore_pipeline.cli.quarantined import show_entry

    with _open_store() as store:
        show_entry(store, entry, as_json_document=as_json)


@quarantine_app.command("retry")
def retry_quarantine(entries: EntryIds) -> None:
    """Try once more: stage a file or rows again, or read a segment again that was restored from a backup."""
    from timestore_pipeline.cli.quarantined import retry_entries

    with _open_store() as store:
        code = retry_entries(store, list(dict.fromkeys(entries)))
    raise typer.Exit(code)


@quarantine_app.command("discard")
def discard_quarantine(
    entries: EntryIds,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give entries up for good. Their bytes are removed; who did it and when is remembered."""
    from timestore_pipeline.cli import output, quarantined

    ids = list(dict.fromkeys(entries))
    with _open_store() as store:
        if not yes:
            question = quarantined.question(store, ids)
            if not output.can_ask():
                raise typer.BadParameter("nobody can be asked here; give --yes to discard for good")
            if not output.ask(question):
                raise typer.Exit(1)
        code = quarantined.discard_entries(store, ids)
    raise typer.Exit(code)


@limits_app.command("show")
def show_limits(datasets: Datasets = None, as_json: AsJson = False) -> None:
    """Show the limits that hold now, how much of each is used, and who said so."""
    from timestore_pipeline.cli import limits, output

    with _open_store() as store:
        found = limits.collect_limits(store, _each_once(datasets))
    if as_json:
        output.print_json([limits.as_json(each) for each in found])
    else:
        output.print_table(limits.HEADINGS, [limits.as_row(each) for each in found])


@limits_app.command("set")
def set_limit(
    dataset: OneDataset,
    name: OneLimit,
    value: Annotated[int, typer.Argument(min=0, metavar="N", help="The limit; 0 switches it off.")],
) -> None:
    """Change a limit at once, in every process and on every host, until it is cleared."""
    from timestore_pipeline.cli import limits, output
    from timestore_pipeline.ledger.limits import LimitName

    with _open_store() as store:
        limits.set_limit(store, dataset, LimitName(name.value), value)
    output.say(f"{dataset}: {name.value} is {value or 'no limit'} now")


@limits_app.command("clear")
def clear_limit(dataset: OneDataset, name: OneLimit) -> None:
    """Let a limit be again what datasets.yaml or the environment says."""
    from timestore_pipeline.cli import limits, output
    from timestore_pipeline.ledger.limits import LimitName

    with _open_store() as store:
        cleared = limits.clear_limit(store, dataset, LimitName(name.value))
    output.say(f"{dataset}: {name.value} is no longer overridden" if cleared else f"{dataset}: nothing to clear")


@app.command(short_help="Print, write or serve every metric.")
def metrics(
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write them into FILE, whole or not at all, for a node exporter's textfile collector."
        ),
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Let Prometheus fetch them, until Ctrl-C.")] = False,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Where --serve listens; others can look unless it is loopback."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="The port with --serve; 0: any.")] = 9640,
) -> None:
    """Print every metric in the Prometheus text format, as it is pushed; or write or serve them."""
    if output is not None and serve:
        raise typer.BadParameter("--output and --serve exclude each other")
    if serve:
        from timestore_pipeline.cli.work import serve_metrics

        serve_metrics(host, port)
        return
    from timestore_pipeline.metrics import exposition, write_exposition

    with _open_store() as store:
        if output is not None:
            write_exposition(store, output)
        else:
            # Whole as it is pushed: the format itself escapes what labels may not have.
            typer.echo(exposition(store).decode(), nl=False)


@app.command(short_help="Take batches over HTTP.")
def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; other than this machine only with tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="The port; 0: any.")] = 8640,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every request.")] = False,
) -> None:
    """Take batches over HTTP and answer each once it is durable, until SIGTERM or Ctrl-C.

    See docs/http.md.
    """
    from timestore_pipeline.cli.work import serve_http

    serve_http(host, port, verbose=verbose)


def _open_store() -> Store:
    from timestore_pipeline.store import Store

    return Store.open()


def _each_once(datasets: Sequence[str] | None) -> list[str]:
    return list(dict.fromkeys(datasets or ()))

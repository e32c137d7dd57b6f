"""The ``timestore`` command: all commands and groups, in the order in which its help lists them.

Each is a function in a file of its group, options and body together. Bodies load what they need themselves, so that
``--help`` costs little.
"""

from __future__ import annotations

from typing import Annotated

import typer

from timestore_pipeline import __version__
from timestore_pipeline.cli.clear_command import clear_app
from timestore_pipeline.cli.corrections_command import corrections_app
from timestore_pipeline.cli.dataset_commands import dataset_app
from timestore_pipeline.cli.doctor_command import doctor_app
from timestore_pipeline.cli.drain_commands import drain_app
from timestore_pipeline.cli.installation_commands import installation_app
from timestore_pipeline.cli.job_commands import job_app
from timestore_pipeline.cli.ledger_commands import ledger_app
from timestore_pipeline.cli.limits_commands import limits_app
from timestore_pipeline.cli.lineage_command import lineage_app
from timestore_pipeline.cli.loss_commands import loss_app
from timestore_pipeline.cli.quarantine_commands import quarantine_app
from timestore_pipeline.cli.run_commands import run_app
from timestore_pipeline.cli.schema_command import schema_app
from timestore_pipeline.cli.serving_commands import serving_app
from timestore_pipeline.cli.simulate_command import simulate_app
from timestore_pipeline.cli.sql_command import sql_app
from timestore_pipeline.cli.status_command import status_app
from timestore_pipeline.cli.validate_command import validate_app

app = typer.Typer(
    help="Look at a timestore, query it, and do by hand what its sensors do. "
    "Settings come from TIMESTORE_* variables, see docs/configuration.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Help and errors as plain lines: a box is of no use in a log, and drawing it takes longer than all the rest.
    rich_markup_mode=None,
)
for each in (status_app, sql_app, schema_app, run_app, serving_app):
    app.add_typer(each)
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(limits_app, name="limits")
for each in (drain_app, job_app, doctor_app, clear_app):
    app.add_typer(each)
app.add_typer(ledger_app, name="ledger")
app.add_typer(installation_app, name="installation")
app.add_typer(loss_app, name="loss")
app.add_typer(dataset_app, name="dataset")
for each in (lineage_app, corrections_app, simulate_app, validate_app):
    app.add_typer(each)


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

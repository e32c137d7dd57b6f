"""``timestore doctor``: everything that may be wrong, as a table, and an exit code by the worst of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.cli.options import AsJson
from timestore_pipeline.cli.output import Heading, print_json, print_table

if TYPE_CHECKING:
    from timestore_pipeline.operating.doctor import Finding
    from timestore_pipeline.store import Store

_HEADINGS = (Heading("part"), Heading("state"), Heading("what"), Heading("do"))

doctor_app = typer.Typer(rich_markup_mode=None)


@doctor_app.command(short_help="Look for what is wrong, and say what mends it.")
def doctor(as_json: AsJson = False) -> None:
    """Look at settings, datasets, folders, disk, ledger, segments, tables, gateway and Dagster; change nothing.

    Each part is named with what is wrong and the command that mends it. Exit code 1 where something is broken, 3 where
    nothing works without it; warnings alone are 0.
    """
    from timestore_pipeline.operating.doctor import Level

    found = _everything()
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        print_table(_HEADINGS, [[each.part, each.level.value, each.message, each.fix or "-"] for each in found])
    errors = [finding for finding in found if finding.level is Level.ERROR]
    if any(finding.unusable for finding in errors):
        raise typer.Exit(ExitCode.MISCONFIGURED)
    raise typer.Exit(ExitCode.FAILED if errors else ExitCode.DONE)


def _everything() -> list[Finding]:
    from timestore_pipeline.operating.doctor import look_at_folders, look_at_settings, open_without_changes, safely

    settings, datasets, found = look_at_settings()
    if settings is not None:
        found += safely("folders", lambda: look_at_folders(settings))
    if settings is not None and datasets is not None:
        store, finding = open_without_changes(settings, datasets)
        found.append(finding)
        if store is not None:
            with store:
                found += _of_store(store)
    # Dagster takes a second to load, and may be broken: last, and only here.
    found += safely("code location", _look_at_code_location)
    return found + safely("dagster", _look_at_dagster)


def _of_store(store: Store) -> list[Finding]:
    from timestore_pipeline.operating import doctor
    from timestore_pipeline.operating.doctor import safely

    found = safely("places", lambda: doctor.look_at_places(store))
    found += safely("builds and intake", lambda: doctor.look_at_ledger(store))
    found += safely("segments", lambda: doctor.look_at_segments(store))
    for name in store.datasets:
        found += safely(f"table {name}", lambda name=name: doctor.look_at_table(store, name))
    return found + safely("gateway", lambda: _look_at_gateway(store))


def _look_at_gateway(store: Store) -> Iterator[Finding]:
    from timestore_pipeline.metrics.pushgateway import push_metrics
    from timestore_pipeline.operating.doctor import Finding, Level

    if store.settings.pushgateway_url is None:
        yield Finding("gateway", Level.OK, "metrics are off: TIMESTORE_PUSHGATEWAY_URL is not set")
        return
    result = push_metrics(store)
    fix = "" if result.pushed else "see TimestoreMetricsStale in the runbook"
    yield Finding("gateway", Level.OK if result.pushed else Level.WARNING, result.reason, fix)


def _look_at_code_location() -> Iterator[Finding]:
    from timestore_pipeline.orchestration.dagster_doctor import look_at_code_location

    return look_at_code_location()


def _look_at_dagster() -> Iterator[Finding]:
    from timestore_pipeline.orchestration.dagster_doctor import look_at_dagster

    return look_at_dagster()

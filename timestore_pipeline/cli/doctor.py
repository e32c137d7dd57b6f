"""``timestore doctor``: everything that is looked at, as a table, and an exit code by the worst of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.cli.output import Heading, print_json, print_table
from timestore_pipeline.operating.doctor import (
    Finding,
    Level,
    look_at_folders,
    look_at_ledger,
    look_at_places,
    look_at_segments,
    look_at_settings,
    look_at_table,
    open_without_changes,
    safely,
)
from timestore_pipeline.store import Store

_HEADINGS = (Heading("part"), Heading("state"), Heading("what"), Heading("do"))


def examine(*, as_json: bool) -> ExitCode:
    """Look at the installation of the environment and print what was found; never raises."""
    found = _everything()
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        print_table(_HEADINGS, [[each.part, each.level.value, each.message, each.fix or "-"] for each in found])
    errors = [finding for finding in found if finding.level is Level.ERROR]
    if any(finding.unusable for finding in errors):
        return ExitCode.MISCONFIGURED
    return ExitCode.FAILED if errors else ExitCode.DONE


def _everything() -> list[Finding]:
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
    found = safely("places", lambda: look_at_places(store))
    found += safely("builds and intake", lambda: look_at_ledger(store))
    found += safely("segments", lambda: look_at_segments(store))
    for name in store.datasets:
        found += safely(f"table {name}", lambda name=name: look_at_table(store, name))
    return found + safely("gateway", lambda: _look_at_gateway(store))


def _look_at_gateway(store: Store) -> Iterator[Finding]:
    from timestore_pipeline.metrics.pushgateway import push_metrics

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

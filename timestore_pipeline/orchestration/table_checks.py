"""The asset checks of ``partitions/<dataset>``: that no row is missing or there twice, and that files have a good size.

They run in the step that publishes, right after it, and by themselves when somebody asks for them in the UI.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import dagster as dg

from timestore_pipeline.alone import alone
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.inert import as_code
from timestore_pipeline.ledger.windows import window_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import Window
from timestore_pipeline.orchestration.keys import partitions_key
from timestore_pipeline.orchestration.metadata import Metadata, table
from timestore_pipeline.policy import Policy
from timestore_pipeline.store import Store

ROW_AUDIT = "row_audit"

FILE_SIZES = "file_sizes"

_MAX_WINDOWS = 50


def table_check_specs(spec: DatasetSpec) -> list[dg.AssetCheckSpec]:
    """Return what is checked of a dataset's table."""
    return [
        dg.AssetCheckSpec(
            ROW_AUDIT,
            asset=partitions_key(spec.name),
            blocking=True,
            description="Exactly once: of each window, rows staged = published + in quarantine + still queued by the "
            "ledger, and rows published = rows in the table's files. After a build its windows are audited down to "
            "the files, the others by their numbers; run by itself, all are audited in full.",
        ),
        dg.AssetCheckSpec(
            FILE_SIZES,
            asset=partitions_key(spec.name),
            description="No closed window has more files beyond those that its size asks for than an open one may have "
            "small ones (TIMESTORE_COMPACTION_MAX_SMALL_FILES), and no open one twice as many: queries pay for each "
            "file, whatever its size.",
        ),
    ]


def table_check_results(
    store: Store, spec: DatasetSpec, wanted: Collection[dg.AssetCheckKey], touched: Sequence[Window] | None
) -> Iterator[dg.AssetCheckResult]:
    """Yield the results of the ``wanted`` checks; ``touched`` are the windows of a build, None where there was none."""
    if dg.AssetCheckKey(partitions_key(spec.name), ROW_AUDIT) in wanted:
        yield row_audit_result(store, spec, touched)
    if dg.AssetCheckKey(partitions_key(spec.name), FILE_SIZES) in wanted:
        try:
            with alone(spec.name):
                yield file_sizes_result(store, store.datasets[spec.name])
        except TimestoreError as error:
            yield dg.AssetCheckResult(
                asset_key=partitions_key(spec.name),
                check_name=FILE_SIZES,
                passed=False,
                severity=dg.AssetCheckSeverity.WARN,
                description=f"it cannot be looked at: {as_code(str(error))}",
            )


def row_audit_result(store: Store, spec: DatasetSpec, touched: Sequence[Window] | None) -> dg.AssetCheckResult:
    """Fail where the rows of a window do not add up, with the windows and what is wrong with each."""
    # Brings deltalake: code locations that only load definitions do without.
    from timestore_pipeline.operating.audit import audit_rows

    def result(passed: bool, description: str, metadata: Metadata) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(
            asset_key=partitions_key(spec.name),
            check_name=ROW_AUDIT,
            passed=passed,
            severity=dg.AssetCheckSeverity.ERROR,
            description=description,
            metadata=metadata,
        )

    try:
        with alone(spec.name):
            report = audit_rows(store, spec.name, touched)
    except TimestoreError as error:
        return result(False, f"the table or the ledger cannot be read: {as_code(str(error))}", {})
    accounts = [window.account for window in report.windows if window.account is not None]
    lines = [(window.window.key, "; ".join(window.problems)) for window in report.wrong]
    if report.stray_in_words is not None:
        lines.append(("-", report.stray_in_words))
    numbers = f"{len(report.windows):,} windows, {len(report.proved):,} of them in full"
    return result(
        not lines,
        f"{len(lines):,} of {numbers}, do not add up" if lines else f"all rows are accounted for: {numbers}",
        {
            "windows": len(report.windows),
            "windows_in_full": len(report.proved),
            "windows_wrong": len(lines),
            "table_rows": sum(window.table_rows for window in report.windows),
            "recorded_rows": sum(window.recorded for window in report.windows),
            "staged_rows": sum(account.staged for account in accounts),
            "published_rows": sum(account.published for account in accounts),
            "quarantined_rows": sum(account.quarantined for account in accounts),
            "corrected_rows": sum(account.corrected for account in accounts),
            "accepted_lost_rows": sum(account.lost for account in accounts),
            "queued_rows": sum(account.queued for account in accounts),
            "files": sum(window.files for window in report.windows),
            "files_opened": report.files_opened,
            **({"table_version": report.table_version} if report.table_version is not None else {}),
            **({"wrong": table(("window", "what is wrong"), lines, _MAX_WINDOWS)} if lines else {}),
        },
    )


def file_sizes_result(store: Store, spec: DatasetSpec) -> dg.AssetCheckResult:
    """Warn where windows are in many more files than their size asks for, worst first."""
    target = store.settings.build_target_file_bytes
    with store.ledger.read() as tx:
        totals = window_totals(tx, spec.name)
    spare = {total: total.files - math.ceil(total.bytes / target) for total in totals}
    open_from = spec.first_open_window(now_micros()).start_micros
    # An open window has as many as the rules let it, and those that come until maintenance looks again. It closes with
    # that many, which maintenance then merges.
    limit = Policy.of(store.settings, spec).max_small_files
    while_open = 2 * limit if limit else math.inf
    worst = sorted(
        (total for total in totals if spare[total] > (while_open if total.window_start >= open_from else limit)),
        key=lambda total: -spare[total],
    )
    lines = [
        (spec.window_at(total.window_start).key, f"{total.files:,}", f"{total.bytes // max(1, total.files):,}")
        for total in worst
    ]
    files, size = sum(total.files for total in totals), sum(total.bytes for total in totals)
    return dg.AssetCheckResult(
        asset_key=partitions_key(spec.name),
        check_name=FILE_SIZES,
        passed=not lines,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(lines):,} of {len(totals):,} windows are in many small files" if lines else None,
        metadata={
            "windows": len(totals),
            "windows_in_pieces": len(lines),
            "files": files,
            "bytes": size,
            "mean_file_bytes": size // max(1, files),
            "spare_files": sum(max(0, number) for number in spare.values()),
            "target_file_bytes": target,
            "max_small_files": limit,
            **({"in_pieces": table(("window", "files", "mean bytes"), lines, _MAX_WINDOWS)} if lines else {}),
        },
    )

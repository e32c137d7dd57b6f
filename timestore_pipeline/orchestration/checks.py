"""The asset checks of a dataset: what an operator should look at although nothing failed.

All checks of a dataset are one step, because a step costs more than everything that they look at.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of a resource as they stand.
from collections.abc import Iterator

import dagster as dg

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.inert import as_code
from timestore_pipeline.ledger.queue import pending_batches, staged_bytes
from timestore_pipeline.orchestration.keys import staging_key
from timestore_pipeline.orchestration.quarantine_check import QUARANTINE_EMPTY, look_into_quarantine
from timestore_pipeline.orchestration.resources import StoreResource
from timestore_pipeline.store import Store

GUARDRAILS = "guardrails"

DECLARATION = "declaration"


def dataset_checks(spec: DatasetSpec) -> list[dg.AssetChecksDefinition]:
    """Return all checks of a dataset."""
    asset = staging_key(spec.name)

    @dg.multi_asset_check(
        name=f"staging_checks__{spec.name}",
        specs=[
            dg.AssetCheckSpec(
                GUARDRAILS,
                asset=asset,
                description="Staged bytes are below TIMESTORE_STAGING_MAX_DATASET_BYTES and …_MAX_TOTAL_BYTES.",
            ),
            dg.AssetCheckSpec(
                DECLARATION,
                asset=asset,
                description="What datasets.yaml says of the dataset is that with which its rows were staged.",
            ),
            dg.AssetCheckSpec(
                QUARANTINE_EMPTY,
                asset=asset,
                description="Nothing is in quarantine; `timestore quarantine list` says what is.",
            ),
        ],
    )
    def staging_checks(store: StoreResource) -> Iterator[dg.AssetCheckResult]:
        yield guardrails_result(store.opened, spec)
        yield declaration_result(store.opened, spec)
        yield quarantine_result(store.opened, spec)

    return [staging_checks]


def guardrails_result(store: Store, spec: DatasetSpec) -> dg.AssetCheckResult:
    """Warn where what is staged has reached a size guardrail."""
    from timestore_pipeline.staging.room import guardrail_breaches

    with store.ledger.read() as tx:
        limits = store.policy(tx, spec).limits
        breaches = guardrail_breaches(tx, store, spec, limits)
        staged = staged_bytes(tx)
        pending = pending_batches(tx, spec.name)
    return dg.AssetCheckResult(
        asset_key=staging_key(spec.name),
        check_name=GUARDRAILS,
        passed=not breaches,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(as_code(str(breach)) for breach in breaches) or None,
        metadata={
            "staged_bytes": staged.get(spec.name, 0),
            "max_bytes": limits.max_bytes,
            "all_staged_bytes": sum(staged.values()),
            "max_total_bytes": store.settings.staging_max_total_bytes,
            "staged_batches": pending,
            "max_pending": limits.max_pending,
            "mode": store.settings.staging_guardrail_mode.value,
        },
    )


def declaration_result(store: Store, spec: DatasetSpec) -> dg.AssetCheckResult:
    """Fail where the dataset is left alone, because its declaration contradicts what the ledger has of it."""
    refused = store.datasets.refused.get(spec.name)
    return dg.AssetCheckResult(
        asset_key=staging_key(spec.name),
        check_name=DECLARATION,
        passed=refused is None,
        severity=dg.AssetCheckSeverity.ERROR,
        description=refused and str(refused),
    )


def report_refused(instance: dg.DagsterInstance, store: Store) -> None:
    """Let the check of each refused dataset fail, once and without a run.

    Nothing of such a dataset is run, so no run says it. The next run says when it is right again.
    """
    for name in store.datasets.refused:
        result = declaration_result(store, store.datasets.declared[name])
        key = dg.AssetCheckKey(staging_key(name), DECLARATION)
        latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
        event = latest.event.dagster_event if latest and latest.event else None
        said = event.event_specific_data if event else None
        if not isinstance(said, dg.AssetCheckEvaluation) or said.passed or said.description != result.description:
            instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(
                    asset_key=staging_key(name),
                    check_name=DECLARATION,
                    passed=False,
                    severity=result.severity,
                    description=result.description,
                )
            )


def quarantine_result(store: Store, spec: DatasetSpec) -> dg.AssetCheckResult:
    """Warn where something of the dataset is in quarantine, and say why the newest of it is."""
    found = look_into_quarantine(store, spec)
    return dg.AssetCheckResult(
        asset_key=staging_key(spec.name),
        check_name=QUARANTINE_EMPTY,
        passed=found.passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=found.description,
        metadata=found.metadata,
    )

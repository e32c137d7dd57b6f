"""The asset checks of a dataset: what an operator should look at although nothing failed.

All checks of a dataset are one step, because a step costs more than everything that they look at.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of a resource as they stand.
from collections.abc import Iterator

import dagster as dg

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.inert import as_code
from timestore_pipeline.ledger.batches import pending_batches, staged_bytes
from timestore_pipeline.orchestration.keys import staging_key
from timestore_pipeline.orchestration.quarantine_check import QUARANTINE_EMPTY, look_into_quarantine
from timestore_pipeline.orchestration.resources import StoreResource
from timestore_pipeline.store import Store

GUARDRAILS = "guardrails"


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
                QUARANTINE_EMPTY,
                asset=asset,
                description="Nothing is in quarantine; `timestore quarantine list` says what is.",
            ),
        ],
    )
    def staging_checks(store: StoreResource) -> Iterator[dg.AssetCheckResult]:
        yield guardrails_result(store.opened, spec)
        yield quarantine_result(store.opened, spec)

    return [staging_checks]


def guardrails_result(store: Store, spec: DatasetSpec) -> dg.AssetCheckResult:
    """Warn where what is staged has reached a size guardrail."""
    from timestore_pipeline.staging.room import guardrail_breaches

    with store.ledger.read() as tx:
        limits = store.limits(tx, spec)
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

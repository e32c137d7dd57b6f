"""The asset checks of a dataset: what an operator should look at although nothing failed."""

# No `from __future__ import annotations`: Dagster reads the annotations of a resource as they stand.
import dagster as dg

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.ledger.batches import pending_batches, staged_bytes
from timestore_pipeline.orchestration.assets import staging_key
from timestore_pipeline.orchestration.resources import StoreResource


def guardrails_check(spec: DatasetSpec) -> dg.AssetChecksDefinition:
    """Return the check that warns where what is staged has reached a size guardrail."""

    @dg.asset_check(
        asset=staging_key(spec.name),
        name="guardrails",
        description="Staged bytes are below TIMESTORE_STAGING_MAX_DATASET_BYTES and …_MAX_TOTAL_BYTES.",
    )
    def guardrails(store: StoreResource) -> dg.AssetCheckResult:
        from timestore_pipeline.staging.room import guardrail_breaches

        opened = store.opened
        with opened.ledger.read() as tx:
            limits = opened.limits(tx, spec)
            breaches = guardrail_breaches(tx, opened, spec, limits)
            staged = staged_bytes(tx)
            pending = pending_batches(tx, spec.name)
        return dg.AssetCheckResult(
            passed=not breaches,
            severity=dg.AssetCheckSeverity.WARN,
            description="; ".join(map(str, breaches)) or None,
            metadata={
                "staged_bytes": staged.get(spec.name, 0),
                "max_bytes": limits.max_bytes,
                "all_staged_bytes": sum(staged.values()),
                "max_total_bytes": opened.settings.staging_max_total_bytes,
                "staged_batches": pending,
                "max_pending": limits.max_pending,
                "mode": opened.settings.staging_guardrail_mode.value,
            },
        )

    return guardrails


def dataset_checks(spec: DatasetSpec) -> list[dg.AssetChecksDefinition]:
    """Return all checks of a dataset."""
    return [guardrails_check(spec)]

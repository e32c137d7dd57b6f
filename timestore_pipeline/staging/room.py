"""Whether there is room for more: the queue's limit, the size guardrails and free disk (back-pressure).

What is refused here is refused before anything was acknowledged, so nothing is lost: the caller is told, and a
landing file waits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from shutil import disk_usage

from sqlalchemy import Connection

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import DiskFull, GuardrailExceeded, IntakePaused, StagingQueueFull
from timestore_pipeline.ledger.batches import pending_batches, staged_bytes
from timestore_pipeline.ledger.counters import GUARDRAIL_BREACHES, count
from timestore_pipeline.ledger.limits import EffectiveLimits
from timestore_pipeline.ledger.pauses import EVERY_DATASET, all_pauses, pause_of
from timestore_pipeline.settings import GuardrailMode
from timestore_pipeline.store import Store
from timestore_pipeline.windows import from_micros

log = logging.getLogger(__name__)

MAX_DATASET_BYTES = "TIMESTORE_STAGING_MAX_DATASET_BYTES"
MAX_TOTAL_BYTES = "TIMESTORE_STAGING_MAX_TOTAL_BYTES"

GUARDRAIL_LABELS = {MAX_DATASET_BYTES: "max_dataset_bytes", MAX_TOTAL_BYTES: "max_total_bytes"}
"""Guardrail → what its breaches are counted under."""


def check_room(store: Store, spec: DatasetSpec, batches: int) -> EffectiveLimits:
    """Refuse early what staging could not take; return the dataset's limits.

    Raises:
        IntakePaused: an operator stopped intake.
        StagingQueueFull: the dataset's staging queue has no room for ``batches`` more.
        GuardrailExceeded: a size guardrail in enforce mode is exceeded.
        DiskFull, PlaceError: as :func:`check_disk`.
    """
    check_disk(store)
    with store.ledger.read() as tx:
        check_pause(tx, spec.name)
        limits = store.limits(tx, spec)
        check_queue(tx, spec, limits, batches)
        check_guardrails(tx, store, spec, limits)
    return limits


def check_pause(tx: Connection, dataset: str) -> None:
    """Raise :class:`IntakePaused` where an operator stopped intake of the dataset or of all."""
    pause = pause_of(all_pauses(tx), dataset)
    if pause is not None:
        resume = "resume --all" if pause.dataset == EVERY_DATASET else f"resume {dataset}"
        since = f"{from_micros(pause.paused_at):%Y-%m-%d %H:%M:%S}Z"
        raise IntakePaused(dataset, pause.paused_by, since, pause.reason, resume)


def room_for(tx: Connection, store: Store, spec: DatasetSpec, batches: int) -> tuple[EffectiveLimits, int]:
    """Return the dataset's limits, and for how many of ``batches`` there is room: one at least.

    Raises:
        IntakePaused, StagingQueueFull, GuardrailExceeded: as :func:`check_room`, there is room for none.
    """
    check_pause(tx, spec.name)
    limits = store.limits(tx, spec)
    check_guardrails(tx, store, spec, limits)
    if not limits.max_pending:
        return limits, batches
    depth = pending_batches(tx, spec.name)
    if depth >= limits.max_pending:
        raise StagingQueueFull(spec.name, depth, limits.max_pending)
    return limits, min(batches, limits.max_pending - depth)


def check_disk(store: Store, path: Path | None = None) -> None:
    """Refuse to write to ``path``, by default to staging.

    Raises:
        DiskFull: less than the minimum of disk is free.
        PlaceError: staging is not there, or another installation's.
    """
    if path is None:
        store.staging.require()
        path = store.settings.staging_path
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free = disk_usage(existing).free
    if free < store.settings.staging_min_free_disk_bytes:
        raise DiskFull(path, free, store.settings.staging_min_free_disk_bytes)


def check_queue(tx: Connection, spec: DatasetSpec, limits: EffectiveLimits, batches: int) -> None:
    """Raise :class:`StagingQueueFull` where the queue has no room for ``batches`` more."""
    if not limits.max_pending:
        return
    depth = pending_batches(tx, spec.name)
    if depth + batches > limits.max_pending:
        raise StagingQueueFull(spec.name, depth, limits.max_pending)


def check_guardrails(tx: Connection, store: Store, spec: DatasetSpec, limits: EffectiveLimits) -> None:
    """Raise :class:`GuardrailExceeded` where a size guardrail is exceeded and they are enforced."""
    if store.settings.staging_guardrail_mode is GuardrailMode.ENFORCE:
        for breach in guardrail_breaches(tx, store, spec, limits):
            raise breach


def guardrail_breaches(
    tx: Connection, store: Store, spec: DatasetSpec, limits: EffectiveLimits
) -> list[GuardrailExceeded]:
    """Return the size guardrails that the dataset, or all datasets together, have reached."""
    total_limit = store.settings.staging_max_total_bytes
    if not (limits.max_bytes or total_limit):
        return []
    # Those of all only where they are asked for: they grow with the number of datasets.
    staged = staged_bytes(tx, None if total_limit else spec.name)
    checks = (
        (MAX_DATASET_BYTES, staged.get(spec.name, 0), limits.max_bytes),
        (MAX_TOTAL_BYTES, sum(staged.values()), total_limit),
    )
    return [GuardrailExceeded(spec.name, name, size, limit) for name, size, limit in checks if limit and size >= limit]


def count_breaches(tx: Connection, breaches: Iterable[GuardrailExceeded]) -> None:
    """Count batches that met a size guardrail, whether they were staged (warn) or refused (enforce)."""
    for breach in breaches:
        count(tx, GUARDRAIL_BREACHES, breach.dataset, GUARDRAIL_LABELS[breach.guardrail])


def log_breaches(breaches: Iterable[GuardrailExceeded]) -> None:
    """Warn of size guardrails that were exceeded by what is staged now."""
    for breach in breaches:
        log.warning("%s", breach)

"""Whether there is room for more: the queue's limit, the size guardrails and free disk (back-pressure).

What is refused here is refused before anything was acknowledged, so nothing is lost: the caller is told, and a
landing file waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from shutil import disk_usage

from sqlalchemy import Connection

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.durable_files import nearest_there
from timestore_pipeline.errors import (
    ClientShareTaken,
    DiskFull,
    GuardrailExceeded,
    IntakePaused,
    QuarantineFull,
    StagingQueueFull,
)
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.counters import GUARDRAIL_BREACHES, count
from timestore_pipeline.ledger.limits import EVERY_DATASET, all_pauses, pause_of
from timestore_pipeline.ledger.quarantine import bytes_of_rows_aside, quarantined_bytes
from timestore_pipeline.ledger.queue import pending_batches, pending_of_sources, staged_bytes
from timestore_pipeline.model.windows import from_micros
from timestore_pipeline.policy import EffectiveLimits
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.judging import reason_in_words
from timestore_pipeline.segments.segment import WrittenSegment
from timestore_pipeline.settings import GuardrailMode
from timestore_pipeline.store import Store

log = log_named(__name__)


class Admission(Enum):
    """What a batch is to do that comes to a queue."""

    TAKEN = "it goes into the queue"
    LATER = "it waits until the others of its group are through"
    OVER_SHARE = "its client has its share of the queue"


MAX_DATASET_BYTES = "TIMESTORE_STAGING_MAX_DATASET_BYTES"
MAX_TOTAL_BYTES = "TIMESTORE_STAGING_MAX_TOTAL_BYTES"

GUARDRAIL_LABELS = {MAX_DATASET_BYTES: "max_dataset_bytes", MAX_TOTAL_BYTES: "max_total_bytes"}
"""Guardrail → what its breaches are counted under."""


def check_pause(tx: Connection, dataset: str) -> None:
    """Raise :class:`IntakePaused` where an operator stopped intake of the dataset or of all."""
    pause = pause_of(all_pauses(tx), dataset)
    if pause is not None:
        resume = "resume --all" if pause.dataset == EVERY_DATASET else f"resume {dataset}"
        since = f"{from_micros(pause.paused_at):%Y-%m-%d %H:%M:%S}Z"
        raise IntakePaused(dataset, pause.paused_by, since, pause.reason, resume)


def room_for(
    tx: Connection, store: Store, spec: DatasetSpec, batches: Sequence[IncomingBatch]
) -> tuple[EffectiveLimits, list[Admission]]:
    """Return the dataset's limits, and what each of ``batches`` is to do; one at least is not to wait.

    Raises:
        IntakePaused: an operator stopped intake.
        StagingQueueFull: the dataset's staging queue has no room for one more.
        GuardrailExceeded: a size guardrail in enforce mode is exceeded.
    """
    check_pause(tx, spec.name)
    limits = store.policy(tx, spec).limits
    check_guardrails(tx, store, spec, limits)
    if not limits.max_pending:
        return limits, [Admission.TAKEN] * len(batches)
    depth = pending_batches(tx, spec.name)
    if depth >= limits.max_pending:
        raise StagingQueueFull(spec.name, depth, limits.max_pending)
    return limits, _admitted(tx, spec, limits, depth, batches)


def check_disk(store: Store, path: Path | None = None) -> None:
    """Refuse to write to ``path``, by default to staging.

    Raises:
        DiskFull: less than the minimum of disk is free.
        PlaceError: staging is not there, or another installation's.
    """
    if path is None:
        store.staging.require()
        path = store.settings.staging_path
    free = disk_usage(nearest_there(path)).free
    if free < store.settings.staging_min_free_disk_bytes:
        raise DiskFull(path, free, store.settings.staging_min_free_disk_bytes)


def check_shares(tx: Connection, spec: DatasetSpec, limits: EffectiveLimits, batches: Sequence[IncomingBatch]) -> None:
    """Raise :class:`StagingQueueFull` where one of ``batches`` is more than its client's share of the queue."""
    if not limits.max_pending or all(batch.client is None for batch in batches):
        return
    depth = pending_batches(tx, spec.name)
    for batch, admission in zip(batches, _admitted(tx, spec, limits, depth, batches), strict=True):
        if admission is Admission.OVER_SHARE:
            raise over_share(spec, limits, batch)


def over_share(spec: DatasetSpec, limits: EffectiveLimits, batch: IncomingBatch) -> ClientShareTaken:
    """Return what a client is told that has its share of the queue."""
    return ClientShareTaken(spec.name, batch.client.name if batch.client else "", limits.max_pending)


def _admitted(
    tx: Connection, spec: DatasetSpec, limits: EffectiveLimits, depth: int, batches: Sequence[IncomingBatch]
) -> list[Admission]:
    clients = [batch.client.name if batch.client else None for batch in batches]
    # Whoever has all that is there has no more than its share as long as half of the queue is free.
    close = depth + len(batches) > limits.max_pending // 2
    held = pending_of_sources(tx, spec.name, {name for name in clients if name}) if close else {}
    return admissions(clients, held if close else None, depth, limits.max_pending)


def admissions(
    clients: Sequence[str | None], held: Mapping[str, int] | None, depth: int, limit: int
) -> list[Admission]:
    """Return what batches are to do that come one after the other, each of a client or (None) of nobody in particular.

    A client may have as many batches in the queue as there is room left: half of the queue if it is alone, a third if
    there are two, and so on. So there is room for one more, whoever has come before. ``held`` has what clients have in
    the queue, ``depth`` is what all have; where ``held`` is None nobody can have too much.
    """
    taken = dict(held or {})
    found: list[Admission] = []
    for client in clients:
        free = limit - depth
        if free <= 0:
            found.append(Admission.LATER)
            continue
        if client is not None and held is not None:
            if taken.get(client, 0) >= free:
                found.append(Admission.OVER_SHARE)
                continue
            taken[client] = taken.get(client, 0) + 1
        found.append(Admission.TAKEN)
        depth += 1
    return found


def check_queue(tx: Connection, spec: DatasetSpec, limits: EffectiveLimits, batches: int) -> None:
    """Raise :class:`StagingQueueFull` where the queue has no room for ``batches`` more."""
    if not limits.max_pending:
        return
    depth = pending_batches(tx, spec.name)
    if depth + batches > limits.max_pending:
        raise StagingQueueFull(spec.name, depth, limits.max_pending)


def check_quarantine(tx: Connection, store: Store, spec: DatasetSpec, written: WrittenSegment) -> None:
    """Raise :class:`QuarantineFull` where the refused rows of a segment are more than may be set aside.

    So who sends nothing but bad rows fills no disk, and holds up nobody whose rows are good.
    """
    limit = store.settings.quarantine_max_dataset_bytes
    kept = bytes_of_rows_aside(tx, spec.name)
    if limit and kept + written.refused_bytes > limit:
        problems = {ordinal: reason_in_words(parts) for ordinal, parts in written.refused.items()}
        raise QuarantineFull(spec.name, problems, kept, limit)


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
    aside = quarantined_bytes(tx) if total_limit else {}
    checks = (
        (MAX_DATASET_BYTES, staged.get(spec.name, 0), limits.max_bytes),
        (MAX_TOTAL_BYTES, sum(staged.values()) + sum(aside.values()), total_limit),
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

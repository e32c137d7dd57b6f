"""Datasets that take nothing in until an operator lets them: a row of the ledger, so it holds in every process."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from timestore_pipeline.ledger.schema import intake_pauses

EVERY_DATASET = "*"
"""The name under which all datasets are paused, those declared later too; no dataset can be called that."""


@dataclass(frozen=True)
class Pause:
    """Who stopped intake of a dataset (or of :data:`EVERY_DATASET`), when (microseconds since the epoch), and why."""

    dataset: str
    paused_by: str
    paused_at: int
    reason: str


def pause_intake(tx: Connection, pause: Pause) -> bool:
    """Stop intake; False where it is stopped already, which keeps its first reason."""
    found = select(intake_pauses.c.dataset).where(intake_pauses.c.dataset == pause.dataset)
    if tx.execute(found).first() is not None:
        return False
    tx.execute(
        insert(intake_pauses).values(
            dataset=pause.dataset, paused_by=pause.paused_by, paused_at=pause.paused_at, reason=pause.reason
        )
    )
    return True


def resume_intake(tx: Connection, dataset: str) -> bool:
    """Let a dataset take in again, or what was paused as :data:`EVERY_DATASET`; False where that was not paused."""
    return tx.execute(delete(intake_pauses).where(intake_pauses.c.dataset == dataset)).rowcount > 0


def all_pauses(tx: Connection) -> dict[str, Pause]:
    """Return every pause, by dataset."""
    return {row["dataset"]: Pause(**row) for row in tx.execute(select(intake_pauses)).mappings()}


def pause_of(pauses: dict[str, Pause], dataset: str) -> Pause | None:
    """Return the pause that holds for a dataset: that of all datasets, else its own."""
    return pauses.get(EVERY_DATASET) or pauses.get(dataset)

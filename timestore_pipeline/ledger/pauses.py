"""Datasets that take nothing in until an operator lets them: a row of the ledger, so it holds in every process."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, select

from timestore_pipeline.ledger.registry import known_datasets, lock_datasets
from timestore_pipeline.ledger.schema import intake_pauses
from timestore_pipeline.ledger.upserts import insert_unless_there

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
    # Whoever acknowledges has the lock: those that saw no pause have ended then, and those that come later see it.
    lock_datasets(tx, known_datasets(tx) if pause.dataset == EVERY_DATASET else [pause.dataset])
    return insert_unless_there(tx, intake_pauses, asdict(pause))


def resume_intake(tx: Connection, dataset: str) -> bool:
    """Let a dataset take in again, or what was paused as :data:`EVERY_DATASET`; False where that was not paused."""
    return tx.execute(delete(intake_pauses).where(intake_pauses.c.dataset == dataset)).rowcount > 0


def all_pauses(tx: Connection) -> dict[str, Pause]:
    """Return every pause, by dataset."""
    return {row["dataset"]: Pause(**row) for row in tx.execute(select(intake_pauses)).mappings()}


def pause_of(pauses: dict[str, Pause], dataset: str) -> Pause | None:
    """Return the pause that holds for a dataset: that of all datasets, else its own."""
    return pauses.get(EVERY_DATASET) or pauses.get(dataset)

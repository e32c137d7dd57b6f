"""What an operator has set at run time: limits of datasets, of which their policy says which hold, and pauses.

An override is a row of the ledger, so it holds at once, in every process on every host, without a restart. So is a
pause: a dataset that takes nothing in until an operator lets it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from sqlalchemy import Connection, delete, select

from timestore_pipeline.ledger.datasets import known_datasets, lock_datasets
from timestore_pipeline.ledger.schema import intake_pauses, limit_overrides
from timestore_pipeline.ledger.statements import insert_unless_there, upsert
from timestore_pipeline.settings import MOST_LANES


class LimitName(StrEnum):
    """Limits that can be overridden; the names are those of the keys under ``limits`` in ``datasets.yaml``."""

    MAX_PENDING = "max_pending"
    MAX_BYTES = "max_bytes"
    MAX_WINDOWS = "max_windows"
    CONCURRENT_INGESTS = "concurrent_ingests"
    CONCURRENT_BUILDS = "concurrent_builds"

    @property
    def bounds(self) -> tuple[int, int | None]:
        """The least and the greatest value (None: any) that the limit can be set to; 0 switches one off."""
        return (1, MOST_LANES) if self is LimitName.CONCURRENT_BUILDS else (0, None)


@dataclass(frozen=True)
class Override:
    """What an operator said that a limit of a dataset is; ``set_at`` in microseconds since the epoch."""

    dataset: str
    name: LimitName
    value: int
    set_by: str
    set_at: int


def limits_set(tx: Connection, dataset: str | None = None) -> dict[str, dict[str, int]]:
    """Return the limits that an operator has set, of one dataset or (None) of all: dataset → name → value."""
    query = select(limit_overrides.c.dataset, limit_overrides.c.name, limit_overrides.c.value)
    if dataset is not None:
        query = query.where(limit_overrides.c.dataset == dataset)
    found: dict[str, dict[str, int]] = {}
    for of, name, value in tx.execute(query):
        found.setdefault(of, {})[name] = value
    return found


def overrides(tx: Connection) -> list[Override]:
    """Return all overrides, by dataset and name."""
    rows = tx.execute(select(limit_overrides).order_by(limit_overrides.c.dataset, limit_overrides.c.name)).mappings()
    return [Override(**{**row, "name": LimitName(row["name"])}) for row in rows]


def set_override(tx: Connection, override: Override) -> None:
    """Let a limit be what ``override`` says until it is cleared."""
    upsert(tx, limit_overrides, {**asdict(override), "name": override.name.value})


def clear_override(tx: Connection, dataset: str, name: LimitName) -> bool:
    """Let a limit be what ``datasets.yaml`` or the environment says; False where it was not overridden."""
    here = (limit_overrides.c.dataset == dataset, limit_overrides.c.name == name.value)
    return tx.execute(delete(limit_overrides).where(*here)).rowcount > 0


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

"""The columns of every dataset, now and since its beginning: what was added or widened, when, and by which batch.

A version is never changed. Each segment names the version that it was written with, so that a build or a read knows
what is in it without opening it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import Connection, bindparam, insert, select

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.ledger.schema import schemas
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.evolution import declared_growth

DECLARED = "datasets.yaml"
"""Source of a version that no batch brought."""


@dataclass(frozen=True)
class SchemaVersion:
    """The columns of a dataset from ``since`` (microseconds since the epoch) on, and what brought them.

    ``batch_id`` is None where the datasets file did; ``source`` names the file or the caller.
    """

    dataset: str
    version: int
    columns: tuple[Column, ...]
    since: int
    batch_id: str | None
    source: str


@dataclass(frozen=True)
class SchemaStep:
    """Columns that a dataset is to have next, and what brings them."""

    columns: tuple[Column, ...]
    batch_id: str | None = None
    source: str = DECLARED


def schema_history(tx: Connection, dataset: str) -> list[SchemaVersion]:
    """Return the versions of a dataset's columns, oldest first."""
    return [
        SchemaVersion(row.dataset, row.version, columns_from_text(row.columns), row.since, row.batch_id, row.source)
        for row in tx.execute(_HISTORY, {"dataset": dataset})
    ]


_HISTORY = select(schemas).where(schemas.c.dataset == bindparam("dataset")).order_by(schemas.c.version)


def required_columns(spec: DatasetSpec, first: Iterable[Column]) -> frozenset[str]:
    """Return the columns that no batch may lack: those of the beginning, unless the dataset says otherwise.

    Batches from before a column came lack it, so what came later is null where it is missing.
    """
    needed = spec.key.needed if spec.key else ()
    return frozenset(column.name for column in first).union(needed) - set(spec.optional)


def add_versions(tx: Connection, dataset: str, base: int, steps: Sequence[SchemaStep], now: int) -> int:
    """Add versions after the version ``base``, which must be the latest; return the last one's number.

    The caller holds the dataset's lock.
    """
    for version, step in enumerate(steps, base + 1):
        tx.execute(
            insert(schemas).values(
                dataset=dataset,
                version=version,
                columns=columns_to_text(step.columns),
                since=now,
                batch_id=step.batch_id,
                source=step.source,
            )
        )
    return base + len(steps)


def declared_step(spec: DatasetSpec, history: Sequence[Sequence[Column]]) -> SchemaStep | None:
    """Return the step after ``history`` (oldest first, at least one) where ``datasets.yaml`` declares more columns."""
    declared = spec.declared_columns
    columns = None if declared is None else declared_growth(history, declared)
    return None if columns is None or columns == history[-1] else SchemaStep(columns)


def column_histories(tx: Connection) -> dict[str, list[tuple[Column, ...]]]:
    """Return the versions of the columns of every dataset that has any, oldest first."""
    found: dict[str, list[tuple[Column, ...]]] = {}
    query = select(schemas.c.dataset, schemas.c.columns).order_by(schemas.c.dataset, schemas.c.version)
    for row in tx.execute(query):
        found.setdefault(row.dataset, []).append(columns_from_text(row.columns))
    return found


def columns_to_text(columns: Iterable[Column]) -> str:
    """Return columns as the ledger keeps them."""
    return json.dumps([[column.name, column.type] for column in columns])


@lru_cache(maxsize=1_024)
def columns_from_text(text: str) -> tuple[Column, ...]:
    """Return the columns that the ledger keeps as ``text``."""
    return tuple(Column(name, type_) for name, type_ in json.loads(text))

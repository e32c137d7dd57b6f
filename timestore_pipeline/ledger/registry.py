"""What the ledger knows of each dataset: its granularity, its fixed columns and its visible table version."""

from __future__ import annotations

import json
from collections.abc import Iterable

from sqlalchemy import Connection, insert, select, update

from timestore_pipeline.columns import Column
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import ColumnsChanged, LedgerError
from timestore_pipeline.ledger.schema import datasets


def register(tx: Connection, specs: Iterable[DatasetSpec]) -> None:
    """Give every dataset its ledger row.

    Raises:
        LedgerError: a dataset's window granularity is not the one with which its rows were staged.
    """
    known = dict(tx.execute(select(datasets.c.name, datasets.c.granularity)).all())
    for spec in specs:
        if spec.name not in known:
            tx.execute(insert(datasets).values(name=spec.name, granularity=spec.window.value))
        elif known[spec.name] != spec.window.value:
            raise LedgerError(
                f"dataset {spec.name!r} has windows of one {known[spec.name]} in the ledger and of one {spec.window} "
                "in datasets.yaml. They are fixed once a dataset exists: restore the old or declare a new dataset."
            )


def unregistered(tx: Connection, specs: Iterable[DatasetSpec]) -> bool:
    """Whether :func:`register` has anything to do or to complain about."""
    known = set(tx.execute(select(datasets.c.name, datasets.c.granularity)).all())
    return any((spec.name, spec.window.value) not in known for spec in specs)


def lock_dataset(tx: Connection, dataset: str) -> None:
    """Make other writers of the dataset wait until the transaction ends (SQLite has one writer anyway)."""
    tx.execute(select(datasets.c.name).where(datasets.c.name == dataset).with_for_update())


def dataset_columns(tx: Connection, spec: DatasetSpec) -> tuple[Column, ...] | None:
    """Return the columns that the dataset's rows have, or None where they are still to be inferred.

    Raises:
        ColumnsChanged: the declared columns are not those with which rows were staged.
    """
    stored = tx.execute(select(datasets.c.columns).where(datasets.c.name == spec.name)).scalar()
    if stored is None:
        return spec.declared_columns
    fixed = tuple(Column(name, type_) for name, type_ in json.loads(stored))
    declared = spec.declared_columns
    if declared is not None and set(declared) != set(fixed):
        raise ColumnsChanged(spec.name, fixed, declared)
    return fixed


def fix_columns(tx: Connection, spec: DatasetSpec, columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """Fix the dataset's columns unless another process was first; return those that hold.

    Raises:
        ColumnsChanged: as :func:`dataset_columns`.
    """
    tx.execute(
        update(datasets)
        .where(datasets.c.name == spec.name, datasets.c.columns.is_(None))
        .values(columns=json.dumps([[column.name, column.type] for column in columns]))
    )
    fixed = dataset_columns(tx, spec)
    if fixed is None:
        raise LedgerError(f"dataset {spec.name!r} is not in the ledger; open the timestore again to register it")
    return fixed


def table_versions(tx: Connection) -> dict[str, int | None]:
    """Return per dataset the table version that readers may see; None where there is no table yet."""
    return dict(tx.execute(select(datasets.c.name, datasets.c.table_version)).all())


def last_claimed_sequence(tx: Connection, dataset: str) -> int:
    """Return the sequence of the last build that claimed slices of the dataset, 0 for none."""
    return tx.execute(select(datasets.c.next_sequence).where(datasets.c.name == dataset)).scalar_one() - 1


def known_datasets(tx: Connection) -> set[str]:
    """Return the names of all datasets that the ledger has ever seen."""
    return set(tx.execute(select(datasets.c.name)).scalars())

"""What the ledger knows of each dataset: its granularity and its visible table version."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, select, update

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import LedgerError
from timestore_pipeline.ledger.schema import datasets
from timestore_pipeline.ledger.schemas import declared_steps, schema_history, take_up
from timestore_pipeline.ledger.upserts import insert_unless_there

# Below the limit of variables in one SQLite statement, however it was compiled.
_NAMES_PER_QUERY = 500


def register(tx: Connection, specs: Iterable[DatasetSpec], now: int) -> None:
    """Give every dataset its ledger row, and take up what its declaration adds to its columns or widens.

    Raises:
        LedgerError: a dataset's window granularity is not the one with which its rows were staged.
    """
    specs = sorted(specs, key=lambda spec: spec.name)
    known = dict(tx.execute(select(datasets.c.name, datasets.c.granularity)).all())
    for spec in specs:
        if spec.name not in known:
            insert_unless_there(
                tx, datasets, {"name": spec.name, "granularity": spec.window.value, "key": key_text(spec)}
            )
    known = dict(tx.execute(select(datasets.c.name, datasets.c.granularity)).all())
    for spec in specs:
        if known[spec.name] != spec.window.value:
            raise LedgerError(
                f"dataset {spec.name!r} has windows of one {known[spec.name]} in the ledger and of one {spec.window} "
                "in datasets.yaml. They are fixed once a dataset exists: restore the old or declare a new dataset."
            )
    for name, key in _keys_to_change(tx, specs):
        tx.execute(update(datasets).where(datasets.c.name == name).values(key=key))
    for name in declared_steps(tx, specs):
        lock_dataset(tx, name)
    for name, (version, step) in declared_steps(tx, specs).items():  # again, now that nobody else can be first
        take_up(tx, name, version, [step], now)


def unregistered(tx: Connection, specs: Iterable[DatasetSpec]) -> bool:
    """Whether :func:`register` has anything to do or to complain about."""
    specs = list(specs)
    known = set(tx.execute(select(datasets.c.name, datasets.c.granularity)).all())
    return (
        any((spec.name, spec.window.value) not in known for spec in specs)
        or bool(_keys_to_change(tx, specs))
        or bool(declared_steps(tx, specs))
    )


def _keys_to_change(tx: Connection, specs: Iterable[DatasetSpec]) -> list[tuple[str, str | None]]:
    """Return the datasets without any batch whose key was declared anew, with it.

    Raises:
        LedgerError: there are batches, whose rows were published under another key or under none.
    """
    known = {row.name: row.key for row in tx.execute(select(datasets.c.name, datasets.c.key))}
    changed = [
        (spec.name, key_text(spec)) for spec in specs if spec.name in known and known[spec.name] != key_text(spec)
    ]
    for name, key in changed:
        if schema_history(tx, name):
            raise LedgerError(
                f"dataset {name!r} has rows with the key {known[name] or 'none'}, and in datasets.yaml it has "
                f"{key or 'none'}. The key is fixed once rows are staged: restore it or declare a new dataset."
            )
    return changed


def key_text(spec: DatasetSpec) -> str | None:
    """Return a dataset's key as the ledger keeps it."""
    return None if spec.key is None else spec.key.model_dump_json()


def lock_dataset(tx: Connection, dataset: str) -> None:
    """Make other writers of the dataset wait until the transaction ends (SQLite has one writer anyway)."""
    lock_datasets(tx, [dataset])


def lock_datasets(tx: Connection, names: Iterable[str]) -> None:
    """Make other writers of several datasets wait; always in the same order, so no two wait for each other."""
    if tx.dialect.name == "sqlite":
        return
    query = select(datasets.c.name).where(datasets.c.name.in_(list(names))).order_by(datasets.c.name)
    # Not the key itself: rows that only refer to a dataset can be inserted meanwhile.
    tx.execute(query.with_for_update(key_share=True))


def take_positions(tx: Connection, dataset: str, rows: int) -> int:
    """Return the position of the first of ``rows`` new rows; the caller holds the dataset's lock.

    Positions follow the order in which batches are acknowledged, whatever the clocks say.
    """
    first = tx.execute(select(datasets.c.next_position).where(datasets.c.name == dataset)).scalar_one()
    tx.execute(update(datasets).where(datasets.c.name == dataset).values(next_position=first + rows))
    return first


def table_versions(tx: Connection, names: Sequence[str] | None = None) -> dict[str, int | None]:
    """Return per dataset, of some or of all, the table version that readers may see; None where there is no table."""
    query = select(datasets.c.name, datasets.c.table_version)
    if names is not None and len(names) <= _NAMES_PER_QUERY:
        query = query.where(datasets.c.name.in_(names))
    return dict(tx.execute(query).all())


def last_claimed_sequence(tx: Connection, dataset: str) -> int:
    """Return the sequence of the last build that claimed slices of the dataset, 0 for none."""
    return tx.execute(select(datasets.c.next_sequence).where(datasets.c.name == dataset)).scalar_one() - 1


def known_datasets(tx: Connection) -> set[str]:
    """Return the names of all datasets that the ledger has ever seen."""
    return set(tx.execute(select(datasets.c.name)).scalars())

"""What the ledger knows of each dataset: its declaration and its visible table version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import DeclarationChanged
from timestore_pipeline.ledger.declarations import (
    check_declaration,
    check_start,
    declared,
    first_windows,
    fix_declaration,
    kept_declarations,
)
from timestore_pipeline.ledger.schema import datasets
from timestore_pipeline.ledger.schemas import SchemaStep, column_histories, declared_step, take_up
from timestore_pipeline.ledger.upserts import insert_unless_there

# Below the limit of variables in one SQLite statement, however it was compiled.
_NAMES_PER_QUERY = 500


def register(tx: Connection, specs: Iterable[DatasetSpec], now: int) -> dict[str, DeclarationChanged]:
    """Give every dataset its ledger row, and take up what its declaration adds to its columns or widens.

    Returns:
        The datasets whose declaration contradicts their rows, each with the error that says how; of these nothing is
        taken up, and they are to be left alone.
    """
    specs = sorted(specs, key=lambda spec: spec.name)
    known = known_datasets(tx)
    for spec in specs:
        if spec.name not in known:
            said = declared(spec)
            row = {"name": spec.name, "granularity": said.granularity, "key": said.key, "time": said.time}
            insert_unless_there(tx, datasets, row)
    look = _look(tx, specs)
    if look.waiting:
        lock_datasets(tx, look.waiting)
        look = _look(tx, specs)  # again, now that nobody else can be first
    for spec in look.to_declare:
        fix_declaration(tx, spec)
    for name, (version, step) in look.steps.items():
        take_up(tx, name, version, [step], now)
    return look.refused


def refused_datasets(tx: Connection, specs: Iterable[DatasetSpec]) -> dict[str, DeclarationChanged] | None:
    """Return what :func:`register` would, or None where it has something to do."""
    specs = list(specs)
    look = _look(tx, specs)
    return None if look.waiting or look.unknown else look.refused


@dataclass(frozen=True)
class _Look:
    """What is to be done about declarations: those unknown yet, those to be kept, columns to be taken up, refusals."""

    unknown: tuple[str, ...]
    to_declare: tuple[DatasetSpec, ...]
    steps: Mapping[str, tuple[int, SchemaStep]]
    refused: dict[str, DeclarationChanged]

    @property
    def waiting(self) -> list[str]:
        return [*(spec.name for spec in self.to_declare), *self.steps]


def _look(tx: Connection, specs: Iterable[DatasetSpec]) -> _Look:
    kept, histories, starts = kept_declarations(tx), column_histories(tx), first_windows(tx)
    unknown: list[str] = []
    to_declare: list[DatasetSpec] = []
    steps: dict[str, tuple[int, SchemaStep]] = {}
    refused: dict[str, DeclarationChanged] = {}
    for spec in specs:
        name, history = spec.name, histories.get(spec.name, [])
        if name not in kept:
            unknown.append(name)
            continue
        if not history:  # nothing was ever staged, so everything may still change
            if kept[name] != declared(spec):
                to_declare.append(spec)
            continue
        try:
            check_declaration(spec, kept[name], history)
            check_start(spec, starts.get(name))
        except DeclarationChanged as error:
            refused[name] = error
            continue
        if kept[name].time is None:
            to_declare.append(spec)
        step = declared_step(spec, history)
        if step is not None:
            steps[name] = len(history), step
    return _Look(tuple(unknown), tuple(to_declare), steps, refused)


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


@dataclass(frozen=True)
class VisibleTable:
    """What readers are given of a table: a version, and the Delta id of the table that has it; None where unknown."""

    version: int | None = None
    table_id: str | None = None


def visible_tables(tx: Connection, names: Sequence[str]) -> dict[str, VisibleTable]:
    """Return per dataset what readers are given of its table."""
    query = select(datasets.c.name, datasets.c.table_version, datasets.c.table_id)
    if len(names) <= _NAMES_PER_QUERY:
        query = query.where(datasets.c.name.in_(names))
    return {row.name: VisibleTable(row.table_version, row.table_id) for row in tx.execute(query)}


def advance_table_version(tx: Connection, dataset: str, version: int) -> None:
    """Let readers have a later version of a dataset's table; the caller has ended all builds that it has."""
    query = update(datasets).where(datasets.c.name == dataset, datasets.c.table_version < version)
    tx.execute(query.values(table_version=version))


def last_claimed_sequence(tx: Connection, dataset: str) -> int:
    """Return the sequence of the last build that claimed slices of the dataset, 0 for none."""
    return tx.execute(select(datasets.c.next_sequence).where(datasets.c.name == dataset)).scalar_one() - 1


def known_datasets(tx: Connection) -> set[str]:
    """Return the names of all datasets that the ledger has ever seen."""
    return set(tx.execute(select(datasets.c.name)).scalars())

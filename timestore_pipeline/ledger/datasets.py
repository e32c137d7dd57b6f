"""The datasets that the ledger knows, and what it keeps of their declarations.

In which window a row falls and how it is read back is decided by the time column and its meaning, the window, the key
and the columns. The transaction that acknowledges the first batch fixes all of it; what ``datasets.yaml`` says
otherwise after that is a contradiction. It is a matter of that dataset alone (invariant 9).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, select, update

from timestore_pipeline.datasets import DatasetSpec, DeleteSpec, KeySpec, TimeSpec
from timestore_pipeline.errors import ColumnsChanged, DatasetRemoved, DeclarationChanged
from timestore_pipeline.ledger.schema import datasets, schemas, slices, windows
from timestore_pipeline.ledger.schemas import (
    SchemaStep,
    add_versions,
    column_histories,
    columns_from_text,
    declared_step,
    required_columns,
)
from timestore_pipeline.ledger.statements import insert_unless_there
from timestore_pipeline.model.columns import TIME_TYPES, Column
from timestore_pipeline.model.evolution import Schema, declared_growth


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
    to_do = _judge(tx, specs)
    if to_do.waiting:
        lock_datasets(tx, to_do.waiting)
        to_do = _judge(tx, specs)  # again, now that nobody else can be first
    for spec in to_do.to_declare:
        fix_declaration(tx, spec)
    for name, (version, step) in to_do.steps.items():
        add_versions(tx, name, version, [step], now)
    return to_do.refused


def refused_datasets(tx: Connection, specs: Iterable[DatasetSpec]) -> dict[str, DeclarationChanged] | None:
    """Return what :func:`register` would, or None where it has something to do."""
    specs = list(specs)
    to_do = _judge(tx, specs)
    return None if to_do.waiting or to_do.unknown else to_do.refused


@dataclass(frozen=True)
class _ToDo:
    """What is to be done about declarations: those unknown yet, those to be kept, columns to be taken up, refusals."""

    unknown: tuple[str, ...]
    to_declare: tuple[DatasetSpec, ...]
    steps: Mapping[str, tuple[int, SchemaStep]]
    refused: dict[str, DeclarationChanged]

    @property
    def waiting(self) -> list[str]:
        return [*(spec.name for spec in self.to_declare), *self.steps]


def _judge(tx: Connection, specs: Iterable[DatasetSpec]) -> _ToDo:
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
    return _ToDo(tuple(unknown), tuple(to_declare), steps, refused)


@dataclass(frozen=True)
class Fixed:
    """What the ledger keeps of a dataset's declaration, as the texts of its row.

    ``time`` is None in a ledger from before it was kept: the declaration of the first process that opens it counts.
    """

    granularity: str
    key: str | None
    time: str | None


def declared(spec: DatasetSpec) -> Fixed:
    """Return what the ledger is to keep of a declaration."""
    key = _kept_key(spec)
    # As it was before a key could have tombstones, where it has none.
    without = {"delete"} if spec.delete is None else set()
    text = None if key is None else key.model_dump_json(exclude=without)
    return Fixed(spec.window.value, text, spec.time.model_dump_json())


class _KeptKey(KeySpec):
    """What is kept of a key: with the rows that delete it, as they decide how rows are read back."""

    delete: DeleteSpec | None = None


def _kept_key(spec: DatasetSpec) -> _KeptKey | None:
    return None if spec.key is None else _KeptKey(**spec.key.model_dump(), delete=spec.delete)


def check_declaration(spec: DatasetSpec, kept: Fixed, history: Sequence[Sequence[Column]]) -> None:
    """Hold a declaration against what is fixed.

    ``history`` are the columns since the dataset's beginning, oldest first.

    Raises:
        DeclarationChanged: the window, the time or the key is not the one with which rows were staged.
        ColumnsChanged: the columns contradict those of the rows.
    """
    if kept != declared(spec):
        changed = list(_changes(spec, kept, history[0]))
        if changed:
            raise DeclarationChanged(spec.name, changed)
    columns = spec.declared_columns
    if columns is not None and declared_growth(history, columns) is None:
        raise ColumnsChanged(spec.name, history[-1], columns)


def _changes(spec: DatasetSpec, kept: Fixed, first: Sequence[Column]) -> Iterable[str]:
    if kept.granularity != spec.window.value:
        yield f"window was {kept.granularity} and is {spec.window.value}"
    # Parsed, because a later version may write the same with more fields.
    time = None if kept.time is None else TimeSpec.model_validate_json(kept.time)
    if time is not None and time != spec.time:
        yield f"time was {_in_words(time)} and is {_in_words(spec.time)}"
    if time is None and not any(column.name == spec.time.column and column.type in TIME_TYPES for column in first):
        yield f"time is {spec.time.column}, which the rows do not have as a time"
    key, now = None if kept.key is None else _KeptKey.model_validate_json(kept.key), _kept_key(spec)
    if key != now:
        yield f"key was {_in_words(key)} and is {_in_words(now)}"


def _in_words(said: TimeSpec | KeySpec | None) -> str:
    return "none" if said is None else str(said.model_dump(mode="json", exclude_none=True))


def check_start(spec: DatasetSpec, first_window: int | None) -> None:
    """Hold a declared start against the start of the first window that has rows, in microseconds since the epoch.

    Raises:
        DeclarationChanged: rows lie before it, in windows that Dagster would have no partitions for.
    """
    if first_window is not None and first_window < spec.first_window.start_micros:
        first = spec.window_at(first_window).key
        raise DeclarationChanged(spec.name, [f"start is {spec.start.isoformat()}, and there are rows from {first} on"])


def fix_declaration(tx: Connection, spec: DatasetSpec) -> None:
    """Keep the declaration of a dataset: with its first batch, and before that as it is declared just now.

    The caller holds the dataset's lock.
    """
    said = declared(spec)
    tx.execute(
        update(datasets)
        .where(datasets.c.name == spec.name)
        .values(granularity=said.granularity, key=said.key, time=said.time)
    )


def kept_declarations(tx: Connection) -> dict[str, Fixed]:
    """Return what the ledger keeps of the declaration of each dataset that it knows."""
    query = select(datasets.c.name, datasets.c.granularity, datasets.c.key, datasets.c.time)
    return {row.name: Fixed(row.granularity, row.key, row.time) for row in tx.execute(query)}


def first_windows(tx: Connection) -> Mapping[str, int]:
    """Return for each dataset the start of the first window with rows, staged or published; left out where none has."""
    of_staged, of_published = (
        select(func.min(table.c.window_start)).where(table.c.dataset == datasets.c.name).scalar_subquery()
        for table in (slices, windows)
    )
    found = {}
    for name, *starts in tx.execute(select(datasets.c.name, of_staged, of_published)):
        known = [start for start in starts if start is not None]
        if known:
            found[name] = min(known)
    return found


def dataset_schema(tx: Connection, spec: DatasetSpec) -> Schema | None:
    """Return the columns that the dataset's rows have now, or None where they are still to be inferred.

    Raises:
        DeclarationChanged: the declaration contradicts that with which rows were staged; nothing is to be done with
            them by it.
        DatasetRemoved: the ledger does not know the dataset any more.
    """
    return schema_and_corrections(tx, spec)[0]


def schema_and_corrections(tx: Connection, spec: DatasetSpec) -> tuple[Schema | None, int]:
    """Return the columns as :func:`dataset_schema` does, and how many corrections the dataset has had.

    Raises:
        DeclarationChanged, DatasetRemoved: as :func:`dataset_schema`.
    """
    rows = tx.execute(_DECLARED_HISTORY, {"dataset": spec.name}).all()
    if not rows:
        raise DatasetRemoved(spec.name)
    corrections = rows[0].corrections
    if rows[0].version is None:
        columns = spec.declared_columns
        return None if columns is None else Schema(0, columns, required_columns(spec, columns)), corrections
    versions = [columns_from_text(row.columns) for row in rows]
    check_declaration(spec, Fixed(rows[0].granularity, rows[0].key, rows[0].time), versions)
    return Schema(rows[-1].version, versions[-1], required_columns(spec, versions[0])), corrections


_DECLARED_HISTORY = (
    select(
        datasets.c.granularity,
        datasets.c.key,
        datasets.c.time,
        datasets.c.corrections,
        schemas.c.version,
        schemas.c.columns,
    )
    .select_from(datasets.outerjoin(schemas, schemas.c.dataset == datasets.c.name))
    .where(datasets.c.name == bindparam("dataset"))
    .order_by(schemas.c.version)
)


def dataset_columns(tx: Connection, spec: DatasetSpec) -> tuple[Column, ...] | None:
    """Return the columns alone.

    Raises:
        DeclarationChanged, DatasetRemoved: as :func:`dataset_schema`.
    """
    schema = dataset_schema(tx, spec)
    return None if schema is None else schema.columns


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


def lock_and_count_corrections(tx: Connection, dataset: str) -> int:
    """Lock a dataset as :func:`lock_dataset` does; return how many corrections it has had."""
    query = select(datasets.c.corrections).where(datasets.c.name == dataset)
    return tx.execute(query.with_for_update(key_share=True)).scalar() or 0


def next_position(tx: Connection, dataset: str) -> int:
    """Return the position that the next row of the dataset gets; all that were acknowledged have lower ones."""
    return tx.execute(select(datasets.c.next_position).where(datasets.c.name == dataset)).scalar_one()


def claim_positions(tx: Connection, dataset: str, rows: int) -> int:
    """Return the position of the first of ``rows`` new rows; the caller holds the dataset's lock.

    Positions follow the order in which batches are acknowledged, whatever the clocks say.
    """
    first = next_position(tx, dataset)
    tx.execute(update(datasets).where(datasets.c.name == dataset).values(next_position=first + rows))
    return first


def known_datasets(tx: Connection) -> set[str]:
    """Return the names of all datasets that the ledger has ever seen."""
    return set(tx.execute(select(datasets.c.name)).scalars())

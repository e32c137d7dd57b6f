"""What ``datasets.yaml`` says of a dataset that its rows depend on, held against what the ledger keeps of it.

In which window a row falls and how it is read back is decided by the time column and its meaning, the window, the key
and the columns. The transaction that acknowledges the first batch fixes all of it; what the file says otherwise after
that is a contradiction. It is a matter of that dataset alone (invariant 9).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update

from timestore_pipeline.datasets import DatasetSpec, KeySpec, TimeSpec
from timestore_pipeline.errors import ColumnsChanged, DeclarationChanged
from timestore_pipeline.ledger.schema import datasets, slices, windows
from timestore_pipeline.model.columns import TIME_TYPES, Column
from timestore_pipeline.model.evolution import declared_growth


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
    return Fixed(
        spec.window.value, None if spec.key is None else spec.key.model_dump_json(), spec.time.model_dump_json()
    )


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
    key = None if kept.key is None else KeySpec.model_validate_json(kept.key)
    if key != spec.key:
        yield f"key was {_in_words(key)} and is {_in_words(spec.key)}"


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

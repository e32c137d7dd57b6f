"""How the columns of a dataset may change: new ones that are null in older rows, and wider types that lose nothing.

Pure decisions. A column is never renamed, dropped or narrowed, and never becomes another kind of thing: a whole number
stays one, because a single batch must not turn everybody's ids into fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cmp_to_key

from timestore_pipeline.model.columns import Column, wider_type

MAX_COLUMNS = 1_000
"""Most columns of a dataset that batches bring: beyond, a producer is taken to put data into column names."""


@dataclass(frozen=True)
class Schema:
    """The columns that a dataset has, and which of them no batch may lack.

    ``version`` counts from 1; 0 means that the ledger does not have the columns yet.
    """

    version: int
    columns: tuple[Column, ...]
    required: frozenset[str]


def grown(columns: Iterable[Column], brought: Iterable[Column]) -> tuple[Column, ...]:
    """Return ``columns`` with those of ``brought`` that are new at the end, and with wider types where they fit both.

    A type that has nothing to do with the column's leaves it as it is.

    Raises:
        ValueError: a new name differs from another one only in case, or there would be too many columns.
    """
    types = {column.name: column.type for column in columns}
    had = len(types)
    names = {name.lower(): name for name in types}
    for column in brought:
        kept = types.get(column.name)
        if kept is not None:
            types[column.name] = wider_type(kept, column.type) or kept
            continue
        twin = names.setdefault(column.name.lower(), column.name)
        if twin != column.name:
            raise ValueError(f"column {column.name!r} is called as {twin!r} but for upper and lower case")
        types[column.name] = column.type
    if len(types) > max(MAX_COLUMNS, had):
        raise ValueError(f"the dataset would have {len(types)} columns, {MAX_COLUMNS} are the most")
    return tuple(Column(name, type_) for name, type_ in types.items())


def changes(before: Sequence[Column], after: Sequence[Column]) -> tuple[str, ...]:
    """Return what is different, a phrase for each column: ``added gust DOUBLE``, ``widened id: INTEGER to BIGINT``."""
    had = {column.name: column.type for column in before}
    found = []
    for column in after:
        kept = had.get(column.name)
        if kept is None:
            found.append(f"added {column.name} {column.type}")
        elif kept != column.type:
            found.append(f"widened {column.name}: {kept} to {column.type}")
    return tuple(found)


def widened(before: Iterable[Column], after: Iterable[Column]) -> frozenset[str]:
    """Return the names of the columns that both have and that have another type in ``after``."""
    had = {column.name: column.type for column in before}
    return frozenset(column.name for column in after if had.get(column.name, column.type) != column.type)


def oldest_first(versions: Iterable[tuple[Column, ...]]) -> list[tuple[Column, ...]]:
    """Return versions of the columns of one dataset as they came: each has all that earlier ones have."""

    def compare(one: tuple[Column, ...], other: tuple[Column, ...]) -> int:
        if len(one) != len(other):
            return len(one) - len(other)
        types = types_by_name(one), types_by_name(other)
        if types[0] == types[1]:
            return 0
        return -1 if types_by_name(grown(one, other)) == types[1] else 1

    return sorted(versions, key=cmp_to_key(compare))


def declared_growth(history: Sequence[Sequence[Column]], declared: Sequence[Column]) -> tuple[Column, ...] | None:
    """Return the columns of a dataset once those declared are taken up; None where they contradict its history.

    Args:
        history: the columns of the dataset since its beginning, oldest first.
        declared: the columns in the datasets file.

    A declaration may lag behind: columns that came later may be missing in it, and a type may be a former one, as a
    process with the old file and one with the new file can run side by side. It may be ahead: that is the growth.
    """
    names = {column.name for column in declared}
    if any(column.name not in names for column in history[0]):
        return None
    former: dict[str, set[str]] = {}
    for columns in history:
        for column in columns:
            former.setdefault(column.name, set()).add(column.type)
    now = types_by_name(history[-1])
    for column in declared:
        kept = now.get(column.name)
        if kept is not None and column.type not in former[column.name] and wider_type(kept, column.type) != column.type:
            return None
    ahead = [column for column in declared if column.type not in former.get(column.name, ())]
    try:
        return grown(history[-1], ahead)
    except ValueError:
        return None


def types_by_name(columns: Iterable[Column]) -> Mapping[str, str]:
    """Return column name → type."""
    return {column.name: column.type for column in columns}

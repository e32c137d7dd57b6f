"""What a chore is: one kind of garbage, how it is found and how it is removed. A round does all of them once.

A dry run only finds. Each kind has a file, however short, and its place in ``maintenance.CHORES``. One dataset's
failure never holds another's, nor one chore's another chore's (invariant 9): it is told, and tried again in the next
round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from timestore_pipeline.alone import alone
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.store import Store

Done = TypeVar("Done")


@dataclass(frozen=True)
class Round:
    """One round: of which installation, when (microseconds since the epoch), by whom, and how much of each kind.

    ``most`` bounds what is removed of one kind, ``most_compacted_bytes`` what is merged of all datasets together.
    ``owner_is_gone`` says whether the owner of a build has ended, as for :func:`settle_dead_builds`.
    """

    store: Store
    now: int
    owner: str
    owner_is_gone: Callable[[str], bool]
    most: int
    most_compacted_bytes: int

    def order(self, dataset: str) -> BuildOrder:
        """Return the order of a build of a dataset that is a chore."""
        return BuildOrder(dataset, owner=self.owner, trigger=Trigger.MAINTENANCE)


@dataclass(frozen=True)
class Chore(Generic[Done]):
    """One kind of garbage in an installation.

    ``find`` says what there is, and changes nothing; ``remove`` removes it, and says what went. Where either fails it
    is ``nothing``. ``part`` is the field of the report that has what was done.
    """

    part: str
    name: str
    nothing: Done
    find: Callable[[Round], Done]
    remove: Callable[[Round], Done]

    def over(self, round_: Round, *, dry_run: bool) -> tuple[Done, list[str]]:
        """Do the chore; return what was done (or would be), and what could not be, in words."""
        return _attempt(self.name, partial(self.find if dry_run else self.remove, round_), self.nothing)


@dataclass(frozen=True)
class ChoreOfDatasets(Generic[Done]):
    """One kind of garbage that each dataset has of its own: as :class:`Chore`, for one dataset after the other.

    ``left`` gives the round that the next dataset has, where a bound is of all datasets together.
    """

    part: str
    name: str
    nothing: Callable[[str], Done]
    find: Callable[[Round, str], Done]
    remove: Callable[[Round, str], Done]
    left: Callable[[Round, Done], Round] = lambda round_, done: round_

    def over(self, round_: Round, *, dry_run: bool) -> tuple[dict[str, Done], list[str]]:
        """Do the chore for each dataset; return what was done (or would be) by dataset, and what could not be."""
        act, done, problems = self.find if dry_run else self.remove, {}, []
        for dataset in round_.store.datasets:
            done[dataset], failed = _attempt(
                f"{dataset}: {self.name}", partial(act, round_, dataset), self.nothing(dataset)
            )
            round_ = self.left(round_, done[dataset])
            problems += failed
        return done, problems


def _attempt(what: str, act: Callable[[], Done], nothing: Done) -> tuple[Done, list[str]]:
    try:
        with alone():
            return act(), []
    except TimestoreError as error:
        return nothing, [f"{what}: {error}"]

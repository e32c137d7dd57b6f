"""Which builds a table has, published or fenced: asked of its log.

Every commit of a build carries two application transactions (Delta protocol, "Transaction Identifiers"):

- ``timestore/<dataset>/<lane>`` = the build's sequence. delta-rs refuses a second commit of it from a stale handle, and
  rebases a commit over those of other lanes.
- ``timestore/<dataset>/<lane>/published`` = the same sequence, only where the commit publishes rows. A fence leaves it
  out, so that whoever finds the sequence in the table can tell a published build from a fenced one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from timestore_pipeline.settings import MOST_LANES
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.table_folder import (
    file_name,
    log_actions,
    sync_log,
)
from timestore_pipeline.table.delta import (
    DeltaError,
    DeltaTable,
    Transaction,
)

if TYPE_CHECKING:
    from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.opening import translated


@dataclass(frozen=True)
class Commit:
    """A commit of a build, or a fence, as the log of a table has it.

    ``build`` and ``owner`` are None where it is of no single build.
    """

    version: int
    sequence: int
    is_fence: bool
    build: int | None
    owner: str | None


def commits_of_builds(place: Storage, table: DeltaTable, dataset: str, limit: int) -> Iterator[Commit]:
    """Go through the commits of builds, and the fences, among the last ``limit`` entries of the log, latest first.

    Raises:
        TableError: the log cannot be read.
    """
    for entry in _history(place, table, dataset, limit):
        if entry.get("timestoreAction") in ("publish", "fence"):
            build = entry.get("timestoreBuild")
            yield Commit(
                version=int(entry["version"]),
                sequence=_number(entry.get("timestoreSequence")),
                is_fence=entry["timestoreAction"] == "fence",
                build=None if build is None else _number(build),
                owner=entry.get("timestoreOwner"),
            )


def _number(text: object) -> int:
    """Return a number of the ledger's in a log entry; -1, which the ledger gives to nothing, for anything else."""
    number = int(text) if isinstance(text, str) and re.fullmatch("[0-9]{1,19}", text) else -1
    return number if number < 2**63 else -1


def last_sequence(table: DeltaTable, dataset: str, lane: int | None = None) -> int:
    """Return the sequence of the last build of a lane that was published or fenced, 0 for none; the highest of all."""
    lanes = range(MOST_LANES) if lane is None else (lane,)
    return max(table.transaction_version(app_id(dataset, each)) or 0 for each in lanes)


def is_of_dataset(table: DeltaTable, dataset: str) -> bool:
    """Whether the table's log says that a build of the dataset has committed to it, or a fence of one."""
    return last_sequence(table, dataset) > 0


def last_published_sequence(table: DeltaTable, dataset: str, lane: int) -> int:
    """Return the sequence of the last build of a lane that was published, 0 for none."""
    return table.transaction_version(published_app_id(dataset, lane)) or 0


def is_published(table: DeltaTable, build: Build) -> bool:
    """Whether a build that has not ended in the ledger is in the table, at the version of ``table``."""
    return last_published_sequence(table, build.dataset, build.lane) == build.sequence


def published_sequences(place: Storage, table: DeltaTable, dataset: str) -> set[int]:
    """Return the sequences of builds of which the table still says that it has them: not those of long ago."""
    found = {last_published_sequence(table, dataset, lane) for lane in range(MOST_LANES)}
    for entry in _history(place, table, dataset):
        if entry.get("timestoreAction") == "publish":
            found.add(int(entry["timestoreSequence"]))
    names = (file_name(file.path).partition("-")[0] for file in live_files(table))
    return (found | {int(name) for name in names if name.isdecimal()}) - {0}


def version_of_build(place: Storage, table: DeltaTable, build: Build, limit: int | None = None) -> int:
    """Return the table version that published ``build``; that of ``table`` where its log no longer says.

    ``limit``: look at so many versions only, the last ones.
    """
    for entry in _history(place, table, build.dataset, limit):
        if entry.get("timestoreSequence") == str(build.sequence) and entry.get("timestoreAction") == "publish":
            return int(entry["version"])
    return table.version()


def _history(place: Storage, table: DeltaTable, dataset: str, limit: int | None = None) -> Iterator[Mapping[str, Any]]:
    """Go through what commits say of themselves, latest first: so many of them, or as far back as the log has entries.

    They are read one by one: delta-rs reads all, and holds Python's lock meanwhile, so that not even a heartbeat of a
    build comes through.
    """
    with translated(place, dataset):
        first = 0 if limit is None else max(0, table.version() - limit + 1)
        for version in range(table.version(), first - 1, -1):
            try:
                actions = log_actions(place, version)
            except FileNotFoundError:
                return  # cleaned up behind a checkpoint
            except ValueError as error:
                raise DeltaError(f"the log entry of version {version} is damaged: {error}") from error
            for action in actions:
                yield from ({**info, "version": version} for name, info in action.items() if name == "commitInfo")


def sync_found(place: Storage, table: DeltaTable, seen: int | None) -> None:
    """Make the log entries durable that processes which died may have left unsynced (invariant 6).

    That is, all since the version ``seen`` that readers are given (None: there was no table yet), and the last two.
    """
    last = table.version()
    for version in range(max(0, min(last - 1, last if seen is None else seen + 1)), last + 1):
        sync_log(place, version)


def app_id(dataset: str, lane: int) -> str:
    """Return the id under which the commits of builds in a lane, and fences, give their sequence."""
    return f"timestore/{dataset}/{lane}"


def published_app_id(dataset: str, lane: int) -> str:
    """Return the id under which those give it that publish rows."""
    return f"{app_id(dataset, lane)}/published"


def fences_of_all_lanes(dataset: str, sequence: int) -> list[Transaction]:
    """Return what fences all builds up to a sequence, whatever their lanes."""
    return [Transaction(app_id(dataset, lane), sequence) for lane in range(MOST_LANES)]

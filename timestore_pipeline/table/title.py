"""What the log of a table says of whose it is, held against what the ledger knows, and what to do about the difference.

Pure but for :func:`read_title`, which reads the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from timestore_pipeline.ledger.tables import KnownTable
from timestore_pipeline.storage import Storage
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.delta import DeltaTable
from timestore_pipeline.table.opening import owner_of
from timestore_pipeline.table.sequences import Commit, commits_of_builds, last_sequence

if TYPE_CHECKING:
    from timestore_pipeline.ledger.builds import Build

# So many commits that the ledger has not heard of are looked at; more have no owner that could be this installation.
_MOST_UNHEARD = 1_000
_NAMED = 3


class Objection(StrEnum):
    """Why a table must not be written to."""

    OTHER_INSTALLATION = "other_installation"
    """It says that it belongs to another one."""
    OTHER_TABLE = "other_table"
    """It is not the one that the ledger knows: its Delta id is another one."""
    AHEAD = "ahead"
    """It has commits of builds that the ledger does not know."""
    BEHIND = "behind"
    """It lacks a commit that the ledger knows."""
    UNPROVEN = "unproven"
    """It does not say whose it is, and nothing proves that it is the ledger's."""


@dataclass(frozen=True)
class TableTitle:
    """What the log of a table says of whose it is, at one version.

    ``installation`` is None where it says nothing. ``commits`` are those of builds since the last one that the ledger
    knows as published, latest first. ``has_last`` is whether that one is in the table, ``empty`` whether nothing is.
    ``last_sequence`` is that of the last build or fence; 0 where the commits say it, as none of them was cleaned up.
    """

    table_id: str
    name: str | None
    installation: str | None
    version: int
    commits: tuple[Commit, ...] = ()
    has_last: bool = True
    empty: bool = False
    last_sequence: int = 0


def read_title(
    place: Storage, table: DeltaTable, dataset: str, known: KnownTable, *, as_owner: bool = False
) -> TableTitle:
    """Read what a table says of whose it is, as far back in its log as the ledger does not know it.

    Raises:
        TableError: its log cannot be read.
    """
    metadata, version = table.metadata(), table.version()
    owner = known.installation if as_owner else owner_of(table)
    if owner not in (None, known.installation):
        commits = tuple(commits_of_builds(place, table, dataset, 1))
        return TableTitle(str(metadata.id), metadata.name, owner, version, commits)
    since = known.last.table_version if known.last and known.last.table_version is not None else 0
    wanted = version - since + 1
    commits = tuple(commits_of_builds(place, table, dataset, min(max(1, wanted), _MOST_UNHEARD)))
    last = known.last
    told = last is not None and (last.table_version, last.sequence) in {
        (each.version, each.sequence) for each in commits
    }
    return TableTitle(
        str(metadata.id),
        metadata.name,
        owner,
        version,
        commits,
        # Its entry was cleaned up; or the table is an older one, to which others have committed since.
        has_last=last is None or wanted < 1 or told or last_sequence(table, dataset, last.lane) >= last.sequence,
        empty=last is None and owner is None and not live_files(table),
        last_sequence=0 if told else last_sequence(table, dataset),
    )


def objection_to(
    dataset: str, title: TableTitle, known: KnownTable, builds: Mapping[int, Build]
) -> tuple[Objection, str] | None:
    """Return why the table must not be written to, with what was found in words; None where it is ours.

    ``builds`` are those of the ledger that have a sequence of the title's commits.
    """
    if title.installation not in (None, known.installation):
        last = f", which last committed to it as {title.commits[0].owner}" if title.commits else ""
        return Objection.OTHER_INSTALLATION, (
            f"it belongs to installation {title.installation}{last}, and this one is {known.installation}"
        )
    if known.table_id not in (None, title.table_id):
        return Objection.OTHER_TABLE, (
            f"it is another table (Delta id {title.table_id}) than the one that the ledger knows ({known.table_id})"
        )
    if known.version is not None and title.version < known.version:
        return Objection.BEHIND, f"it is at version {title.version}, and was at {known.version}"
    unheard = [commit for commit in title.commits if not _is_known(commit, known, builds)]
    if unheard:
        versions = ", ".join(str(commit.version) for commit in reversed(unheard[-_NAMED:]))
        return Objection.AHEAD, (
            f"this ledger does not know {len(unheard)} of its commits (version {versions}"
            f"{', …' if len(unheard) > _NAMED else ''}; the last one is of {unheard[0].owner or 'nobody'}), so the "
            "ledger is an older copy, or another one is at work on the same table"
        )
    if title.last_sequence > known.last_sequence:
        return Objection.AHEAD, (
            f"a build has committed to it that this ledger does not know (sequence {title.last_sequence}), and its log "
            "entry was cleaned up, so the ledger is an older copy, or another one is at work on the same table"
        )
    if not title.has_last:
        lacking = known.last.table_version if known.last else None
        return Objection.BEHIND, f"it lacks the commit of its version {lacking} that the ledger knows"
    if title.installation is None and known.table_id is None and not _is_proven(dataset, title, known):
        return Objection.UNPROVEN, "it does not say whose it is, and the ledger does not know it"
    return None


def _is_known(commit: Commit, known: KnownTable, builds: Mapping[int, Build]) -> bool:
    build = builds.get(commit.sequence)
    if build is None:
        # A build that was fenced long ago may be forgotten; nothing of it is in the table.
        return commit.build is not None and commit.is_fence and commit.sequence <= known.last_sequence
    # Sequences of before they were drawn at random may be those of two ledgers.
    return commit.build in (None, build.id) and commit.owner in (None, build.owner)


def _is_proven(dataset: str, title: TableTitle, known: KnownTable) -> bool:
    """Whether a table from before tables said whose they are is the ledger's.

    Nobody else has made the commit that the ledger knows as the last one; a table without any file is nobody's loss.
    """
    if known.last is None:
        return title.empty and title.name == dataset
    return any(
        (commit.version, commit.sequence) == (known.last.table_version, known.last.sequence) for commit in title.commits
    )


_WAYS_OUT = {
    Objection.OTHER_INSTALLATION: "Give this installation tables of its own (TIMESTORE_TABLES_URL). If it is a copy, "
    "run 'timestore installation new-identity'. If it shall have the table for good, stop the other one and run "
    "'timestore ledger rebuild --replace --take-over'.",
    Objection.OTHER_TABLE: "Put the former table back; or take this one as it is: stop the service and run "
    "'timestore ledger rebuild --replace'.",
    Objection.AHEAD: "Stop whatever else uses the table. If the ledger was restored from a backup, bring it up to "
    "date: 'timestore ledger rebuild --replace'. If this is a copy of an installation, give it tables of its own and "
    "run 'timestore installation new-identity'.",
    Objection.BEHIND: "Restore the missing entries of its log. If they are gone, stop the service and run "
    "'timestore ledger rebuild --replace': what is still retained is published again.",
    Objection.UNPROVEN: "If it is the table of this installation, stop the service and run 'timestore ledger rebuild "
    "--replace'; else give this installation tables of its own (TIMESTORE_TABLES_URL).",
}


def way_out(objection: Objection) -> str:
    """Return what to do about a table that must not be written to."""
    return _WAYS_OUT[objection] + " See 'Whose table is it' in the runbook."

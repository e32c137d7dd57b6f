"""Commits of other programs to a dataset's table: what each of them did, as the log has it.

Whoever optimizes, vacuums, appends to or deletes from a table with a tool of his own commits to its log. Our commits
say of themselves which build they are of; every other one that adds or removes files is somebody else's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from timestore_pipeline.errors import TableError
from timestore_pipeline.model.columns import WINDOW_COLUMN
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.table_folder import log_actions, log_key

_MOST_CHARACTERS = 60


@dataclass(frozen=True)
class ForeignCommit:
    """What a program that is not timestore committed as one version of a table.

    ``window_keys`` are the partitions whose files it changed; None where its log entry is gone, so that nobody knows.
    ``data_change`` says whether rows may have become others: an optimization leaves them as they are.
    """

    version: int
    operation: str
    program: str
    window_keys: frozenset[str | None] | None
    files_added: int = 0
    files_removed: int = 0
    data_change: bool = True

    @property
    def in_words(self) -> str:
        """What it did, as a sentence without an end."""
        if self.window_keys is None:
            return f"the log entry of table version {self.version} is gone, so nobody can say what it changed"
        return (
            f"table version {self.version} is another program's ({self.operation} by {self.program}): "
            f"{self.files_removed:,} files out, {self.files_added:,} in"
        )


def foreign_commits(place: Storage, versions: Iterable[int]) -> list[ForeignCommit]:
    """Return which of these versions of a table are commits of other programs that changed its files.

    Raises:
        TableError: the log cannot be read.
    """
    found = []
    for version in versions:
        try:
            actions = log_actions(place, version)
        except (FileNotFoundError, ValueError):
            found.append(ForeignCommit(version, "?", "?", None))  # cleaned up behind a checkpoint
            continue
        except OSError as error:
            shown = place.shown(log_key(version))
            raise TableError(f"the log entry {shown} cannot be read: {error.strerror or error}") from error
        commit = _foreign(version, actions)
        if commit is not None:
            found.append(commit)
    return found


def _foreign(version: int, actions: Iterable[Mapping[str, Any]]) -> ForeignCommit | None:
    by_kind: dict[str, list[Mapping[str, Any]]] = {"commitInfo": [], "add": [], "remove": []}
    for action in actions:
        for kind, content in action.items():
            by_kind.setdefault(kind, []).append(content)
    info: Mapping[str, Any] = next(iter(by_kind["commitInfo"]), {})
    changed = [*by_kind["add"], *by_kind["remove"]]
    if not changed or "timestoreAction" in info:
        return None
    return ForeignCommit(
        version,
        _plain(info.get("operation")),
        _plain(info.get("engineInfo")),
        frozenset((file.get("partitionValues") or {}).get(WINDOW_COLUMN) for file in changed),
        len(by_kind["add"]),
        len(by_kind["remove"]),
        any(file.get("dataChange", True) for file in changed),
    )


def _plain(said: object) -> str:
    """Return what somebody else wrote, so that it can be shown anywhere."""
    return re.sub(r"[^\w .:+/-]", "?", str(said or "?"), flags=re.ASCII)[:_MOST_CHARACTERS]

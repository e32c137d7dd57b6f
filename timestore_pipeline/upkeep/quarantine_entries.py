"""Old entries of the quarantine are discarded, some are tried again (short, because each chore has a file)."""

from __future__ import annotations

from contextlib import suppress

from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger.quarantine import QuarantineEntry, open_entries
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.operating.quarantine import discard_entry, find_due_again, try_again
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.chores import Chore

_RETENTION = "retention"


def find_old_entries(store: Store, *, now: int, most: int | None = None) -> list[QuarantineEntry]:
    """Return the entries of files and rows that have been in quarantine for longer than they are to be.

    Staged rows that cannot be read back stay: they were acknowledged, and wait for a person, however long.
    """
    retention = store.settings.quarantine_retention_seconds
    if not retention:
        return []
    before = now - int(retention * 1e6)
    with store.ledger.read() as tx:
        return [
            entry
            for entry in open_entries(tx)
            if entry.created_at < before and entry.kind is not QuarantineKind.SEGMENT
        ][:most]


def discard_old_entries(store: Store, *, now: int, most: int | None = None) -> list[QuarantineEntry]:
    """Discard what :func:`find_old_entries` finds; return the entries that were discarded."""
    discarded = []
    for entry in find_old_entries(store, now=now, most=most):
        with suppress(TimestoreError):  # somebody was first, or it is tried the next time
            discarded.append(discard_entry(store, entry.id, _RETENTION))
    return discarded


OLD_ENTRIES = Chore[list[QuarantineEntry]](
    "discarded",
    "discarding old entries of the quarantine",
    [],
    find=lambda round_: find_old_entries(round_.store, now=round_.now, most=round_.most),
    remove=lambda round_: discard_old_entries(round_.store, now=round_.now, most=round_.most),
)

UNPROVEN_ENTRIES = Chore[list[QuarantineEntry]](
    "tried_again",
    "trying files of the quarantine again",
    [],
    find=lambda round_: find_due_again(round_.store, now=round_.now, most=round_.most),
    remove=lambda round_: try_again(round_.store, now=round_.now, most=round_.most),
)

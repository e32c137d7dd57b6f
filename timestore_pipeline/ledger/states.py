"""States of what the ledger knows, and who moves them.

========  =============================  ==================================================================
what      state                          moved by
========  =============================  ==================================================================
batch     staged → published             staging acknowledges it; the build that publishes its last slice
          staged ↔ quarantined           no slice of it is left in the queue, and one is in quarantine
slice     staged → claimed → published   a claim sets ``build_id``; publishing sets ``published_at``;
                                         an aborted build sets ``build_id`` back to null
          staged ↔ quarantined           it cannot be read: ``quarantine_id`` is set; a retry sets it back
build     claimed → published | aborted  the build itself, or a recovery that settled it by the table
segment   live → published → unlinked    the build that publishes its last slice; retention
          live ↔ quarantined             a slice of it is set aside; an operator retries or discards it
entry     open → retried | discarded     staging or a build sets something aside; an operator
========  =============================  ==================================================================

A slice is in the queue while it is neither published nor in quarantine, and so is a batch.
"""

from __future__ import annotations

from enum import StrEnum


class BuildState(StrEnum):
    """Where a build stands."""

    CLAIMED = "claimed"
    PUBLISHED = "published"
    ABORTED = "aborted"


class BuildKind(StrEnum):
    """What a build does to the table."""

    FLUSH = "flush"
    """Publishes staged slices."""
    COMPACTION = "compaction"
    """Merges small files; the rows stay the same."""
    REBUILD = "rebuild"
    """Derives windows again from retained segments."""
    EXPIRY = "expiry"
    """Drops windows that are older than the dataset keeps them."""
    REPAIR = "repair"
    """Takes files that are gone or damaged out of the table, with what can be read of them written anew."""


class CorrectionKind(StrEnum):
    """What a correction takes back."""

    REPLACEMENT = "replacement"
    """The rows of a range of times; those of a batch take their place."""


class QuarantineKind(StrEnum):
    """What was set aside."""

    BATCH = "batch"
    """A file that could not be staged."""
    ROWS = "rows"
    """Rows of a batch whose times no window can hold."""
    SEGMENT = "segment"
    """Staged rows whose segment cannot be read back."""


class QuarantineState(StrEnum):
    """Where a quarantined thing stands."""

    OPEN = "open"
    RETRIED = "retried"
    DISCARDED = "discarded"

"""Named moments between durable steps, at which a test lets its process be killed or stopped, or acts in it.

What must hold at every one of them is invariants 1, 2 and 6. Outside of tests :func:`reach` does nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

VARIABLE = "_TIMESTORE_SIGNAL_AT"
"""``<point>=<signal>`` or ``<point>:<n>=<signal>``, the n-th time, or several with commas; for processes of tests."""


class CrashPoint(StrEnum):
    """Every moment, in the order in which a batch passes them; named after what has just been done."""

    FILE_SYNCED = "file.synced"
    FILE_RENAMED = "file.renamed"
    FILE_IN_PLACE = "file.in-place"

    REFUSED_ROWS_WRITTEN = "segment.refused-rows-written"
    REFUSED_ROWS_IN_PLACE = "segment.refused-rows-in-place"
    SEGMENT_WRITTEN = "segment.written"
    SEGMENT_IN_PLACE = "segment.in-place"
    CORRECTION_IN_PLACE = "segment.correction-in-place"
    CORRECTION_KEPT = "segment.correction-kept"
    BATCHES_RECORDED = "batches.recorded-not-committed"
    BATCHES_ACKNOWLEDGED = "batches.acknowledged"
    READINGS_BEGUN = "landing.readings-begun"
    LANDING_FILES_COPIED = "landing.files-copied"
    LANDING_FILE_CLEARED = "landing.file-cleared"
    LANDING_CLEARED = "landing.cleared"
    LANDING_REMEMBERED = "landing.remembered"
    BAD_FILE_RECORDED = "quarantine.recorded"
    BAD_FILE_MOVED = "quarantine.moved"

    TABLE_CREATED = "table.created"
    TAKEN_RECORDED = "build.taken-recorded"
    SLICES_RECORDED = "claim.recorded-not-committed"
    SLICES_CLAIMED = "claim.committed"
    TYPES_DECLARED = "table.types-declared"
    WINDOWS_ADDED = "windows.added"
    PARQUET_WRITTEN = "parquet.written"
    PARQUET_SYNCED = "parquet.synced"
    PARQUET_RENAMED = "parquet.renamed"
    PARQUET_IN_PLACE = "parquet.in-place"
    MANIFEST_WRITTEN = "manifest.written"
    TABLE_CHECKED = "table.checked"
    TABLE_COMMITTED = "table.committed"
    TABLE_SYNCED = "table.synced"
    MANIFEST_KEPT = "manifest.kept"
    MANIFESTS_MERGED = "manifest.merged"
    PUBLICATION_RECORDED = "publication.recorded-not-committed"
    PUBLICATION_COMMITTED = "publication.committed"

    RECOVERY_FENCED = "recovery.fenced"
    RECOVERY_ABORTED = "recovery.aborted"
    RECOVERY_CLEANED = "recovery.cleaned"
    RECOVERY_PUBLISHED = "recovery.published"

    MARK_REMOVED = "identity.mark-removed"
    MARK_REPLACED = "identity.mark-replaced"
    IDENTITY_RECORDED = "identity.recorded-not-committed"
    IDENTITY_COMMITTED = "identity.committed"
    TABLE_HANDED_OVER = "identity.table-handed-over"

    LEDGER_REBUILT = "rebuild.recorded-not-committed"

    SEGMENT_UNLINKED = "retention.unlinked"
    RETENTION_COMMITTED = "retention.committed"
    ORPHAN_REMOVED = "sweep.removed"
    VACUUM_REMOVED = "vacuum.removed"
    LEDGER_PRUNED = "pruning.recorded-not-committed"


@dataclass(eq=False)
class _Plan:
    """What is done at a point, the how manieth time from now that it is reached."""

    point: CrashPoint
    left: int
    act: Callable[[], object]


_plans: list[_Plan] = []


def arm(plan: str | None) -> None:
    """Let this process signal itself as ``plan`` says (see :data:`VARIABLE`), or not any more."""
    _plans[:] = map(_signalling, plan.split(",")) if plan else []


def _signalling(text: str) -> _Plan:
    where, _, name = text.partition("=")
    point, _, times = where.partition(":")
    return _Plan(CrashPoint(point), int(times or 1), partial(_signal_itself, signal.Signals[name]))


def _signal_itself(number: signal.Signals) -> None:
    """Send a signal to the process that reaches the point, which may be a fork of the one that was armed."""
    os.kill(os.getpid(), number)


@contextmanager
def at(point: CrashPoint, act: Callable[[], object], times: int = 1) -> Iterator[None]:
    """Call ``act`` once in the block, in the middle of whatever reaches ``point`` for the ``times``-th time.

    What ``act`` raises is raised there, as an error or an interrupt would be. What it does may reach the point again.

    Raises:
        AssertionError: the block ended and the point was not reached so often.
    """
    plan = _Plan(point, times, act)
    _plans.append(plan)
    try:
        yield
    finally:
        _plans.remove(plan)
    if plan.left > 0:
        raise AssertionError(f"{point} was reached {times - plan.left} times, not {times}")


def reach(point: CrashPoint) -> None:
    """Say that ``point`` is reached."""
    for plan in tuple(_plans):
        if plan.point is point:
            plan.left -= 1
            if plan.left == 0:
                plan.act()


arm(os.environ.get(VARIABLE))

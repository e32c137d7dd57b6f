"""Segments whose rows are all published, and have been for as long as they are kept: their files are unlinked."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import TableError
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.segments import SegmentFile, mark_unlinked, published_before
from timestore_pipeline.ledger.tables import table_versions
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.freed import Freed
from timestore_pipeline.policy import Policy
from timestore_pipeline.storage.table_folder import has_table
from timestore_pipeline.store import Store
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.upkeep.chores import Chore

log = log_named(__name__)

_NAMED = 3


def find_published_segments(
    store: Store,
    now: int,
    *,
    max_files: int | None = None,
    datasets: Collection[str] | None = None,
    retention_micros: int | None = None,
) -> list[SegmentFile]:
    """Return the segments whose rows have all been published for longer than their dataset's retention, oldest first.

    Of ``datasets``, by default of all, and at most ``max_files``; ``retention_micros`` goes before the retention that
    each has. ``now`` is in microseconds since the epoch.

    Raises:
        PlaceError: there are any, and staging or tables are not there, or another installation's.
    """
    with store.ledger.read() as tx:
        published = [
            segment for segment in published_before(tx, now) if datasets is None or segment.dataset in datasets
        ]
    kept = {
        name: (
            Policy.of(store.settings, store.datasets.declared.get(name)).staging_retention_micros
            if retention_micros is None
            else retention_micros
        )
        for name in {segment.dataset for segment in published}
    }
    expired = [segment for segment in published if segment.published_at <= now - kept[segment.dataset]]
    # Where the table is an older one, they may be the only copy of rows that were in it.
    unsound = without_a_sound_table(store, {segment.dataset for segment in expired})
    expired = [segment for segment in expired if segment.dataset not in unsound][:max_files]
    if expired:
        store.staging.require()
    return expired


def unlink_published_segments(
    store: Store,
    now: int | None = None,
    *,
    max_files: int | None = None,
    datasets: Collection[str] | None = None,
    retention_micros: int | None = None,
) -> Freed:
    """Unlink what :func:`find_published_segments` finds, ``now`` by default being the clock's.

    Safe to be killed: a segment that is gone but not yet marked is marked the next time.

    Raises:
        PlaceError: as it says; nothing was removed.
    """
    now = now_micros() if now is None else now
    expired = find_published_segments(
        store, now, max_files=max_files, datasets=datasets, retention_micros=retention_micros
    )
    if not expired:
        return Freed()
    gone = []
    together = store.staging.traits.deleted_at_once
    for start in range(0, len(expired), together):
        chunk = expired[start : start + together]
        try:
            store.staging.delete(*(segment.path for segment in chunk))
        except OSError as error:
            names = ", ".join(dict.fromkeys(segment.dataset for segment in chunk))
            paths = ", ".join(segment.path for segment in chunk[:_NAMED])
            log.warning("%s: segment %s cannot be removed: %s", names, paths, error.strerror or error)
            continue
        gone += chunk
        reach(CrashPoint.SEGMENT_UNLINKED)
    unlinked = [segment.id for segment in gone]
    store.ledger.transact(lambda tx: mark_unlinked(tx, unlinked, now))
    reach(CrashPoint.RETENTION_COMMITTED)
    return Freed.of(segment.bytes for segment in gone)


def without_a_sound_table(store: Store, datasets: Iterable[str]) -> set[str]:
    """Return those of the datasets whose tables contradict the ledger, or have no rows to be read: nothing goes."""
    names = list(datasets)
    with store.ledger.read() as tx:
        known = table_versions(tx, names)
    found = set()
    for name in names:
        if has_table(store.table(name)):
            try:
                objection = OwnTable(store, name).look().objection
                reason = None if objection is None else objection[1]
            except TableError:
                reason = "its table cannot be opened"
        else:
            reason = None if known.get(name) is None else "its table is not there"
        if reason is not None:
            log.warning("%s: nothing of it is removed: %s. See 'timestore doctor'", name, reason)
            found.add(name)
    return found


PUBLISHED_SEGMENTS = Chore(
    "segments",
    "unlinking segments",
    Freed(),
    find=lambda round_: Freed.of(
        segment.bytes for segment in find_published_segments(round_.store, round_.now, max_files=round_.most)
    ),
    remove=lambda round_: unlink_published_segments(round_.store, round_.now, max_files=round_.most),
)

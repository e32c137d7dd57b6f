"""Clearing the staging directory: what is published or nobody's goes; what is not published only if it is named.

Rows that are given up leave the queue in the ledger before their files go, under entries of the quarantine that say
who gave them up and when. So the ledger never says that rows are staged which are gone, and no counter goes down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from timestore_pipeline.errors import BuildInFlight, StagingNotEmpty, UnknownDataset
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.builds import build_in_flight
from timestore_pipeline.ledger.datasets import known_datasets, lock_dataset
from timestore_pipeline.ledger.limits import all_pauses, pause_of
from timestore_pipeline.ledger.quarantine import (
    DamagedSegment,
    discard_slices,
    open_entries,
    resolve_entry,
    set_slices_aside,
)
from timestore_pipeline.ledger.queue import QueueState, queue_states
from timestore_pipeline.ledger.segments import published_before
from timestore_pipeline.ledger.slices import unclaimed_slices
from timestore_pipeline.ledger.states import QuarantineKind, QuarantineState
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.segments.slices import by_segment
from timestore_pipeline.storage.layout import decided_by
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import ORPHAN_AGE_SECONDS, sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments

log = log_named(__name__)

_REASON = "given up when the staging directory was cleared"


@dataclass(frozen=True)
class InStaging:
    """What lies in the staging directory of one dataset.

    ``lost_rows`` and ``lost_files`` would be lost: rows that are staged or in quarantine, and files in quarantine of
    which nobody knows how many rows they have.
    """

    dataset: str
    staged_rows: int
    staged_batches: int
    quarantined_rows: int
    quarantined_files: int
    retained_segments: int
    retained_bytes: int

    @property
    def lost_rows(self) -> int:
        """Rows that are nowhere else."""
        return self.staged_rows + self.quarantined_rows

    @property
    def lost_files(self) -> int:
        """Files that are nowhere else."""
        return self.quarantined_files


@dataclass(frozen=True)
class Cleared:
    """What a clearing removed, and what could not be removed, with the reason."""

    datasets: tuple[InStaging, ...]
    lost_rows: int
    lost_files: int
    files: int
    bytes: int
    problems: tuple[str, ...] = ()


def look_into_staging(store: Store, datasets: Sequence[str]) -> list[InStaging]:
    """Return what lies in staging of datasets (none: of all that the ledger knows).

    Raises:
        UnknownDataset: the ledger does not know one.
    """
    with store.ledger.read() as tx:
        return _look(store, tx, datasets)


def clear_staging(
    store: Store, datasets: Sequence[str], *, by: str, lose_rows: int = 0, lose_files: int = 0
) -> Cleared:
    """Remove published segments, orphans and temporary files of datasets (none: of all), whatever their age.

    Unpublished rows and quarantined files go only if ``lose_rows`` and ``lose_files`` are exactly as many as there are
    at this moment. Of datasets whose intake is not paused, unknown files younger than an hour stay, as they may belong
    to a process that is writing just now.

    Raises:
        StagingNotEmpty: other numbers would be lost; nothing was done.
        BuildInFlight: a build may be reading; nothing was done.
        UnknownDataset: the ledger does not know one.
    """
    now = now_micros()
    with store.ledger.write() as tx:
        found = _look(store, tx, datasets)
        for each in found:
            lock_dataset(tx, each.dataset)
            build = build_in_flight(tx, each.dataset)
            if build is not None:
                raise BuildInFlight(each.dataset, build.id, build.owner)
        found = _look(store, tx, [each.dataset for each in found])
        rows, files = sum(each.lost_rows for each in found), sum(each.lost_files for each in found)
        if (rows, files) != (lose_rows, lose_files):
            raise StagingNotEmpty(rows, files, lose_rows, lose_files)
        unneeded = [path for each in found for path in _give_up(tx, each.dataset, by, now)]
        paused = all(pause_of(all_pauses(tx), each.dataset) for each in found)
    problems: list[str] = []
    removed, size = _unlink(store, unneeded, problems)
    names = {each.dataset for each in found}
    retained = unlink_published_segments(store, retention_micros=0, datasets=names)
    orphans = sweep_orphans(store, 0 if paused else ORPHAN_AGE_SECONDS, datasets=names)
    with store.ledger.read() as tx:
        problems += [
            f"{store.staging.shown(left.path)} cannot be removed"
            for left in published_before(tx, now_micros())
            if left.dataset in names
        ]
    return Cleared(
        datasets=tuple(found),
        lost_rows=rows,
        lost_files=files,
        files=removed + retained.files + orphans.files,
        bytes=size + retained.bytes + orphans.bytes,
        problems=tuple(problems),
    )


def _look(store: Store, tx: Connection, datasets: Sequence[str]) -> list[InStaging]:
    known = known_datasets(tx)
    for name in datasets:
        if name not in known:
            raise UnknownDataset(name, list(store.datasets))
    queues = queue_states(tx)
    retained = published_before(tx, now_micros())
    entries = open_entries(tx)
    found = []
    for name in datasets or sorted(known):
        queue = queues.get(name, QueueState(name))
        mine = [entry for entry in entries if entry.dataset == name]
        segments = [segment for segment in retained if segment.dataset == name]
        found.append(
            InStaging(
                dataset=name,
                staged_rows=queue.pending_rows,
                staged_batches=queue.pending_batches,
                quarantined_rows=sum(entry.rows or 0 for entry in mine),
                quarantined_files=sum(entry.rows is None for entry in mine),
                retained_segments=len(segments),
                retained_bytes=sum(segment.bytes for segment in segments),
            )
        )
    return found


def _give_up(tx: Connection, dataset: str, by: str, now: int) -> list[str]:
    """Take everything unpublished out of the ledger's queue and quarantine; return the paths nobody needs any more."""
    unneeded = []
    for segment_id, pieces in by_segment(unclaimed_slices(tx, dataset)).items():
        segment = DamagedSegment(dataset, segment_id, pieces[0].path, sum(piece.bytes for piece in pieces), _REASON)
        set_slices_aside(tx, segment, [piece.window_start for piece in pieces], now)
    for entry in open_entries(tx, dataset):
        if entry.kind is QuarantineKind.SEGMENT:
            discard_slices(tx, entry, by=by, now=now)
        else:
            resolve_entry(tx, entry.id, QuarantineState.DISCARDED, by, now)
        unneeded.append(entry.path)
    still = {segment.path for segment in published_before(tx, now)}
    return [path for path in dict.fromkeys(unneeded) if path not in still]


def _unlink(store: Store, paths: Iterable[str], problems: list[str]) -> tuple[int, int]:
    files = size = 0
    removed: set[str] = set()
    for path in paths:
        try:
            found = store.staging.size(path)
            if found is None:
                continue
            store.staging.delete(path)
        except OSError as error:
            problems.append(f"{store.staging.shown(path)} cannot be removed: {error.strerror or error}")
            continue
        files, size = files + 1, size + found
        removed.add(path)
    for folder in sorted({path.rpartition("/")[0] for path in removed}):
        marks = ((entry.key, decided_by(entry.key)) for entry in store.staging.entries(f"{folder}/"))
        store.staging.delete(*(key for key, decided in marks if decided is not None and decided[0] in removed))
    return files, size

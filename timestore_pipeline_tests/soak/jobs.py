"""The pieces of work of a soak, in this process or in one that is killed or stopped in the middle of them."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from timestore_pipeline import crash_points
from timestore_pipeline.building.compact import compact_fully
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.maintenance import maintain
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import ingest
from timestore_pipeline_tests.crash.child import BUILDING
from timestore_pipeline_tests.forks import take_environment
from timestore_pipeline_tests.soak.books import Batch
from timestore_pipeline_tests.soak.faults import Clock

TEN_DAYS = 10 * 86_400 * 1_000_000

Note = Callable[[Batch], object]


@dataclass(frozen=True)
class Job:
    """A piece of work: its name in :data:`WORK`, whose dataset, and the batches that it stages."""

    name: str
    dataset: str = ""
    batches: tuple[Batch, ...] = ()


def _stage(store: Store, job: Job, note: Note) -> None:
    for batch in job.batches:
        stage(store, batch.dataset, batch.table(), batch_id=batch.batch_id)
        note(batch)


def _maintain(store: Store, job: Job, note: Note) -> None:
    # Later than all graces and earlier than any batch is forgotten.
    maintain(store, owner="the soak", owner_is_gone=lambda owner: True, now=now_micros() + TEN_DAYS)


def _retry(store: Store, job: Job, note: Note) -> None:
    with store.ledger.read() as tx:
        entries = [entry.id for entry in open_entries(tx) if entry.kind is QuarantineKind.SEGMENT]
    for entry in entries:
        retry_entry(store, entry, "the soak")


def _retire(store: Store, job: Job, note: Note) -> None:
    unlink_published_segments(store)
    sweep_orphans(store, older_than_seconds=0)


WORK: dict[str, Callable[[Store, Job, Note], object]] = {
    "stage": _stage,
    "ingest": lambda store, job, note: ingest(store),
    "flush": lambda store, job, note: flush_windows(store, BuildOrder(job.dataset, owner="the soak")),
    "compact": lambda store, job, note: compact_fully(store, BuildOrder(job.dataset, owner="the soak")),
    "maintain": _maintain,
    "settle": lambda store, job, note: settle_dead_builds(store, owner_is_gone=lambda owner: True),
    "retry": _retry,
    "retire": _retire,
}

_WRITING = (CrashPoint.FILE_SYNCED, CrashPoint.FILE_RENAMED, CrashPoint.FILE_IN_PLACE)
_STAGING = (
    *_WRITING,
    CrashPoint.SEGMENT_WRITTEN,
    CrashPoint.SEGMENT_IN_PLACE,
    CrashPoint.BATCHES_RECORDED,
    CrashPoint.BATCHES_ACKNOWLEDGED,
)
POINTS: dict[str, tuple[CrashPoint, ...]] = {
    "stage": _STAGING,
    "ingest": (
        *_STAGING,
        CrashPoint.READINGS_BEGUN,
        CrashPoint.LANDING_FILE_CLEARED,
        CrashPoint.LANDING_CLEARED,
    ),
    "flush": BUILDING,
    "compact": BUILDING[1:],
    "maintain": (CrashPoint.SEGMENT_UNLINKED, CrashPoint.VACUUM_REMOVED, CrashPoint.LEDGER_PRUNED),
    "settle": (
        CrashPoint.TABLE_CHECKED,
        CrashPoint.TABLE_COMMITTED,
        CrashPoint.RECOVERY_FENCED,
        CrashPoint.RECOVERY_ABORTED,
        CrashPoint.RECOVERY_CLEANED,
        CrashPoint.RECOVERY_PUBLISHED,
        CrashPoint.PUBLICATION_RECORDED,
    ),
    "retry": (*_WRITING,),
    "retire": (CrashPoint.SEGMENT_UNLINKED, CrashPoint.RETENTION_COMMITTED, CrashPoint.ORPHAN_REMOVED),
}
"""Where each piece of work is stopped, killed or disturbed; not all are reached each time."""

IN_A_TRANSACTION = {
    CrashPoint.SLICES_RECORDED,
    CrashPoint.PUBLICATION_RECORDED,
    CrashPoint.BATCHES_RECORDED,
    CrashPoint.LEDGER_PRUNED,
}
"""Who is stopped there holds up everybody who writes to the ledger."""


def journaled(journal: Path) -> set[int]:
    """Return the numbers of the batches that a process noted as acknowledged."""
    return {int(line) for line in journal.read_text().splitlines()} if journal.exists() else set()


def work_until_ended(
    settings: Settings,
    environment: Mapping[str, str],
    hours: float,
    jobs: Sequence[Job],
    plan: str | None,
    journal: Path,
    began: Connection,
) -> None:
    """Do jobs one after the other, by a clock that is ``hours`` ahead; the other side of a process that is killed.

    Ends with 1 where a job was refused, and with 2 where it failed in a way that is no clear error.
    """
    take_environment(environment)
    code = 0
    with Clock(hours).shown(), journal.open("a") as stream, Store.open(settings) as store:
        crash_points.arm(plan)
        began.send(None)
        for job in jobs:
            try:
                # The kernel keeps what was written when the process is killed.
                WORK[job.name](store, job, lambda batch: print(batch.number, file=stream, flush=True))
            except (TimestoreError, OSError):
                code = 1
            except BaseException:
                traceback.print_exc()
                os._exit(2)
    sys.exit(code)
